"""Start, signal, stop and clean up the processes of services. Find processes without records.

A caller that changes anything must have the service's lock (`niso.base.locks`).

``<run>/services/<service>/`` has spec.json, state.json and one folder ``run-N`` for each start (OCI
bundle, pid files, exit status). A recorded pid is used only if the kernel lists that process in the
service's cgroup. Services whose runtime files were deleted are found by their cgroups.

niso does not wait for a fixed time to find out whether a start was successful. A program that
cannot run, or that exits immediately, does not sleep before it exits. A program that sleeps
therefore counts as started.

When the networks of a running service change, its new hosts folder is mounted beneath the old one,
which is then unmounted (move_mount(2), MOVE_MOUNT_BENEATH, Linux 6.5). On an older kernel, the
service sees neither folder for a short time. The service may have changed its /etc: niso follows no
symbolic link there, and replaces only a mount of the file system with niso's hosts files.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from niso.base import files, paths, signals
from niso.base.errors import Error, ProcessError, UsageError
from niso.base.native import signal
from niso.base.signals import signals_blocked
from niso.plan.specs import ProcessSpec
from niso.runtime import cgroups, crun, launch, root, status, units
from niso.runtime.root import HOSTS

# --- start and stop -------------------------------------------------------------------------------


_KILL_S = 10.0
"""Seconds that a process may take to exit after SIGKILL."""
_FILES, _BYTES, _INODES = 64, 1 << 18, 64
"""What a start needs: open files, bytes in the run folder, and files in the run folder."""


def require_room() -> None:
    """Raise ProcessError if a start needs more descriptors, inodes or disk space than are free."""
    held: list[int] = []
    try:
        held += (os.dup(0) for _ in range(_FILES))
    except OSError as error:
        words = f"cannot start a process: {error.strerror}"
        raise ProcessError(words, f"ulimit -n must be at least {2 * _FILES}") from error
    finally:
        for fd in held:
            os.close(fd)
    folder = paths.run_dir()
    room = os.statvfs(folder)
    lacks_bytes = room.f_bavail * room.f_frsize < _BYTES
    # a file system without a limit of files has none
    if lacks_bytes or (room.f_files and room.f_favail < _INODES):
        words = f"cannot start a process: no {'space' if lacks_bytes else 'file'} is left in"
        raise ProcessError(f"{words} {folder}", f"df -h {folder}; df -i {folder}")


def begin(spec: ProcessSpec) -> launch.Launch:
    """Begin the start of a service: create its container with crun, without starting the process.

    The caller must call `finish` with the result. To give up the start, it must instead call
    `Launch.close` and then `stop`. Remains of an earlier activation are removed first. Raises
    `ProcessError` with the message of crun. After an error, the service has no process, cgroup,
    mount or file except its log.
    """
    # "starting" does not block: this niso has the lock, so only a niso that died can have left it
    if status.read(spec.service).state in ("running", "restarting"):
        raise ProcessError(f"{spec.service} is already running", "niso ps shows it")
    stop(spec.service)
    with _removed_on_error(spec.service):
        _kill_orphans(spec.service, crun.cgroup_of(spec))
        signals.hit(f"write the spec of {spec.service}")
        os.makedirs(paths.service_dir(spec.service), 0o700, exist_ok=True)
        crun.save(spec)
        return launch.Launch(spec, 0, {"restarts": 0, "failures": 0})


def finish(begun: launch.Launch) -> int:
    """Start the process of the container that `begin` has created. Return the pid of the service's
    PID 1 on the host. After an error, everything except the log is removed, as by `begin`.
    """
    with _removed_on_error(begun.service):
        pid = begun.finish()
        if units.has_stand_in(begun.service):
            units.hand_over(begun.service, status.conmon(begun.service))
        return pid


@contextmanager
def _removed_on_error(service: str) -> Iterator[None]:
    """Run a ``with`` block. If it raises, remove all processes and files of the service."""
    try:
        yield
    except Error:
        stop(service, 0)
        raise
    except OSError as error:
        stop(service, 0)
        raise _failed(service, "start", error) from error


def start(spec: ProcessSpec) -> int:
    return finish(begin(spec))


def open_init(service: str, pid: int | None = None) -> int:
    """Return a pidfd of a service's PID 1, for the caller to close, or -1 if it has none. ``pid``
    is the pid of PID 1, if the caller has just read the service's status.
    """
    return crun.open_in_service(service, pid or status.read(service).pid)


def terminate(service: str) -> int:
    """Send a service its stop signal, and disable its restart policy. Call `stop` afterwards.

    Returns a pidfd of the service's PID 1, which the caller must close. Returns -1 if no PID 1 is
    running that handles the signal.
    """
    folder = paths.service_dir(service)
    if not os.path.isdir(folder):
        return -1
    signals.hit(f"ask the process of {service} to end")
    units.add_stand_in(service, status.conmon(service))
    bundles = status.bundles(folder)
    for bundle in bundles:
        _touch(f"{bundle}/{status.STOPPING}")
    for bundle in bundles:
        pid = crun.read_pid(f"{bundle}/pid")
        pidfd = crun.open_in_service(service, pid)
        if pidfd >= 0 and crun.is_init(pid):
            crun.send_signal(pidfd, _stop_signal(crun.load(service)))
            return pidfd
        if pidfd >= 0:
            os.close(pidfd)
    return -1


def _stop_signal(spec: ProcessSpec | None) -> int:
    name = f"SIG{spec.stop_signal}" if spec is not None else "SIGTERM"
    return signals.numbers().get(name, signal.SIGTERM)


def stop(service: str, timeout_s: float | None = None) -> None:
    """Stop a service and remove its runtime files. Do nothing if it has no runtime files.

    Sends the stop signal, and SIGKILL after ``timeout_s`` seconds. If ``timeout_s`` is None, the
    stop timeout in the service's ProcessSpec applies. The service is not restarted. Raises
    `ProcessError` if a process does not exit.
    """
    try:
        if _stop_runs(service, timeout_s):
            _remove_shared({_remove(service)})
    except OSError as error:
        raise _failed(service, "stop", error) from error


def stop_all(services: Iterable[str]) -> dict[str, Error]:
    """Kill services with SIGKILL, and remove their runtime files. Return the errors by service. The
    next of ``services`` is taken when the one before is removed.
    """
    errors: dict[str, Error] = {}
    parents: set[str] = set()
    for name in services:
        try:
            if _stop_runs(name, 0):
                parents.add(_remove(name))
        except ProcessError as error:
            errors[name] = error
        except OSError as error:
            errors[name] = _failed(name, "stop", error)
    _remove_shared(parents)
    return errors


def _stop_runs(service: str, timeout_s: float | None) -> bool:
    folder = paths.service_dir(service)
    _kill_orphans(service, None)
    if not os.path.isdir(folder):
        return False
    spec = crun.load(service)
    if timeout_s is None:
        timeout_s = spec.stop_timeout_s if spec else 0.0
    units.add_stand_in(service, status.conmon(service))
    _kill_runs(service, spec, status.bundles(folder), timeout_s)
    return True


def _remove(service: str) -> str:
    """Remove the container, the cgroup and the runtime files of a service that has ended. Return
    the parent of its cgroup, or "" if the cgroup is not known.

    ``crun delete`` would take longer to remove the same cgroup and crun's folder. It runs only if a
    process may remain: the cgroup is unknown or cannot be removed, or PID 1 still runs after
    another program has moved it out of the cgroup.
    """
    spec = crun.load(service)
    cgroup = crun.cgroup_of(spec) if spec is not None else ""
    known = crun.read_json(f"{crun.container_dir(service)}/status") or {}
    runs = crun.state_letter(crun.int_or_none(known.get("pid"))) not in ("Z", "X")
    if runs or not cgroup or not cgroups.remove(cgroup):
        _delete(service)
        if cgroup:
            _kill_cgroup(service, cgroup)
            cgroups.remove(cgroup)
    # crun cannot read what an interrupted create left
    files.remove_tree(crun.container_dir(service))
    signals.hit(f"remove the runtime files of {service}")
    files.remove_tree(paths.service_dir(service))
    status.forget_health(service)
    return os.path.dirname(cgroup)


def _remove_shared(parents: set[str]) -> None:
    """Remove files and cgroups that services share and that no service uses any more. ``parents``
    are the results of `_remove`.
    """
    if parents:
        launch.remove_unused()
    for parent in parents - {""}:
        cgroups.remove_parent(parent)


def abandon(spec: ProcessSpec, bundle: str) -> None:
    """Clean up after a run that failed to start. Files of other runs stay."""
    if os.path.isdir(bundle):
        _kill_runs(spec.service, spec, [bundle], 0)
        clear(spec.service)
        _end_cgroup(spec.service, spec)
        files.remove_tree(bundle)


def _failed(service: str, what: str, error: OSError) -> ProcessError:
    where = f": {error.filename}" if error.filename else ""
    return ProcessError(f"cannot {what} its process: {error.strerror}{where}", service=service)


def _kill_runs(service: str, spec: ProcessSpec | None, runs: list[str], timeout_s: float) -> None:
    """Kill the processes and conmons of ``runs``, the folders of a service's starts.

    The caller must delete the container from crun only after this call: until a conmon has exited,
    it could still complete the creation of a container.
    """
    signals.hit(f"stop the process of {service}")
    for bundle in runs:
        _touch(f"{bundle}/{status.STOPPING}")
    for bundle in runs:
        _kill_run(spec, bundle, timeout_s)
    signals.hit(f"remove what is left of the process of {service}")
    for bundle in runs:
        end_conmon(bundle)


def _end_cgroup(service: str, spec: ProcessSpec | None) -> None:
    if spec is not None:
        _kill_cgroup(service, crun.cgroup_of(spec))
        cgroups.remove_with_parent(crun.cgroup_of(spec))


def kill_orphan(service: str, cgroup: str) -> None:
    """Kill the processes of a service without runtime files, and remove its cgroup."""
    try:
        _kill_orphans(service, cgroup)
        cgroups.remove_with_parent(cgroup)
    except OSError as error:
        raise _failed(service, "stop", error) from error


def _kill_orphans(service: str, path: str | None) -> None:
    """Kill all remaining processes of a service whose runtime folder was removed.

    crun's record of the container still has the paths of the bundle and the cgroup. If there is no
    such record, all processes in the cgroup ``path`` are killed.
    """
    # The state of an interrupted create lacks these keys and counts as none.
    known = crun.read_json(f"{crun.container_dir(service)}/status") or {}
    lost = known.keys() >= {"bundle", "cgroup-path"} and not os.path.isdir(str(known["bundle"]))
    if not lost and (path is None or not cgroups.pids(path)):
        return
    signals.hit(f"end the lost process of {service}")
    path = path or str(known["cgroup-path"])
    clear(service)
    _kill_cgroup(service, path)
    # Its exit command would mistake the next run, in a folder of the same name, for its own.
    for pid, bundle in _conmons((service,)):
        end_conmon(bundle, pid)
    cgroups.remove_with_parent(path)


def end_unrecorded_conmons(services: Collection[str]) -> None:
    """Kill conmons of these services for which an interrupted start has written no pid file.

    Such a conmon would mistake a later run in a folder of the same name for its own run. The caller
    must have the locks of the services. All processes of the host are scanned.
    """
    for pid, bundle in _conmons(services):
        if pid != crun.read_pid(f"{bundle}/conmon.pid"):
            end_conmon(bundle, pid)


def _conmons(services: Collection[str]) -> list[tuple[int, str]]:
    start = os.fsencode(os.path.join(paths.run_dir(), "services")) + b"/"
    conmons = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        words = crun.command_line(pid)
        for word in words:
            service, _, run = os.fsdecode(word.removeprefix(start)).partition("/")
            if not word.startswith(start) or service not in services or not run.startswith("run-"):
                continue
            # crun's command line also names the bundle, but never conmon.pid.
            if word + b"/conmon.pid" in words:
                conmons.append((pid, os.fsdecode(word)))
    return conmons


def clear(service: str) -> None:
    """Delete a service's container from crun, in any state. Do nothing if there is none."""
    _delete(service)
    # crun cannot read what an interrupted create left.
    files.remove_tree(crun.container_dir(service))


def _delete(service: str) -> None:
    if os.path.isdir(crun.container_dir(service)):
        crun.run("delete", "--force", crun.container_id(service))


def _kill_run(spec: ProcessSpec | None, bundle: str, timeout_s: float) -> None:
    """Kill the PID 1 of a run, and with it all processes of the run (pid_namespaces(7)).

    PID 1 gets the stop signal of ``spec``, and SIGKILL after ``timeout_s`` seconds. If
    ``timeout_s`` is 0, PID 1 gets only SIGKILL.
    """
    pid = crun.read_pid(f"{bundle}/pid")
    pidfd = crun.open_in_service(spec.service, pid) if spec else -1
    if pidfd >= 0:
        try:
            # A container that was created but never started does not handle SIGTERM.
            if timeout_s > 0 and crun.is_init(pid):
                crun.send_signal(pidfd, _stop_signal(spec))
                if crun.wait_readable(pidfd, timeout_s):
                    return
            crun.send_signal(pidfd, signal.SIGKILL)
            if not crun.wait_readable(pidfd, _KILL_S):
                whose = spec.service if spec else bundle
                raise ProcessError(f"{whose}: process {pid} did not end after SIGKILL")
        finally:
            os.close(pidfd)


def end_conmon(bundle: str, pid: int | None = None) -> None:
    """Kill the exit command of a run, and then its conmon.

    ``pid`` is the pid of conmon, by default the recorded one. conmon gets 5 s to write the last log
    lines. After the service has exited, conmon has no other children than the exit command or an
    interrupted crun create.
    """
    pid = pid or crun.read_pid(f"{bundle}/conmon.pid")
    conmon = crun.open_supervisor(pid, bundle)
    if conmon < 0:
        return
    pause_s = 0.001
    deadline = time.monotonic() + status.CONMON_S
    try:
        while not crun.wait_readable(conmon, pause_s):
            if time.monotonic() >= deadline:
                crun.send_signal(conmon, signal.SIGKILL)
                crun.wait_readable(conmon, _KILL_S)
                return
            # The exit command writes its pid before it checks STOPPING, so one of the two sees the
            # other.
            for child in (*crun.children(pid), crun.read_pid(f"{bundle}/{status.EXITED_PID}")):
                command = crun.open_supervisor(child, bundle)
                if command >= 0:
                    crun.send_signal(command, signal.SIGKILL)
                    os.close(command)
            pause_s = min(2 * pause_s, 0.02)
    finally:
        os.close(conmon)


def _kill_cgroup(service: str, path: str) -> None:
    for pid in cgroups.pids(path):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Check after the open, as open_in_service does.
            if not cgroups.holds(path, pid):
                continue
            crun.send_signal(pidfd, signal.SIGKILL)
            if not crun.wait_readable(pidfd, _KILL_S):
                raise ProcessError(f"process {pid} did not end after SIGKILL", service=service)
        finally:
            os.close(pidfd)


def _touch(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
    except OSError as error:
        # another file type, such as a FIFO or folder
        if error.errno not in (errno.ENXIO, errno.EISDIR):
            raise


# --- signals (niso kill) --------------------------------------------------------------------------


_ENDS_S = 1.0
"""Seconds that a process may take to exit after SIGKILL."""
_LOOK_S = 0.05
"""Seconds to wait for the exit of a process after a signal other than SIGKILL."""


def number(text: str) -> int:
    """Return the number of a signal given as ``HUP``, ``SIGHUP`` or ``1``."""
    plain = text.upper().removeprefix("SIG")
    known = signals.numbers()
    if f"SIG{plain}" in known:
        return known[f"SIG{plain}"]
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) in signal.valid_signals():
        return int(text)
    hint = f"a name such as HUP or USR1, or a number from 1 to {int(signal.SIGRTMAX)}"
    raise UsageError(f"{text!r} is not a signal", hint, "--signal")


def name(number: int) -> str:
    """Return the name of a signal, such as ``SIGHUP``, or ``signal 35`` if it has no name."""
    return signals.name_of(number) or f"signal {number}"


def send(service: str, number: int) -> bool:
    """Send a signal to a service's process, and return whether the process exited soon after.

    SIGKILL is sent to PID 1, and the kernel then kills all other processes (pid_namespaces(7)).
    Other signals are sent to the process of the entrypoint, which is PID 1's first child, because
    PID 1 is an init that cannot pass on SIGSTOP. Raises ProcessError if the service has no process.
    """
    pid = status.read(service).pid
    first = next(iter(crun.children(pid)), pid) if number != signal.SIGKILL else pid
    init = crun.open_in_service(service, pid)
    target = crun.open_in_service(service, first)
    try:
        if init < 0 or target < 0:
            state = status.read(service).state
            raise ProcessError(f"has no running process ({state})", "niso ps", service=service)
        try:
            signal.pidfd_send_signal(target, number)
        except ProcessLookupError:  # it has just ended
            return True
        return crun.wait_readable(init, _ENDS_S if number == signal.SIGKILL else _LOOK_S)
    finally:
        for fd in (init, target):
            if fd >= 0:
                os.close(fd)


# --- idleness after a start -----------------------------------------------------------------------


_MAX_THREADS = 64
"""A service with more threads than this never counts as idle."""
_FIRST_FIELD = 3
"""Number of the first field after the command name in /proc/PID/stat (proc_pid_stat(5))."""
_STATE, _UTIME, _STIME = 3 - _FIRST_FIELD, 14 - _FIRST_FIELD, 15 - _FIRST_FIELD

Mark = tuple[tuple[int, bytes], ...]
"""Pairs of a thread's id and its numbers of context switches, as text."""


def mark(init: int) -> Mark | None:
    """Return the context switch counts of a service's threads if the service is idle, else None.

    Two equal results mean that no thread has run in between. ``init`` is the service's PID 1. A
    service is idle if all its threads sleep, one of them has executed the entrypoint, and no child
    of PID 1 has children of its own (a shell may continue or exit when its child exits). On a
    kernel without CONFIG_PROC_CHILDREN, the result is always None.
    """
    threads: list[tuple[int, bytes]] = []
    entered = False
    pids = [init]
    try:
        for pid in pids:  # grows while it is walked
            program = files.of_process(pid, "cmdline").partition(b"\0")[0]
            # PID 1's child has PID 1's command line until it executes the entrypoint.
            entered = entered or program not in (b"", crun.INIT.encode())
            for tid in os.listdir(f"/proc/{pid}/task"):
                text = files.of_process(pid, f"task/{tid}/status")
                sleeps = text.partition(b"\nState:\t")[2][:1] == b"S"
                children = _children(pid, tid)
                if not sleeps or len(threads) >= _MAX_THREADS or (children and pid != init):
                    return None
                threads.append((int(tid), text[text.rfind(b"\nvoluntary_ctxt_switches") :]))
                pids += children
    except (FileNotFoundError, ProcessLookupError):
        return None
    return tuple(threads) if entered else None


def is_starved(init: int) -> bool:
    """Return whether a service's process is runnable but got less than 0.1 s of CPU time.

    ``init`` is the service's PID 1. Its children are checked too. If the result is true, the
    machine is too busy to conclude from the elapsed time that the start was successful.
    """
    try:
        for pid in (init, *_children(init, str(init))):
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
            ticks = int(fields[_UTIME]) + int(fields[_STIME])
            if fields[_STATE] in (b"R", b"D") and ticks < os.sysconf("SC_CLK_TCK") // 10:
                return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def _children(pid: int, tid: str) -> list[int]:
    with open(f"/proc/{pid}/task/{tid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


# --- replacing the hosts file of a running service ------------------------------------------------


_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_ATTRIBUTES = (
    root.MOUNT_ATTR_RDONLY | root.MOUNT_ATTR_NOSUID | root.MOUNT_ATTR_NODEV | root.MOUNT_ATTR_NOEXEC
)
_RESOLVE = root.BENEATH | root.NO_SYMLINKS | root.NO_MAGICLINKS


def swap(spec: ProcessSpec) -> None:
    """Make a running service use the hosts folder of ``spec``, and save ``spec`` for its restarts.
    Raises ProcessError.
    """
    what = f"{spec.service}: cannot replace its hosts file"
    again = f"a restart of {spec.service} mounts it again"
    pidfd = open_init(spec.service)
    try:
        signals.hit(f"replace the hosts file of {spec.service}")
        crun.save(spec)
        if pidfd < 0:
            raise ProcessError(f"{what}: it has ended", f"niso logs {spec.service}")
        tree = root.clone_mount(root.AT_FDCWD, spec.hosts_folder)
        try:
            root.set_attributes(tree, _ATTRIBUTES)
            problem = _swap_in_child(pidfd, tree, os.stat(paths.hosts_root()).st_dev)
        finally:
            os.close(tree)
        if problem:
            raise ProcessError(f"{what}: {problem}", again)
    except OSError as error:
        raise ProcessError(f"{what}: {error.strerror}", again) from error
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _swap_in_child(pidfd: int, tree: int, device: int) -> str:
    """Replace the mount of the hosts folder in the mount namespace of the process ``pidfd``, by
    `_swap` in a forked child. ``tree`` is the new mount, and ``device`` the st_dev of the previous
    mount. Returns an error message, or "" after success.
    """
    with signals_blocked():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setns(pidfd, os.CLONE_NEWNS)  # also sets this process's root to the service's
                _swap(tree, device)
            except OSError as error:
                os.write(write, (error.strerror or "refused").encode())
            finally:
                os._exit(0)
        os.close(write)
        try:
            return os.read(read, 1000).decode()
        finally:
            os.close(read)
            os.waitpid(pid, 0)


def _swap(tree: int, device: int) -> None:
    """Mount ``tree``, a detached mount, at /etc/niso-hosts, and remove the previous mount there.
    Raises OSError unless ``device`` is the st_dev of the previous mount.
    """
    os.chdir("/")
    etc = root.open_place("etc", _RESOLVE, flags=os.O_DIRECTORY)
    os.fchdir(etc)
    target = root.open_place(HOSTS, _RESOLVE, etc, os.O_DIRECTORY)
    if os.fstat(target).st_dev != device:
        raise OSError(errno.ENOENT, "the service has moved or unmounted it")
    beneath = True
    try:
        root.attach_beneath(tree, target)
    except OSError as error:
        if error.errno != errno.EINVAL:  # otherwise the kernel lacks MOVE_MOUNT_BENEATH
            raise
        beneath = False
    # Checked above. Only a process with CAP_SYS_ADMIN could have replaced this mount since.
    root.unmount(HOSTS.encode(), _MNT_DETACH | _UMOUNT_NOFOLLOW)
    if not beneath:
        root.attach(tree, HOSTS, etc)


# --- services without runtime files ---------------------------------------------------------------


def orphans(state_ids: Iterable[str]) -> list[tuple[str, str, int | None]]:
    """Return the services that have a cgroup but no runtime files in this run folder, as a sorted
    list of (name, state id, pid) for each state id.

    ``pid`` is one of the service's processes. It is None if there is no process, or if a conmon of
    this run folder supervises the service.
    """
    known = {*status.services(), cgroups.KEEPERS}
    found = []
    for state_id in sorted(set(state_ids)):
        names = {name for root in cgroups.roots() for name in _folders(f"{root}/niso-{state_id}")}
        for service in sorted(names - known):
            pids = cgroups.pids(paths.cgroup(state_id, service))
            stranger = pids[0] if pids and not _conmons((service,)) else None
            found.append((service, state_id, stranger))
    return found


def _folders(folder: str) -> list[str]:
    names = crun.names_in(folder)
    return [name for name in names if os.path.isdir(os.path.join(folder, name))]
