"""Run every example of the help in a lab, and verify its effect."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Lab
from services import echo, idle, on

from niso.cli.command import Command, find
from niso.cli.general_commands import documented

HERE = "/tmp/here"
LAB = next(line for line, _ in find("lab", "").examples if "--" in line)  # type: ignore[union-attr]
ENDS = ("deactivate", "remove", "reset", "stack down")
"""After these the world is made again."""
FOLLOWS = (
    " -f ",
    "niso web",
    "net drops",
    "niso lab",
    "net capture",
    "net trace",
    "metrics --listen",
)
"""What goes on until somebody ends it."""
ELSEWHERE = ("scale", "rollback", "save", "load")
"""What needs replicas, versions, archives or volumes: test_deploy, test_save_load, test_volumes."""
JUDGES = {"net explain": {0, 1}, "net policy test": {0, 2}}
"""Where others than 0 are answers: here nobody has sent anything."""


def commands() -> list[Command]:
    return [each for one in documented() for each in (one.actions or (one,))]


def make(lab: Lab) -> None:
    lab.niso(
        "activate",
        *(f"./{name}" for name in ("api", "db", "cache", "postgres", "dns", "api-2")),
        cwd=HERE,
    )


@pytest.fixture
def world() -> Iterator[Lab]:
    with Lab(deadline_seconds=600) as lab:
        yield prepared(lab)


def prepared(lab: Lab) -> Lab:
    lab.niso("net", "create", "both", "--subnet", "10.99.200.0/24", "--ipv6")
    folders = [
        echo(lab, "api", network=on("both", ports=["8080:80"])),
        *(idle(lab, name) for name in ("db", "cache", "dns", "api-2")),
        idle(lab, "postgres", network=on("both")),
    ]
    lab.run("mkdir", "-p", f"{HERE}/shop", "/var/lib/prometheus/node-exporter")
    for folder in folders:
        lab.run("ln", "-s", folder, f"{HERE}/")
    for name, folder in (("here", HERE), ("shop", f"{HERE}/shop")):
        service = f'[[service]]\nname = "{name}-web"\npackage = "{folders[1]}"\n'
        lab.write(f"{folder}/stack.toml", f'[stack]\nname = "{name}"\n{service}')
    lab.write(f"{HERE}/compose.yaml", "services: {a: {image: busybox, command: sh}}")
    make(lab)
    return lab


def tried(world: Lab, command: Command, example: str) -> str:
    """Run it, where it cannot leave anything on the machine's disk; return what is wrong with its status or errors."""
    line = example.removeprefix("@reboot /usr/local/bin/").replace(
        "/etc/bash_completion.d/niso", "/tmp/words"
    )
    shell, before = "bash", ""
    allowed = JUDGES.get(command.name, {0})
    if "completion zsh" in line:
        shell, before = "zsh", "autoload -Uz compinit; compinit -u -D; "
    if line.startswith("source"):
        line += '; [ -n "$(typeset -f _niso)" ]'
    lab_runs = line.startswith("niso lab") and "--" in shlex.split(example)
    if any(follows in f"{example} " for follows in FOLLOWS) and not lab_runs:
        line, allowed = f"timeout 0.5 {line}", {0, 124}
    words = shlex.split(line)
    if words[0] == "niso" and not set(line) & set("|&;<>$*()`#~"):
        done = world.niso(*words[1:], check=False, cwd=HERE)
    else:
        done = world.run(shell, "-c", before + line, check=False, cwd=HERE)
    right = done.returncode in allowed and "bug in niso" not in done.stderr
    return "" if right and "no such" not in done.stderr else f"{line}: {done}"


def with_namespace(world: Lab, line: str) -> str:
    """Make what an example of attachments needs; return it with the process ID that there is."""
    world.niso("net", "create", "backend", "--subnet", "10.99.1.0/24", check=False)
    world.niso("net", "detach", "box", check=False)
    world.run("ip", "netns", "add", "blue", check=False)
    if "detach" in line:
        world.niso("net", "attach", "box", "--netns", "/run/netns/blue", "--network", "backend")
    pid = world.popen("unshare", "--net", "sleep", "60").pid
    world.wait_for(lambda: _apart(world, pid), 10, "a process in a namespace of its own")
    return line.replace("4711", str(pid))


def _apart(world: Lab, pid: int) -> bool:
    files = [f"/proc/{one}/ns/net" for one in (pid, 1)]
    return len({os.stat(world.path(file)).st_ino for file in files}) == 2


@pytest.mark.first
def test_every_example_works(world: Lab) -> None:
    wrong = []
    for command in commands():
        for line, _ in command.examples:
            if command.name == "net remove":
                world.niso("net", "create", line.split()[3])
            if command.name.split()[0] in ("agent", "kubernetes", "cluster"):
                continue  # they need other hosts, or an API server: test_cluster_commands, test_pods
            if command.name in ELSEWHERE or command.name.startswith("volume "):
                continue
            if line == LAB:  # a lab has a /tmp of its own: see below
                continue
            if (
                "--unit" in line or "firewall" in line
            ):  # needs a booted systemd: see test_systemd_units
                continue
            example = f"{line} --yes" if "--write" in line or line == "niso reset" else line
            if command.name in ("net attach", "net detach"):
                example = with_namespace(world, line)
            wrong.append(tried(world, command, example))
            if command.name == "net create":
                world.niso("net", "remove", line.split()[3])
            if "--take-over" in line:
                world.niso("port-forward", "api-2", "8080:8080", "--remove")
                make(world)
            if command.name in ENDS and "--dry-run" not in line:
                make(world)
    assert len(wrong) > 45 and [*filter(None, wrong)] == []


def test_example_of_the_lab_works() -> None:
    """It tries a folder of the machine, which is not below /tmp."""
    manifest = (
        '[package]\nname = "api"\nversion = "1"\n[network]\nports = ["8080:80"]\n[binary]\nentrypoint = "python3"\n'
        'args = ["-m", "http.server", "80"]\n[healthcheck]\ntcp = 80\n'
    )
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        (Path(folder) / "api").mkdir()
        (Path(folder) / "api" / "manifest.toml").write_text(manifest)
        (Path(folder) / "api" / "hello").write_text("")
        own = os.path.join(sys.prefix, "bin")
        env = {**os.environ, "PATH": f"{own}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", LAB],
            check=False,
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0 and ">hello</a>" in done.stdout, done.stderr
