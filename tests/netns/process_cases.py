"""Cases for processes of services, to be run on real ones and on those in memory.

A script in a lab runs them on real ones and prints as JSON what each case saw.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fakes.kernel import Fake
from fakes.processes import FakeProcesses

from niso.base import paths
from niso.base.errors import ProcessError
from niso.base.locks import service_lock
from niso.kernel.kinds.hosts_files import HostsEdit
from niso.kernel.kinds.kind import Step
from niso.kernel.kinds.namespaces import Netns
from niso.plan.specs import ProcessSpec
from niso.runtime import status
from niso.runtime.processes import Processes

SERVICE, SPACE, ALIAS, STATE_ID = "demo", "niso-demo", "niso:test", "test"
UID = 1_900_000_001
IDLE = "trap 'exit 7' USR1; trap 'exit 143' TERM; echo ready; while :; do sleep 0.02; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
CODE = 7
"""With which a process that is told to ends by itself."""


class Host(Protocol):
    """What a case has: processes, and the means to change what they depend on."""

    processes: Processes
    package: str

    def add_namespace(self) -> None: ...
    def delete_namespace(self) -> None: ...
    def add_hosts(self, folder: str) -> None: ...
    def delete_hosts(self, folder: str) -> None: ...
    def program(self, kind: str) -> tuple[str, ...]:
        """Return the command line of a process: idle, deaf, or one that ends at once with 3."""

    def end(self) -> None:
        """Let the process end by itself with CODE."""

    def kill(self, keeper: bool) -> None:
        """Kill the process, and with ``keeper`` first what would record its end."""

    def restart(self) -> None:
        """Let the time until a restart by the policy pass."""

    def lose_files(self) -> None:
        """Remove the runtime files of the process."""


# --- what a case sees ------------------------------------------------------------------------------------------------


class Case:
    """Calls to processes, and a record of what was answered."""

    def __init__(self, host: Host) -> None:
        self.host, self.seen = host, []
        self.seen: list[Any] = []

    def spec(self, kind: str = "idle", **changes: Any) -> ProcessSpec:
        spec = ProcessSpec(
            service=SERVICE,
            state_id=STATE_ID,
            generation=1,
            package=self.host.package,
            rootfs=None,
            argv=self.host.program(kind),
            working_dir="/app",
            environment={},
            uid=UID,
            gid=UID,
            groups=(),
            user_name=SERVICE,
            home="/tmp",
            capabilities=(),
            read_only=True,
            hostname="shop",
            hosts_folder=paths.hosts_root() + "/backend",
            resolv_conf="",
            netns=f"/run/netns/{SPACE}",
            restart="no",
            restart_delay_s=60.0,
            stop_timeout_s=5.0,
        )
        return spec._replace(**changes)

    def do(self, what: str, *args: Any) -> Any:
        """Call a method under the service's lock; record an error."""
        try:
            with service_lock(SERVICE):
                return getattr(self.host.processes, what)(*args)
        except (ProcessError, OSError) as error:
            self.seen.append(f"{what}: {type(error).__name__}")
            return None

    def ready(self) -> None:
        """Wait until the process handles signals: its shell has set the traps."""
        if isinstance(self.host, RealHost):
            _until(lambda: self.host.processes.last_lines(SERVICE, 1) == ["ready"])

    def start(self, kind: str = "idle", **changes: Any) -> None:
        pid = self.do("start", self.spec(kind, **changes))
        self.seen.append(("start", pid is not None and pid > 1))
        if pid is not None and kind != "dies":
            self.ready()

    def wait(self, state: str) -> None:
        _until(lambda: self.host.processes.status(SERVICE).state == state)

    def look(self) -> None:
        """Record all that can be asked of the process."""
        ask = self.host.processes
        now, spec, defect = ask.status(SERVICE), ask.spec(SERVICE), ask.defect(SERVICE)
        fd = ask.open_init(SERVICE)
        if fd >= 0:
            os.close(fd)
        self.seen.append(
            {
                "services": ask.services(),
                "state": now.state,
                "exit_code": now.exit_code,
                "has pid": now.pid is not None,
                "has started": now.started_at is not None,
                "restarts": now.restarts,
                "runs": ask.runs(SERVICE),
                "is_stopping": ask.is_stopping(SERVICE),
                "in_own_netns": ask.in_own_netns(SERVICE),
                "spec": None if spec is None else [spec.generation, spec.hosts_folder[-7:]],
                "defect": defect and [defect.problem, defect.what, defect.defect],
                "has init": fd >= 0,
                "out_of_memory": ask.out_of_memory(SERVICE),
                "lost": [[name, pid] for name, _, pid in ask.orphans([STATE_ID, "other"])],
            }
        )


def _until(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- the cases -------------------------------------------------------------------------------------------------------


def nothing(case: Case) -> None:
    case.look()
    case.seen.append(case.do("terminate", SERVICE))
    case.do("stop", SERVICE)
    case.do("save", case.spec())
    case.do("swap_hosts", case.spec())
    case.look()
    case.seen.append(case.host.processes.exit_code(SERVICE))


def runs(case: Case) -> None:
    case.start()
    case.look()
    case.do("save", case.spec(generation=2))
    case.look()
    case.do("stop", SERVICE)
    case.look()


def of_the_host(case: Case) -> None:
    case.start(netns="", hosts_folder="", hostname="")
    case.look()


def begun(case: Case) -> None:
    begin = case.do("begin", case.spec())
    case.look()
    case.seen.append(bool(select.select([begin.fd], [], [], 20)[0]) and begin.is_created)
    begin.close()
    case.seen.append(case.do("terminate", SERVICE))
    case.do("stop", SERVICE)
    case.look()


def begun_and_finished(case: Case) -> None:
    begin = case.do("begin", case.spec())
    case.seen.append(case.host.processes.finish(begin) > 1)
    case.ready()
    case.look()


def twice(case: Case) -> None:
    case.start()
    case.start()
    case.look()


def after_an_end(case: Case) -> None:
    case.start()
    case.host.end()
    case.wait("exited")
    case.look()
    case.seen.append(case.host.processes.exit_code(SERVICE))
    case.do("swap_hosts", case.spec())
    case.seen.append(case.do("terminate", SERVICE))
    case.look()
    case.start()
    case.look()


def dies_at_once(case: Case) -> None:
    case.start("dies")
    case.wait("exited")
    case.seen.append(case.host.processes.exit_code(SERVICE))
    case.look()


def without_namespace(case: Case) -> None:
    case.host.delete_namespace()
    case.start()
    case.look()


def without_hosts(case: Case) -> None:
    case.host.delete_hosts("backend")
    case.start()
    case.look()


def without_package(case: Case) -> None:
    case.start(package=case.host.package + "/nonesuch")
    case.look()


def asked_to_end(case: Case) -> None:
    case.start(restart="always")
    fd = case.do("terminate", SERVICE)
    case.seen.append(bool(select.select([fd], [], [], 20)[0]))
    os.close(fd)
    case.wait("exited")
    case.look()
    case.do("stop", SERVICE)
    case.look()


def deaf(case: Case) -> None:
    case.start("deaf")
    fd = case.do("terminate", SERVICE)
    case.seen.append(bool(select.select([fd], [], [], 0.1)[0]))
    os.close(fd)
    case.look()
    case.do("stop", SERVICE, 0.05)
    case.look()


def killed(case: Case) -> None:
    case.start()
    case.host.kill(keeper=False)
    case.wait("exited")
    case.look()


def killed_with_its_keeper(case: Case) -> None:
    case.start()
    case.host.kill(keeper=True)
    case.wait("failed")
    case.look()
    case.start()
    case.look()


def restarting(case: Case) -> None:
    case.start(restart="on-failure")
    case.host.end()
    case.wait("restarting")
    case.look()
    case.start()
    case.seen.append(case.do("terminate", SERVICE))
    case.seen.append(case.host.processes.runs(SERVICE))
    case.do("stop", SERVICE)
    case.look()


def restarted(case: Case) -> None:
    case.start(restart="always", restart_delay_s=0.01)
    case.host.end()
    case.host.restart()
    _until(lambda: case.host.processes.status(SERVICE).restarts == 1)
    case.wait("running")
    case.look()


def namespace_without_name(case: Case) -> None:
    case.start()
    case.host.delete_namespace()
    case.look()
    case.host.add_namespace()
    case.look()


def hosts_made_again(case: Case) -> None:
    case.start()
    case.host.delete_hosts("backend")
    case.look()
    case.host.add_hosts("backend")
    case.look()
    case.do("swap_hosts", case.spec())
    case.look()


def other_hosts(case: Case) -> None:
    case.start()
    other = paths.hosts_root() + "/another"
    case.do("swap_hosts", case.spec(hosts_folder=other))
    case.look()
    case.host.add_hosts("another")
    case.do("swap_hosts", case.spec(hosts_folder=other))
    case.do("swap_hosts", case.spec(hosts_folder=other))
    case.look()


def lost_files(case: Case) -> None:
    case.start()
    case.host.lose_files()
    case.look()
    for name, state_id, _ in case.host.processes.orphans([STATE_ID]):
        case.do("kill_orphan", name, paths.cgroup(state_id, name))
    case.look()


CASES = (
    nothing,
    runs,
    of_the_host,
    begun,
    begun_and_finished,
    twice,
    after_an_end,
    dies_at_once,
    without_namespace,
    without_hosts,
    without_package,
    asked_to_end,
    deaf,
    killed,
    killed_with_its_keeper,
    restarting,
    restarted,
    namespace_without_name,
    hosts_made_again,
    other_hosts,
    lost_files,
)


def answers(host: Callable[[], Host]) -> dict[str, Any]:
    """Run all cases, each on a host of its own; return what each one saw, as JSON has it."""
    seen = {}
    for run in CASES:
        case = Case(host())
        case.host.add_namespace()
        case.host.add_hosts("backend")
        run(case)
        case.do("stop", SERVICE, 0)
        case.host.delete_namespace()
        for folder in ("backend", "another"):
            case.host.delete_hosts(folder)
        seen[run.__name__] = case.seen
    answer: dict[str, Any] = json.loads(json.dumps(seen))
    return answer


# --- the two hosts ---------------------------------------------------------------------------------------------------


class FakeHost:
    def __init__(self) -> None:
        self.kernel = Fake()
        self.processes = FakeProcesses(self.kernel)
        self.package = os.path.dirname(__file__)

    def add_namespace(self) -> None:
        self.kernel.do(Step("add", Netns(SPACE, ALIAS)))

    def delete_namespace(self) -> None:
        if SPACE in self.kernel.netns:
            self.kernel.lose_netns(SPACE)

    def add_hosts(self, folder: str) -> None:
        self.kernel.do(HostsEdit(folder, True, (), ()))

    def delete_hosts(self, folder: str) -> None:
        self.kernel.hosts.pop(folder, None)

    def program(self, kind: str) -> tuple[str, ...]:
        self.processes.deaf = {SERVICE} if kind == "deaf" else set()
        self.processes.dies = {SERVICE: 3} if kind == "dies" else {}
        return (kind,)

    def end(self) -> None:
        self.processes.end(SERVICE, CODE)

    def kill(self, keeper: bool) -> None:
        self.processes.end(SERVICE, None if keeper else 137)

    def restart(self) -> None:
        self.processes.restart(SERVICE)

    def lose_files(self) -> None:
        self.processes.lose(SERVICE, STATE_ID)


class RealHost:
    def __init__(self) -> None:
        self.processes = Processes()
        self.package = "/tmp/package"
        os.makedirs(self.package, exist_ok=True)

    def add_namespace(self) -> None:
        subprocess.run(["ip", "netns", "add", SPACE], check=True)

    def delete_namespace(self) -> None:
        subprocess.run(["ip", "netns", "delete", SPACE], check=False, stderr=subprocess.DEVNULL)

    def add_hosts(self, folder: str) -> None:
        path = Path(paths.hosts_root(), folder)
        path.mkdir(parents=True)
        (path / "hosts").write_text("127.0.0.1 localhost\n")

    def delete_hosts(self, folder: str) -> None:
        shutil.rmtree(f"{paths.hosts_root()}/{folder}", ignore_errors=True)

    def program(self, kind: str) -> tuple[str, ...]:
        return ("/bin/sh", "-c", {"idle": IDLE, "deaf": DEAF, "dies": "exit 3"}[kind])

    def _init(self) -> int:
        pid = self.processes.status(SERVICE).pid
        assert pid is not None
        return pid

    def end(self) -> None:
        os.kill(self._init(), signal.SIGUSR1)

    def kill(self, keeper: bool) -> None:
        init, conmon = self._init(), status.conmon(SERVICE)
        if keeper:
            assert conmon is not None
            os.kill(conmon, signal.SIGKILL)
            _until(lambda: status.conmon(SERVICE) is None)
        os.kill(init, signal.SIGKILL)

    def restart(self) -> None:
        pass

    def lose_files(self) -> None:
        shutil.rmtree(paths.service_dir(SERVICE))
