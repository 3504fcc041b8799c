"""From a spec to a running process: mounts in a namespace of their own, conmon, crun create, crun start.

    conmon                                     (waits for a word)
    a thread: unshare, mount the root, wait    (its mount namespace goes with it)
    conmon: nsenter -- crun create             (enters that namespace, so the host's never sees a mount)
    crun start

Nothing is composed as a string that something parses, and conmon's working folder is the log folder because its log option knows no
way to take a ``:``.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import json
import os
import resource
import signal
import time
from contextlib import ExitStack, suppress

from niso.base import failpoint, paths
from niso.base.errors import ProcessError
from niso.base.locks import open_lock
from niso.base.signals import ENDING, signals_delivered, signals_held
from niso.plan.process_spec import ProcessSpec
from niso.runtime import cgroup, oci, root, unit, volumes
from niso.runtime.spec import write_json

LOG_NAME = "service.log"
LOG_SIZE_MAX = 64 << 20
"""Bytes after which conmon itself starts the log anew; see `niso.runtime.logs`."""

STOPPING = "stopping"
EXITED_PID = "exited.pid"

_BEGINS_S = 60.0
"""How long conmon may take from its word to its fork, which is a millisecond."""

_TOOL_FOLDERS = (
    "/usr/bin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/libexec/podman",
    "/usr/libexec/catatonit",
)
_LIMITS = (
    "AS",
    "CPU",
    "DATA",
    "FSIZE",
    "MEMLOCK",
    "MSGQUEUE",
    "NPROC",
    "RSS",
    "RTTIME",
    "SIGPENDING",
    "STACK",
)
_PROFILE = os.path.join(os.path.dirname(__file__), "seccomp.json")


def tool(name: str) -> str:
    """The absolute path of crun, conmon, catatonit or nsenter. Raises `ProcessError`."""
    if failpoint.broken(name):
        return "/usr/bin/false"
    for folder in _TOOL_FOLDERS:
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    package = "util-linux" if name == "nsenter" else name
    raise ProcessError(f"{name} is not installed", f"apt install {package}")


def crun_root() -> str:
    """The folder of crun's own state (``crun --root``)."""
    return os.path.join(paths.run_dir(), "crun")


def container_id(service: str) -> str:
    """What crun and conmon call a service's container. For journald conmon wants more than 12 letters (its ctr_logging.c)."""
    return f"niso-service-{service}"


def nofile_max() -> int:
    """The most open files that this process may grant: root without CAP_SYS_RESOURCE cannot go beyond its own hard limit."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        most = int(file.read())
    if effective & (1 << 24):
        return most
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def environment() -> dict[str, str]:
    """What conmon, crun and the exit command see of the environment: nothing but where niso's folders are."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("NISO_") and "FAILPOINT" not in name
    }
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **kept}


def expect() -> None:
    """Say that a process will be created some 10 ms from now: what the kernel must wait for before is over by then.

    See `cgroup.move_nowhere`. Without it the creation, which says the same but later, takes 6 ms more.
    """
    with (
        signals_held(),
        suppress(RuntimeError),
    ):  # held in the thread for ever: they are the main thread's to see
        _thread.start_new_thread(_move_nowhere, ())


def _move_nowhere() -> None:
    with suppress(OSError, ValueError):  # a gain and no more
        cgroup.move_nowhere()


class Launch:
    """A service that is being created from the new folder ``bundle``, and runs when `finish` has come back.

    The caller holds the service's lock, and does `finish` or `close`. Raises `ProcessError` in the runtime's words, or OSError; what has
    been made by then is the caller's to clear (`niso.runtime.process.clear`).
    """

    def __init__(self, spec: ProcessSpec, bundle: str) -> None:
        self._spec = spec
        self._bundle = bundle
        self._held = ExitStack()
        try:
            failpoint.hit(f"write the bundle of {spec.service}")
            os.mkdir(bundle, 0o700)
            with (
                signals_held()
            ):  # one that came between the two would leave a thread and a conmon to nobody
                maker = _Maker(spec, bundle)  # conmon is loaded while the bundle is written
                self._held.callback(maker.close)
            write_bundle(spec, bundle)
            # Nobody removes the cgroup above ours between crun's making it and the one below it.
            guard = open_lock(".cgroup")
            self._held.callback(os.close, guard)
            fcntl.flock(guard, fcntl.LOCK_SH)
            failpoint.hit(f"mount the root of {spec.service}")
            maker.mount()
            failpoint.hit(f"create the process of {spec.service}")
            self.fd = maker.create()
            """Can be read when it is created, or could not be."""
        except BaseException:
            self.close()
            raise

    def finish(self) -> int:
        """Wait until it is created, and start it; the pid of its PID 1 on the host."""
        try:
            pid = _created_pid(self._spec, self._bundle, self.fd)
        finally:
            self.close()
        failpoint.hit(f"start the process of {self._spec.service}")
        status, words = crun("start", container_id(self._spec.service))
        if status != 0:
            raise ProcessError(f"{self._spec.service}: crun start: {words}")
        return pid

    def close(self) -> None:
        """Let go of what its creation needs."""
        self._held.close()


def write_bundle(spec: ProcessSpec, bundle: str) -> None:
    """Write the OCI bundle into the folder ``bundle``: config.json and the folders that the root is made of. Raises OSError."""
    if not spec.netns:
        spec = spec._replace(hostname=os.uname().nodename, resolv_conf=root.of_host("resolv.conf"))
    for name in ("layer", "lower", "scratch", "root", "exits", "persist"):
        os.mkdir(os.path.join(bundle, name), 0o700)
    where = volumes.placed(spec.rootfs, spec.volumes)
    volumes.make_named(spec)
    hosts_at = root.write_layer(spec, f"{bundle}/layer")
    volumes.make_points(spec.rootfs, f"{bundle}/layer", where)
    folders: list[str] = []
    if spec.rootfs is None:
        links = [
            f"/{name}"
            for name in root.TOP_LINKS
            if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")
        ]
        folders = ["/usr", *links, *root.etc_folders()]
    with open(_PROFILE, encoding="utf-8") as file:
        profile = json.load(file)
    config = oci.config(
        spec,
        f"{bundle}/root",
        tool("catatonit"),
        hosts_at,
        folders,
        profile,
        nofile_max(),
        volumes.mounts(spec, where),
        cgroup.usable(oci.limits(spec)),
    )
    write_json(f"{bundle}/config.json", config)


def crun(*args: str) -> tuple[int, str]:
    """Run crun; its exit status and its words (stderr), stripped."""
    program = tool("crun")
    with signals_held():
        read, write = os.pipe()
        try:
            pid = os.posix_spawn(
                program,
                ["crun", f"--root={crun_root()}", *args],
                environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write, 2),
                ],
                setsigmask=(),
            )
        finally:
            os.close(write)
        try:
            with signals_delivered():
                words = read_all(read)
        finally:
            _, status = os.waitpid(pid, 0)  # what it is at is not to go on beside what undoes it
    return os.waitstatus_to_exitcode(status), plain(words)


def plain(words: bytes) -> str:
    """The runtime's message without its time stamps, on one line."""
    lines = []
    for line in words.decode("utf-8", "replace").splitlines():
        stamp, _, rest = line.partition(": ")
        lines.append(rest if stamp[:2] == "20" and "T" in stamp and rest else line)
    return "; ".join(line.strip() for line in lines if line.strip())


def read_all(fd: int, most: int = 1 << 16) -> bytes:
    """Read ``fd`` to its end, keep the first ``most`` bytes, close it."""
    kept = b""
    try:
        while chunk := os.read(fd, 4096):
            kept += chunk[: most - len(kept)]
    finally:
        os.close(fd)
    return kept


class _Maker:
    """A thread that starts conmon, which waits for a word, and then mounts the service's root in a mount namespace of its own.

    What a thread takes for itself by unshare(2) is gone for it alone: the working folder that conmon is started in, then the mounts.
    A process would have to be forked: that copies the page tables, and afterwards each page that is written to, 2 ms each time.
    Made where signals are held (`signals_held`): they are so in the thread for ever, since they are the main thread's to see.
    """

    def __init__(self, spec: ProcessSpec, bundle: str) -> None:
        self._spec = spec
        self._bundle = bundle
        self._wrong: Exception | None = None
        self._conmon = 0
        """Its pid until it is told to create."""
        self._sync = self._start = -1
        self._tid = 0
        # Taken by who waits, released by who is waited for.
        self._says, self._may_mount, self._may_end, self._ended = (
            _thread.allocate_lock() for _ in range(4)
        )
        for lock in (self._says, self._may_mount, self._may_end, self._ended):
            lock.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "pthread_create") from None

    def mount(self) -> None:
        """Mount the root, of which conmon's container will be made. Raises ProcessError, OSError."""
        self._may_mount.release()
        self._says.acquire()
        if self._conmon and isinstance(self._wrong, OSError):
            where = self._wrong.filename or "unshare"
            raise ProcessError(
                f"{self._spec.service}: cannot mount its root: {self._wrong.strerror}: {where}"
            )
        if self._wrong is not None:
            raise self._wrong

    def create(self) -> int:
        """Have conmon create the container; a pipe by which it says how that went (`close` closes it)."""
        _own_limits(self._conmon)
        pidfd = os.pidfd_open(self._conmon)
        try:
            with (
                signals_held()
            ):  # one between conmon's fork and its pid file would leave a conmon that nobody knows
                with suppress(
                    BrokenPipeError
                ):  # it died at once; what it said is read from the other pipe
                    os.write(self._start, b"\0")
                if not wait_gone(pidfd, _BEGINS_S):
                    raise ProcessError(
                        f"{self._spec.service}: conmon has not begun its work within {_BEGINS_S:g}s"
                    )
                os.waitpid(self._conmon, 0)
                self._conmon = 0
        finally:
            os.close(pidfd)
        return self._sync

    def close(self) -> None:
        """End the thread, and with it the mounts, and a conmon that has not been told to create."""
        with signals_held():
            self._may_end.release()
            if self._may_mount.locked():
                self._may_mount.release()
            self._ended.acquire()
            if self._conmon:
                os.kill(self._conmon, signal.SIGKILL)
                os.waitpid(self._conmon, 0)
            for fd in (self._sync, self._start):
                if fd >= 0:
                    os.close(fd)
            self._conmon, self._sync, self._start = 0, -1, -1

    def _run(self) -> None:
        try:
            self._tid = _thread.get_native_id()
            os.unshare(os.CLONE_FS)
            self._start_conmon()
            self._may_mount.acquire()
            if self._may_end.acquire(blocking=False):
                return
            os.unshare(os.CLONE_NEWNS)
            root.assemble(self._spec, self._bundle)
            self._says.release()
            _move_nowhere()  # while conmon and crun begin
            self._may_end.acquire()
        except Exception as error:
            self._wrong = error
            self._says.release()
        finally:
            self._ended.release()

    def _start_conmon(self) -> None:
        logs = paths.log_dir(self._spec.service)
        os.makedirs(logs, 0o700, exist_ok=True)
        os.chdir(logs)
        self._sync, sync = os.pipe()
        start, self._start = os.pipe()
        # Whatever the caller's shell left open for its children is not for a process that stays. To have it closed there
        # (POSIX_SPAWN_CLOSE) is refused for numbers that the limit of open files does not reach any more.
        left = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inherited(fd)]
        argv = _conmon_argv(self._spec, self._bundle, self._tid)
        try:
            _set_inherited(left, False)
            self._conmon = os.posix_spawn(
                argv[0],
                argv,
                {**environment(), "_OCI_SYNCPIPE": str(sync), "_OCI_STARTPIPE": str(start)},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (
                        os.POSIX_SPAWN_OPEN,
                        2,
                        f"{self._bundle}/conmon.err",
                        os.O_WRONLY | os.O_CREAT,
                        0o600,
                    ),
                    *(
                        (os.POSIX_SPAWN_DUP2, fd, fd) for fd in (sync, start)
                    ),  # which makes it inherited
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=ENDING,
            )
        finally:
            _set_inherited(left, True)
            os.close(sync)
            os.close(start)


def _set_inherited(fds: list[int], inherited: bool) -> None:
    for fd in fds:
        with suppress(OSError):  # another thread of the caller's has closed it
            os.set_inheritable(fd, inherited)


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the one by which the list was read
        return False


def _conmon_argv(spec: ProcessSpec, bundle: str, tid: int) -> list[str]:
    """conmon's command line. Its container is created where the thread ``tid`` is."""
    import sys

    exit_command = ["-I", "-m", "niso.runtime.on_exit", spec.service, bundle]
    runtime = [
        f"--mount=/proc/{tid}/ns/mnt",
        f"--root=/proc/{tid}/root",  # ours, where niso itself runs in a chroot
        "--",
        tool("crun"),
        "--cgroup-manager=cgroupfs",
        f"--root={crun_root()}",
    ]
    return [
        tool("conmon"),
        *("--api-version", "1"),
        *("-c", container_id(spec.service), "-u", container_id(spec.service), "-n", spec.service),
        *("-r", tool("nsenter"), *(f"--runtime-arg={arg}" for arg in runtime)),
        *("-b", bundle, "-p", f"{bundle}/pid", "-P", f"{bundle}/conmon.pid"),
        *("-l", f"k8s-file:{LOG_NAME}", "--log-size-max", str(LOG_SIZE_MAX), "--no-sync-log"),
        *(("-l", "journald") if unit.logs_to_journal(spec.service) else ()),
        *("--exit-dir", f"{bundle}/exits", "--persist-dir", f"{bundle}/persist", "--full-attach"),
        *("--exit-command", sys.executable, *(f"--exit-command-arg={arg}" for arg in exit_command)),
        *("--log-level", "warning"),
    ]


def _own_limits(pid: int) -> None:
    """Give conmon the limits and niceness of PID 1, as a service has that it starts, and not those of the caller's shell.

    Its ``ulimit -f`` would end the log. What is the service's own (open files, core) crun sets.
    """
    for name in _LIMITS:
        limit = getattr(resource, f"RLIMIT_{name}")
        try:
            resource.prlimit(pid, limit, resource.prlimit(1, limit))
        except (OSError, ValueError):  # without CAP_SYS_RESOURCE: as far as it may
            most = resource.getrlimit(limit)[1]
            resource.prlimit(pid, limit, (most, most))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 1))


def _created_pid(spec: ProcessSpec, bundle: str, sync: int) -> int:
    """What conmon says of crun create (conmon's write_sync_fd): one line of JSON. Its end of the pipe stays open."""
    line = b""
    while b"\n" not in line:
        chunk = os.read(sync, 4096)
        if not chunk:
            break
        line += chunk
    try:
        answer = json.loads(line or b"{}")
    except ValueError:
        answer = {}
    pid = answer.get("data", -1)
    if isinstance(pid, int) and pid > 0:
        return pid
    words = plain(str(answer.get("message", "")).encode())
    if not words:
        with open(f"{bundle}/conmon.err", "rb") as file:
            words = plain(file.read(4096)) or "conmon ended without a word"
    raise ProcessError(f"{words.removeprefix('; ')}", service=spec.service)


def remove_cgroups(path: str) -> None:
    """Remove a service's cgroup, and the one above it when it was the last and nobody is starting one."""
    cgroup.remove(path)
    guard = open_lock(".cgroup")
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cgroup.remove_parent(path)
    except BlockingIOError:
        return
    finally:
        os.close(guard)


def wait_gone(pidfd: int, timeout_s: float) -> bool:
    """Wait at most ``timeout_s`` for a process to end (pidfd_open(2)); whether it has."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(0, int(left * 1000 + 0.999))):
            return True
        if left <= 0:
            return False
