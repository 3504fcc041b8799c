"""Try to break out of a service. Prints one JSON object: attack to "", or to why it failed.

Runs in a service, and for comparison outside of one, so it needs nothing but Python. Syscall numbers are x86-64's
(asm/unistd_64.h). What would harm the machine if it worked is tried only with ``--all``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import pathlib
import signal
import socket
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NEWNS, NEWUTS, NEWUSER, NEWNET, SIGCHLD = 0x20000, 0x4000000, 0x10000000, 0x40000000, 17
ATTACKS: dict[str, Callable[[], object]] = {}
HARMFUL: set[str] = set()


def attack(
    name: str, harmful: bool = False
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def keep(function: Callable[[], object]) -> Callable[[], object]:
        ATTACKS[name] = function
        if harmful:
            HARMFUL.add(name)
        return function

    return keep


def call(number: int, *arguments: object) -> int:
    words = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def syscalls(harmful: bool, **numbers: tuple[object, ...]) -> None:
    for name, (number, *arguments) in numbers.items():
        attack(name, harmful)(
            lambda number=number, arguments=arguments: in_child(lambda: call(number, *arguments))
        )


NULL = ctypes.c_void_p(None)
BUFFER = ctypes.create_string_buffer(256)
KEY = b"user", b"niso-attack", b"x", 1, -2  # KEY_SPEC_PROCESS_KEYRING
ATTRIBUTES = ctypes.create_string_buffer(
    struct.pack("=IIQ", 1, 128, 1), 128
)  # PERF_TYPE_SOFTWARE, CPU clock of this process
MAP = ctypes.create_string_buffer(
    struct.pack("=IIII", 2, 4, 4, 1), 128
)  # BPF_MAP_TYPE_ARRAY of one
syscalls(
    False,
    unshare_user=(272, NEWUSER),
    unshare_mount=(272, NEWNS),
    unshare_net=(272, NEWNET),
    mount=(165, b"none", b"/tmp", b"tmpfs", 0, NULL),
    open_tree=(428, -100, b"/", 1),
    fsopen=(430, b"tmpfs", 0),
    bpf=(321, 0, MAP, 128),
    add_key=(248, *KEY),
    keyctl=(250, 0, -3, 1),
    io_uring_setup=(425, 1, ctypes.create_string_buffer(120)),
    userfaultfd=(323, 1),
    perf_event_open=(298, ATTRIBUTES, 0, -1, -1, 0),
    fanotify_init=(300, 0, 0),
    syslog=(103, 3, BUFFER, 256),
    no_randomization=(135, 0x0040000),
    pidfd_getfd_of_pid_1=(438, os.pidfd_open(1), 0, 0),
    set_priority=(141, 0, 0, -20),
)
syscalls(
    True,
    kexec_load=(246, 0, 0, NULL, 0),
    init_module=(175, b"x", 1, b""),
    finit_module=(313, -1, b"", 0),
    delete_module=(176, b"br_netfilter", 0x800),
    reboot=(169, 0xFEE1DEAD, 672274793, 0, NULL),  # Ctrl-Alt-Del off
    swapoff=(168, b"/none"),
    settimeofday=(164, struct.pack("=QQ", 1, 0), NULL),
    acct=(163, b"/tmp/acct"),
    iopl=(172, 3),
    sethostname=(170, b"owned", 5),
    pivot_root=(155, b"/tmp", b"/tmp"),
    chroot=(161, b"/tmp"),
    umount=(166, b"/proc", 2),
)


def in_child(function: Callable[[], object]) -> None:
    """In a child, since it ends, or changes, the process. Raises what it raised, or that a signal ended it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os.write(write, b"\0\0\0\0")
        except OSError as error:
            os.write(write, struct.pack("=i", error.errno or 0))
        finally:
            os._exit(0)
    os.close(write)
    answer = os.read(read, 4)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        raise PermissionError(errno.EPERM, signal.Signals(os.WTERMSIG(status)).name)
    number = struct.unpack("=i", answer)[0]
    if number:
        raise OSError(number, os.strerror(number))


@attack("clone_user")
def clone_user() -> None:
    pid = call(56, NEWUSER | SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@attack("clone3_user")
def clone3_user() -> None:
    arguments = ctypes.create_string_buffer(struct.pack("=8Q", NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0))
    pid = call(435, arguments, 64)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@attack("ptrace")
def ptrace() -> None:
    in_child(lambda: call(101, 0, 0, 0, 0))


@attack("process_vm_readv")
def process_vm_readv() -> None:
    local = struct.pack("=QQ", ctypes.addressof(BUFFER), 8)
    call(310, os.getpid(), local, 1, local, 1, 0)


@attack("setns_net_of_pid_1")
def setns() -> None:
    in_child(lambda: os.setns(os.open("/proc/1/ns/net", os.O_RDONLY), NEWNET))


@attack("files_by_handle")
def handle() -> None:
    """How containers were left by way of a bind mount of the host's (CAP_DAC_READ_SEARCH)."""
    shown = b"/app" if os.path.isdir("/app") else b"/usr"
    handle_ = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    mount = ctypes.c_int()
    call(303, -100, shown, handle_, ctypes.byref(mount), 0)
    fd = os.open(shown, os.O_RDONLY)
    call(304, fd, handle_, os.O_RDONLY)


@attack("calls_of_32_bits")
def old_calls() -> None:
    """The same by int 0x80, past a filter that knows 64 bits only: getpid(2) is number 20 there."""

    def go() -> None:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3")
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        if function() != os.getpid():
            raise OSError(errno.ENOSYS, "no such call")

    in_child(go)


@attack("calls_of_x32")
def x32() -> None:
    in_child(lambda: call(0x40000000 + 272, NEWUSER))


def first_byte(path: str) -> int:
    with open(path, "rb") as file:
        return file.read(1)[0]


# --- files -----------------------------------------------------------------------------------------------------------

for path in (
    *(
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_forward",
    ),
    *("/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/hostname", "/proc/irq/default_smp_affinity"),
    *(
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/module/br_netfilter/uevent",
        "/sys/class/net/lo/ifalias",
    ),
    *("/etc/passwd", "/usr/bin/env", "/dev/kmsg", "/dev/mem"),
):
    attack(f"write {path}")(lambda path=path: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)))
for path in (
    "/proc/kcore",
    "/etc/shadow",
    "/proc/keys",
    "/proc/timer_list",
    "/sys/firmware/acpi/tables/DSDT",
):
    attack(f"read {path}")(lambda path=path: first_byte(path))
for path in ("/app", "/usr", "/etc", "/", "/etc/niso-hosts", "/sys/fs/cgroup"):
    attack(f"make a file in {path}")(
        lambda path=path: os.close(os.open(f"{path}/.attack", os.O_CREAT | os.O_RDWR))
    )


@attack("cgroup release_agent")
def release_agent() -> None:
    found = [
        os.path.join(top, "release_agent")
        for top, _, names in os.walk("/sys/fs/cgroup")
        if "release_agent" in names
    ]
    os.close(os.open(found[0], os.O_WRONLY))


@attack("leave the cgroup")
def cgroup() -> None:
    for top, _, names in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in names:
            return os.close(os.open(os.path.join(top, "cgroup.procs"), os.O_WRONLY))
    raise FileNotFoundError(errno.ENOENT, "no cgroup to be seen")


@attack("open a device of its own making")
def device() -> None:
    path = "/tmp/.zero"
    if os.path.exists(path):
        os.unlink(path)
    os.mknod(path, 0o20666, os.makedev(1, 5))
    os.close(os.open(path, os.O_RDONLY))


@attack("root by a setuid file")
def setuid() -> None:
    """A program with another owner and the setuid bit: no_new_privs, and nosuid on what can be written."""
    if os.getuid() == 0:
        raise PermissionError(errno.EPERM, "it is root already")
    for name in ("su", "passwd", "mount", "newgrp"):
        path = f"/usr/bin/{name}"
        if os.path.exists(path) and os.stat(path).st_mode & 0o4000:
            if "NoNewPrivs:\t1" in pathlib.Path("/proc/self/status").read_text():
                raise PermissionError(errno.EPERM, "no_new_privs")
            return
    raise FileNotFoundError(errno.ENOENT, "no setuid file")


@attack("become root")
def become_root() -> None:
    def go() -> None:
        if os.getuid() == 0:
            os.setuid(12345)
            os.seteuid(0)
        os.setresuid(0, 0, 0)

    in_child(go)


@attack("be killed last")
def oom() -> None:
    with open("/proc/self/oom_score_adj") as file:
        now = int(file.read())
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(now - 1))


@attack("raise a hard limit")
def limits() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))


# --- sockets ---------------------------------------------------------------------------------------------------------

for name, arguments in {
    "packet socket": (socket.AF_PACKET, socket.SOCK_RAW, 0),
    "raw socket": (socket.AF_INET, socket.SOCK_RAW, 1),
    "raw socket of IPv6": (socket.AF_INET6, socket.SOCK_RAW, 58),
    "audit of the machine": (socket.AF_NETLINK, socket.SOCK_RAW, 9),
    "crypto of the kernel": (38, socket.SOCK_SEQPACKET, 0),
    "vsock to the hypervisor": (40, socket.SOCK_STREAM, 0),
    "XDP socket": (44, socket.SOCK_RAW, 0),
}.items():
    attack(name)(lambda arguments=arguments: socket.socket(*arguments).close())


def packet_option(level: int, option: int) -> None:
    """Switch on an option of a packet socket (linux/if_packet.h)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        call(54, made.fileno(), level, option, struct.pack("=I", 12), 4)


HIGH = 1 << 32  # the kernel ignores it, a filter must too
for name, arguments in {
    "option of a packet socket": (263, 8),  # SOL_PACKET, PACKET_AUXDATA
    "checksum at a chosen place": (263, 15),  # PACKET_VNET_HDR
    "checksum at a chosen place, by a longer header": (263, 24),  # PACKET_VNET_HDR_SZ
    "checksum at a chosen place, by a level with more bits": (HIGH + 263, 15),
    "checksum at a chosen place, by an option with more bits": (263, HIGH + 15),
}.items():
    attack(name)(lambda arguments=arguments: packet_option(*arguments))


def netlink(protocol: int, kind: int, flags: int, body: bytes) -> bytes:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body, (0, 0))
        answer = sock.recv(8192)
        if struct.unpack_from("=H", answer, 4)[0] == 2:
            number = -struct.unpack_from("=i", answer, 16)[0]
            if number:
                raise OSError(number, os.strerror(number))
        return answer


@attack("read nftables")
def read_rules() -> None:
    netlink(12, 0x0A01, 0x301, struct.pack("!BBH", 1, 0, 0))


@attack("make a link")
def make_link() -> None:
    info = struct.pack("=HH", 10, 1) + b"bridge" + bytes(2)
    body = (
        struct.pack("=BxHiII", 0, 0, 0, 0, 0)
        + struct.pack("=HH", 11, 3)
        + b"attack\0\0"[:7]
        + b"\0"
    )
    netlink(0, 16, 0x605, body + struct.pack("=HH", 4 + len(info), 18) + info)


@attack("take a link of another namespace")
def take_link() -> None:
    """Put an own link onto the host's uplink, by the number that the kernel has for the namespace of eth0's peer."""

    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    head = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    for (
        _,
        name,
    ) in (
        socket.if_nameindex()
    ):  # the kernel numbers the namespace of a peer when asked for the link
        netlink(0, 18, 1, head + attribute(3, name.encode() + b"\0"))
    for number in range(4):
        there = attribute(46, struct.pack("=i", number))  # IFLA_TARGET_NETNSID
        try:
            found = netlink(0, 18, 1, head + attribute(3, b"uplink0\0") + there)
        except OSError:
            continue
        index = found[20:24]
        body = head + attribute(3, b"taken\0") + attribute(5, index)
        body += attribute(37, struct.pack("=i", number))  # IFLA_LINK_NETNSID
        netlink(0, 16, 0x605, body + attribute(18, attribute(1, b"macvlan\0")))
        return
    raise OSError(errno.EPERM, "no such namespace")


@attack("take another address")
def take_address() -> None:
    body = struct.pack("=BBBBI", 2, 24, 0, 0, 1) + struct.pack(
        "=HH4s", 8, 2, socket.inet_aton("10.99.0.77")
    )
    netlink(0, 20, 0x605, body)


@attack("abstract socket of the host")
def abstract() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0niso-attack-target")


@attack("shared memory of the host")
def shared_memory() -> None:
    if libc.shmget(0x4E49534F, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@attack("processes of the host")
def processes() -> None:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if not any(
        b"niso-attack-victim" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids
    ):
        raise FileNotFoundError(errno.ESRCH, "not to be seen")


for path in (
    "/var/lib/niso",
    "/run/niso",
    "/run/netns",
    "/run/crun",
    "/tmp/packages",
    "/root",
    "/home",
):
    attack(f"look into {path}")(lambda path=path: os.listdir(path)[0])


def main() -> None:
    found = {}
    for name, function in ATTACKS.items():
        if name in HARMFUL and "--all" not in sys.argv:
            continue
        try:
            function()
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, str(error))
        except Exception as error:
            found[name] = repr(error)
        else:
            found[name] = ""
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
