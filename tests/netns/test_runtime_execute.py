"""``exec`` on real services: bytes, terminal, signals and exit status pass through; nothing of the caller's changes hands."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Lab, Process
from runtime_world import EXECUTE, FOLDER, PACKAGE, UID, Runtime


@pytest.fixture
def runtime(lab: Lab) -> Iterator[Runtime]:
    world = Runtime(lab)
    world.start(["/bin/sleep", "1000"], environment={"COLOUR": "blue"}, capabilities=["NET_RAW"])
    yield world
    world.stop()


@pytest.mark.rootless
def test_command_runs_as_the_service_does(runtime: Runtime) -> None:
    show = "id -u; pwd; echo $COLOUR; grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; ulimit -n; cat /proc/1/cmdline | tr '\\0' ' '"
    lines = runtime.exec("sh", "-c", show).stdout.splitlines()
    assert lines[:3] == [str(UID), "/app", "blue"]
    assert "CapEff:\t0000000000002000" in lines
    assert "CapBnd:\t0000000000002000" in lines
    assert "NoNewPrivs:\t1" in lines
    assert "Seccomp:\t2" in lines
    assert lines[-1].startswith("/dev/niso-init")
    assert "SECRET" not in runtime.exec("env", env={"SECRET": "x"}).stdout


def shell(lab: Lab, script: str, *command: str, **options: Any) -> Any:
    """Run a shell's script, in which ``"$@"`` is ``niso exec`` of a command."""
    return lab.run("bash", "-c", script, "bash", "python", "-c", EXECUTE, *command, **options)


STATUSES = (
    (["true"], 0),
    (["sh", "-c", "exit 7"], 7),
    (["sh", "-c", "exit 125"], 125),
    (["sh", "-c", "kill -TERM $$"], 143),
    (["sh", "-c", "kill -KILL $$"], 137),
    (["no-such-command"], 127),
    (["/no/such/file"], 127),
    (["./nothing"], 127),
    (["/etc/passwd"], 126),
    (["/usr"], 126),
    ([""], 127),
)


def test_exit_status(runtime: Runtime) -> None:
    for command, status in STATUSES:
        assert runtime.exec(*command, check=False).returncode == status, command
    runtime.lab.write(f"{PACKAGE}/broken", "#!/no/interpreter\n", 0o755)
    done = runtime.exec("/app/broken", check=False)
    assert done.returncode == 126
    assert "/no/interpreter" in done.stderr
    runtime.stop()
    done = runtime.exec("true", check=False)
    assert done.returncode == 125
    assert "no running process" in done.stderr


@pytest.mark.rootless
def test_bytes_pass_unchanged_both_ways_and_end_of_input_is_seen(runtime: Runtime) -> None:
    done = runtime.exec("sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    data = os.urandom(3_000_000)
    done = runtime.exec("cat", input=data, text=False)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_ends_of_pipes(runtime: Runtime, lab: Lab) -> None:
    """Much output, input that nobody reads, a reader that goes away, a process left behind."""
    count = shell(lab, '"$@" | wc -c', "head", "-c", "100000000", "/dev/zero")
    assert count.stdout.strip() == "100000000"
    script = "exec <&-; sleep 0.2; echo done"
    assert runtime.exec("sh", "-c", script, input=b"x" * 1_000_000, text=False).stdout == b"done\n"
    done = shell(lab, '"$@" | head -n 1; echo ${PIPESTATUS[0]}', "yes")
    assert done.stdout.split() == ["y", "141"]
    assert runtime.exec("sh", "-c", "sleep 1000 & echo done").stdout == "done\n"


def test_redirected_files_keep_their_owner_and_closed_ones_are_no_trouble(
    runtime: Runtime, lab: Lab
) -> None:
    lab.write("/tmp/out", "", 0o600)
    shell(lab, '"$@" </dev/null >/tmp/out 2>/dev/null', "echo", "hi")
    found = lab.run("stat", "-c", "%u:%g %a", "/tmp/out", "/dev/null").stdout.splitlines()
    assert found == ["0:0 600", "0:0 666"]
    assert lab.run("cat", "/tmp/out").stdout == "hi\n"
    for closed, script in (
        ("<&-", "echo x; echo y >&2; cat"),
        (">&-", "echo y >&2"),
        ("2>&-", "echo x"),
        ("<&- >&- 2>&-", "cat"),
    ):
        shell(lab, f'"$@" {closed}', "sh", "-c", script)


@pytest.mark.parametrize(
    "then", ["true", "exec sleep 4321", "trap '' TERM; while :; do sleep 0.1; done"]
)
def test_output_that_cannot_be_written_is_an_error_and_ends_the_command(
    runtime: Runtime, lab: Lab, then: str
) -> None:
    script = f"echo $$ >/tmp/pid; echo hi; {then}"
    for to, why in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        done = shell(lab, f'"$@" {to}', "sh", "-c", script, check=False)
        words = f"niso: demo: cannot write its output: {why}\n"
        assert (done.returncode, done.stderr) == (125, words)
        assert "sleep 4321" not in lab.run("ps", "-eo", "args=").stdout
        runtime.exec("sh", "-c", "! test -e /proc/$(cat /tmp/pid)")
        done = shell(lab, f'"$@" 2{to}', "sh", "-c", "echo y >&2", check=False)
        assert done.returncode != 0


def test_container_that_crun_has_forgotten_is_told_once_and_with_the_next_step(
    runtime: Runtime, lab: Lab
) -> None:
    lab.run("mv", "/run/niso/crun", "/run/niso/away")
    code = EXECUTE.replace("{error.message}", "{error.message} (hint: {error.hint})")
    done = lab.run("python", "-c", code, "true", check=False)
    lab.run("rm", "-rf", "/run/niso/crun")
    lab.run("mv", "/run/niso/away", "/run/niso/crun")
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("niso: demo: crun has lost its state")
    assert "(hint: a restart of demo writes it again)" in done.stderr


def test_signal_reaches_the_command(runtime: Runtime, lab: Lab) -> None:
    for number in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2"):
        script = f"trap 'echo got; exit 9' {number}; echo ready; while :; do sleep 0.02; done"
        process = lab.popen("python", "-c", EXECUTE, "sh", "-c", script)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(getattr(signal, f"SIG{number}"))
        assert process.communicate(timeout=10)[0] == "got\n"
        assert process.returncode == 9


@pytest.mark.rootless
def test_nothing_of_a_command_is_left(runtime: Runtime, lab: Lab) -> None:
    runtime.exec("true")
    assert not [
        name for name in lab.run("ls", f"{FOLDER}/run-0").stdout.split() if name.startswith("exec-")
    ]
    assert "crun" not in lab.run("ps", "-eo", "comm=").stdout


# crun sets the size of a terminal only after it has started the command.
UNTIL_SIZED = "while [ \"$(stty size)\" = '0 0' ]; do sleep 0.01; done; "


class Terminal:
    """The user's side of a terminal in which a command runs."""

    def __init__(self, lab: Lab, *command: str) -> None:
        self.near, far = pty.openpty()
        self.settings = termios.tcgetattr(far)
        termios.tcsetwinsize(far, (33, 99))
        self.far = far
        self.process: Process = lab.popen(
            "python",
            "-c",
            EXECUTE,
            *command,
            stdin=far,
            stdout=far,
            stderr=far,
            tty=True,
            env={"TERM": "vt220"},
        )
        self.seen = b""

    def wait_for(self, words: bytes, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while words not in self.seen:
            if not select.select([self.near], [], [], max(0, deadline - time.monotonic()))[0]:
                pytest.fail(f"{words!r} is not in {self.seen!r}")
            self.seen += os.read(self.near, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.near, keys)

    def close(self) -> None:
        os.close(self.near)
        os.close(self.far)


Open = Callable[..., Terminal]


@pytest.fixture
def opened(runtime: Runtime, lab: Lab) -> Iterator[Open]:
    """Provide a function that runs a shell's script in a terminal, which ends with the test."""
    every: list[Terminal] = []

    def open_(*command: str) -> Terminal:
        every.append(Terminal(lab, *command))
        return every[-1]

    yield open_
    for terminal in every:
        terminal.close()


@pytest.mark.rootless
def test_terminal_has_the_size_and_type_of_the_users_and_is_given_back(opened: Open) -> None:
    script = UNTIL_SIZED + "tty; stty size; echo $TERM; read x; echo got $x; exit 6"
    terminal = opened("sh", "-c", script)
    before = os.fstat(terminal.far)
    terminal.wait_for(b"vt220")
    assert b"/dev/pts/" in terminal.seen
    assert b"33 99" in terminal.seen
    terminal.type(b"word\r")
    terminal.wait_for(b"got word")
    assert terminal.process.wait(10) == 6
    assert termios.tcgetattr(terminal.far) == terminal.settings
    assert os.fstat(terminal.far).st_uid == before.st_uid == os.geteuid()


LOOP = "echo ready; while :; do sleep 0.02; done"


def test_sizes_and_keys_are_the_commands_own(opened: Open) -> None:
    terminal = opened("sh", "-c", f"trap 'stty size' WINCH; {LOOP}")
    terminal.wait_for(b"ready")
    termios.tcsetwinsize(terminal.near, (44, 111))
    terminal.wait_for(b"44 111")
    terminal.type(b"\x03")
    assert terminal.process.wait(10) == 130
    terminal = opened("sh", "-c", f"trap 'echo interrupted; exit 4' INT; {LOOP}")
    terminal.wait_for(b"ready")
    terminal.type(b"\x03")
    terminal.wait_for(b"interrupted")
    assert terminal.process.wait(10) == 4
    terminal = opened("cat")
    terminal.type(b"line\r")
    terminal.wait_for(b"line\r\nline\r\n")
    terminal.type(b"\x04")
    assert terminal.process.wait(10) == 0


def test_terminal_as_input_alone_leaves_the_output_raw(runtime: Runtime, lab: Lab) -> None:
    near, far = pty.openpty()
    process = lab.popen(
        "python", "-c", EXECUTE, "printf", "a\\nb\\n", stdin=far, tty=True, text=False
    )
    assert process.communicate(timeout=10)[0] == b"a\nb\n"
    os.close(near)
    os.close(far)


def test_command_that_is_interrupted_or_whose_terminal_hangs_up_leaves_nothing(
    opened: Open, lab: Lab
) -> None:
    terminal = opened("sh", "-c", "echo ready; exec sleep 1000")
    terminal.wait_for(b"ready")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(10) == 143
    assert termios.tcgetattr(terminal.far) == terminal.settings
    terminal = Terminal(lab, "sh", "-c", f"trap 'sleep 0.3; exit 3' HUP; {LOOP}")
    terminal.wait_for(b"ready")
    terminal.close()  # as a connection that is lost
    terminal.process.send_signal(signal.SIGHUP)
    assert terminal.process.wait(10) in (3, 125)
    assert "exec-" not in lab.run("ls", f"{FOLDER}/run-0").stdout


@pytest.mark.rootless
def test_stop_of_the_service_ends_its_commands(runtime: Runtime, lab: Lab) -> None:
    process = lab.popen(
        "python", "-c", EXECUTE, "sh", "-c", "echo ready; exec sleep 1000", stdin=subprocess.DEVNULL
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    runtime.stop()
    assert process.wait(10) == 137
