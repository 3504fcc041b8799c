"""Start a service: mount its root in a private mount namespace, then run conmon and crun.

A thread starts conmon, and mounts the root in a private mount namespace, so that the host's mount
namespace never contains this mount. conmon waits for a byte on a pipe until the root is mounted. It
then runs ``crun create`` inside this namespace, by nsenter(1). The namespace ends with the thread,
after the container has been created. The process of the service starts when niso writes a byte to
crun's FIFO, as ``crun start`` does.

The caller writes the OCI bundle while conmon loads, and may prepare other services while crun
creates the container. conmon runs in the log folder, because its option for the log's path cannot
contain a ``:``.

Each start copies a mount namespace twice: niso copies one for the root, and crun one for the
container. The kernel copies mount by mount under one lock of the machine, and each service has a
mount in /run/netns. Therefore the first of several concurrent starts copies the host's namespace,
and unmounts /run/netns in the copy. The other starts copy this smaller namespace.

When a service exits, conmon runs the script ``<run>/on-exit``, which starts niso. conmon's command
line cannot name niso directly: it cannot change while the service runs, but niso may be reinstalled
in another folder or for another Python. The script runs the installation of niso that last wrote
it. If this installation no longer exists, the script runs the ``niso`` in PATH.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import time
from _thread import allocate_lock, get_native_id, start_new_thread
from contextlib import ExitStack, contextmanager, suppress
from functools import cache

from niso.base import paths, signals
from niso.base.errors import ProcessError
from niso.base.locks import open_lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import from_json, lazy, signal
from niso.base.signals import ENDING, signals_blocked
from niso.plan.specs import ProcessSpec
from niso.runtime import cgroups, crun, oci, root, sources, status, units, volumes
from niso.runtime.crun import cgroup_of, wait_readable, write_json
from niso.runtime.root import HOST, INIT, LOWER, SECRETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from niso.runtime import logs
else:
    logs = lazy("niso.runtime.logs")


# --- start ----------------------------------------------------------------------------------------


LOG_SIZE_MAX = 64 << 20
"""Size in bytes at which conmon itself starts a new log file; see `niso.runtime.logs`."""

_FORK_TIMEOUT_S = 60.0
"""Seconds that conmon may take to fork after it is told to create. Normally it takes 1 ms."""
_CAP_SYS_NICE, _CAP_SYS_RESOURCE = 23, 24
"""Numbers of the capabilities in linux/capability.h."""
_RLIMIT_LOCKS = 10
"""RLIMIT_LOCKS (asm-generic/resource.h), which Python does not define."""

_LIMITS = "AS CPU DATA FSIZE MEMLOCK MSGQUEUE NPROC RSS RTTIME SIGPENDING STACK"
"""Names of the resource limits RLIMIT_* (setrlimit(2)) that conmon gets."""
_FOLDERS = (
    *("layer", "empty", HOST, INIT, sources.VOLUMES, sources.PACKAGE, "scratch", SECRETS, "root"),
    *("exits", "persist"),
)
"""Names of the folders in a bundle."""
_PROFILE = os.path.join(os.path.dirname(__file__), "seccomp.json")


def limits_max() -> dict[str, int]:
    """Return the largest resource limits that this process may set, such as {"nofile": 1048576}.

    A limit without a maximum is left out. Without the capability CAP_SYS_RESOURCE, root cannot
    exceed its own hard limits (setrlimit(2)).
    """
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        most = {"nofile": int(file.read())}
    for name in () if _may(_CAP_SYS_RESOURCE) else oci.RLIMITS:
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}", _RLIMIT_LOCKS))[1]
        if hard != resource.RLIM_INFINITY:
            most[name] = min(hard, most.get(name, hard))
    return most


def resets() -> list[str]:
    """Return the values that this process may reset to 0: "nice" (niceness), "oom" (OOM score)."""
    can = []
    if _may(_CAP_SYS_NICE) or os.getpriority(os.PRIO_PROCESS, 0) == 0:
        can.append("nice")
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        # without the capability, the score cannot be lowered to 0
        if _may(_CAP_SYS_RESOURCE) or int(file.read()) == 0:
            can.append("oom")
    return can


def _may(capability: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    with open("/proc/self/uid_map", encoding="ascii") as file:
        is_machine = file.read().split() == ["0", "0", str(2**32 - 1)]
    return is_machine and bool(effective & (1 << capability))


class Launch:
    """One run of a service. The constructor creates the container, and `finish` starts its process.

    ``number`` is 0 for the first run of an activation, 1 for the next. ``counts`` has the numbers
    of restarts and of consecutive failures. state.json records all three numbers. The caller must
    have the service's lock, and must call `finish` or `close`. Raises OSError, or `ProcessError`
    with the message of crun or conmon. After an error, the caller must remove what was created
    (`niso.runtime.lifecycle.clear`).
    """

    def __init__(self, spec: ProcessSpec, number: int, counts: dict[str, Any]) -> None:
        self.service = spec.service
        now = {"launched_at": time.time(), "starter": os.getpid()}
        self._record = {"run": number, "phase": "starting", **now, **counts}
        status.write_state(spec.service, self._record)
        bundle = status.bundle_of(spec.service, number)
        self._held = ExitStack()
        try:
            signals.hit(f"write the bundle of {spec.service}")
            opened, trees, secrets = sources.open_all(spec, self._held)
            root.begin()
            self._held.callback(root.end)
            os.mkdir(bundle, 0o700)
            # Keeps other processes from removing niso's cgroups before conmon and crun's container
            # are in them.
            guard = open_lock(".cgroup")
            self._held.callback(os.close, guard)
            fcntl.flock(guard, fcntl.LOCK_SH)
            status.write_exit_script()
            # A signal between the two would leave a thread and a conmon that no code ends.
            with signals_blocked():
                self._creator = _Creator(spec, bundle, trees, secrets)
                self._held.callback(self._creator.close)
            under = root.current() if spec.rootfs is None else None
            write_bundle(opened, bundle, under)
            self._creator.create(under[1] if under is not None else ())
            self.fd = self._creator.fd
            """A descriptor, readable once the container exists or its creation has failed."""
        except BaseException:
            self.close()
            raise

    @property
    def is_created(self) -> bool:
        """Return whether the container exists or its creation failed: `finish` will not wait."""
        return crun.wait_readable(self.fd, 0)

    def finish(self) -> int:
        """Wait for the container, start its process, and return the pid of PID 1 on the host."""
        service = self.service
        try:
            pid = self._creator.pid()
        finally:
            self.close()
        signals.hit(f"start the process of {service}")
        crun.start(service)
        logs.rotate_if_large(service)
        now = {"started_at": time.time(), "started_monotonic": time.monotonic()}
        status.write_state(service, {**self._record, "phase": "running", "pid": pid, **now})
        return pid

    def close(self) -> None:
        """End the thread and its mounts, close conmon's pipes, and release the lock ``.cgroup``."""
        self._held.close()


def init() -> str:
    return os.path.realpath(crun.tool("catatonit"))


def write_bundle(spec: ProcessSpec, bundle: str, under: root.Skeleton | None) -> None:
    """Write the OCI bundle: config.json, and the folders from which the root is mounted.

    Also create missing named volumes. ``spec`` is the service's process, with the paths that
    `sources.open_all` has opened. ``under`` is the skeleton (the root's lower layer). It is None
    for a service with a rootfs.
    """
    if not spec.netns:
        spec = spec._replace(hostname=os.uname().nodename, resolv_conf=root.of_host("resolv.conf"))
    for name in _FOLDERS:
        os.mkdir(os.path.join(bundle, name), 0o700)
    if spec.netns:
        os.close(os.open(f"{bundle}/{sources.NETNS}", os.O_CREAT | os.O_CLOEXEC, 0o600))
        spec = spec._replace(netns=f"{bundle}/{sources.NETNS}")
    spec = spec._replace(package=f"{bundle}/{sources.PACKAGE}")
    where = volumes.resolve_mount_points(spec.rootfs, spec.volumes)
    volumes.make_named(spec)
    if under is None:
        os.mkdir(f"{bundle}/{LOWER}", 0o700)
    else:
        os.symlink(under[0], f"{bundle}/{LOWER}")
    below = spec.rootfs if under is None else under[0]
    assert below is not None
    hosts_at = root.write_layer(spec, f"{bundle}/layer", below)
    shared = f"{bundle}/{sources.VOLUMES}"
    for volume, at, is_folder in where:
        (root.mount_point if is_folder else root.mount_file)(below, f"{bundle}/layer", at)
        if sources.is_shared(volume) and is_folder:
            os.mkdir(f"{shared}/{volume.name}", 0o700)
        elif sources.is_shared(volume):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            os.close(os.open(f"{shared}/{volume.name}", flags, 0o600))
    most = root.once(limits_max)
    if spec.pids_limit is not None and not root.once(cgroups.roots):
        # a lab without root: count the processes of the service's uid there
        most = {**most, "nproc": min(spec.pids_limit, most.get("nproc", spec.pids_limit))}
    machine = oci.OciHost(
        init=os.path.join(bundle, INIT, os.path.basename(root.once(init))),
        limits_max=most,
        resets=root.once(resets),
        devices=sources.devices(spec),
        seccomp=_profile(),
        host=f"{bundle}/{HOST}",
        secrets=f"{bundle}/{SECRETS}" if spec.secrets else "",
        folders=under[1] if under is not None else (),
        controllers=cgroups.usable(cgroups.limits(spec)),
    )
    mounts = volumes.mounts(spec, where, shared)
    config = oci.config(spec, f"{bundle}/root", hosts_at, machine, mounts)
    write_json(f"{bundle}/config.json", config)


@cache
def _profile() -> dict[str, Any]:
    with open(_PROFILE, encoding="utf-8") as file:
        profile: dict[str, Any] = from_json(file.read())
    return profile


class _Creator:
    """A thread that starts conmon, and mounts the service's root in a private mount namespace.

    unshare(2) gives only this thread its own working directory, in which conmon starts, and its own
    mounts. A forked process would cost 2 ms more, for its page tables and each page that is written
    to. Construct the object inside `signals_blocked`: signals stay blocked in the thread for its
    entire life, because the main thread handles them.
    """

    def __init__(
        self, spec: ProcessSpec, bundle: str, trees: dict[str, int], secrets: dict[str, bytes]
    ) -> None:
        self._spec = spec
        self._bundle = bundle
        self._mounts = (trees, secrets)
        self._folders: Sequence[str] = ()
        self._error: Exception | None = None
        self._conmon = 0
        """The pid of conmon until it has forked; after that 0."""
        self._tid = 0
        self.fd, answer = os.pipe()
        """A descriptor, readable when conmon has the result of the creation or has exited."""
        asked, self._ask = os.pipe()
        """The write end of the pipe on which conmon waits until it is told to create."""
        self._ends = [answer, asked]
        """The ends of the pipes that conmon gets."""
        self._closed = False
        # Used as events: acquire waits, release signals.
        self._may_create, self._may_end, self._ended = (allocate_lock() for _ in range(3))
        for event in (self._may_create, self._may_end, self._ended):
            event.acquire()
        try:
            start_new_thread(self._run, ())
        except RuntimeError:
            for fd in (self.fd, self._ask, *self._ends):
                os.close(fd)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "pthread_create") from None

    def create(self, folders: Sequence[str]) -> None:
        """Make the thread mount the root, and then let conmon create the container. Returns without
        waiting. ``folders`` are the folders of the host that are visible in the root.
        """
        self._folders = folders
        self._may_create.release()

    def pid(self) -> int:
        """Wait until the container exists, and return the pid of its PID 1 on the host.

        conmon reports this pid in a line of JSON (write_sync_fd in conmon). Raises `ProcessError`
        with crun's message.
        """
        line = b""
        while b"\n" not in line and (chunk := os.read(self.fd, 4096)):
            line += chunk
        if self._error is not None:
            raise self._error
        try:
            answer = from_json(line.decode() or "{}")
        except ValueError:
            answer = {}
        pid = answer.get("data", -1)
        if isinstance(pid, int) and pid > 0:
            return pid
        message = crun.plain_message(str(answer.get("message", "")).encode())
        if not message:
            with open(f"{self._bundle}/conmon.err", "rb") as file:
                message = crun.plain_message(file.read(4096)) or "conmon ended without a message"
        raise ProcessError(message.removeprefix("; "), service=self._spec.service)

    def close(self) -> None:
        """Stop the thread, with its mounts. Kill conmon unless it already creates the container."""
        with signals_blocked():
            self._closed = True
            self._may_end.release()
            if self._may_create.locked():
                self._may_create.release()
            self._ended.acquire()
            self._kill_conmon()
            for fd in (self.fd, self._ask):
                os.close(fd)

    def _run(self) -> None:
        try:
            self._tid = get_native_id()
            os.unshare(os.CLONE_FS)
            self._start_conmon()
            self._may_create.acquire()
            if self._closed:
                return
            self._mount()
            self._let_conmon_create()
            self._may_end.acquire()
        except Exception as error:
            self._error = error
            # then `pid` reads the end of the pipe and reports the error
            self._kill_conmon()
            self._close_ends()
        finally:
            self._ended.release()

    def _start_conmon(self) -> None:
        folder = paths.log_dir(self._spec.service)
        os.makedirs(folder, 0o700, exist_ok=True)
        os.chdir(folder)
        argv = _conmon_argv(self._spec, self._bundle, self._tid)
        answer, asked = self._ends
        errors = f"{self._bundle}/conmon.err"
        pipes = {"_OCI_SYNCPIPE": str(answer), "_OCI_STARTPIPE": str(asked)}
        with _nothing_inherited():
            self._conmon = os.posix_spawn(
                argv[0],
                argv,
                {**crun.environment(), **pipes},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_OPEN, 2, errors, os.O_WRONLY | os.O_CREAT, 0o600),
                    # A dup onto itself clears FD_CLOEXEC (glibc, spawni.c).
                    *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in self._ends),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=ENDING,
            )
        self._close_ends()
        # otherwise conmon is the main process of this unit
        if units.path(self._spec.service) is None:
            cgroups.keep(self._conmon, cgroup_of(self._spec))

    def _mount(self) -> None:
        signals.hit(f"mount the root of {self._spec.service}")
        try:
            enter()
            own = root.once(init)
            root.assemble(self._spec, self._bundle, own, self._folders, *self._mounts)
        except OSError as error:
            where = error.filename or "unshare"
            reason = f"cannot mount its root: {error.strerror}: {where}"
            raise ProcessError(f"{self._spec.service}: {reason}") from error

    def _let_conmon_create(self) -> None:
        signals.hit(f"create the process of {self._spec.service}")
        _set_limits(self._conmon)
        pidfd = os.pidfd_open(self._conmon)
        try:
            with suppress(BrokenPipeError):  # conmon has died; the other pipe has its message
                os.write(self._ask, b"\0")
            with suppress(OSError, ValueError):  # only an optimization
                cgroups.move_nowhere()  # in parallel, while conmon and crun start
            if not wait_readable(pidfd, _FORK_TIMEOUT_S):
                late = f"conmon did not start within {_FORK_TIMEOUT_S:g}s"
                raise ProcessError(f"{self._spec.service}: {late}")
            os.waitpid(self._conmon, 0)
            self._conmon = 0
        finally:
            os.close(pidfd)

    def _close_ends(self) -> None:
        for fd in self._ends:
            os.close(fd)
        self._ends.clear()

    def _kill_conmon(self) -> None:
        """Kill conmon if it has not forked. Later, `lifecycle.end_conmon` reads its pid file."""
        if self._conmon:
            os.kill(self._conmon, signal.SIGKILL)
            os.waitpid(self._conmon, 0)
            self._conmon = 0


_spawning = allocate_lock()


@contextmanager
def _nothing_inherited() -> Iterator[None]:
    """Run a ``with`` block whose child processes do not inherit the caller's descriptors.
    POSIX_SPAWN_CLOSE would fail for descriptors above the present limit of open files.
    """
    with _spawning:
        left = _inherited_once() if paths.is_command else _inherited()
        try:
            _set_inherited(left, False)
            yield
        finally:
            _set_inherited(left, True)


def _inherited() -> list[int]:
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the descriptor that listed the folder
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


_inherited_once = cache(_inherited)
"""`_inherited`, with a cached result. A command has two descriptors for each service, and opens
none that a child should inherit.
"""


def _set_inherited(fds: list[int], inherited: bool) -> None:
    for fd in fds:
        with suppress(OSError):  # another thread has closed it
            os.set_inheritable(fd, inherited)


def _conmon_argv(spec: ProcessSpec, bundle: str, tid: int) -> list[str]:
    """Return conmon's command line. crun joins the mount namespace of the thread ``tid``."""
    container = crun.container_id(spec.service)
    runtime = [
        f"--mount=/proc/{tid}/ns/mnt",
        # the host's root differs from the namespace's root if niso runs in a chroot
        f"--root=/proc/{tid}/root",
        "--",
        crun.tool("crun"),
        f"--cgroup-manager={'cgroupfs' if root.once(cgroups.roots) else 'disabled'}",
        f"--root={crun.state_dir()}",
    ]
    return [
        crun.tool("conmon"),
        *("--api-version", "1"),
        *("-c", container, "-u", container, "-n", spec.service),
        *("-r", crun.tool("nsenter"), *(f"--runtime-arg={arg}" for arg in runtime)),
        *("-b", bundle, "-p", f"{bundle}/pid", "-P", f"{bundle}/conmon.pid"),
        *("-l", f"k8s-file:{paths.LOG_NAME}", "--log-size-max", str(LOG_SIZE_MAX), "--no-sync-log"),
        *(("-l", "journald") if units.logs_to_journal(spec.service) else ()),
        *("--exit-dir", f"{bundle}/exits", "--persist-dir", f"{bundle}/persist", "--full-attach"),
        *("--exit-command", status.SHELL),
        *(f"--exit-command-arg={arg}" for arg in (status.exit_script(), spec.service, bundle)),
        *("--log-level", "warning"),
    ]


def _set_limits(pid: int) -> None:
    """Set the resource limits and the niceness of conmon to those of PID 1.

    Otherwise conmon would have the limits of the calling shell: with ``ulimit -f``, for example,
    conmon would stop writing the log. crun sets the limits of the service itself.
    """
    for name in _LIMITS.split():
        limit = getattr(resource, f"RLIMIT_{name}")
        try:
            resource.prlimit(pid, limit, resource.prlimit(1, limit))
        except (OSError, ValueError):  # without CAP_SYS_RESOURCE: up to niso's own hard limit
            most = resource.getrlimit(limit)[1]
            resource.prlimit(pid, limit, (most, most))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 1))


# --- the mount namespace that starts copy ---------------------------------------------------------


# mount(2), linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_SLAVE = 0x2, 0x4, 0x4000, 0x80000
_MNT_DETACH = 2

_lock = allocate_lock()
_base: list[int] = []
"""Two descriptors: of the mount namespace that starts copy, and of this process's root in it."""


def enter() -> None:
    """Move the calling thread into a new mount namespace, whose mounts the host does not see.

    Later mounts of the host appear in this namespace (mount_namespaces(7), MS_SLAVE). The thread
    must have unshared CLONE_FS, and must have called `root.begin`. Raises OSError.
    """
    with _lock:
        if _base:
            namespace, top = _base
            os.setns(namespace, os.CLONE_NEWNS)  # also moves the thread to the namespace's root
            os.fchdir(top)
            os.chroot(".")
        else:
            os.unshare(os.CLONE_NEWNS)
            root.mount(None, "/", None, _MS_REC | _MS_SLAVE)
            with suppress(OSError):  # /run/netns is no mount: no service has a network namespace
                root.unmount(os.fsencode(paths.NETNS_DIR), _MNT_DETACH)
            if os.path.isdir("/sys/fs/cgroup/unified") and os.path.isdir("/sys/fs/cgroup/systemd"):
                # crun does not accept the unified hierarchy next to those of v1: hide it.
                root.mount("none", "/sys/fs/cgroup/unified", "tmpfs", _MS_NOSUID | _MS_NODEV)
            top = os.open("/", os.O_PATH)
            try:
                _base[:] = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY), top
            except OSError:
                os.close(top)
                raise
            root.after_last_start(_close)
    os.unshare(os.CLONE_NEWNS)


def _close() -> None:
    """Close the mount namespace that all starts copy, so that it pins no file system."""
    while _base:
        os.close(_base.pop())


def remove_unused() -> None:
    """Delete unused skeletons of roots, and the exit script if no service has runtime files. Does
    nothing while a service is starting.
    """

    guard = open_lock(".cgroup")
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        root.remove_unused()
        if not status.services():
            os.unlink(status.exit_script())
    except (BlockingIOError, FileNotFoundError):  # a service is starting; no script
        return
    finally:
        os.close(guard)
