"""Watch instances, and services that restart when they are unhealthy (``niso health``).

One process on the machine does this, and only while a service needs it. An instance whose process
ends, or that becomes unhealthy, receives no new connections to the service address until two probes
in a row succeed. Packets do not depend on this process. If it dies, the next command starts it
again, and conmon's exit command still takes an instance out when its process ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from niso.base import paths
from niso.base.errors import Conflict, Error
from niso.base.locks import Lock
from niso.base.names import netns
from niso.base.report import silent
from niso.change import deploy
from niso.change.scope import concerned
from niso.plan.records import Healthcheck
from niso.reconcile.change import change
from niso.runtime import crun, health, status
from niso.runtime import units as systemd
from niso.runtime.machine import Machine
from niso.runtime.units import Following
from niso.store.service_rows import OUT, SERVING

AGENT = systemd.HEALTH
UNIT = "niso_health.service"
"""The unit's name. No unit of a service has this name: they begin with niso-."""
_LOCK = "niso.health"
_MARK = "# written by niso; state folder "
_LOOK_S = 0.25
_RUN_LOOK_S = 0.1
_IDLE_S = 2.0
_MOST_INTERVAL_S = 1.0
_AGAIN_AFTER = 2
"""How many probes in a row must succeed before an instance gets connections again."""

type Log = Callable[[str], None]


class _Watched:
    """A service whose process and health are watched."""

    def __init__(self, service: str, front: str, check: Healthcheck, restarts: bool) -> None:
        self.service, self.front, self.check, self.restarts = service, front, check, restarts
        self.run = (0, 0.0)
        self.pidfd = -1
        self.namespace: str | None = None
        self.probe: health.HealthProbe | None = None
        self.ask_at = self.look_at = 0.0
        self.failures = self.successes = 0

    @property
    def interval_s(self) -> float:
        """Return the seconds between two probes."""
        return min(self.check.interval_s, _MOST_INTERVAL_S) if self.front else self.check.interval_s

    def close(self) -> None:
        if self.probe is not None:
            self.probe.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.probe, self.pidfd = None, -1


# --- the agent ------------------------------------------------------------------------------------


def follow(machine: Machine, log: Log) -> Following:
    """Return the health agent. The agent ends when no service needs it."""
    over = threading.Event()
    held = Conflict("niso health runs already", f"systemctl status {UNIT}")
    work = lambda: _run(machine, log, over)  # noqa: E731
    return Following(lambda: systemd.alone(_LOCK, held, work), over.set)


def _run(machine: Machine, log: Log, over: threading.Event) -> None:
    watched: dict[str, _Watched] = {}
    seen, idle_since, refreshed = -1, time.monotonic(), 0.0
    pipe = systemd.wake_pipe(AGENT)
    file = _store_file()
    try:
        while not over.is_set():
            now = time.monotonic()
            if (changes := machine.store.changes()) != seen or now - refreshed > 10:
                seen, refreshed = changes, now
                _refresh(machine, watched)
            if watched:
                idle_since = now
            elif now - idle_since > _IDLE_S:
                return
            for one in watched.values():
                _look(machine, one, now)
            probes = [one.probe for one in watched.values() if one.probe is not None]
            pidfds = [one.pidfd for one in watched.values() if one.pidfd >= 0]
            health.advance(probes, [*pidfds, pipe], _next(watched.values(), now))
            systemd.drain(pipe)
            if _store_file() != file:  # it was lost: a sweep has removed what it records
                return
            for one in watched.values():
                try:
                    _judge(machine, one, log)
                except Error as error:  # the kernel refused, or a command has the lock for long
                    log(f"{one.service}: {error}")
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


def _refresh(machine: Machine, watched: dict[str, _Watched]) -> None:
    """Update the set of watched services from the store."""
    store, wanted = machine.store, {}
    fronts = {one.service: one.front for one in store.instances.active(SERVING, OUT)}
    for name in {*fronts, *store.checked_services()}:
        row = store.service(name)
        check = row.healthcheck if row is not None and row.active and row.has_process else None
        if row is None or check is None or not (name in fronts or check.restarts):
            continue
        wanted[name] = (fronts.get(name, ""), check, crun.namespace(row.require_process()))
    for name in watched.keys() - wanted.keys():
        watched.pop(name).close()
    for name, (front, check, namespace) in wanted.items():
        before = watched.get(name)
        if before is None or before.check != check:
            if before is not None:
                before.close()
            watched[name] = _Watched(name, front, check, check.restarts)
        watched[name].namespace = namespace


def _look(machine: Machine, one: _Watched, now: float) -> None:
    if one.pidfd < 0 and now >= one.look_at:
        one.look_at = now + _RUN_LOOK_S
        state = status.read(one.service)
        if state.state == "running" and state.pid:
            one.pidfd = machine.processes.open_init(one.service)
            one.run = (state.pid, state.started_at or 0.0)
            one.failures = one.successes = 0
            one.ask_at = now
    if one.pidfd >= 0 and one.probe is None and now >= one.ask_at:
        one.ask_at = now + one.interval_s
        one.probe = machine.processes.probe(one.check, one.service, one.namespace)


def _judge(machine: Machine, one: _Watched, log: Log) -> None:
    """React to the end of a service's process, or to the result of a probe."""
    if one.pidfd >= 0 and crun.wait_readable(one.pidfd, 0):
        one.close()
        if one.front and leave(machine, one.service):
            log(f"{one.service}: its process ended: no new connections")
        return
    if one.probe is None or one.probe.answer is None:
        return
    failure, counts = one.probe.answer, _counts(one)
    one.probe.close()
    one.probe = None
    health.write_record(one.service, one.run, failure)
    if not failure:
        one.failures, one.successes = 0, one.successes + 1
        if one.front and one.successes >= _AGAIN_AFTER and serve(machine, one.service):
            log(f"{one.service}: healthy again: gets connections")
        return
    one.successes = 0
    one.failures += counts
    if one.failures < one.check.retries:
        return
    if one.front and leave(machine, one.service, only_beside_others=True):
        log(f"{one.service}: unhealthy, {failure}: no new connections")
        machine.kernel.destroy_connections(netns(one.service))
    if one.restarts:
        log(f"{one.service}: unhealthy, {failure}: restarting it")
        _restart(machine, one)


def _counts(one: _Watched) -> bool:
    return time.time() - one.run[1] >= one.check.start_period_s


def _restart(machine: Machine, one: _Watched) -> None:
    from niso.change import activate

    one.close()
    one.failures = 0
    activate.restart(machine, [one.service], silent)


# --- in and out of the slots ----------------------------------------------------------------------


def leave(machine: Machine, service: str, only_beside_others: bool = False) -> bool:
    """Stop sending connections to an instance, and return whether it received connections.

    With ``only_beside_others``, the last instance of a service stays: it may be unhealthy because
    of a database that all instances use. The caller must not have niso's lock. Raises Error.
    """
    return _move(machine, service, SERVING, OUT, only_beside_others)


def serve(machine: Machine, service: str) -> bool:
    """Send connections to an instance again, and return whether it received none. Raises Error."""
    return _move(machine, service, OUT, SERVING, False)


def _move(
    machine: Machine, service: str, before: str, after: str, only_beside_others: bool
) -> bool:
    store = machine.store
    instance = store.instances.get(service)
    if instance is None or instance.state != before:  # cheap, before any lock
        return False
    with Lock():
        instance = store.instances.get(service)
        if instance is None or instance.state != before:
            return False
        serving = store.instances.of(instance.front, SERVING)
        if only_beside_others and len(serving) < 2:
            return False
        with change(machine.kernel, store, concerned(store, [instance.front]), silent):
            store.instances.set_state([service], after)
    return True


# --- conmon's exit command ------------------------------------------------------------------------


_WITHIN_S, _PAUSE_S = 60.0, 0.5


def ended(machine: Machine, service: str) -> None:
    """Stop sending connections to an instance whose process has ended, in case no agent runs."""
    with suppress(Error):  # the process is gone: its connections are refused
        leave(machine, service)


def restarted(machine: Machine, service: str) -> None:
    """Send connections to a restarted instance again when it is healthy.

    Leaves this to the agent if the agent runs. Gives up after a minute.
    """
    end, successes = time.monotonic() + _WITHIN_S, 0
    while time.monotonic() < end and not runs():
        failure = deploy.probed(machine, service)
        successes = 0 if failure else successes + 1
        if successes >= _AGAIN_AFTER:
            serve(machine, service)
            return
        time.sleep(_PAUSE_S)


# --- starting the agent ---------------------------------------------------------------------------


def runs() -> bool:
    """Wake the health agent, and return whether it is running."""
    return systemd.agent_name(AGENT)


def is_needed(machine: Machine) -> bool:
    """Return whether a service needs the health agent."""
    store = machine.store
    return bool(store.instances.active(SERVING, OUT) or store.restarted_services())


def ensure(machine: Machine) -> bool:
    """Start the health agent if a service needs it and it is not running.

    Returns whether the agent was started.
    """
    if runs() or not is_needed(machine):
        return False
    units = machine.processes.units
    if units.booted():
        mark = _MARK + machine.store.state_id()
        more = ("RestartSec=1",)
        lines = systemd.agent(mark, "niso: health of services with replicas", ("health",), more)
        text = "\n".join(lines).replace("Restart=always", "Restart=on-failure")
        path = os.path.join(systemd.UNITS, UNIT)
        if units.read(path) != text:
            units.write(path, text)
            units.reload()
        units.start_unit(UNIT)
        return True
    # no supervisor: it lives until no service needs it, or until it is killed
    subprocess.Popen(
        [sys.executable, "-I", "-m", "niso.cli", "health"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name in _KEPT},
        start_new_session=True,
    )
    return True


_KEPT = ("PATH", "NISO_STATE_DIR", "NISO_RUN_DIR", "NISO_POOL")
