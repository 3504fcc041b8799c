"""Run the health agent (``niso health``), which probes services and acts on unhealthy ones.

At most one health agent runs on a machine, and only while it is needed: for instances, for services
with ``on_unhealthy``, and while commands request the health of services. The agent writes the
results of its probes to files, which other commands read. If an instance exits or becomes
unhealthy, the agent sends no new connections to it, until two probes in a row have succeeded.

No packet passes through this process. If the agent is killed, the next command starts it again.
Until then, unhealthy instances are not detected. An instance whose process exits still receives no
new connections: its supervisor, conmon, calls niso.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from niso.base import paths
from niso.base.errors import Conflict, Error
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import netns
from niso.base.report import silent
from niso.look.session import open_session
from niso.plan.records import Healthcheck
from niso.runtime import crun, health, status
from niso.runtime import units as systemd
from niso.runtime.units import Following
from niso.store.service_rows import BY, OUT, SERVING, Instance
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.look.session import Session
    from niso.runtime.machine import Machine

# Code that changes the kernel takes more memory than all of the agent. A child process that ends
# after each change imports it (`_act`).

_LOCK = "niso.health"
_LOOK_S = 0.25
_RUN_LOOK_S = 0.1
_IDLE_S = 2.0
_MOST_INTERVAL_S = 1.0
_AGAIN_AFTER = 2
"""How many probes in a row must succeed before an instance gets connections again."""

type Log = Callable[[str], None]


class _Watched:
    """A service whose process and health are watched."""

    def __init__(self, service: str, front: str, check: Healthcheck) -> None:
        self.service, self.front, self.check = service, front, check
        self.run = (0, 0.0)
        self.began = 0.0  # of the run, on the monotonic clock
        self.pidfd = -1
        self.namespace: str | None = None
        self.probe: health.HealthProbe | None = None
        self.ask_at = self.look_at = 0.0
        self.failures = self.successes = 0
        self.child, self.command = 0, -1

    @property
    def interval_s(self) -> float:
        return min(self.check.interval_s, _MOST_INTERVAL_S) if self.front else self.check.interval_s

    def begin_command(self) -> None:
        """Start `niso restart` or `niso deactivate` for the service, as a separate process.

        The command may take a minute. The attribute ``command`` is then a pidfd of the process.
        """
        action = "restart" if self.check.on_unhealthy == "restart" else "deactivate"
        words = [sys.executable, "-I", "-m", "niso.cli", action, self.service]
        self.child = os.posix_spawn(
            sys.executable, words, systemd.agent_environment() | {BY: "niso health"}
        )
        self.command = os.pidfd_open(self.child)

    def end_command(self) -> None:
        if self.command >= 0 and crun.wait_readable(self.command, 0):
            os.waitpid(self.child, 0)
            os.close(self.command)
            self.command = -1

    def close(self) -> None:
        if self.probe is not None:
            self.probe.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.probe, self.pidfd = None, -1


# --- the agent ------------------------------------------------------------------------------------


def follow(session: Session, log: Log) -> Following:
    """Return the health agent, to be run by the caller. It exits when no service needs it."""
    over = threading.Event()
    held = Conflict("niso health runs already", f"systemctl status {systemd.HEALTH_UNIT}")
    work = lambda: _run(session, log, over)  # noqa: E731
    return Following(lambda: systemd.alone(_LOCK, held, work), over.set)


def _run(session: Session, log: Log, over: threading.Event) -> None:
    watched: dict[str, _Watched] = {}
    store = session.store()
    seen, idle_since, refreshed, is_asked = -1, time.monotonic(), 0.0, False
    pipe = systemd.wake_pipe(systemd.HEALTH)
    file = _store_file()
    try:
        while not over.is_set():
            now = time.monotonic()
            if session.store() is not store:  # `_act` has closed it
                store, seen = session.store(), -1
            changes, was_asked, is_asked = store.changes(), is_asked, health.asked()
            if changes != seen or is_asked != was_asked or now - refreshed > 10:
                seen, refreshed = changes, now
                _refresh(store, watched, is_asked)
            if watched:
                idle_since = now
            elif now - idle_since > _IDLE_S:
                return
            for one in watched.values():
                _probe_if_due(one, now)
            probes = [one.probe for one in watched.values() if one.probe is not None]
            pidfds = [one.pidfd for one in watched.values() if one.pidfd >= 0]
            pidfds += [one.command for one in watched.values() if one.command >= 0]
            health.advance(probes, [*pidfds, pipe], _next(watched.values(), now))
            systemd.drain(pipe)
            if _store_file() != file:  # the file was deleted or replaced
                return
            for one in watched.values():
                _act_on_result(session, one, log)
    finally:
        os.close(pipe)
        for one in watched.values():
            one.close()


def _store_file() -> tuple[int, int] | None:
    try:
        info = os.stat(paths.database())
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _next(watched: Iterable[_Watched], now: float) -> float:
    moments = [now + _LOOK_S]
    for one in watched:
        moments.append(one.look_at if one.pidfd < 0 else now + _LOOK_S)
        if one.pidfd >= 0 and one.probe is None:
            moments.append(one.ask_at)
    return max(now, min(moments))


def _refresh(store: Store, watched: dict[str, _Watched], is_asked: bool) -> None:
    """Read from the store which services to watch: instances, and services with ``on_unhealthy``.
    With ``is_asked``, all services with a health check are watched, because a command needs
    results.
    """
    wanted = {}
    fronts = {one.service: one.front for one in store.instances.active(SERVING, OUT)}
    for name in {*fronts, *(store.checked_services() if is_asked else store.acted_on_services())}:
        row = store.service(name)
        check = row.healthcheck if row is not None and row.active and row.has_process else None
        if row is None or check is None:
            continue
        wanted[name] = (fronts.get(name, ""), check, crun.namespace(row.require_process()))
    for name in watched.keys() - wanted.keys():
        watched.pop(name).close()
    for name, (front, check, namespace) in wanted.items():
        before = watched.get(name)
        if before is None or (before.check, before.front) != (check, front):
            if before is not None:
                before.close()
            watched[name] = _Watched(name, front, check)
        watched[name].namespace = namespace


def _probe_if_due(one: _Watched, now: float) -> None:
    """Open a pidfd for a service's process if necessary. Start a health probe if it is due."""
    if one.pidfd < 0 and now >= one.look_at:
        one.look_at = now + _RUN_LOOK_S
        state = status.read(one.service)
        if state.state == "running" and state.pid:
            one.pidfd = crun.open_in_service(one.service, state.pid)
            one.run = (state.pid, state.started_at or 0.0)
            # a later jump of the clock must neither end nor prolong the start period
            one.began = now - max(0.0, time.time() - one.run[1])
            one.failures = one.successes = 0
            one.ask_at = now if one.front else now + health.due_in(one.service, one.check, one.run)
    if one.pidfd >= 0 and one.probe is None and now >= one.ask_at:
        one.ask_at = now + one.interval_s
        one.probe = health.begin(one.check, one.service, one.namespace)


def _act_on_result(session: Session, one: _Watched, log: Log) -> None:
    """Act on the exit of a service's process, and on the result of its health probe."""
    one.end_command()
    if one.pidfd >= 0 and crun.wait_readable(one.pidfd, 0):
        one.close()
        one.look_at = 0.0
    if one.pidfd < 0:
        # checked each time: an undo may have recorded that the instance gets connections
        if one.front and _is_in(session, one, SERVING):
            ends = lambda machine: leave(machine, one.service)  # noqa: E731
            _act(session, ends, log, f"{one.service}: its process ended: no new connections")
        return
    if one.probe is None or one.probe.answer is None:
        return
    failure, counts = one.probe.answer, _counts(one)
    one.probe.close()
    one.probe = None
    health.write_record(one.service, one.check, one.run, failure)
    if not failure:
        one.failures, one.successes = 0, one.successes + 1
        if one.front and one.successes >= _AGAIN_AFTER and _is_in(session, one, OUT):
            again = lambda machine: serve(machine, one.service)  # noqa: E731
            _act(session, again, log, f"{one.service}: healthy again: gets connections")
        return
    one.successes = 0
    one.failures += counts
    if one.failures < one.check.retries:
        return
    if one.front and _is_in(session, one, SERVING):
        fails = lambda machine: _freeze(machine, one.service)  # noqa: E731
        _act(session, fails, log, f"{one.service}: unhealthy, {failure}: no new connections")
    if one.check.on_unhealthy != "none" and one.command < 0:
        doing = "restarting" if one.check.on_unhealthy == "restart" else "stopping"
        log(f"{one.service}: unhealthy, {failure}: {doing} it")
        one.failures = 0
        one.begin_command()


def _is_in(session: Session, one: _Watched, state: str) -> bool:
    return _active_in(session.store(), one.service, state) is not None


def _counts(one: _Watched) -> bool:
    return time.monotonic() - one.began >= one.check.start_period_s


def _freeze(machine: Machine, service: str) -> bool:
    """Send no new connections to an unhealthy instance, and reset its open connections. The last
    instance that receives connections is not changed. Returns whether there was a change.
    """
    left = leave(machine, service, only_beside_others=True)
    if left:
        machine.kernel.destroy_connections(netns(service))
    return left


def _act(session: Session, act: Callable[[Machine], bool], log: Log, done: str) -> None:
    """Call ``act`` in a child process with its own connection to the store. If ``act`` returns
    true, log the message ``done``.
    """
    session.close()  # SQLite connections must not be carried across a fork
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        if act(open_session(None, None, None).machine_for_change()):
            log(done)
    except Error as error:  # the kernel refused, or a command has the lock for long
        log(f"{done}: {error}")
    finally:
        os._exit(0)


# --- in and out of the slots ----------------------------------------------------------------------


def leave(machine: Machine, service: str, only_beside_others: bool = False) -> bool:
    """Stop sending connections to an instance, and return whether it received connections.

    With ``only_beside_others``, the last instance that receives connections is not changed: if all
    instances are unhealthy, the cause may be a shared database. The caller must not have niso's
    lock. Raises Error.
    """
    return move(machine, service, SERVING, OUT, only_beside_others)


def serve(machine: Machine, service: str) -> bool:
    """Let an instance that was taken out of load balancing receive new connections again.

    Returns False if the instance was not taken out, otherwise True.
    """
    return move(machine, service, OUT, SERVING)


def move(
    machine: Machine, service: str, before: str, after: str, only_beside_others: bool = False
) -> bool:
    """Change an instance's recorded state from ``before`` to ``after``, and update the kernel.

    The state decides whether the instance receives new connections. Returns whether the state
    changed. A state other than ``before`` does not change. With ``only_beside_others``, the state
    of the last instance that receives connections does not change either. Raises Error.
    """
    from niso.change.scope import concerned
    from niso.reconcile.change import change

    store = machine.store
    if _active_in(store, service, before) is None:  # cheap, before any lock
        return False
    with Lock():
        if (instance := _active_in(store, service, before)) is None:
            return False
        serving = store.instances.of(instance.front, SERVING)
        if only_beside_others and len(serving) < 2:
            return False
        with change(machine.kernel, store, concerned(store, [instance.front]), silent):
            store.instances.set_state([service], after)
    if store.cluster_id():
        systemd.wake_agent()  # the cluster's agent publishes the change
    return True


def _active_in(store: Store, service: str, state: str) -> Instance | None:
    """Return an active instance in the state ``state``, or None. After a sweep it is inactive."""
    instance, row = store.instances.get(service), store.service(service)
    is_active = row is not None and row.active
    return instance if is_active and instance is not None and instance.state == state else None


# --- conmon's exit command ------------------------------------------------------------------------


_WITHIN_S, _PAUSE_S = 60.0, 0.5


def ended(machine: Machine, service: str) -> None:
    """Send no new connections to an instance whose process has exited. Errors are ignored."""
    with suppress(Error):  # without a process, connections are refused anyway
        leave(machine, service)


def restarted(machine: Machine, service: str) -> None:
    """Wait up to a minute until a restarted instance is healthy, and let it serve again.

    Does nothing if the health agent runs, because the agent does the same.
    """
    from niso.change import deploy

    end, successes = time.monotonic() + _WITHIN_S, 0
    while time.monotonic() < end and not runs():
        failure = deploy.probed(machine, [service])[service]
        successes = 0 if failure else successes + 1
        if successes >= _AGAIN_AFTER:
            serve(machine, service)
            return
        time.sleep(_PAUSE_S)


# --- starting the agent ---------------------------------------------------------------------------


def runs() -> bool:
    """Wake the health agent, and return whether it is running."""
    return systemd.wake_agent(systemd.HEALTH)


def is_needed(machine: Machine) -> bool:
    """Return whether a service needs the health agent."""
    store = machine.store
    return bool(store.instances.active(SERVING, OUT) or store.acted_on_services())


def ensure(machine: Machine) -> bool:
    """Start the health agent if it is needed and not running. Return whether it was started."""
    if runs() or not is_needed(machine):
        return False
    machine.processes.units.start_health(machine.store.state_id())
    return True


def main() -> None:
    """Run the agent until a signal ends it, or until no service needs it."""
    try:
        session = open_session(None, None, None)
        following = follow(session, lambda line: print(line, flush=True))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: following.stop())
        following.run()
    except Error as error:
        sys.exit(f"niso: {error.message}")


if __name__ == "__main__":
    main()
