"""Start a service: mount its root in a private mount namespace, then run conmon and crun.

    conmon                                     waits for a byte on a pipe
    a thread: unshare, mount the root, wait    its mount namespace ends with it
    conmon: nsenter -- crun create             enters that namespace; the host's never has a mount
    a byte to crun's FIFO                      starts the process, as crun start does

No shell and no format string is involved. conmon runs in the log folder, because its log option
cannot take a path with a ``:``.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import json
import os
import resource
import signal
from contextlib import ExitStack, suppress
from functools import cache

from niso.base import failpoint, paths
from niso.base.errors import ProcessError
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.locks import open_lock
from niso.base.signals import ENDING, signals_held
from niso.plan.process_spec import ProcessSpec
from niso.runtime import cgroup, crun, exit_command, oci, root, skeleton, sources, unit, volumes
from niso.runtime.logs import LOG_NAME
from niso.runtime.pids import wait_readable
from niso.runtime.spec import cgroup_of, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

LOG_SIZE_MAX = 64 << 20
"""Bytes after which conmon itself starts a new log file; see `niso.runtime.logs`."""

_FORK_TIMEOUT_S = 60.0
"""How long conmon may take to fork once it may create; it takes a millisecond."""
_CAP_SYS_RESOURCE = 24
"""linux/capability.h"""

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
_FOLDERS = (
    "layer",
    "empty",
    root.HOST,
    root.INIT,
    sources.VOLUMES,
    sources.PACKAGE,
    "scratch",
    root.SECRETS,
    "root",
    "exits",
    "persist",
)
"""The folders of a bundle."""
_PROFILE = os.path.join(os.path.dirname(__file__), "seccomp.json")


def nofile_max() -> int:
    """Return the largest limit of open files that this process may set.

    Without CAP_SYS_RESOURCE, root cannot exceed its own hard limit (setrlimit(2)).
    """
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        most = int(file.read())
    if effective & (1 << _CAP_SYS_RESOURCE):
        return most
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def expect() -> None:
    """Prepare the kernel for a process that will be created in about 10 ms; saves 6 ms then.

    See `cgroup.move_nowhere`.
    """
    # The thread keeps the signals blocked for its whole life: the main thread handles them.
    with signals_held(), suppress(RuntimeError):
        _thread.start_new_thread(_move_nowhere, ())


def _move_nowhere() -> None:
    with suppress(OSError, ValueError):  # only an optimization
        cgroup.move_nowhere()


class Launch:
    """The creation of a service's container from the new folder ``bundle``; `finish` starts it.

    The caller holds the service's lock, and must call `finish` or `close`.
    Raises `ProcessError` with the message of crun or conmon, or OSError. After an error, the caller
    removes what exists by then (`niso.runtime.process.clear`).
    """

    def __init__(self, spec: ProcessSpec, bundle: str) -> None:
        self._spec = spec
        self._bundle = bundle
        self._held = ExitStack()
        try:
            failpoint.hit(f"write the bundle of {spec.service}")
            held = sources.Held(spec)
            self._held.callback(held.close)
            os.mkdir(bundle, 0o700)
            # Keeps others from removing niso's cgroups before conmon and crun's container are in.
            guard = open_lock(".cgroup")
            self._held.callback(os.close, guard)
            fcntl.flock(guard, fcntl.LOCK_SH)
            exit_command.write()
            # A signal between the two would leave a thread and a conmon without an owner.
            with signals_held():
                # conmon loads while the bundle is written
                creator = _Creator(spec, bundle, held)
                self._held.callback(creator.close)
            under = skeleton.current() if spec.rootfs is None else None
            write_bundle(held.spec, bundle, under)
            failpoint.hit(f"mount the root of {spec.service}")
            creator.mount(under.folders if under is not None else ())
            failpoint.hit(f"create the process of {spec.service}")
            self.fd = creator.create()
            """Readable once the container exists, or its creation has failed."""
        except BaseException:
            self.close()
            raise

    def finish(self) -> int:
        """Wait for the container and start it; return the pid of its PID 1 on the host."""
        try:
            pid = _created_pid(self._spec, self._bundle, self.fd)
        finally:
            self.close()
        failpoint.hit(f"start the process of {self._spec.service}")
        crun.start(self._spec.service)
        return pid

    def close(self) -> None:
        """Release the thread with its mounts, conmon's pipes and the lock."""
        self._held.close()


def init() -> str:
    """Return the path of catatonit, links resolved. Raises ProcessError."""
    return os.path.realpath(crun.tool("catatonit"))


def write_bundle(spec: ProcessSpec, bundle: str, under: skeleton.Skeleton | None) -> None:
    """Write the OCI bundle: config.json and the folders of the root. Raises OSError.

    ``spec`` is that of `sources.Held`. Without a rootfs, ``under`` is the skeleton of the root.
    """
    if not spec.netns:
        spec = spec._replace(hostname=os.uname().nodename, resolv_conf=root.of_host("resolv.conf"))
    for name in _FOLDERS:
        os.mkdir(os.path.join(bundle, name), 0o700)
    spec = spec._replace(package=f"{bundle}/{sources.PACKAGE}")
    where = volumes.placed(spec.rootfs, spec.volumes)
    volumes.make_named(spec)
    if under is None:
        os.mkdir(f"{bundle}/{skeleton.LOWER}", 0o700)
    else:
        os.symlink(under.path, f"{bundle}/{skeleton.LOWER}")
    below = spec.rootfs if under is None else under.path
    assert below is not None
    hosts_at = root.write_layer(spec, f"{bundle}/layer", below)
    volumes.make_points(below, f"{bundle}/layer", where)
    shared = f"{bundle}/{sources.VOLUMES}"
    volumes.make_sources(shared, where)
    machine = oci.Machine(
        init=os.path.join(bundle, root.INIT, os.path.basename(init())),
        nofile_max=nofile_max(),
        seccomp=_profile(),
        host=f"{bundle}/{root.HOST}",
        secrets=f"{bundle}/{root.SECRETS}" if spec.secrets else "",
        folders=under.folders if under is not None else (),
        controllers=cgroup.usable(cgroup.limits(spec)),
    )
    mounts = volumes.mounts(spec, where, shared)
    config = oci.config(spec, f"{bundle}/root", hosts_at, machine, mounts)
    write_json(f"{bundle}/config.json", config)


@cache
def _profile() -> dict[str, Any]:
    """Return the seccomp profile of all services."""
    with open(_PROFILE, encoding="utf-8") as file:
        profile: dict[str, Any] = json.load(file)
    return profile


class _Creator:
    """A thread that starts conmon and then mounts the service's root in a private mount namespace.

    unshare(2) gives the thread alone a working folder, in which conmon starts, and then the mounts.
    A forked process would cost 2 ms more, for its page tables and each page that is written to.
    Construct it with signals held (`signals_held`): the thread keeps them blocked for its whole
    life, because the main thread handles them.
    """

    def __init__(self, spec: ProcessSpec, bundle: str, held: sources.Held) -> None:
        self._spec = spec
        self._bundle = bundle
        self._sources = held
        self._folders: Sequence[str] = ()
        self._error: Exception | None = None
        self._conmon = 0
        """Its pid until it has forked; then 0."""
        self._sync = self._start = -1
        """The pipe from conmon (the result of the create) and the one to it (may create)."""
        self._tid = 0
        # Used as events: acquire waits, release signals.
        self._mounted, self._may_mount, self._may_end, self._ended = (
            _thread.allocate_lock() for _ in range(4)
        )
        for event in (self._mounted, self._may_mount, self._may_end, self._ended):
            event.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "pthread_create") from None

    def mount(self, folders: Sequence[str]) -> None:
        """Mount the root of the container, which shows ``folders`` of the host.

        Raises ProcessError or OSError.
        """
        self._folders = folders
        self._may_mount.release()
        self._mounted.acquire()
        if self._conmon and isinstance(self._error, OSError):
            where = self._error.filename or "unshare"
            raise ProcessError(
                f"{self._spec.service}: cannot mount its root: {self._error.strerror}: {where}"
            )
        if self._error is not None:
            raise self._error

    def create(self) -> int:
        """Make conmon create the container; return the pipe with its result (`close` closes it)."""
        _set_limits(self._conmon)
        pidfd = os.pidfd_open(self._conmon)
        try:
            # A signal between conmon's fork and its pid file would leave an unrecorded conmon.
            with signals_held():
                with suppress(BrokenPipeError):  # it has died; the other pipe has its message
                    os.write(self._start, b"\0")
                if not wait_readable(pidfd, _FORK_TIMEOUT_S):
                    late = f"conmon did not start within {_FORK_TIMEOUT_S:g}s"
                    raise ProcessError(f"{self._spec.service}: {late}")
                os.waitpid(self._conmon, 0)
                self._conmon = 0
        finally:
            os.close(pidfd)
        return self._sync

    def close(self) -> None:
        """End the thread with its mounts, and a conmon that was not yet told to create."""
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
            held = self._sources
            root.assemble(self._spec, self._bundle, init(), self._folders, held.trees, held.secrets)
            self._mounted.release()
            _move_nowhere()  # while conmon and crun start
            self._may_end.acquire()
        except Exception as error:
            self._error = error
            self._mounted.release()
        finally:
            self._ended.release()

    def _start_conmon(self) -> None:
        logs = paths.log_dir(self._spec.service)
        os.makedirs(logs, 0o700, exist_ok=True)
        os.chdir(logs)
        self._sync, sync = os.pipe()
        start, self._start = os.pipe()
        # conmon must not keep descriptors that the caller's shell left open for its children.
        # POSIX_SPAWN_CLOSE fails for numbers above the present limit of open files.
        left = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inherited(fd)]
        argv = _conmon_argv(self._spec, self._bundle, self._tid)
        try:
            _set_inherited(left, False)
            self._conmon = os.posix_spawn(
                argv[0],
                argv,
                {**crun.environment(), "_OCI_SYNCPIPE": str(sync), "_OCI_STARTPIPE": str(start)},
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
                    # A dup onto itself clears FD_CLOEXEC (glibc, spawni.c).
                    *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in (sync, start)),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=ENDING,
            )
        finally:
            _set_inherited(left, True)
            os.close(sync)
            os.close(start)
        if unit.path(self._spec.service) is None:  # else it is the main process of this unit
            cgroup.keep(self._conmon, cgroup_of(self._spec))


def _set_inherited(fds: list[int], inherited: bool) -> None:
    for fd in fds:
        with suppress(OSError):  # another thread has closed it
            os.set_inheritable(fd, inherited)


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the descriptor that listed the folder
        return False


def _conmon_argv(spec: ProcessSpec, bundle: str, tid: int) -> list[str]:
    """Return conmon's command line; the container is created in the namespace of thread ``tid``."""
    exit_arguments = [exit_command.path(), spec.service, bundle]
    runtime = [
        f"--mount=/proc/{tid}/ns/mnt",
        f"--root=/proc/{tid}/root",  # differs from the namespace's root if niso runs in a chroot
        "--",
        crun.tool("crun"),
        "--cgroup-manager=cgroupfs",
        f"--root={crun.state_dir()}",
    ]
    return [
        crun.tool("conmon"),
        *("--api-version", "1"),
        *(
            "-c",
            crun.container_id(spec.service),
            "-u",
            crun.container_id(spec.service),
            "-n",
            spec.service,
        ),
        *("-r", crun.tool("nsenter"), *(f"--runtime-arg={arg}" for arg in runtime)),
        *("-b", bundle, "-p", f"{bundle}/pid", "-P", f"{bundle}/conmon.pid"),
        *("-l", f"k8s-file:{LOG_NAME}", "--log-size-max", str(LOG_SIZE_MAX), "--no-sync-log"),
        *(("-l", "journald") if unit.logs_to_journal(spec.service) else ()),
        *("--exit-dir", f"{bundle}/exits", "--persist-dir", f"{bundle}/persist", "--full-attach"),
        *("--exit-command", exit_command.SHELL),
        *(f"--exit-command-arg={arg}" for arg in exit_arguments),
        *("--log-level", "warning"),
    ]


def _set_limits(pid: int) -> None:
    """Give conmon the resource limits and niceness of PID 1 instead of the calling shell's.

    The shell's ``ulimit -f`` would end the log. crun sets the limits of the service itself.
    """
    for name in _LIMITS:
        limit = getattr(resource, f"RLIMIT_{name}")
        try:
            resource.prlimit(pid, limit, resource.prlimit(1, limit))
        except (OSError, ValueError):  # without CAP_SYS_RESOURCE: up to our own hard limit
            most = resource.getrlimit(limit)[1]
            resource.prlimit(pid, limit, (most, most))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 1))


def _created_pid(spec: ProcessSpec, bundle: str, sync: int) -> int:
    """Read the pid of the created container from conmon (conmon's write_sync_fd).

    conmon writes one line of JSON and keeps its end of the pipe open.
    Raises `ProcessError` with the message of crun if the create failed.
    """
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
    message = crun.plain_message(str(answer.get("message", "")).encode())
    if not message:
        with open(f"{bundle}/conmon.err", "rb") as file:
            message = crun.plain_message(file.read(4096)) or "conmon ended without a message"
    raise ProcessError(f"{message.removeprefix('; ')}", service=spec.service)
