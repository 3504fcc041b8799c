"""Read and write sysctls of the caller's network namespace; load br_netfilter, and bridge filters.

See proc_sys_net(5) and ip-sysctl.rst. The parts of a sysctl's name are separated by slashes, since
the name of an interface may contain dots: "net/ipv4/conf/eth0.7/forwarding". The kernel itself
loads most kernel modules on demand, but not br_netfilter. Functions raise KernelError.

A bridge filter is an eBPF program, which the kernel runs for each packet that it sends to a bridge
or receives from it. Flushing nftables rules does not remove bridge filters. The filters stop
packets without the packet mark that niso's rules set. Routing rules (ip-rule(8)) can stop these
packets too, but the first rule makes each route look-up of the host slower until the next boot
(fib_has_custom_rules).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from struct import pack, unpack_from
from types import ModuleType

from niso.base import paths, signals
from niso.base.errors import KernelError
from niso.base.native import call_libc, socket
from niso.kernel.netlink import refused, refusing
from niso.kernel.policy_rules import CHECKED

# --- sysctls --------------------------------------------------------------------------------------

_OWN = "/proc/thread-self/ns/net"
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # asm-generic/unistd.h
_FSCONFIG_CMD_CREATE = 6  # linux/mount.h; its FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC are 1
_MOST_FOLDERS = 8
_MOST_WALKS = 64
# number of namespaces; with fewer, the private mount and ctypes cost more than they save
_FEW = 100
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# (network namespace, "ipv4") to a descriptor of that namespace's /proc/sys/net/ipv4
_folders: dict[tuple[int, str], int] = {}
# a descriptor of the folder with the sysctl folders, or -1; how many were opened from it
_top, _walks = -1, 0


def read(name: str) -> str | None:
    """Return the value of a sysctl without its final newline, or None if it does not exist."""
    return read_all((name,))[0]


def read_all(names: Iterable[str]) -> list[str | None]:
    with refusing("read sysctls"):
        inode = os.stat(_OWN).st_ino
    return [_read(inode, name) for name in names]


def write(name: str, value: str) -> None:
    write_all(((name, value),))


def write_all(values: Iterable[tuple[str, str]]) -> None:
    """Set several sysctls in order. ``values`` are pairs (name, value). If /proc/sys is read-only,
    a sysctl that already has its value is not an error.
    """
    inode = 0
    for name, value in values:
        what = f"set sysctl {name} to '{value}'"
        _check(name)
        with refusing(what):
            signals.hit(what)
            inode = inode or os.stat(_OWN).st_ino
            try:
                fd = _open(inode, name, os.O_WRONLY | os.O_TRUNC)
            except OSError as error:
                if error.errno == errno.EROFS and _read(inode, name) == value:
                    continue
                raise
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)


def _read(inode: int, name: str) -> str | None:
    try:
        fd = _open(inode, name, os.O_RDONLY)
        try:
            return os.read(fd, 4096).decode().rstrip("\n")
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise refused(f"read sysctl {name}", error.errno or 0) from error


def _open(inode: int, name: str, flags: int) -> int:
    """Return a descriptor of a sysctl in the calling thread's namespace. Raises OSError."""
    _check(name)
    _, family, tail = name.split("/", 2)
    key = (inode, family)
    folder = _folders.get(key)
    if folder is not None:
        try:
            return os.open(tail, flags | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            # the sysctl no longer exists, or the folder is of an earlier namespace with the same
            # inode number
            os.close(_folders.pop(key))
    while len(_folders) >= _MOST_FOLDERS:
        os.close(_folders.pop(next(iter(_folders))))  # the oldest entry
    folder = _open_folder(family)
    _folders[key] = folder
    return os.open(tail, flags | os.O_CLOEXEC, dir_fd=folder)


def _open_folder(family: str) -> int:
    global _top, _walks
    if _top < 0 or _walks >= _MOST_WALKS:
        old, _top = _top, -1
        if old >= 0:
            os.close(old)
        _top, _walks = _own_sys(), 0
    _walks += 1
    return os.open(f"net/{family}", _FOLDER, dir_fd=_top)


def _own_sys() -> int:
    """Open /proc/sys, or the same folder in a private mount (fsopen(2)), and return a descriptor.

    The private mount is faster with many namespaces. The namespaces' sysctl folders have the same
    names, so they share one chain of the file system's dentry cache. With 1,000 namespaces, opening
    two folders in /proc takes 1 to 2 ms. In a private mount it takes 0.07 ms, including the mount.
    If /proc/sys/net is read-only, no private mount is used, so that sysctls stay read-only.
    """
    try:
        has_few = len(os.listdir(paths.NETNS_DIR)) <= _FEW
    except OSError:
        has_few = True
    if has_few:
        return os.open(_SYS, _FOLDER)
    if os.statvfs(f"{_SYS}/net").f_flag & os.ST_RDONLY:
        return os.open(_SYS, _FOLDER)
    with suppress(OSError):
        context = call_libc("syscall", _FSOPEN, "proc", 1)
        try:
            call_libc("syscall", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            mount = call_libc("syscall", _FSMOUNT, context, 1, 0)
        finally:
            os.close(context)
        try:
            return os.open("sys", _FOLDER, dir_fd=mount)
        finally:
            os.close(mount)
    return os.open(_SYS, _FOLDER)


def _ctypes() -> ModuleType:
    import ctypes

    return ctypes


def _check(name: str) -> None:
    if not name.startswith("net/") or ".." in name.split("/") or name.count("/") < 2:
        raise KernelError(f"'{name}' is not a sysctl of a network namespace")


# --- kernel modules -------------------------------------------------------------------------------

BRIDGE_NETFILTER = "net/bridge"
_GLOBAL = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
_SYS = "/proc/sys"
_MODPROBE = ("/usr/sbin/modprobe", "/sbin/modprobe")


def bridge_netfilter_acts() -> bool:
    """Return whether bridges with nf_call_iptables pass frames to the rules of the inet tables.

    This needs the kernel module br_netfilter. In a lab without root, which cannot load the module,
    the result is always True.
    """
    present = os.path.isdir(f"{_SYS}/{BRIDGE_NETFILTER}")
    return present or (paths.in_lab() and paths.in_user_namespace())  # niso lab has warned


def load_bridge_netfilter() -> None:
    """Load the kernel module br_netfilter, if it is missing. Bridges with nf_call_iptables need it.
    The module's global sysctls are 1 at first, so that the frames of all bridges pass the rules of
    all tables. This function sets them to 0: other bridges then behave as without the module.
    Raises KernelError if the module cannot be loaded. In a lab without root, which cannot load it,
    this function does nothing.
    """
    if bridge_netfilter_acts():
        return
    _load("br_netfilter")
    if not os.path.isdir(f"{_SYS}/{BRIDGE_NETFILTER}"):
        raise KernelError(
            "cannot load the kernel module br_netfilter: services of one network would get no"
            " reply from each other's published ports",
            "install the full set of kernel modules, or publish no ports",
        )
    for name in _GLOBAL:
        write(f"{BRIDGE_NETFILTER}/{name}", "0")


# What niso's links and rules need. The kernel loads these modules on demand.
_ON_DEMAND = (
    *("bridge", "veth", "vxlan", "sch_tbf", "nf_tables", "nf_conntrack", "nf_conntrack_netlink"),
    *("nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_limit", "nft_hash"),
    *("nft_numgen", "nft_log", "nft_socket", "nft_reject", "nft_reject_inet", "nft_fib"),
    *("nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nfnetlink_log"),
)
_LIBRARY, _MODULAR = "/lib/modules", "/proc/modules"


def missing_modules() -> str | None:
    """Return a hint that names the modules which niso's links and rules need and which cannot be
    loaded, or None if there are none, or if this machine has no modules. It is for the error of a
    change that the kernel refused: this function tries to load each module.
    """
    release = os.uname().release
    modular = os.path.exists(_MODULAR) and os.path.isdir(_LIBRARY)
    if paths.in_user_namespace() or not modular:
        return None
    if not os.path.isdir(f"{_LIBRARY}/{release}"):
        return f"{_LIBRARY}/{release} is missing; after an upgrade of the kernel, reboot"
    names = [name for name in _ON_DEMAND if not os.path.isdir(f"/sys/module/{name}")]
    names = [name for name in names if not _load(name)]
    if not names:
        return None
    return f"modprobe cannot load {', '.join(names)}: install the full set of kernel modules"


def _load(module: str) -> bool:
    """Load a kernel module. Return whether it is loaded, or built into the kernel."""
    program = next((path for path in _MODPROBE if os.path.exists(path)), None)
    if program is None:
        return False
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    pid = os.posix_spawn(program, ["modprobe", "-q", module], {}, file_actions=quiet)
    return os.waitpid(pid, 0)[1] == 0


# --- filters of bridges ---------------------------------------------------------------------------

_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}  # the number of bpf(2), asm/unistd.h
_PROG_LOAD, _PROG_ATTACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 5, 8, 13, 15, 16
_SCHED_CLS, _FIRST = 3, 1 << 3  # BPF_PROG_TYPE_SCHED_CLS, BPF_F_BEFORE
_HAS_TCX = (6, 6)
_MOST_FILTERS = 64  # BPF_MPROG_MAX
_MARK, _PROTOCOL, _IIF = 8, 16, 36  # offsets in struct __sk_buff
_LOAD, _STORE, _NEW_SUM = 26, 9, 10  # bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_l3_csum_replace
_DROP, _NEXT = 2, -1  # TCX_*


def _program(*lines: tuple[int, int, int | str, int] | str) -> bytes:
    """Assemble eBPF code. A line is a label, or (operation, registers, offset or label, value). The
    low half of ``registers`` is the destination, the high half the source.
    """
    code = [line for line in lines if not isinstance(line, str)]
    labels, at = {}, 0
    for line in lines:
        if isinstance(line, str):
            labels[line] = at
        else:
            at += 1
    return b"".join(
        pack("=BBhi", operation, registers, labels[to] - i - 1 if isinstance(to, str) else to, k)
        for i, (operation, registers, to, k) in enumerate(code)
    )


_UNLESS_MARKED = (
    (0xBF, 0x16, 0, 0),  # r6 = the packet
    (0x61, 0x10, _MARK, 0),
    (0x54, 0x00, 0, int(CHECKED, 16)),
    (0x55, 0x00, "next", 0),
)
_END = ("next", (0xB7, 0, 0, _NEXT), (0x95, 0, 0, 0), "drop", (0xB7, 0, 0, _DROP), (0x95, 0, 0, 0))


def _call(helper: int, start: int, size: int) -> tuple[tuple[int, int, int | str, int], ...]:
    """Return eBPF code that copies bytes of a frame from ``start`` to the stack, or back."""
    return (
        (0xBF, 0x61, 0, 0),
        (0xB7, 0x02, 0, start),
        (0xBF, 0xA3, 0, 0),
        (0x07, 0x03, 0, -2),
        (0xB7, 0x04, 0, size),
        (0xB7, 0x05, 0, 0),
        (0x85, 0x00, 0, helper),
        (0x55, 0x00, "drop", 0),
    )


_FILTERS = {
    # drops packets to the bridge, except those of the host itself, which have no input interface
    "niso_to_1": (
        47,  # BPF_TCX_EGRESS
        _program(
            *_UNLESS_MARKED,
            (0x61, 0x60, _IIF, 0),
            (0x55, 0x00, "drop", 0),
            *_END,
        ),
    ),
    # gives packets from the bridge the TTL 1: the host receives them, but forwards none
    "niso_from_1": (
        46,  # BPF_TCX_INGRESS
        _program(
            *_UNLESS_MARKED,
            (0x61, 0x60, _PROTOCOL, 0),
            (0x15, 0x00, "ipv4", 0x0008),
            (0x55, 0x00, "next", 0xDD86),
            *_call(_LOAD, 14 + 24, 2),  # the destination
            (0x69, 0xA0, -2, 0),
            (0x15, 0x00, "next", 0x02FF),  # ff02::/16: neighbour discovery needs the hop limit 255
            (0x57, 0x00, 0, 0xC0FF),
            (0x15, 0x00, "next", 0x80FE),  # fe80::/10
            (0x72, 0x0A, -2, 1),
            *_call(_STORE, 14 + 7, 1),  # the hop limit
            (0x05, 0x00, "next", 0),
            "ipv4",
            *_call(_LOAD, 14 + 8, 2),  # TTL and protocol
            (0x69, 0xA3, -2, 0),
            (0xBF, 0x34, 0, 0),
            (0x57, 0x04, 0, 0xFF00),
            (0x47, 0x04, 0, 1),
            (0x6B, 0x4A, -2, 0),
            (0xBF, 0x61, 0, 0),
            (0xB7, 0x02, 0, 14 + 10),  # the checksum
            (0xB7, 0x05, 0, 2),
            (0x85, 0x00, 0, _NEW_SUM),
            (0x55, 0x00, "drop", 0),
            *_call(_STORE, 14 + 8, 2),
            *_END,
        ),
    ),
}
"""The filters by name: those of all bridges, then those of internal networks only. The number at
the end of a name changes with its code.
"""


def can_filter() -> bool:
    """Return whether this kernel supports bridge filters, and lets this process load them."""
    machine = os.uname()
    release = tuple(int(f"0{number}") for number in machine.release.split("-")[0].split(".")[:2])
    return (
        machine.machine in _BPF
        and release >= _HAS_TCX
        and os.path.exists(f"{_SYS}/kernel/unprivileged_bpf_disabled")  # CONFIG_BPF_SYSCALL
        and not paths.in_user_namespace()
    )


def filters(link: str, internal: bool) -> set[str]:
    """Return the names of niso's bridge filters that the bridge ``link`` lacks. With ``internal``,
    the filter for internal networks is included.
    """
    lacking = set()
    if can_filter():
        for name, (place, _) in list(_FILTERS.items())[: 1 + internal]:
            with refusing(f"read the filters of bridge '{link}'"):
                if name not in _names(socket.if_nametoindex(link), place):
                    lacking.add(name)
    return lacking


def _names(index: int, place: int) -> list[str]:
    """Return the names of the eBPF programs at one side (BPF_TCX_*) of an interface."""
    ctypes = _ctypes()
    found = (ctypes.c_uint32 * _MOST_FILTERS)()
    query = pack("=IIIIQI36x", index, place, 0, 0, ctypes.addressof(found), _MOST_FILTERS)
    _, answer = _bpf(_PROG_QUERY, query)
    names = []
    for number in found[: unpack_from("=I", answer, 24)[0]]:
        fd, _ = _bpf(_PROG_GET_FD_BY_ID, pack("=III", number, 0, 0))
        info = ctypes.create_string_buffer(128)  # struct bpf_prog_info
        try:
            _bpf(_OBJ_GET_INFO_BY_FD, pack("=IIQ", fd, len(info), ctypes.addressof(info)))
        finally:
            os.close(fd)
        names.append(info.raw[64:80].rstrip(b"\0").decode())
    return names


def filter_bridge(link: str, internal: bool) -> None:
    """Attach the bridge filters that a bridge lacks. The kernel deletes them with the bridge."""
    ctypes = _ctypes()
    for name in sorted(filters(link, internal)):
        place, code = _FILTERS[name]
        program, license_ = (ctypes.create_string_buffer(text) for text in (code, b""))
        where = (ctypes.addressof(program), ctypes.addressof(license_))
        what = f"add the filter {name} of bridge '{link}'"
        with refusing(what):
            signals.hit(what)
            load = pack("=IIQQ24x16s", _SCHED_CLS, len(code) // 8, *where, name.encode())
            fd, _ = _bpf(_PROG_LOAD, load)
            try:
                index = socket.if_nametoindex(link)
                _bpf(_PROG_ATTACH, pack("=IIII16x", index, fd, place, _FIRST))
            finally:
                os.close(fd)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Call bpf(2). Return (its result, attributes as changed by the kernel). Raises OSError."""
    buffer = _ctypes().create_string_buffer(attributes, len(attributes))
    number = _BPF[os.uname().machine]
    return call_libc("syscall", number, command, buffer, len(attributes)), buffer.raw
