"""Test exit statuses, output that cannot be written, and what commands leave behind."""

from __future__ import annotations

import json

import snapshots
from conftest import Lab
from services import CLIENT, HOST, answer, echo, idle, refused


def test_output_that_nobody_reads_or_that_cannot_be_written(lab: Lab) -> None:
    """To a pipe or a file Python writes at the end only, and an error may come before."""
    lab.niso("activate", idle(lab, "api"))
    done = lab.run("sh", "-c", "niso net rules | true; niso schema | head -c 1 >/dev/null")
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    # also if a service that is followed says nothing
    script = "timeout 20 niso logs api -f | true; echo ${PIPESTATUS[0]}"
    done = lab.run("bash", "-c", script)
    assert (done.stdout, done.stderr) == ("1\n", "")
    buffered = {"PYTHONUNBUFFERED": None}
    assert "api" in lab.run("sh", "-c", "niso ps | cat", env=buffered).stdout
    assert json.loads(lab.run("niso", "ps", "--json", env=buffered).stdout)[0]["service"] == "api"
    code = (
        "import niso.cli.main as m\ndef run(_):\n  print('said')\n  return 1\nm.run = run\nm.main()"
    )
    done = lab.run("python", "-c", code, env=buffered, check=False)
    assert (done.returncode, done.stdout) == (1, "said\n")
    for command, status in (("ps", 1), ("ps --json", 1), ("net check", 2), ("net check --json", 2)):
        done = lab.run("sh", "-c", f"niso {command} > /dev/full", check=False, env=buffered)
        assert done.returncode == status, (command, done)
        words = done.stderr
        if "--json" in command:
            words = json.loads(words.splitlines()[-1])["error"]["message"]
        assert "cannot write to stdout: No space left on device" in words, (command, done)


def test_folder_that_is_gone_and_empty_words(lab: Lab) -> None:
    for command in ("activate ./api", "stack up", "stack down"):
        line = f"mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone; niso {command}"
        done = lab.run("sh", "-c", line, check=False)
        hint = "cd to an existing one and try again"
        said = f"niso: the current directory no longer exists\n  hint: {hint}\n"
        assert (done.returncode, done.stderr) == (1, said)
    lab.niso("activate", idle(lab, "api"))
    for words in (["net", "drops", ""], ["logs", ""], ["net", "check", ""]):
        said = refused(lab, *words, status=2 if words[1] == "check" else 1)
        assert said.startswith("niso: no service ")
    empty = refused(lab, "lab", "--", "", status=125)
    assert empty.startswith("niso: the command is empty\n  hint: ")


READ_AND_CHANGE = "ps|logs api|net explain host api|net check|lab -- true|restart api"


def test_command_works_though_its_caller_has_closed_all_descriptors(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    for command in READ_AND_CHANGE.split("|"):
        done = lab.run("sh", "-c", f"niso {command} <&- >&- 2>&-", check=False)
        assert done.returncode == 0, command
    lab.niso("net", "check")


IGNORES_CHILDREN = """\
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp("niso", ["niso", *sys.argv[1:]])
"""
ZOMBIES = """\
import ctypes, os, pathlib, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what niso leaves is ours
subprocess.run(["niso", *sys.argv[1:]], check=True)
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
    if rest.split()[:2] == ["Z", str(os.getpid())]:
        print("left:", name)
"""


def test_caller_that_ignores_the_end_of_children_and_no_zombies(lab: Lab) -> None:
    folder = idle(lab, "api")
    activate = ["activate", folder]
    for command in (activate, activate, ["restart", "api"], ["remove", "api"]):
        lab.run("python", "-c", IGNORES_CHILDREN, *command)
    for command in (activate, ["restart", "api"], ["deactivate", "api"]):
        assert "left: niso" not in lab.run("python", "-c", ZOMBIES, *command).stdout


def test_reading_commands_change_nothing(lab: Lab) -> None:
    """Not even a store on a host that has none; and nothing of what is there."""
    commands = (["ps"], ["net", "list"], ["net", "ports"], ["net", "rules"], ["net", "check"])
    before = snapshots.take(lab)
    for command in commands:
        lab.niso(*command)
    assert snapshots.differences(before, snapshots.take(lab)) == []
    lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}))
    answer(lab, HOST, 8080, "client")
    before = snapshots.take(lab)
    more = (["inspect", "api"], ["net", "inspect", "niso-default"], ["logs", "api"])
    for command in (*commands, *more):
        lab.niso(*command)
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
