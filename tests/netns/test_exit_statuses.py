"""Test exit statuses, output that cannot be written, and what commands leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import snapshots
from conftest import UNPRIVILEGED, Lab
from jsonschema import Draft202012Validator
from services import (
    CLIENT,
    HOST,
    answer,
    echo,
    idle,
    refused,
)


def test_help_version_schema_and_completion_need_no_root_and_all_else_says_so(lab: Lab) -> None:
    script = (
        "import subprocess, sys\n"
        "for line in sys.stdin:\n    words = line.split()\n"
        "    done = subprocess.run(['niso', *words], capture_output=True, text=True)\n"
        "    print(repr((words, done.returncode, done.stdout, done.stderr)))\n"
    )
    free = [
        [],
        ["version"],
        ["--version"],
        ["schema"],
        ["help", "activate"],
        ["net"],
        ["net", "create", "--help"],
    ]
    free += [["completion", "bash"]]
    closed = [
        ["ps"],
        ["net", "list"],
        ["activate", "x"],
        ["deactivate", "--all"],
        ["logs", "x"],
        ["net", "rules"],
    ]
    lines = "\n".join(" ".join(words) for words in free + closed)
    out = lab.run(*UNPRIVILEGED, "python", "-c", script, input=lines).stdout.splitlines()
    assert len(out) == len(free + closed)
    for line in out:
        words, status, said, errors = eval(line)
        if words in closed:
            assert status == 1 and said == ""
            assert errors == f"niso: needs root\n  hint: sudo niso {' '.join(words)}\n"
        else:
            assert status == 0 and errors == "" and said, line


def test_wrong_use_is_status_2_and_changes_nothing(lab: Lab) -> None:
    before = snapshots.take(lab)
    for arguments in (
        ["activat"],
        ["net", "lst"],
        ["activate", "--colour", "x"],
        ["deactivate"],
        ["net", "create", "x", "--mtu", "many"],
    ):
        refused(lab, *arguments, status=2)
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_errors_of_json_callers_are_json(lab: Lab) -> None:
    for arguments, status in ((["ps", "--json", "--colour"], 2), (["inspect", "x", "--json"], 1)):
        done = lab.niso(*arguments, check=False)
        assert done.returncode == status and done.stdout == ""
        error = json.loads(done.stderr)["error"]
        assert set(error) == {"message", "hint", "key"} and error["message"]


def test_names_that_nobody_has_are_status_1_and_change_nothing(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    before = snapshots.take(lab)
    for command in ("deactivate", "remove", "restart", "inspect", "logs"):
        assert "'appi'" in refused(lab, command, "appi")
    refused(lab, "deactivate", "api", "appi")
    refused(lab, "remove", "api", "appi")
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_timeout_must_be_a_duration(lab: Lab) -> None:
    assert "--timeout" in refused(lab, "activate", "--timeout", "soon", idle(lab, "api"), status=2)


def test_output_that_nobody_reads_is_no_traceback(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    done = lab.run("sh", "-c", "niso net rules | true; niso schema | head -c 1 >/dev/null")
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    # also if a service that is followed says nothing
    script = "timeout 20 niso logs api -f | true; echo ${PIPESTATUS[0]}"
    done = lab.run("bash", "-c", script)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_output_that_is_buffered_comes_before_the_end(lab: Lab) -> None:
    """To a pipe or a file Python writes at the end only, and an error may come before."""
    buffered = {"PYTHONUNBUFFERED": None}
    lab.niso("activate", idle(lab, "api"))
    assert "api" in lab.run("sh", "-c", "niso ps | cat", env=buffered).stdout
    assert json.loads(lab.run("niso", "ps", "--json", env=buffered).stdout)[0]["service"] == "api"
    code = (
        "import niso.cli.main as m\ndef run(_):\n  print('said')\n  return 1\nm.run = run\nm.main()"
    )
    done = lab.run("python", "-c", code, env=buffered, check=False)
    assert (done.returncode, done.stdout) == (1, "said\n")


def test_output_that_cannot_be_written_is_told(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    for command, status in (
        ("ps", 1),
        ("ps --json", 1),
        ("net check", 2),
        ("net check --json", 2),
        ("schema", 1),
    ):
        done = lab.run(
            "sh", "-c", f"niso {command} > /dev/full", check=False, env={"PYTHONUNBUFFERED": None}
        )
        assert done.returncode == status, (command, done)
        words = (
            json.loads(done.stderr.splitlines()[-1])["error"]["message"]
            if "--json" in command
            else done.stderr
        )
        assert "cannot write to stdout: No space left on device" in words, (command, done)


@pytest.mark.parametrize("command", ["activate ./api", "stack up", "stack down"])
def test_current_folder_that_is_gone_is_told(lab: Lab, command: str) -> None:
    done = lab.run(
        "sh", "-c", f"mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone; niso {command}", check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "niso: the current directory no longer exists\n  hint: cd to an existing one and try again\n",
    )


def test_empty_words_are_refused_as_no_name_and_no_command(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    for command in (["net", "drops", ""], ["logs", ""], ["net", "check", ""]):
        assert refused(lab, *command, status=2 if command[1] == "check" else 1).startswith(
            "niso: no service "
        )
    assert refused(lab, "lab", "--", "", status=125).startswith(
        "niso: the command is empty\n  hint: "
    )


READ_AND_CHANGE = (
    "ps",
    "logs api",
    "net explain host api",
    "net check",
    "lab -- true",
    "restart api",
)


def test_command_works_though_its_caller_has_closed_all_descriptors(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    for command in READ_AND_CHANGE:
        assert lab.run("sh", "-c", f"niso {command} <&- >&- 2>&-", check=False).returncode == 0, (
            command
        )
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


def test_caller_that_ignores_the_end_of_children_changes_nothing(lab: Lab) -> None:
    for command in (
        ["activate", idle(lab, "api")],
        ["activate", idle(lab, "api")],
        ["restart", "api"],
        ["remove", "api"],
    ):
        lab.run("python", "-c", IGNORES_CHILDREN, *command)


def test_command_leaves_no_zombie_of_its_own(lab: Lab) -> None:
    for command in (["activate", idle(lab, "api")], ["restart", "api"], ["deactivate", "api"]):
        assert "left: niso" not in lab.run("python", "-c", ZOMBIES, *command).stdout


def test_schema_accepts_the_examples_and_refuses_an_unknown_key(lab: Lab) -> None:
    import tomllib

    schema = json.loads(lab.niso("schema").stdout)
    validator = Draft202012Validator(schema)
    examples = Path(__file__).resolve().parents[2] / "examples"
    manifests = [path for depth in ("*", "*/*") for path in examples.glob(f"{depth}/manifest.toml")]
    assert len(manifests) > 8
    for path in manifests:
        manifest = tomllib.loads(path.read_text())
        assert list(validator.iter_errors(manifest)) == []
        manifest.setdefault("network", {})["colour"] = 1
        assert list(validator.iter_errors(manifest))


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
    for command in (
        *commands,
        ["inspect", "api"],
        ["net", "inspect", "niso-default"],
        ["logs", "api"],
    ):
        lab.niso(*command)
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
