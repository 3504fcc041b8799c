"""Test completion as on a terminal: real bash and zsh, on a pty, in a lab."""

from __future__ import annotations

import os
import pty
import re
import select
import time
from collections.abc import Iterator

import pytest
from conftest import UNPRIVILEGED, Lab
from services import idle, on

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}


class Terminal:
    """A shell on a pty. What it writes is read until something is there; colours and cursor moves are left out."""

    def __init__(self, lab: Lab, argv: list[str]) -> None:
        self.near, far = pty.openpty()
        env = {"TERM": "dumb", "PS1": "$ ", "HISTFILE": None, "INPUTRC": "/dev/null"}
        self.process = lab.popen(*argv, stdin=far, stdout=far, stderr=far, tty=True, env=env)
        os.close(far)

    def close(self) -> None:
        os.close(self.near)

    def type(self, text: str) -> None:
        os.write(self.near, text.encode())

    def until(self, pattern: str, seconds: float = 20) -> str:
        """What was written until it matches; fails with it otherwise."""
        said, deadline = "", time.monotonic() + seconds
        while not re.search(pattern, said):
            if not select.select([self.near], [], [], max(0.0, deadline - time.monotonic()))[0]:
                pytest.fail(f"{pattern!r} did not come: {said!r}")
            said += re.sub(
                r"\x1b\[[0-9;?]*[A-Za-z]|\x07",
                "",
                os.read(self.near, 4096).decode(errors="replace"),
            )
        return said

    def completed(self, typed: str, pattern: str) -> str:
        """Type it and a Tab; what the line has become, which is thrown away."""
        self.type(f"{typed}\t")
        said = self.until(pattern)
        self.type("\x15")  # Ctrl-U
        return said


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """A host that completion does not change."""
    with Lab() as lab:
        network = on("backend", ports=["8080:80", "127.0.0.1:53:53/udp"])
        payments = idle(lab, "payments", network=network)
        lab.niso("activate", payments, idle(lab, "postgres"), idle(lab, "other"))
        lab.niso("deactivate", "other")
        lab.niso("port-forward", "payments", "9090:90")
        lab.write("/tmp/there/shop/stack.toml", "")
        lab.write("/tmp/there/one.toml", "")
        yield lab


@pytest.fixture(params=SHELLS)
def shell(world: Lab, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal(world, SHELLS[request.param])
    if request.param == "zsh":
        terminal.type("autoload -Uz compinit; compinit -u -D; unsetopt zle_bracketed_paste\n")
    terminal.type(f"source <(niso completion {request.param}); cd /tmp/there; echo rea''dy\n")
    terminal.until("ready")
    yield terminal
    terminal.close()


def test_tab_completes_what_can_stand_there(shell: Terminal) -> None:
    for typed, pattern in (
        ("niso deact", r"niso deactivate "),
        ("niso net insp", r"niso net inspect "),
        ("niso net create x --int", r"--internal "),
        ("niso deactivate pay", r"deactivate payments "),
        ("niso remove oth", r"remove other "),
        ("niso net inspect back", r"inspect backend "),
        ("niso port-forward payments --remove 90", r"--remove 9090:90 "),
        ("niso port-forward payments --remove 9090:", r"--remove 9090:90 "),
        ("niso net explain postgres payments:8", r"payments:80/tcp "),
        ("niso stack up sh", r"up shop"),
        ("niso activate ./sh", r"activate ./shop"),
        ("niso activate on", r"activate one.toml"),
        ("niso completion z", r"completion zsh"),
        ("niso help net expl", r"help net explain"),
    ):
        shell.completed(typed, pattern)
    # ``p`` could be two services; one that is named already, or is not active, is not offered
    shell.type("niso deactivate payments p\t")
    shell.until("deactivate payments postgres ")
    shell.type("\x15niso deactivate oth\tX")
    shell.until("deactivate othX")


def test_without_root_only_commands_and_options_and_no_word_of_why(world: Lab) -> None:
    script = (
        'source <(niso completion bash); say() { COMP_LINE=$1 COMP_POINT=${#1}; _niso niso "$2" ""; echo "[${COMPREPLY[*]}]"; }; '
        "say 'niso deact' deact; say 'niso deactivate ' ''; say 'niso net inspect --' --"
    )
    done = world.run(*UNPRIVILEGED, "bash", "-c", script)
    assert (done.stdout, done.stderr) == ("[deactivate]\n[]\n[--json --help]\n", "")


def test_completion_changes_nothing_and_says_nothing_of_a_store_that_is_not_there(lab: Lab) -> None:
    for line in ("niso deactivate ", "niso net explain a ", "niso port-forward nobody "):
        done = lab.niso("complete", "bash", "--", line, ":")
        assert done.stderr == "" and done.stdout in ("", "host\tthis machine\n")
    assert not lab.path("/var/lib/niso/state.db").exists()
