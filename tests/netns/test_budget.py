"""Test how many modules activate, port-forward, ps and plugins load, and that none is expensive.

tests/unit/test_imports.py has the commands that need no kernel.
"""

from __future__ import annotations

import ast
import json
import os
import sys

import pytest
from conftest import Lab
from services import idle

import niso

LOADED = """\
import sys
sys.path[:0] = [{source!r}]
before = set(sys.modules)
from niso.cli.main import run
status = run(sys.argv[1:])
modules = sorted(set(sys.modules) - before)
import json
print(json.dumps([status, modules]), file=sys.stderr)
"""


def loaded(lab: Lab, *arguments: str) -> set[str]:
    """Modules that a command of niso loads over a bare interpreter."""
    code = LOADED.format(source=niso.__path__[0].rpartition("/")[0])
    done = lab.run(sys.executable, "-S", "-I", "-c", code, *arguments)
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return set(modules)


NEVER = {
    "argparse",
    "asyncio",
    "dataclasses",
    "inspect",
    "pathlib",
    "subprocess",
    "tomllib",
}
OTHER_COMMANDS = {"cluster", "compose", "engines", "lab", "web"}
"""Folders of which no command for local networks loads anything."""
UNTOUCHED = OTHER_COMMANDS | {"change", "manifest", "reconcile"}
"""Folders of which a command that only prints states loads nothing."""
MOST = {
    "activate": (122, 62),
    "port-forward": (98, 48),
    "ps": (45, 36),
    "ADD": (74, 38),
    "DEL": (73, 38),
}
"""How many modules of niso and of the standard library a command loads at most.

A module costs 0.2 ms or more: raise a number only if the command needs the modules. The numbers are a
few above what is loaded, so that a small module more is no failure."""


def assert_few(name: str, found: set[str], folders: set[str], expensive: set[str]) -> None:
    """Fail if a command has loaded too many modules, or one that is forbidden."""
    assert not [folder for folder in folders if not os.path.isdir(f"{niso.__path__[0]}/{folder}")]
    ours = {each for each in found if each.partition(".")[0] == "niso"}
    assert not {each for each in ours if each.split(".")[1:2] and each.split(".")[1] in folders}
    assert found & expensive == set()
    for kind, modules, most in zip(
        ("niso", "the standard library"), (ours, found - ours), MOST[name], strict=True
    ):
        assert len(modules) <= most, (
            f"{name}: {len(modules)} modules of {kind}, {most} at most: {sorted(modules)}"
        )


@pytest.mark.parametrize(
    "words",
    [["activate", "api"], ["port-forward", "api", "8080:80"], ["ps"]],
    ids=lambda words: words[0],
)
def test_command_loads_few_modules(lab: Lab, words: list[str]) -> None:
    """The second start, the first port, and the states of a process and of an attachment."""
    lab.niso("activate", idle(lab, "api"))
    if words[0] == "activate":
        lab.niso("deactivate", "api")
    if words[0] == "ps":
        lab.niso("net", "attach", "pod", "--new")  # another's namespace is looked up in the kernel
    folders = UNTOUCHED if words[0] == "ps" else OTHER_COMMANDS
    assert_few(words[0], loaded(lab, *words), folders, NEVER)


PLUGIN = """\
import sys
sys.path[:0] = [{source!r}]
before = set(sys.modules)
import os
def end(status):
    print(sorted(set(sys.modules) - before), file=sys.stderr)
    sys.stderr.flush()
    real(status)
real, os._exit = os._exit, end
from niso.engines.cni import main
main()
"""


def test_plugin_loads_no_manifest_and_nothing_of_processes(lab: Lab) -> None:
    """An engine waits for it. Entries, ports and addresses are parsed by the modules of the manifest that do nothing else.

    No expensive module of the standard library is needed either."""
    lab.run("ip", "netns", "add", "pod")
    config = {"cniVersion": "1.1.0", "name": "pods", "type": "niso-cni"}
    config |= {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}
    code = PLUGIN.format(source=niso.__path__[0].rpartition("/")[0])
    variables = {"CONTAINERID": "c1", "NETNS": "/run/netns/pod", "IFNAME": "eth0"}

    def call(command: str) -> list[str]:
        env = [f"CNI_{name}={value}" for name, value in {"COMMAND": command, **variables}.items()]
        done = lab.run(
            "env", *env, sys.executable, "-S", "-I", "-c", code, input=json.dumps(config)
        )
        modules: list[str] = ast.literal_eval(done.stderr.splitlines()[-1])
        return modules

    lab.niso("net", "attach", "other", "--new", "--network", "pods")  # makes network and rules
    call("ADD")
    call("DEL")
    folders = (OTHER_COMMANDS - {"engines"}) | {"api", "cli", "runtime"}
    for command in ("ADD", "DEL"):
        # a type, and the record of events: no module of processes
        others = {"niso.runtime", "niso.runtime.machine", "niso.runtime.event_log"}
        found = set(call(command)) - others
        assert_few(command, found, folders, NEVER | {"ctypes"})
