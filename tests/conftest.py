"""The throw-away host of a test: fixture ``lab``.

Address plan: the lab's host is 192.0.2.1 and 2001:db8::1 on uplink0; ``client`` is 192.0.2.2 and 2001:db8::2, ``neighbour``
192.0.2.3 and 2001:db8::3, each on its eth0. niso's networks come from 10.99.0.0/16.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import itertools
import json
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import lab_agent
import pytest
from fake_world import World
from hypothesis import settings
from samples import SLOW, samples

from niso.kernel import proc_sys

TESTS = pathlib.Path(__file__).resolve().parent
DEADLINE_SECONDS = int(480 * SLOW)
"""How long a lab lives at most: less than pytest's timeout, so that the lab's processes end first."""
START_SECONDS = 120 * SLOW
COMMAND_SECONDS = 60
"""How long a command may take on an idle machine, if a test sets no limit."""
PATIENCE = 3 * SLOW
WAIT_SECONDS = 60 * SLOW
"""The shortest limit for what a busy machine may delay."""
IN_PYTHON = [(name, "-IS" + c) for name in lab_agent.PYTHON for c in ("c", "uc")]
IN_OWN_PYTHON = [("python", "-c"), (sys.executable, "-c")]
NEEDS_ROOT = ("netns", "faults")
# Some user but root, who can still read a checkout that lies below a folder of root's own.
UNPRIVILEGED = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    # rerunfailures writes to its server twice for each test before it reads: TCP would hold back the
    # second write until the first is acknowledged, 40 ms later
    status = getattr(getattr(config, "failures_db", None), "sock", None)
    if status is not None:
        status.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # who started the tests in the background may have them ignore it, and all that they start would too
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # pytest's folders are kept in memory where they fit: many tests write a store, and a disk waits
    if os.access("/dev/shm", os.W_OK):
        memory = os.statvfs("/dev/shm")
        if memory.f_bavail * memory.f_frsize > 1 << 30 and not memory.f_flag & os.ST_NOEXEC:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")
    # no test is judged by how long it takes
    settings.register_profile("untimed", deadline=None, max_examples=samples(30, 300))
    settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the tests marked `first` to every second worker, which begins with them.

    ``--dist worksteal`` gives each worker an equal, contiguous part of the tests. A long test that
    begins late would keep one worker busy after all others have ended. Most long tests wait, so the
    other workers use the processor meanwhile."""
    slow = [item for item in items if item.get_closest_marker("first")]
    rest = [item for item in items if not item.get_closest_marker("first")]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    count = len(items)
    items.clear()
    for number in range(workers):
        mine = [] if number % 2 else slow[number // 2 :: (workers + 1) // 2]
        end = (number + 1) * count // workers
        taken = max(0, end - len(items) - len(mine))
        items += [*mine, *rest[:taken]]
        del rest[:taken]
    items += rest
    if SLOW != 1:
        for item in items:
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600 * SLOW))


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests: each full collection would go through them


def pytest_runtest_setup(item: pytest.Item) -> None:
    below = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
    needs_root = below in NEEDS_ROOT or "lab" in getattr(item, "fixturenames", ())
    if needs_root and os.geteuid() != 0 and item.get_closest_marker("rootless") is None:
        pytest.fail(
            "tests of the real kernel run in labs, which need root: sudo ./dev test", pytrace=False
        )


_folders = itertools.count()


@pytest.fixture(autouse=True)
def folders_of_its_own(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Give a unit test a state and a run folder of its own, on any machine and for any user.

    They are made by what writes into them: most tests write nothing."""
    if not request.path.is_relative_to(TESTS / "unit"):
        return
    monkeypatch = request.getfixturevalue("monkeypatch")
    if "tmp_path" in request.fixturenames:
        folder = request.getfixturevalue("tmp_path")
    else:
        folder = tmp_path_factory.getbasetemp() / f"own{next(_folders)}"
    monkeypatch.setenv("NISO_STATE_DIR", str(folder / "state"))
    monkeypatch.setenv("NISO_RUN_DIR", str(folder / "run"))
    monkeypatch.delenv("NISO_POOL", raising=False)


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    """Provide a host on the fakes; tests of the kernel have worlds of their own."""
    with World(tmp_path) as world:
        yield world


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def left() -> Iterator[list[Any]]:
    """Provide a place for the world that the last test of a module left as it found it; see
    `fault_world.borrowed`."""
    worlds: list[Any] = []
    yield worlds
    for world in worlds:
        world.lab.__exit__()


def patient(seconds: float | None) -> float | None:
    """Return the limit for a busy machine of what takes at most ``seconds`` on an idle one.

    Limits below 5 s stay as they are: they are how long a test looks, not how long it waits."""
    if seconds is None or seconds < 5:
        return seconds
    return max(WAIT_SECONDS, PATIENCE * seconds)


def forks(env: dict[str, str | None] | None) -> bool:
    """Return whether niso can run in a fork: no variable is one that Python reads when it starts."""
    return not any(name.startswith(("LC_", "LANG", "PYTHON")) for name in env or {})


class LabEnded(Exception):
    """The lab is gone, or its deadline has passed, before the command ended."""


class Process:
    """A command that an agent has started; much like subprocess.Popen. ``pid`` is its number where the agent is."""

    def __init__(
        self,
        agent: Agent,
        argv: tuple[str, ...],
        status: socket.socket,
        files: list[IO[bytes] | None],
        text: bool,
    ) -> None:
        self.args = argv
        self.stdin, self.stdout, self.stderr = files
        self.returncode: int | None = None
        self._agent = agent
        self._status = status
        self._text = text
        self.pid = int(self._receive(START_SECONDS).removeprefix("pid "))

    def _receive(self, timeout: float | None) -> str:
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        message = self._status.recv(100).decode()
        if not message:
            raise LabEnded(f"the lab ended before {self.args}")
        return message

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or -N where signal N ended it."""
        if self.returncode is None:
            self.returncode = int(self._receive(patient(timeout)).removeprefix("exit "))
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To the command and all of its process group."""
        self._agent.request({"kill": self.pid, "signal": number}, [])

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(
        self, input: str | bytes | None = None, timeout: float | None = None
    ) -> tuple[Any, Any]:
        """Feed ``input``, read until both outputs are closed by all who hold them, and wait for the end."""
        timeout = patient(timeout) or DEADLINE_SECONDS
        deadline = time.monotonic() + timeout
        outputs: list[bytes] = [b"", b""]

        def read(which: int, file: IO[bytes]) -> None:
            with file:
                outputs[which] = file.read()

        def feed(file: IO[bytes]) -> None:
            with contextlib.suppress(BrokenPipeError), file:
                file.write(input.encode() if isinstance(input, str) else input or b"")

        threads = [
            threading.Thread(target=read, args=(which, file), daemon=True)
            for which, file in enumerate((self.stdout, self.stderr))
            if file
        ]
        if self.stdin:
            threads.append(threading.Thread(target=feed, args=(self.stdin,), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(max(0.0, deadline - time.monotonic()))
        if self._text:
            return outputs[0].decode(errors="replace"), outputs[1].decode(errors="replace")
        return outputs[0], outputs[1]


class Agent:
    """Starts commands; `lab_agent` says how. ``environment`` is theirs."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._control, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def request(self, request: dict[str, Any], fds: list[int]) -> None:
        socket.send_fds(self._control, [json.dumps(request).encode()], fds)

    def popen(
        self,
        *argv: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        env: dict[str, str | None] | None = None,
        cwd: str = "/tmp",
        netns: str | None = None,
        tty: bool = False,
        text: bool = True,
        inside: bool | None = None,
    ) -> Process:
        """Start a command, in a session of its own.

        The three descriptors are PIPE, DEVNULL, STDOUT (stderr only) or open ones, as for subprocess. ``env`` is laid over
        `environment`; None takes a variable away. ``netns`` names one below /run/netns. With ``tty`` stdin, the end of a
        pty, becomes its controlling terminal. ``text`` says what `Process.communicate` gives. ``inside``: see
        `lab_agent`; by default a command of niso is, and a short program of Python always.
        """
        if inside is None:
            inside = argv[0] == "niso" and forks(env)
        inside = inside or argv[:2] in IN_PYTHON or (argv[:2] in IN_OWN_PYTHON and forks(env))
        merged = self.environment | (env or {})
        passed: list[int] = []
        files: list[IO[bytes] | None] = [None, None, None]
        with contextlib.ExitStack() as ours:
            for which, wanted in enumerate((stdin, stdout, stderr)):
                if wanted == subprocess.PIPE:
                    ends = os.pipe()
                    far, near = ends if which == 0 else ends[::-1]
                    files[which] = os.fdopen(
                        near, "wb" if which == 0 else "rb", buffering=0 if which == 0 else -1
                    )
                    ours.callback(os.close, far)
                elif wanted == subprocess.DEVNULL:
                    far = os.open(os.devnull, os.O_RDWR)
                    ours.callback(os.close, far)
                else:
                    far = passed[1] if wanted == subprocess.STDOUT else wanted
                passed.append(far)
            status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                request = {
                    "argv": argv,
                    "env": {key: value for key, value in merged.items() if value is not None},
                    "cwd": cwd,
                    "netns": netns,
                    "tty": tty,
                    "inside": inside,
                }
                self.request(request, [*passed, theirs.fileno()])
        return Process(self, argv, status, files, text)


class _Starter(Agent):
    """Starts the labs of this process."""

    def __init__(self) -> None:
        super().__init__(dict(os.environ))
        with self._far:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-I", str(TESTS / "lab_agent.py")],
                stdin=self._far,
                start_new_session=True,
            )
        atexit.register(self._end)
        self._control.settimeout(START_SECONDS)
        assert self._control.recv(100) == b"ready"

    def _end(self) -> None:
        self._control.close()
        self._process.wait(10 * SLOW)


_starter = functools.cache(_Starter)


class Lab(Agent):
    """A lab that lives for one ``with`` block (or test), at most `DEADLINE_SECONDS`; commands run inside it."""

    def __init__(self, deadline_seconds: int = DEADLINE_SECONDS) -> None:
        self._deadline_seconds = deadline_seconds
        own = os.path.join(sys.prefix, "bin")
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("NISO_", "PYTEST_"))
        }
        environment["PATH"] = f"{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if SLOW != 1:
            environment["NISO_SLOW"] = f"{SLOW:g}"
        super().__init__(environment | {"LC_ALL": "C.UTF-8", "NISO_LAB": "1"})

    def __enter__(self) -> Lab:
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with self._far as far:
            self.outer = _starter().popen(
                *("lab", str(self._deadline_seconds)),
                stdin=far.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                inside=True,
            )
        try:
            self.pid = self._hello()
            for kind in ("net", "mnt", "uts", "ipc"):
                if (
                    os.stat(f"/proc/{self.pid}/ns/{kind}").st_ino
                    == os.stat(f"/proc/self/ns/{kind}").st_ino
                ):
                    pytest.exit(
                        f"the lab is in the tests' own {kind} namespace: refusing to run anything in it",
                        3,
                    )
        except BaseException:
            self.__exit__()
            raise
        self.tmp = self.path("/tmp")
        return self

    def _hello(self) -> int:
        """The agent's number out here: the kernel translates the sender's credentials (unix(7))."""
        self._control.settimeout(START_SECONDS)
        message, ancillary, _, _ = self._control.recvmsg(100, socket.CMSG_SPACE(12))
        if message != b"ready":
            assert self.outer.stderr
            self.outer.kill()
            raise LabEnded(f"no lab: {self.outer.stderr.read().decode()}")
        credentials = next(data for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS)
        return int(struct.unpack("=iII", credentials)[0])

    def __exit__(self, *_: object) -> None:
        self._control.close()
        try:
            self.outer.wait(20 * SLOW)
        except subprocess.TimeoutExpired:
            self.outer.kill()
            self.outer.wait(20 * SLOW)
        finally:
            assert self.outer.stderr
            self.outer.stderr.close()

    def run(
        self,
        *argv: str,
        check: bool = True,
        input: str | bytes | None = None,
        env: dict[str, str | None] | None = None,
        timeout: float = COMMAND_SECONDS,
        netns: str | None = None,
        cwd: str = "/tmp",
        text: bool = True,
        inside: bool = False,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command in the lab to its end. With ``check`` a status other than 0 fails the test with its output."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        process = self.popen(
            *argv, stdin=stdin, env=env, netns=netns, cwd=cwd, text=text, inside=inside
        )
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired as error:
            error.add_note(self._left_over())
            process.kill()
            raise
        assert process.returncode is not None
        if check and process.returncode != 0:
            pytest.fail(
                f"{' '.join(argv)}: exit status {process.returncode}\nstdout: {out}\nstderr: {err}"
            )
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def _left_over(self) -> str:
        """What every process of the lab is at, for who looks into a command that did not end."""
        looks = self.popen("python3", "-ISc", (TESTS / "left_over.py").read_text())
        try:
            return "".join(looks.communicate(timeout=10))
        except subprocess.TimeoutExpired:
            return "(and that could not be looked at either)"

    def niso(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command of niso to its end, inside a child of the agent (`lab_agent`).

        ``run("niso", ...)`` and ``popen("niso", ..., inside=False)`` start Python.
        """
        return self.run("niso", *argv, inside=forks(options.get("env")), **options)

    def program(self, inside: str, name: str) -> str:
        """Write a program that runs niso, or a plugin of it, as `niso` does; return its path.

        For what another program of the lab starts often: Python's start takes most of the time.
        """
        if not (at := self.path("/tmp/agent.sock")).exists():
            self.request({"listen": "/tmp/agent.sock"}, [])
            self.wait_for(at.exists)
        text = lab_agent.CLIENT.replace("PATH", "/tmp/agent.sock").replace("NAME", name)
        own = os.path.join(sys.prefix, "bin", name)
        return self.write(inside, text.replace("PROGRAM", own), 0o755)

    def client(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        return self.run(*argv, netns="client", **options)

    def neighbour(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        return self.run(*argv, netns="neighbour", **options)

    def ip_json(self, *argv: str, netns: str | None = None) -> list[dict[str, Any]]:
        """Return what ``ip -j`` says: ``lab.ip_json("link")``, ``lab.ip_json("-d", "route", netns="niso-api")``."""
        out = self.run("ip", "-j", *argv, netns=netns).stdout
        return list(json.loads(out)) if out.strip() else []

    def nft_json(self, netns: str | None = None) -> list[dict[str, Any]]:
        """Return the whole ruleset as ``nft -j`` lists it, without its first object (metainfo)."""
        out = self.run("nft", "-j", "list", "ruleset", netns=netns).stdout
        return [thing for thing in json.loads(out)["nftables"] if "metainfo" not in thing]

    def path(self, inside: str) -> pathlib.Path:
        """Return the path out here of a path in the lab. Absolute links on the way lead out of the lab: do not follow them."""
        return pathlib.Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> str:
        """Write a file of the lab's /tmp or /run, with its folders; returns ``inside``."""
        if not inside.startswith(("/tmp/", "/run/")):
            raise ValueError(f"{inside} would be written to the machine's disk")
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)
        return inside

    def wait_for(self, predicate: Callable[[], Any], timeout: float = 10, what: str = "") -> Any:
        """Call ``predicate`` until it returns something true, and return that.

        ``timeout`` is in seconds on an idle machine. The test fails after `PATIENCE` times as long,
        and not before `WAIT_SECONDS`. Calls take at most a fifth of the time, and are 10 to 100 ms
        apart: a tenth of the time that has passed.
        """
        patience = max(WAIT_SECONDS, PATIENCE * timeout)
        if answer := self.observed(predicate, patience):
            return answer
        pytest.fail(f"not so within {patience} s: {what or predicate}")

    def observed(self, predicate: Callable[[], Any], seconds: float) -> Any:
        """Call ``predicate`` for so long; return its first true answer, or None.

        For what must not happen: the time is how long the test observes, also on a busy machine.
        """
        began = time.monotonic()
        while True:
            asked = time.monotonic()
            if answer := predicate():
                return answer
            if asked > began + seconds:
                return None
            time.sleep(
                max(0.01, min(0.5, 4 * (time.monotonic() - asked)), min(0.1, (asked - began) / 10))
            )


def assert_whole(host: Any) -> None:
    """Assert that ``niso net check`` on a lab or machine reports no difference.

    It may warn of tables that the host shares with the rest of the machine.
    """
    done = host.niso("net", "check", check=False)
    expected = (0, "OK: the kernel matches the configuration\n")
    assert (done.returncode, done.stdout) == expected, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def no_sysctl_of_the_machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit tests run where the machine's own network is: no sysctl of it is read or written."""
    if "unit" not in request.path.parts:
        return

    def refuse() -> int:
        raise AssertionError("a unit test asks for a sysctl of the machine")

    monkeypatch.setattr(proc_sys, "_own_sys", refuse)
    monkeypatch.setattr(proc_sys, "_top", -1)
    monkeypatch.setattr(proc_sys, "_folders", {})
