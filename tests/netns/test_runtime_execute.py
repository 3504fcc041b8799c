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
from collections.abc import Iterator

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


def test_script_without_its_interpreter_is_not_executable(runtime: Runtime, lab: Lab) -> None:
    lab.write(f"{PACKAGE}/broken", "#!/no/interpreter\n", 0o755)
    done = runtime.exec("/app/broken", check=False)
    assert done.returncode == 126
    assert "/no/interpreter" in done.stderr


def test_service_that_does_not_run_is_125(runtime: Runtime) -> None:
    runtime.stop()
    done = runtime.exec("true", check=False)
    assert done.returncode == 125
    assert "no running process" in done.stderr


@pytest.mark.rootless
def test_bytes_pass_unchanged_both_ways_and_end_of_input_is_seen(runtime: Runtime) -> None:
    data = os.urandom(3_000_000)
    done = runtime.exec("cat", input=data, text=False)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_stdout_and_stderr_stay_apart(runtime: Runtime) -> None:
    done = runtime.exec("sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_hundred_megabytes_come_whole(runtime: Runtime, lab: Lab) -> None:
    count = lab.run(
        "sh",
        "-c",
        '"$@" | wc -c',
        "sh",
        "python",
        "-c",
        EXECUTE,
        "head",
        "-c",
        "100000000",
        "/dev/zero",
    )
    assert count.stdout.strip() == "100000000"


def test_command_that_does_not_read_its_input_does_not_hang(runtime: Runtime) -> None:
    assert (
        runtime.exec(
            "sh", "-c", "exec <&-; sleep 0.2; echo done", input=b"x" * 1_000_000, text=False
        ).stdout
        == b"done\n"
    )


def test_reader_that_goes_away_ends_the_command(runtime: Runtime, lab: Lab) -> None:
    script = '"$@" | head -n 1; echo ${PIPESTATUS[0]}'
    done = lab.run("bash", "-c", script, "bash", "python", "-c", EXECUTE, "yes")
    assert done.stdout.split() == ["y", "141"]


def test_process_left_behind_does_not_hold_the_command(runtime: Runtime) -> None:
    assert runtime.exec("sh", "-c", "sleep 1000 & echo done").stdout == "done\n"


def test_redirected_file_and_dev_null_keep_their_owner(runtime: Runtime, lab: Lab) -> None:
    lab.write("/tmp/out", "", 0o600)
    lab.run(
        "sh",
        "-c",
        '"$@" </dev/null >/tmp/out 2>/dev/null',
        "sh",
        "python",
        "-c",
        EXECUTE,
        "echo",
        "hi",
    )
    found = lab.run("stat", "-c", "%u:%g %a", "/tmp/out", "/dev/null").stdout.splitlines()
    assert found == ["0:0 600", "0:0 666"]
    assert lab.run("cat", "/tmp/out").stdout == "hi\n"


def test_closed_descriptors_that_are_not_written_to_are_no_trouble(
    runtime: Runtime, lab: Lab
) -> None:
    for closed, script in (
        ("<&-", "echo x; echo y >&2; cat"),
        (">&-", "echo y >&2"),
        ("2>&-", "echo x"),
        ("<&- >&- 2>&-", "cat"),
    ):
        lab.run("sh", "-c", f'"$@" {closed}', "sh", "python", "-c", EXECUTE, "sh", "-c", script)


@pytest.mark.parametrize(
    ("to", "why"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
    ids=["full", "closed"],
)
@pytest.mark.parametrize(
    "then", ["true", "exec sleep 4321", "trap '' TERM; while :; do sleep 0.1; done"]
)
def test_output_that_cannot_be_written_is_an_error_and_ends_the_command(
    runtime: Runtime, lab: Lab, to: str, why: str, then: str
) -> None:
    script = f"echo $$ >/tmp/pid; echo hi; {then}"
    done = lab.run(
        "sh", "-c", f'"$@" {to}', "sh", "python", "-c", EXECUTE, "sh", "-c", script, check=False
    )
    assert (done.returncode, done.stderr) == (125, f"niso: demo: cannot write its output: {why}\n")
    assert "sleep 4321" not in lab.run("ps", "-eo", "args=").stdout
    inside = runtime.exec("sh", "-c", "! test -e /proc/$(cat /tmp/pid)", check=False)
    assert inside.returncode == 0


@pytest.mark.parametrize("to", ["2>/dev/full", "2>&-"])
def test_error_output_that_cannot_be_written_is_no_success(
    runtime: Runtime, lab: Lab, to: str
) -> None:
    done = lab.run(
        "sh",
        "-c",
        f'"$@" {to}',
        "sh",
        "python",
        "-c",
        EXECUTE,
        "sh",
        "-c",
        "echo y >&2",
        check=False,
    )
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


@pytest.fixture
def terminals(runtime: Runtime, lab: Lab) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@pytest.mark.rootless
def test_terminal_has_the_size_and_type_of_the_users_and_is_given_back(
    runtime: Runtime, lab: Lab, terminals: list[Terminal]
) -> None:
    terminals.append(
        terminal := Terminal(
            lab, "sh", "-c", UNTIL_SIZED + "tty; stty size; echo $TERM; read x; echo got $x; exit 6"
        )
    )
    terminal.wait_for(b"vt220")
    assert b"/dev/pts/" in terminal.seen
    assert b"33 99" in terminal.seen
    terminal.type(b"word\r")
    terminal.wait_for(b"got word")
    assert terminal.process.wait(10) == 6
    assert termios.tcgetattr(terminal.far) == terminal.settings


def test_resize_reaches_the_command(runtime: Runtime, lab: Lab, terminals: list[Terminal]) -> None:
    terminals.append(
        terminal := Terminal(
            lab, "sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done"
        )
    )
    terminal.wait_for(b"ready")
    termios.tcsetwinsize(terminal.near, (44, 111))
    terminal.wait_for(b"44 111")
    terminal.type(b"\x03")
    assert terminal.process.wait(10) == 130


def test_keys_are_the_commands_own(runtime: Runtime, lab: Lab, terminals: list[Terminal]) -> None:
    terminals.append(
        terminal := Terminal(
            lab,
            "sh",
            "-c",
            "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.02; done",
        )
    )
    terminal.wait_for(b"ready")
    terminal.type(b"\x03")
    terminal.wait_for(b"interrupted")
    assert terminal.process.wait(10) == 4


def test_end_of_input_key_ends_a_reader(
    runtime: Runtime, lab: Lab, terminals: list[Terminal]
) -> None:
    terminals.append(terminal := Terminal(lab, "cat"))
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


def test_command_that_was_interrupted_gives_its_terminal_back(
    runtime: Runtime, lab: Lab, terminals: list[Terminal]
) -> None:
    terminals.append(terminal := Terminal(lab, "sh", "-c", "echo ready; exec sleep 1000"))
    terminal.wait_for(b"ready")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(10) == 143
    assert termios.tcgetattr(terminal.far) == terminal.settings


def test_terminal_that_hangs_up_leaves_nothing(
    runtime: Runtime, lab: Lab, terminals: list[Terminal]
) -> None:
    terminal = Terminal(
        lab, "sh", "-c", "trap 'sleep 0.3; exit 3' HUP; echo ready; while :; do sleep 0.02; done"
    )
    terminal.wait_for(b"ready")
    terminal.close()  # as a connection that is lost
    terminal.process.send_signal(signal.SIGHUP)
    assert terminal.process.wait(10) in (3, 125)
    assert "exec-" not in lab.run("ls", f"{FOLDER}/run-0").stdout


def test_owner_of_the_users_terminal_stays(
    runtime: Runtime, lab: Lab, terminals: list[Terminal]
) -> None:
    terminals.append(terminal := Terminal(lab, "true"))
    before = os.fstat(terminal.far)
    assert terminal.process.wait(10) == 0
    assert os.fstat(terminal.far).st_uid == before.st_uid == os.geteuid()


@pytest.mark.rootless
def test_stop_of_the_service_ends_its_commands(runtime: Runtime, lab: Lab) -> None:
    process = lab.popen(
        "python", "-c", EXECUTE, "sh", "-c", "echo ready; exec sleep 1000", stdin=subprocess.DEVNULL
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    runtime.stop()
    assert process.wait(10) == 137
