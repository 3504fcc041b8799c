"""Processes and units in memory.

Model processes in memory, in the namespaces of an in-memory kernel.

They fail where real processes fail. A process needs its network namespace, its hosts folder and its
package to start, and stays in the namespace in which it started. A second start of a running
process is refused. A process ends on SIGTERM unless it is in `deaf`. A process that its restart
policy restarts waits for `FakeProcesses.restart`. One test runs the same cases on these and on real
processes.

Model systemd's units of services in memory, for in-memory processes.

They refuse what systemd refuses: an unknown unit cannot be enabled or started, and only a process
of a unit can report that it is ready. The unit file of an active unit cannot be removed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Iterable

from niso.base.errors import Error, ProcessError
from niso.base.named_tuples import TYPE_CHECKING
from niso.kernel.kinds.kind import Finding
from niso.plan.records import Healthcheck
from niso.plan.specs import ProcessSpec
from niso.runtime import units
from niso.runtime.crun import namespace
from niso.runtime.health import HealthProbe
from niso.runtime.lifecycle import Mark
from niso.runtime.sources import BLIND, INTERRUPTED, UNKNOWN
from niso.runtime.status import NONE, Status, forget_health, restarts_after
from niso.runtime.units import UNITS, unit_file

if TYPE_CHECKING:
    from fakes.kernel import Fake


# --- fake processes ------------------------------------------------------------------------------


_TERMINATED = 128 + 15


class _Life:
    """A pipe whose read end becomes readable when the process ends."""

    def __init__(self) -> None:
        self.fd, self._end = os.pipe()

    def end(self) -> None:
        if self._end >= 0:
            os.close(self._end)
            self._end = -1

    def __del__(self) -> None:
        self.end()
        os.close(self.fd)


class _Run:
    """One run of a process: the spec from which it was started, and its state."""

    def __init__(self, spec: ProcessSpec, pid: int) -> None:
        self.spec: ProcessSpec | None = spec
        self.pid, self.state = pid, "starting"
        self.exit_code: int | None = None
        self.stopping = False
        self.shown = -1  # identity of its hosts folder
        self.home: int | None = None  # identity of its namespace; None for the host's
        self.life = _Life()
        self.started_at: float | None = None
        self.restarts = 0

    def end(self, state: str, code: int | None) -> None:
        self.state, self.exit_code = state, code
        self.life.end()


class _Begun:
    """Implement `niso.runtime.launch.Launch`: the run is created at once."""

    def __init__(self, processes: FakeProcesses, run: _Run, service: str) -> None:
        self._processes, self._run, self._service = processes, run, service
        self._life = _Life()
        self._life.end()
        self.fd, self.is_created = self._life.fd, True

    def finish(self) -> int:
        try:
            self._processes.hit(f"start {self._service}")
        except ProcessError:
            self._processes.stop(self._service, 0)
            raise
        self._run.state, self._run.started_at = "running", time.time()
        code = self._processes.dies.get(self._service)
        if code is not None:
            self._processes.end(self._service, code)
        return self._run.pid

    def close(self) -> None:
        pass


class Answered(HealthProbe):
    """A probe that already has its answer: "" for healthy, else the reason."""

    def __init__(self, check: Healthcheck, answer: str) -> None:
        self.began = time.monotonic()
        self.deadline = self.began + check.timeout_s
        self.fd, self.events = -1, 0
        self.answer = answer

    def close(self) -> None:
        pass


class FakeProcesses:
    """Implement `niso.runtime.processes.Processes` in memory.

    ``fail`` is called before each action, named as in "stop api". If it returns true, the action
    raises ProcessError.
    """

    def __init__(self, kernel: Fake) -> None:
        self.kernel = kernel
        self.fail: Callable[[str], bool] = lambda what: False
        self.done: list[str] = []
        self.dies: dict[str, int] = {}  # service -> exit status of a process that ends at once
        self.deaf: set[str] = set()  # services that ignore SIGTERM
        self.ill: dict[str, str] = {}  # service -> answer of its probe
        self.is_full = False  # whether every start fails
        self.current: dict[str, _Run] = {}
        self.homeless: dict[str, tuple[str, str, int | None]] = {}  # by service
        self.units = FakeUnits(self)
        self._pids = 1000

    def hit(self, what: str) -> None:
        """Record an action. Raises ProcessError if it is set to fail."""
        if self.fail(what):
            raise ProcessError(f"cannot {what}", service=what.rpartition(" ")[2])
        self.done.append(what)

    # --- status ---

    def services(self) -> list[str]:
        return sorted(self.current)

    def status(self, service: str) -> Status:
        run = self.current.get(service)
        if run is None:
            return NONE
        pid = run.pid if run.state == "running" else None
        lives_s = time.time() - run.started_at if run.started_at is not None else None
        return Status(run.state, run.exit_code, pid, run.started_at, run.restarts, None, lives_s)

    def runs(self, service: str) -> bool:
        return not self.is_stopping(service) and self.status(service).state in (
            "running",
            "starting",
            "restarting",
        )

    def is_stopping(self, service: str) -> bool:
        run = self.current.get(service)
        return run is not None and run.stopping

    def in_own_netns(self, service: str) -> bool:
        run = self.current.get(service)
        if run is None or run.spec is None or run.state != "running":
            return True
        name = namespace(run.spec)
        if name is None:
            return run.home is None
        return name not in self.kernel.identities or self.kernel.identities[name] == run.home

    def spec(self, service: str) -> ProcessSpec | None:
        run = self.current.get(service)
        return run.spec if run is not None else None

    def save(self, spec: ProcessSpec) -> None:
        if spec.service not in self.current:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), spec.service)
        self.current[spec.service].spec = spec

    def defect(self, service: str) -> Finding | None:
        what, now = f"process of service {service!r}", self.status(service)
        if now.state in ("none", "failed"):
            return Finding("missing", what, "")
        if now.state == "exited" and self.is_stopping(service):
            return Finding("missing", what, INTERRUPTED)
        if now.state != "running":
            return None
        run = self.current[service]
        if run.spec is None:
            return Finding("missing", f"spec.json of service {service!r}", "", UNKNOWN)
        if not self.in_own_netns(service):
            return Finding("different", what, "it runs in another network namespace")
        if run.shown != self._hosts(run.spec, run.shown):
            return Finding("different", what, "it does not see its hosts file", BLIND)
        return None

    # --- start and stop ---

    def renew(self) -> None:
        pass

    def require_room(self) -> None:
        if self.is_full:
            raise ProcessError("no room")

    def begin(self, spec: ProcessSpec) -> _Begun:
        if self.status(spec.service).state in ("running", "restarting"):
            raise ProcessError(f"{spec.service} is already running", "niso ps shows it")
        self.stop(spec.service)
        self.hit(f"create {spec.service}")
        self._require(spec)
        self._pids += 1
        run = _Run(spec, self._pids)
        run.shown = self._hosts(spec)
        name = namespace(spec)
        if name is not None:
            run.home = self.kernel.identities[name]
            self.kernel.inhabited[run.pid] = run.home, self.kernel.netns[name].alias
        self.current[spec.service] = run
        return _Begun(self, run, spec.service)

    def finish(self, begun: _Begun) -> int:
        return begun.finish()

    def _hosts(self, spec: ProcessSpec, missing: int = -1) -> int:
        """Return the identity of a hosts folder; ``missing`` if it does not exist."""
        folder = os.path.basename(spec.hosts_folder)
        return self.kernel.identities[f"hosts {folder}"] if folder in self.kernel.hosts else missing

    def _require(self, spec: ProcessSpec) -> None:
        """Raise ProcessError if the namespace, hosts folder or package of a process is missing."""
        name, folder = namespace(spec), os.path.basename(spec.hosts_folder)
        lost = [
            f"network namespace {name}" if name and name not in self.kernel.netns else "",
            f"hosts folder {folder}" if folder and folder not in self.kernel.hosts else "",
            "" if os.path.isdir(spec.package) else f"package {spec.package}",
        ]
        for what in filter(None, lost):
            raise ProcessError(f"no {what}", service=spec.service)

    def start(self, spec: ProcessSpec) -> int:
        return self.begin(spec).finish()

    def terminate(self, service: str) -> int:
        run = self.current.get(service)
        if run is None:
            return -1
        self.hit(f"terminate {service}")
        run.stopping = True
        if run.state != "running":
            return -1
        if service not in self.deaf:
            run.end("exited", _TERMINATED)
        return os.dup(run.life.fd)

    def stop(self, service: str, timeout_s: float | None = None) -> None:
        run = self.current.get(service)
        if run is None:
            return
        run.stopping = True
        self.hit(f"stop {service}")
        run.end("exited", None)
        self.kernel.inhabited.pop(run.pid, None)
        del self.current[service]
        forget_health(service)

    def stop_all(self, services: Iterable[str]) -> dict[str, Error]:
        errors: dict[str, Error] = {}
        for service in services:
            try:
                self.stop(service, 0)
            except Error as error:
                errors[service] = error
        return errors

    def end_unrecorded(self, services: Collection[str]) -> None:
        pass

    def lose(self, service: str, state_id: str, stranger: bool = False) -> None:
        """Delete a service's runtime files, or hand it to another run folder (``stranger``)."""
        run = self.current.pop(service)
        self.homeless[service] = (service, state_id, run.pid if stranger else None)

    def orphans(self, state_ids: Iterable[str]) -> list[tuple[str, str, int | None]]:
        wanted = set(state_ids)
        return sorted(one for one in self.homeless.values() if one[1] in wanted)

    def kill_orphan(self, service: str, cgroup: str) -> None:
        self.hit(f"end-lost {service}")
        self.homeless.pop(service, None)

    def swap_hosts(self, spec: ProcessSpec) -> None:
        self.hit(f"swap-hosts {spec.service}")
        if spec.service not in self.current:
            raise ProcessError("it has ended", service=spec.service)
        self.save(spec)
        run = self.current[spec.service]
        if run.state != "running":
            raise ProcessError("it has ended", service=spec.service)
        if os.path.basename(spec.hosts_folder) not in self.kernel.hosts:
            raise ProcessError(f"no hosts folder {spec.hosts_folder}", service=spec.service)
        run.shown = self._hosts(spec)

    def end(self, service: str, code: int | None) -> None:
        """Let a process exit with ``code``; with None its conmon dies too and records nothing."""
        run = self.current[service]
        restarts = code is not None and run.spec and restarts_after(run.spec.restart, code)
        if restarts and not run.stopping:
            run.end("restarting", code)
        else:
            run.end("exited" if code is not None else "failed", code)

    def restart(self, service: str) -> None:
        """Let the delay before a restart by the policy elapse."""
        run = self.current[service]
        self._pids += 1
        run.pid, run.state, run.life = self._pids, "running", _Life()
        run.started_at = time.time()
        run.restarts += 1

    # --- waiting ---

    def open_init(self, service: str, pid: int | None = None) -> int:
        run = self.current.get(service)
        return os.dup(run.life.fd) if run is not None and run.state == "running" else -1

    def mark(self, pid: int) -> Mark | None:
        return ()

    def is_starved(self, pid: int) -> bool:
        return False

    def probe(self, check: Healthcheck, service: str, service_netns: str | None) -> HealthProbe:
        said = (
            self.ill[name]
            for name, run in self.current.items()
            if name in self.ill and run.spec and namespace(run.spec) == service_netns
        )
        return Answered(check, next(said, ""))

    # --- the end of a process ---

    def exit_code(self, service: str) -> int | None:
        return self.status(service).exit_code

    def out_of_memory(self, service: str) -> bool:
        return False

    def last_lines(self, service: str, count: int) -> list[str]:
        return []


# --- fake units ----------------------------------------------------------------------------------


class FakeUnits:
    """Implement `niso.runtime.units.Units` in memory."""

    def __init__(self, processes: FakeProcesses) -> None:
        self._processes = processes
        self.is_init = False
        self.caller: str | None = None  # the service in whose unit this command runs
        self.files: dict[str, str] = {}  # path -> text
        self.known: dict[str, str] = {}  # the unit files that systemd has loaded
        self.others: dict[str, bool] = {}  # foreign units -> whether they are active
        self.enabled: set[str] = set()
        self.active: set[str] = set()  # services whose process is in their unit

    def booted(self) -> bool:
        return self.is_init

    # --- unit files ---

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def write(self, path: str, text: str) -> None:
        self._processes.hit(f"write {path}")
        self.files[path] = text

    def delete(self, path: str) -> None:
        self._processes.hit(f"delete {path}")
        self.files.pop(path, None)

    def reload(self) -> None:
        self._processes.hit("reload-units")
        self.known = dict(self.files)

    def is_enabled(self, service: str) -> bool:
        return service in self.enabled

    def enable(self, services: Iterable[str]) -> None:
        self.known = dict(self.files)
        for service in services:
            self._require(service, "enable")
            self.enabled.add(service)

    def remove(self, services: Iterable[str]) -> None:
        for service in services:
            self._require(service, "disable")
            if service in self.active:
                raise Error(f"{units.unit_of(service)} is active")
            self.enabled.discard(service)
            del self.files[unit_file(service)], self.known[unit_file(service)]

    # --- timers of jobs ---

    def check_schedule(self, service: str, schedule: str) -> None:
        pass

    def enable_timer(self, service: str) -> None:
        self.known = dict(self.files)
        self._require(service, "enable-timer")
        self.enabled.discard(service)
        self.others[units.timer_of(service)] = True

    def stop_timer(self, service: str) -> None:
        self.others[units.timer_of(service)] = False

    def remove_timer(self, service: str) -> None:
        del self.files[units.timer_file(service)]
        self.known = dict(self.files)
        self.others.pop(units.timer_of(service), None)

    def timers(self, services: Iterable[str]) -> dict[str, tuple[float | None, float | None]]:
        return dict.fromkeys(services, (None, None))

    # --- foreign units ---

    def is_known(self, unit: str) -> bool:
        return unit in self.others or os.path.join(UNITS, unit) in self.known

    def is_active(self, unit: str) -> bool:
        return self.others.get(unit, False)

    def start_unit(self, unit: str) -> None:
        self._processes.hit(f"start {unit}")
        if not self.is_known(unit):
            raise Error(f"systemctl start {unit}: it does not exist")
        self.others[unit] = True

    def stop_unit(self, unit: str) -> None:
        self._processes.hit(f"stop {unit}")
        if self.is_known(unit):
            self.others[unit] = False

    def start_health(self, state_id: str) -> None:
        self._processes.hit("start niso health")

    # --- running units of services ---

    def start(self, services: Iterable[str]) -> None:
        for service in services:
            self._require(service, "start")
            if self.is_supervised(service):
                self.active.add(service)

    def stop(self, services: Iterable[str]) -> None:
        for service in services:
            self._require(service, "stop")
            self.active.discard(service)

    def is_ours(self, service: str) -> bool:
        return self.caller == service

    def is_supervised(self, service: str) -> bool:
        return self._processes.status(service).state in ("running", "restarting")

    def is_outside(self, service: str) -> bool:
        return self.is_supervised(service) and service not in self.active

    def ready(self, service: str) -> None:
        if not self.is_ours(service):
            raise Error(f"this command is not in {units.unit_of(service)}")
        if not self.is_supervised(service):
            raise ProcessError("its process has ended", f"niso logs {service}", service=service)
        self.active.add(service)

    def stop_unit_only(self, service: str) -> None:
        self.active.discard(service)

    def _require(self, service: str, what: str) -> None:
        self._processes.hit(f"{what}-unit {service}")
        if unit_file(service) not in self.known:
            raise Error(f"systemctl {what} {units.unit_of(service)}: it does not exist")
