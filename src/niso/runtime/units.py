"""Manage the systemd units of services: find, write, start and stop them, and notify systemd.

Services are restarted only by niso, never by systemd. After a restart, niso notifies systemd of the
unit's new main process (sd_notify(3), MAINPID). For systemd, the unit is active without
interruption, and ends only with the last exit of the service, with its exit status.

systemd accepts this notification only from a process in the unit's cgroup. conmon's exit command is
a child of conmon, and therefore in this cgroup. A niso command that restarts a service runs outside
this cgroup. Before it kills conmon, the command therefore moves a child process, the stand-in, into
the unit's cgroup. The stand-in stays until the next conmon runs. If the stand-in exits earlier, the
unit ends, as after a deactivation of the service.

`niso.change.boot` composes the text of an enabled service's unit. niso's agents run in the
foreground of units. Commands wake them through a named pipe in the run folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from niso.base import files, paths
from niso.base.errors import Conflict, Error, ProcessError
from niso.base.locks import service_lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import socket
from niso.base.report import Report, event_class, silent
from niso.base.signals import heed_signals, keep_only, signals_blocked
from niso.runtime import status
from niso.runtime.cgroups import keep_in, move, pids_in, roots
from niso.runtime.crun import cgroup_of, load, wait_readable

if TYPE_CHECKING:
    import threading
    from typing import NoReturn


# --- the unit that a service runs in --------------------------------------------------------------


_NOTIFY = "/run/systemd/notify"
_JOURNAL = "/run/systemd/journal/socket"
_NOTIFY_S = 5.0
"""Seconds that systemd may take to handle a message."""


def unit_of(service: str) -> str:
    return f"niso-{service}.service"


def timer_of(service: str) -> str:
    return f"niso-{service}.timer"


def booted() -> bool:
    """Return whether systemd is the init of this machine (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def has_ended() -> bool:
    """Return whether systemd runs this command as ExecStop after the main process has exited.
    Otherwise ExecStop has to stop the process (systemd.exec(5), $EXIT_CODE).
    """
    return "EXIT_CODE" in os.environ


def path(service: str, pid: int | None = None) -> str | None:
    """Return the cgroup of a service's unit if a process is in this cgroup, else None.

    ``pid`` is the process, by default this one. Also returns None if the process has exited
    (proc_pid_cgroup(5)).
    """
    try:
        with open(f"/proc/{pid or 'self'}/cgroup", "rb") as lines:
            cgroups = [os.fsdecode(line.rstrip(b"\n").split(b":", 2)[2]) for line in lines]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((path for path in cgroups if path.endswith(f"/{unit_of(service)}")), None)


def logs_to_journal(service: str) -> bool:
    """Return whether a conmon that starts now logs to journald in addition to niso's log: this is
    so if conmon will be in the service's unit, and journald exists.
    """
    return (service in _stand_ins or path(service) is not None) and os.path.exists(_JOURNAL)


def adopt(pid: int, to: str) -> None:
    """Move a process into a cgroup. Hierarchies that do not have this cgroup are skipped."""
    for root in roots():
        move(pid, f"{root}{to}")


def notify(*lines: str) -> None:
    """Send assignments such as ``MAINPID=12`` or ``READY=1`` to systemd. Returns when systemd has
    handled them, or after 5 s. Raises OSError.
    """
    with contextlib.closing(
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    ) as sender:
        sender.settimeout(_NOTIFY_S)
        sender.connect(_NOTIFY)
        sender.send("\n".join(lines).encode())
        # systemd closes the descriptor once it has handled earlier messages (sd_notify_barrier(3)).
        read, write = os.pipe()
        try:
            try:
                descriptor = write.to_bytes(4, sys.byteorder)
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)
                sender.sendmsg([b"BARRIER=1"], [rights])
            finally:
                os.close(write)
            wait_readable(read, _NOTIFY_S)
        finally:
            os.close(read)


_stand_ins: dict[str, tuple[int, int, str, int]] = {}
"""Maps a service to the process that stands in for its conmon in its unit.

The value is (pipe to the process, pipe from the process, the unit's cgroup, the process's pid).
"""


def add_stand_in(service: str, conmon: int | None) -> None:
    """Add a stand-in process to a service's unit, before the caller kills the service's conmon.

    The stand-in keeps the unit active. Does nothing if conmon is in no unit, or if this process is
    in the same unit.
    """
    if conmon is None or service in _stand_ins or path(service) is not None:
        return
    unit = path(service, conmon)
    if unit is None:
        return
    with signals_blocked():
        wait, hold = os.pipe()
        done, say = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_stand_in(unit, wait, say)
        os.close(wait)
        os.close(say)
        os.waitpid(pid, 0)
        stand_in_pid = os.read(done, 20)
        _stand_ins[service] = (hold, done, unit, int(stand_in_pid or b"-1"))


def has_stand_in(service: str) -> bool:
    """Return whether a stand-in process keeps the service's unit active."""
    return service in _stand_ins


def hand_over(service: str, conmon: int | None) -> None:
    """Make a service's new conmon the main process of its unit, instead of the stand-in process.

    The stand-in then exits. ``conmon`` is the pid. Does nothing if the unit has no stand-in.
    """
    if service not in _stand_ins or conmon is None:
        return
    hold, done, unit, _ = _stand_ins.pop(service)
    try:
        adopt(conmon, unit)
        os.write(hold, f"{conmon}".encode())
        os.close(hold)
        os.read(done, 1)
    except OSError:
        return  # the unit was stopped in the meantime
    finally:
        os.close(done)


def stop_unit_only(service: str, conmon: int | None, path: str | None) -> None:
    """Stop a service's unit, after moving conmon and its children out of the unit.

    ``path`` is the cgroup of the service, to which the processes are moved. ``path`` is None if the
    stand-in is the unit's only process.
    """
    add_stand_in(service, conmon)
    if service not in _stand_ins:
        return
    hold, done, unit, stand_in_pid = _stand_ins.pop(service)
    if path is not None:
        for root in roots():
            for pid in pids_in(f"{root}{unit}"):
                if pid != stand_in_pid:
                    keep_in(root, pid, path)
    os.close(hold)
    os.read(done, 1)
    os.close(done)


def _run_stand_in(unit: str, wait: int, say: int) -> NoReturn:
    """Run the stand-in, which keeps a unit active between two conmons, in this child process. A
    second fork makes systemd the parent of the stand-in, so that systemd sees its exit status. The
    stand-in writes its pid to the pipe ``say``. From the pipe ``wait`` it reads the pid of the next
    conmon.
    """
    try:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        keep_only((wait, say))
        heed_signals()
        adopt(os.getpid(), unit)
        notify(f"MAINPID={os.getpid()}")
        os.write(say, f"{os.getpid()}".encode())
        conmon = os.read(wait, 20)
        if conmon:
            notify(f"MAINPID={conmon.decode()}")
    finally:
        os._exit(0)


# --- systemctl ------------------------------------------------------------------------------------


_SYSTEMCTL_S = 300.0


class Units:
    """The systemd units of services. Methods other than `booted` require systemd as the init. All
    methods raise Error if systemd refuses.
    """

    def booted(self) -> bool:
        return booted()

    # --- texts of units and drop-ins --------------------------------------------------------------

    def read(self, path: str) -> str | None:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, path: str, text: str) -> None:
        """Write a unit file or drop-in. Call `enable` or `reload` to make systemd read it."""
        folder, draft = os.path.dirname(path), f"{path}.new"
        os.makedirs(folder, 0o755, exist_ok=True)
        with open(draft, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        files.sync(draft)
        os.rename(draft, path)
        files.sync(folder)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with contextlib.suppress(OSError):  # other programs have files in the folder
            os.rmdir(os.path.dirname(path))

    def reload(self) -> None:
        _systemctl("daemon-reload")

    def is_enabled(self, service: str) -> bool:
        return os.path.islink(os.path.join(UNITS, f"{WANTED_BY}.wants", unit_of(service)))

    def enable(self, services: Iterable[str]) -> None:
        """Make systemd read the units of services, and enable them to start at boot."""
        _systemctl("daemon-reload")
        _systemctl("enable", *map(unit_of, services))

    def remove(self, services: Iterable[str]) -> None:
        """Wait up to 10 s until services' units are inactive. Then disable and delete them."""
        names = list(services)
        if not names:
            return
        units = [unit_of(name) for name in names]
        # If the file of an active unit were deleted, systemd would not run its ExecStop.
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            states = _systemctl("is-active", *units, may_fail=True).split()
            if not set(states) & {"active", "deactivating", "activating", "reloading"}:
                break
            time.sleep(0.02)
        _systemctl("disable", *units)
        for name in names:
            os.unlink(unit_file(name))
        _systemctl("daemon-reload")
        _systemctl("reset-failed", *units, may_fail=True)

    # --- timers of jobs ---

    def check_schedule(self, service: str, schedule: str) -> None:
        """Raise Error if systemd cannot parse a schedule, or does not know its time zone."""
        import subprocess

        argv = ["systemd-analyze", "calendar", "--", schedule]
        with contextlib.suppress(FileNotFoundError):  # then `enable_timer` reports it
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if done.returncode != 0:
                reason = f"service.schedule: systemd does not know {schedule!r}"
                hint = "systemd-analyze calendar shows what it knows, timedatectl list-timezones"
                raise Error(reason, f"{hint} the time zones", service=service)

    def enable_timer(self, service: str) -> None:
        """Enable and restart the timer of a job. The timer replaces a start at boot, so the job's
        own unit is disabled.

        Makes systemd read the job's units again. Raises Error if systemd refuses the timer.
        """
        _systemctl("daemon-reload")
        if self.is_enabled(service):
            _systemctl("disable", unit_of(service))
        _systemctl("enable", timer_of(service))
        _systemctl("restart", timer_of(service))

    def stop_timer(self, service: str) -> None:
        """Stop a job's timer, and the job's unit if the timer has started it."""
        _systemctl("stop", timer_of(service), unit_of(service), may_fail=True)

    def remove_timer(self, service: str) -> None:
        """Stop, disable and delete a job's timer. A job that is running continues."""
        _systemctl("disable", "--now", timer_of(service))
        self.delete(timer_file(service))
        _systemctl("daemon-reload")

    def timers(self, services: Iterable[str]) -> dict[str, tuple[float | None, float | None]]:
        """Return {service: (last run, next run)} of timers, as Unix times in seconds or None."""
        names = list(services)
        if not names:
            return {}
        wanted = "--property=LastTriggerUSec,NextElapseUSecRealtime"
        text = _systemctl("show", wanted, "--", *map(timer_of, names), may_fail=True)
        found = {}
        for name, block in zip(names, text.split("\n\n"), strict=False):
            lines = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            last, next_ = lines.get("LastTriggerUSec", ""), lines.get("NextElapseUSecRealtime", "")
            found[name] = (_unix(last), _unix(next_))
        return found

    # --- foreign units ---

    def is_known(self, unit: str) -> bool:
        shown = _systemctl("show", "--property=LoadState", "--value", "--", unit)
        return shown.strip() == "loaded"

    def is_active(self, unit: str) -> bool:
        return _systemctl("is-active", "--", unit, may_fail=True).strip() == "active"

    def start_unit(self, unit: str) -> None:
        _systemctl("start", "--", unit)

    def stop_unit(self, unit: str) -> None:
        _systemctl("stop", "--", unit)

    def start_health(self, state_id: str) -> None:
        """Start the health agent (``niso health``), which must not be running.

        ``state_id`` identifies the state folder. Without systemd, the agent has no supervisor, and
        exits when no service needs it. Raises Error.
        """
        words = (sys.executable, "-I", "-m", "niso.change.health_agent")  # needs little memory
        if not booted():
            import subprocess

            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=agent_environment(),
                start_new_session=True,
            )
            return
        lines = agent(f"# written by niso; state folder {state_id}", "niso: health", (HEALTH,))
        own = "ExecStart=:" + " ".join(map(quoted, words))
        lines = [own if line.startswith("ExecStart=") else line for line in lines]
        text = "\n".join(lines).replace("Restart=always", "Restart=on-failure")
        put(self, {os.path.join(UNITS, HEALTH_UNIT): text})
        self.start_unit(HEALTH_UNIT)

    # --- running units of services ---

    def start(self, services: Iterable[str]) -> None:
        _systemctl("start", *map(unit_of, services))

    def stop(self, services: Iterable[str]) -> None:
        """Stop the units of services, whose processes must have been stopped before."""
        _systemctl("stop", *map(unit_of, services))

    def is_ours(self, service: str) -> bool:
        """Return whether this command runs inside the unit of a service."""
        return path(service) is not None

    def is_supervised(self, service: str) -> bool:
        return bool(status.supervisors(service))

    def is_outside(self, service: str) -> bool:
        """Return whether the service's conmon runs outside the service's unit."""
        conmon = status.conmon(service)
        return conmon is not None and path(service, conmon) is None

    def ready(self, service: str) -> None:
        """Make the service's conmon the main process of its unit, to which this command belongs.
        The caller must have the service's lock. Raises ProcessError if the process has exited.
        """
        own = path(service)
        assert own is not None
        pids = status.supervisors(service)
        if not pids:
            raise ProcessError("its process has ended", f"niso logs {service}", service=service)
        for pid in pids:
            if path(service, pid) != own:
                adopt(pid, own)
        notify(f"MAINPID={pids[0]}", "READY=1")

    def stop_unit_only(self, service: str) -> None:
        """Stop a service's unit, but not its processes. The caller must have the service's lock."""
        spec = load(service)
        stop_unit_only(
            service, status.conmon(service), cgroup_of(spec) if spec is not None else None
        )


def _unix(text: str) -> float | None:
    words = text.split()
    if len(words) != 4:  # empty: the timer has no such run
        return None
    return time.mktime(time.strptime(" ".join(words[1:3]), "%Y-%m-%d %H:%M:%S"))


def _systemctl(*arguments: str, may_fail: bool = False) -> str:
    import subprocess

    command = f"systemctl {' '.join(arguments)}"
    quiet = [] if arguments[0] == "is-active" else ["--quiet"]
    try:
        done = subprocess.run(
            ["systemctl", *quiet, "--no-ask-password", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise Error("systemctl is not installed", "apt install systemd") from error
    except subprocess.TimeoutExpired as error:
        late = f"{command}: no answer within {_SYSTEMCTL_S:g}s"
        raise Error(late, "systemctl list-jobs") from error
    if done.returncode != 0 and not may_fail:
        reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        hint = f"systemctl status {arguments[-1]}" if arguments[1:] else None
        raise Error(f"{command}: {reason}", hint)
    return done.stdout


# --- unit files -----------------------------------------------------------------------------------


ChangingUnit = event_class("ChangingUnit", lambda action, path: f"{action} {path}")


AFTER = (
    *("nftables.service", "netfilter-persistent.service", "firewalld.service", "ufw.service"),
    *("docker.service", "libvirtd.service", "virtnetworkd.service"),
)
"""Units that start before niso's units at boot.

The first ones load their own rules and may flush all others. The last ones enable forwarding. If
they start before niso, niso records that forwarding was already on.
"""


def ours(units: Units, paths: Iterable[str], mark: str) -> list[str]:
    """Return the paths of unit files and drop-ins that begin with ``mark``: niso wrote them."""
    return [path for path in paths if (units.read(path) or "").startswith(mark)]


def refuse_foreign(
    units: Units, paths: Iterable[str], mark: str, hint: str = "move it away"
) -> None:
    """Raise Conflict if a unit file or drop-in exists that does not belong to this state folder.

    A file that niso has written for this state folder begins with ``mark``.
    """
    for path in paths:
        if units.read(path) is not None and not ours(units, [path], mark):
            raise Conflict(f"{path} already exists and was not made for this state folder", hint)


def put(units: Units, texts: Mapping[str, str], report: Report = silent) -> list[str]:
    """Write missing and outdated unit files and drop-ins. Return the paths of the written files.

    ``texts`` maps paths to contents. The caller has refused foreign files. Raises Error.
    """
    changed = [path for path, text in texts.items() if units.read(path) != text]
    for path in changed:
        report(ChangingUnit("write", path))
        units.write(path, texts[path])
    if changed:
        units.reload()
    return changed


def drop(units: Units, paths: Collection[str], report: Report) -> None:
    """Delete unit files and drop-ins that niso has written. Raises Error."""
    for path in paths:
        report(ChangingUnit("remove", path))
        units.delete(path)
    if paths and units.booted():
        units.reload()


def drop_in(unit: str) -> str:
    return os.path.join(UNITS, f"{unit}.d", "niso.conf")


def command(*words: str) -> str:
    """Return the command line, for a unit file, that runs this installation of niso.

    The arguments are ``words``. The command line begins with ``:``, so that ``$`` has no special
    meaning (systemd.service(5)). The caller may put another prefix before it.
    """
    return ":" + " ".join(quoted(word) for word in (sys.executable, "-I", "-m", "niso.cli", *words))


def agent(
    mark: str, description: str, words: tuple[str, ...], more: tuple[str, ...] = ("RestartSec=1",)
) -> list[str]:
    """Return the lines of a unit for a command that runs permanently (systemd.service(5)).

    The command notifies systemd when it is ready. ``mark`` is the first line of the unit file.
    ``words`` are the arguments of niso. ``more`` are further lines of ``[Service]``.
    """
    return [
        mark,
        "[Unit]",
        f"Description={description}",
        "Wants=network-online.target",
        "After=network-online.target",
        f"RequiresMountsFor={quoted(paths.state_dir())}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "Restart=always",
        *more,
        *environment(),
        f"ExecStart={command(*words)}",
        "",
    ]


def agent_environment() -> dict[str, str]:
    """Return the environment of an agent that a command starts without systemd: PATH, and niso's
    own variables if they are set.
    """
    names = ("PATH", "NISO_STATE_DIR", "NISO_RUN_DIR", "NISO_POOL")
    return {name: value for name, value in os.environ.items() if name in names}


def environment() -> list[str]:
    """Return ``Environment=`` lines for niso's folders and address pool, except defaults."""
    variables = (
        ("NISO_STATE_DIR", paths.state_dir(), paths.STATE_DIR),
        ("NISO_RUN_DIR", paths.run_dir(), paths.RUN_DIR),
        ("NISO_POOL", os.environ.get("NISO_POOL", ""), ""),
    )
    changed = (f"{name}={value}" for name, value, default in variables if value != default)
    return [f"Environment={quoted(variable)}" for variable in changed]


def quoted(word: str) -> str:
    """Quote a word for a unit file (systemd.syntax(7); systemd.unit(5), Specifiers). ``$`` is not
    quoted, because it is special only in commands, whose prefix ``:`` disables it.
    """
    if word and all(c.isascii() and (c.isalnum() or c in "/._-+=,@") for c in word):
        return word
    special = {'"': '\\"', "\\": "\\\\", "%": "%%"}
    text = "".join(
        special.get(chr(byte), chr(byte)) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f'"{text}"'


# --- files of units -------------------------------------------------------------------------------


UNITS = "/etc/systemd/system"
WANTED_BY = "multi-user.target"


def unit_file(service: str) -> str:
    return os.path.join(UNITS, unit_of(service))


def timer_file(service: str) -> str:
    return os.path.join(UNITS, timer_of(service))


# --- waking an agent ------------------------------------------------------------------------------


AGENT = "agent"
KUBERNETES = "kubernetes"
HEALTH = "health"
HEALTH_UNIT = "niso_health.service"
"""The health agent's unit. No unit of a service has this name: they begin with niso-."""
_LOOKS_S = 1.0


def _path(name: str) -> str:
    return os.path.join(paths.run_dir(), f"{name}.wake")


def wake_agent(name: str = AGENT) -> bool:
    """Wake an agent on this host: the cluster's agent by default, or the agent for health checks
    (`HEALTH`) or Kubernetes (`KUBERNETES`). Returns at once whether the agent is running.
    """
    try:
        fd = os.open(_path(name), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # no pipe, or no process reads it
        return False
    with contextlib.suppress(OSError):  # the pipe is full: the agent has something to read
        os.write(fd, b"\n")
    os.close(fd)
    return True


def wake_pipe(name: str) -> int:
    """Return a descriptor that becomes readable when a command wakes the agent with this name."""
    os.makedirs(paths.run_dir(), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(_path(name), 0o600)
    # with a writer of its own, the agent's pipe never reports end of file
    return os.open(_path(name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def drain(pipe: int) -> None:
    """Empty an agent's wake pipe."""
    try:
        os.read(pipe, 4096)
    except BlockingIOError:
        return


def listen(name: str, woken: Callable[[], object], over: threading.Event) -> None:
    """Call ``woken`` each time a command wakes the agent ``name``, until ``over`` is set."""
    fd = wake_pipe(name)
    try:
        while not over.is_set():
            if select.select([fd], [], [], _LOOKS_S)[0]:
                os.read(fd, 4096)
                woken()
    finally:
        os.close(fd)


# --- running an agent in the foreground -----------------------------------------------------------


class Following(NamedTuple):
    """Two functions of an agent: its main loop, and the function that ends the loop. ``run``
    returns after a call of ``stop``, which a signal handler may call.
    """

    run: Callable[[], None]
    stop: Callable[[], None]


def alone(lock: str, held: Conflict, work: Callable[[], None]) -> None:
    """Run an agent's main function ``work`` with the lock ``lock``, so that each agent runs only
    once on a host. Raises the error ``held`` if another process has the lock. systemd is notified
    first that the agent is ready.
    """
    with contextlib.ExitStack() as locks:
        try:
            locks.enter_context(service_lock(lock, 0))
        except Conflict:
            raise held from None
        if "NOTIFY_SOCKET" in os.environ:
            notify("READY=1")
        work()
