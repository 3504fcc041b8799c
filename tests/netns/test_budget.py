"""Test that activate, port-forward, ps and plugins load only the modules listed in ``loaded/``.

tests/unit/test_imports.py has the commands that need no kernel.
"""

from __future__ import annotations

import ast
import json
import os
import pathlib
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
    "threading",
    "tomllib",
}
LISTS = pathlib.Path(__file__).with_name("loaded")


@pytest.mark.parametrize(
    "words",
    [["activate", "api"], ["port-forward", "api", "8080:80"], ["ps"]],
    ids=lambda words: words[0],
)
def test_command_loads_these_modules_and_no_more(lab: Lab, words: list[str]) -> None:
    """The second start, the first port, and the states of a process and of an attachment."""
    lab.niso("activate", idle(lab, "api"))
    if words[0] == "activate":
        lab.niso("deactivate", "api")
    if words[0] == "ps":
        lab.run("ip", "netns", "add", "pod")
        lab.niso("net", "attach", "pod", "--netns", "/run/netns/pod")
    modules = "".join(f"{name}\n" for name in sorted(loaded(lab, *words)))
    assert not set(modules.split()) & NEVER
    if words[0] == "ps":  # they take a tenth of it
        assert not set(modules.split()) & {"contextlib", "enum", "json", "signal", "socket"}
    known = LISTS / f"{words[0]}.txt"
    if os.environ.get("UPDATE") == "1":
        known.write_text(modules)
    assert modules == known.read_text(), f"if it needs them: UPDATE=1 ./dev test {__file__}"


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

    The modules of the standard library that cost most and do least are not needed either."""
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
    never = NEVER | {"contextlib", "ctypes", "ipaddress", "json", "re", "socket"}
    for command in ("ADD", "DEL"):
        modules = call(command)
        assert set(modules) & never == set()
        assert not [name for name in modules if name.startswith("niso.runtime.")]
        known = LISTS / f"niso-cni-{command}.txt"
        text = "".join(f"{name}\n" for name in modules)
        if os.environ.get("UPDATE") == "1":
            known.write_text(text)
        assert text == known.read_text(), f"if it needs them: UPDATE=1 ./dev test {__file__}"
    own = {name for name in call("VERSION") if name.startswith("niso.")}
    assert own <= {
        f"niso.{name}"
        for name in (
            "base",
            "base.errors",
            "base.lite_json",
            "base.lite_typing",
            "engines",
            "engines.cni",
            "engines.protocol",
        )
    }
