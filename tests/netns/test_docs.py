"""Run every command in README.md, the guides and the examples, and compare its output.

How pages are read: tests/pages.py.
"""

from __future__ import annotations

import pathlib
import shlex
import sys

import pages
import pytest
from conftest import Lab
from etcd_world import provide
from many_hosts import underlay
from samples import SLOW

ROOT = pages.ROOT
RETRY = """\
curl() { command curl --retry 5 --retry-delay 1 --retry-connrefused "$@"; }
export -f curl
"""
"""On a slow machine, a service listens some seconds after its activation."""


@pytest.mark.first
@pytest.mark.parametrize("page", pages.run_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: pathlib.Path) -> None:
    wanted = pages.commands(page)
    if hosts := sorted({command.host for command in wanted} - {""}):
        found = pages.wrong(wanted, run_on_hosts(hosts, wanted))
    else:
        with Lab(deadline_seconds=300) as lab:
            found = pages.wrong(wanted, run(lab, wanted))
    assert not found, "\n\n".join(found)


def prepare(lab: Lab) -> None:
    lab.program("/tmp/programs/niso", "niso")
    lab.environment["PATH"] = f"/tmp/programs:{lab.environment['PATH']}"
    lab.run("mkdir", "/tmp/clone")
    lab.run("ln", "-s", str(ROOT / "dev"), str(ROOT / "examples"), "/tmp/clone")
    lab.run("ln", "-s", sys.prefix, "/tmp/clone/.venv")


def run(lab: Lab, wanted: list[pages.Command]) -> str:
    prepare(lab)
    lab.write("/tmp/page.sh", (RETRY if SLOW != 1 else "") + pages.script(wanted))
    process = lab.popen("bash", "/tmp/page.sh", cwd="/tmp/clone")
    printed, _ = process.communicate(timeout=290)
    return str(printed)


def run_on_hosts(names: list[str], wanted: list[pages.Command]) -> str:
    """Run each command on its host; what `pages.script` would print."""
    printed = ""
    with underlay(*names, seconds=300) as hosts:
        labs = {host.name: host.lab for host in hosts}
        for lab in labs.values():
            prepare(lab)
            provide(lab)
        for number, command in enumerate(wanted):
            first, _, rest = command.text.partition(" | ssh ")
            other, _, second = rest.partition(" ")
            steps = [
                (command.host or names[0], first),
                *([(other, " ".join(shlex.split(second)))] if rest else ()),
            ]
            given, said, failed = b"", "", ""
            for host, text in steps:
                words = ("bash", "-c", text)
                done = labs[host].run(
                    *words, input=given, check=False, cwd="/tmp/clone", text=False
                )
                given = done.stdout
                said += done.stderr.decode()
                failed += f" [{text}]" if done.returncode else ""
            printed += f"\n@@ {number}\n{said}{given.decode()}\n@@ {number}:{failed}\n"
    return printed
