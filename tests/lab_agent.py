"""Start what the tests ask for (see `conftest.Agent`): outside, the labs; in each lab, its commands.

fd 0 is a SOCK_SEQPACKET socket. A request is JSON: ``{"argv", "env", "cwd", "netns", "tty", "inside"}`` with four descriptors
(stdin, stdout, stderr, and a socket that gets ``pid N`` and at the end ``exit N``), or ``{"kill": pid, "signal": number}``.
Started from a lab's agent a command is in all of the lab's namespaces and cgroups, which a test process could not enter without
leaving its own. ``{"listen": PATH}`` makes a socket for `CLIENT`.

``inside``: argv is a command of niso, niso-cni, a lab, ``python3 -ISc CODE``, or ``python -c CODE`` with the Python of the tests, which runs in
a child of this process from its first line on, as ``bin/niso`` calls it. What most commands import is imported by the first agent, once: Python's start and imports are two
thirds of a short command's time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import pathlib
import select
import signal
import site
import socket
import struct
import subprocess
import sys
import termios
import threading
import traceback
import types

LOADED = (
    "api.host_attachments",
    "api.host_networks",
    "api.host_services",
    "api.host_stacks",
    "api.host_volumes",
    "change.activate",
    "change.deactivate",
    "change.networks",
    "change.port_forward",
    "change.process_record",
    "change.repair",
    "change.save_load",
    "change.span_networks",
    "change.stacks",
    "change.static_check",
    "change.stop",
    "change.unit_network",
    "change.warnings",
    "cli.catalogue.general",
    "cli.catalogue.net",
    "cli.catalogue.service",
    "cli.catalogue.volume",
    "cli.general_commands",
    "cli.main",
    "cli.net_commands",
    "cli.service_commands",
    "cli.traffic_commands",
    "engines.cni",
    "engines.netavark",
    "engines.plugin",
    "kernel.conntrack",
    "kernel.flow_memory",
    "kernel.host_facts",
    "kernel.kinds.nft",
    "kernel.link_records",
    "kernel.neighbour_tables",
    "kernel.packet_events",
    "kernel.real",
    "kernel.sockets",
    "lab.__main__",
    "look.check",
    "look.drops",
    "look.explain",
    "look.learn",
    "look.other_firewalls",
    "look.other_hosts",
    "look.policies",
    "look.prove",
    "look.services",
    "look.stack_members",
    "look.store_defects",
    "manifest.json_schema",
    "manifest.load",
    "manifest.validate",
    "reconcile.live_world",
    "runtime.archive",
    "runtime.execute",
    "runtime.launch",
    "runtime.lifecycle",
    "runtime.oci",
    "runtime.processes",
    "store.span_rows",
    "store.tables",
)
"""Modules of niso that its commands find loaded. A command imports what else it needs itself."""
CLIENT = """\
#!/usr/bin/perl
socket(S, 1, 5, 0) && connect(S, pack("Sa*", 1, "PATH")) && syswrite(S, "NAME");
$SIG{$_} = sub { kill $_[0], -$pid if $pid } for qw(HUP INT TERM);
while (defined($got = sysread(S, $_, 99)) ? $got : $! == 4) {
    $pid ||= $1 if /^pid (\\d+)/;
    exit $1 if /^exit (\\d+)/;
    if (/^exit -(\\d+)/) { $SIG{$_} = "DEFAULT" for keys %SIG; kill $1, $$; }
}
exec "PROGRAM", @ARGV unless $pid;
exit 125;
"""
"""A program that another program of a lab starts in place of PROGRAM: the agent at PATH runs NAME inside.

The agent reads its arguments and environment, and takes its standard streams. Where it has another user or other
namespaces than the agent, PROGRAM is executed."""
STANDARD = ("difflib", "encodings.ascii", "tarfile", "tomllib", "tty")
"""Modules of the standard library that these import late; tomllib compiles patterns for 8 ms."""


def serve(deadline_seconds: int) -> None:
    signal.alarm(deadline_seconds)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    os.set_inheritable(control.fileno(), False)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    clients: list[socket.socket] = []
    control.send(b"ready")
    while True:
        ready, _, _ = select.select([control, wake_read, *clients], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            reap(children)
        for listener in {*clients} & {*ready}:
            with contextlib.suppress(OSError):  # a client that was killed
                take(listener, children)
        if control in ready:
            message, fds, _, _ = socket.recv_fds(control, 1 << 20, 4)
            for fd in fds:
                os.set_inheritable(fd, False)
            if not message:
                return
            request = json.loads(message)
            if "listen" in request:
                clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                clients[-1].bind(request["listen"])
                clients[-1].listen(64)
                continue
            if "kill" in request:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(request["kill"], request["signal"])
                continue
            status = socket.socket(fileno=fds[3])
            if request["inside"] and INSIDE[request["argv"][0]] is run_python:
                compiled(request["argv"][2])  # here, so that children find it done
            if request["inside"] or request["tty"]:
                pid = fork(request, fds)
            else:
                pid = execute(request, fds)
            children[pid] = status
            status.send(b"pid %d" % pid)
            for fd in fds[:3]:
                os.close(fd)


def take(listener: socket.socket, children: dict[int, socket.socket]) -> None:
    """Start what a `CLIENT` stands for, or close the connection."""
    client, _ = listener.accept()
    os.set_inheritable(client.fileno(), False)
    pid, user, _ = struct.unpack(
        "=iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    )
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    homes = [
        [os.stat(f"/proc/{each}/ns/{kind}").st_ino for kind in kinds] for each in (pid, "self")
    ]
    if user != os.geteuid() or homes[0] != homes[1]:
        client.close()
        return
    with open(f"/proc/{pid}/cmdline") as cmdline, open(f"/proc/{pid}/environ") as environ:
        words, variables = (file.read().split("\0")[:-1] for file in (cmdline, environ))
    request = {
        "argv": [client.recv(100).decode(), *words[2:]],
        "env": dict(each.split("=", 1) for each in variables),
        "cwd": f"/proc/{pid}/cwd",
        "netns": None,
        "tty": False,
        "inside": True,
        "parent": int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]),
    }
    process = os.pidfd_open(pid)
    fds = [ctypes.CDLL(None).syscall(_PIDFD_GETFD, process, number, 0) for number in range(3)]
    child = fork(request, fds)
    children[child] = client
    client.send(b"pid %d" % child)
    for fd in (process, *fds):
        os.close(fd)


def fork(request: dict, fds: list[int]) -> int:
    """Start a command in a copy of this process; return its number once it can be killed as a group."""
    started_read, started_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        start(request, fds)
    os.close(started_write)
    os.read(started_read, 1)
    os.close(started_read)
    return pid


def execute(request: dict, fds: list[int]) -> int:
    """Start a program by vfork(2); return its number.

    A copy of this process, which has loaded niso, would take several times as long as most programs.
    """
    home = os.open("/proc/self/ns/net", os.O_RDONLY) if request["netns"] else -1
    try:
        if request["netns"]:
            enter(request["netns"])
        process = subprocess.Popen(
            request["argv"],
            stdin=fds[0],
            stdout=fds[1],
            stderr=fds[2],
            cwd=request["cwd"],
            env=request["env"],
            start_new_session=True,
        )
    except OSError:
        return fork(request, fds)  # it fails again, and its output says why
    finally:
        if home >= 0:
            os.setns(home, os.CLONE_NEWNET)
            os.close(home)
    process.returncode = 0  # `reap` waits for it
    return process.pid


def enter(netns: str) -> None:
    descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    os.setns(descriptor, os.CLONE_NEWNET)
    os.close(descriptor)


def reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with contextlib.suppress(OSError):  # where the test no longer listens
            children[pid].send(b"exit %d" % os.waitstatus_to_exitcode(status))
        children.pop(pid).close()


def load() -> None:
    """Import what commands of niso need; none of it is run in this process."""
    site.main()  # its packages, which this process was started without
    for name in LOADED:
        importlib.import_module(f"niso.{name}")
    for name in STANDARD:
        importlib.import_module(name)
    sys.modules["niso.kernel.libnftables"]._load()  # the dynamic linker takes 2 ms
    with contextlib.suppress(Exception):  # refused to users other than root
        # `net check` compares the kernel's tables with these: 20 ms for each check
        sys.modules["niso.kernel.kinds.nft"]._expected(sys.modules["niso.kernel.ruleset"].TABLES)
    gc.collect()
    gc.freeze()  # else a collection in a child would copy all of it


def run_niso(
    arguments: list[str],
    environment: dict[str, str],
    name: str = "niso",
    module: str = "niso.cli.main",
) -> None:
    """Be ``niso ARGUMENTS``, in a process just forked: what is not inherited by execve(2) goes."""
    from niso.base import signals

    main = importlib.import_module(module).main
    become(name, environment)
    signals._spec = None  # read when the lab was made, from another environment
    sys.argv = [os.path.join(sys.prefix, "bin", name), *arguments]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def become(name: str, environment: dict[str, str]) -> None:
    """Give this process what a program named so would have after execve(2)."""
    os.closerange(3, 1 << 20)
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def compiled(code: str) -> types.CodeType | None:
    """Return the compiled program, or None if it is none."""
    try:
        return compile(code, "<string>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None


def run_python(arguments: list[str], environment: dict[str, str]) -> None:
    """Be ``python3 -ISc CODE ARGUMENTS``, or with -ISuc, whose output is not buffered, or with -c."""
    options, code, *words = arguments
    become("python3", environment)
    sys.modules["niso.base.signals"]._spec = None  # as in `run_niso`
    if options == "-c":
        sys.path.insert(0, "")
    if "u" in options:
        raw = os.fdopen(1, "wb", 0, closefd=False)
        sys.stdout = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    sys.argv = ["-c", *words]
    sys.modules["lab_agent"] = sys.modules["__main__"]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    status = 0
    try:
        exec(compiled(code) or compile(code, "<string>", "exec", dont_inherit=True), main.__dict__)
        threading._shutdown()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status & 0xFF)


def run_lab(arguments: list[str], environment: dict[str, str]) -> None:
    """Make a lab whose command is a fork of this process, in place of a program."""
    from niso.lab.__main__ import main

    os.closerange(3, 1 << 20)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does
    execute = os.execvpe

    def serve_instead(*_: object) -> None:
        os.execvpe = execute
        os.closerange(3, 1 << 20)
        drop_capabilities()
        serve(int(arguments[0]))
        os._exit(0)

    os.execvpe = serve_instead
    os._exit(main(["--", "agent"]))


def run_in_machine(arguments: list[str], environment: dict[str, str]) -> None:
    """Be ``niso`` in the namespaces and the root of a process, whose number comes first, as nsenter(1)."""
    number, *words = arguments
    root = os.open(f"/proc/{number}/root", os.O_PATH)
    kinds = (
        os.CLONE_NEWNS | os.CLONE_NEWUTS | os.CLONE_NEWIPC | os.CLONE_NEWPID | os.CLONE_NEWCGROUP
    )
    os.setns(os.pidfd_open(int(number)), kinds)
    os.fchdir(root)
    os.chroot(".")
    child = os.fork()  # the first one in the namespace of process IDs
    if child == 0:
        run_niso(words, environment)
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # sent to the whole group
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


PYTHON = ("python", "python3", "/usr/bin/python3")
INSIDE = {
    "niso": run_niso,
    "niso-cni": functools.partial(run_niso, name="niso-cni", module="niso.engines.cni"),
    "niso-netavark": functools.partial(
        run_niso, name="niso-netavark", module="niso.engines.netavark"
    ),
    "lab": run_lab,
    "machine": run_in_machine,
    **dict.fromkeys((*PYTHON, sys.executable), run_python),
}
_PIDFD_GETFD = 438
_PR_CAPBSET_READ, _CAPABILITY_VERSION_3 = 23, 0x20080522


def drop_capabilities() -> None:
    """Drop those that the bounding set lacks, as execve(2) does (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; twice
    kept = sum(1 << n for n in range(64) if libc.prctl(_PR_CAPBSET_READ, n, 0, 0, 0) == 1)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    masks = (low, low, low, high, high, high)
    held = (a & b for a, b in zip(struct.unpack("=6I", sets.raw), masks, strict=True))
    if libc.capset(header, struct.pack("=6I", *held)):
        raise OSError(ctypes.get_errno(), "capset")


def start(request: dict, fds: list[int]) -> None:
    try:
        signal.set_wakeup_fd(-1)
        signal.alarm(0)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for target, fd in enumerate(fds[:3]):
            os.dup2(fd, target)
        if request["tty"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if request["netns"]:
            enter(request["netns"])
        os.chdir(request["cwd"])
        if request["argv"][0] == "niso-netavark":  # which looks at its caller
            os.getppid = lambda: request["parent"]
        if request["inside"]:
            INSIDE[request["argv"][0]](request["argv"][1:], request["env"])
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"{request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    load()
    serve(0)
