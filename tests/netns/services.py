"""Packages for tests of whole commands: tiny services and their clients.

Services run on the host's /usr (busybox, sh, the distribution's python3) unless they bring a root file system of their own.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

from conftest import Lab

HOST, CLIENT, NEIGHBOUR = "192.0.2.1", "192.0.2.2", "192.0.2.3"
BUSYBOX = "/usr/bin/busybox"

ECHO = """\
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
server = socket.create_server(("", int(sys.argv[2])), backlog=64)
while True:
    connection, peer = server.accept()
    if os.fork() == 0:
        connection.sendall(f"{sys.argv[1]} {peer[0]}\\n".encode())
        while data := connection.recv(65536):
            connection.sendall(data)
        os._exit(0)
    connection.close()
"""
"""Tells each client the service's name and the address that the client seems to have, then gives back what it is sent."""


def toml(value: Any) -> str:
    """A value as TOML writes it; strings of ASCII only."""
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items())
            + " }"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    return json.dumps(value)


def package(
    lab: Lab,
    name: str,
    *command: str,
    files: dict[str, str] | None = None,
    **sections: dict[str, Any],
) -> str:
    """Write (or write again) a package whose entrypoint and arguments are ``command``; gives its folder.

    ``sections`` are further tables of the manifest, and keys that are laid over ``package`` and ``binary``.
    """
    tables: dict[str, dict[str, Any]] = {
        "package": {"name": name, "version": "1.0.0"},
        "binary": {"entrypoint": command[0], "args": list(command[1:])},
    }
    for section, keys in sections.items():
        tables[section] = tables.get(section, {}) | keys
    lines = []
    for section, keys in tables.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml(value)}" for key, value in keys.items()]
    folder = f"/tmp/packages/{name}"
    for path, text in {**(files or {}), "manifest.toml": "\n".join(lines) + "\n"}.items():
        there = lab.path(f"{folder}/{path}")
        if (
            not there.exists() or there.read_text() != text
        ):  # a new time of the same content would be a new package
            lab.write(f"{folder}/{path}", text, 0o755)
    return folder


def idle(lab: Lab, name: str, **sections: dict[str, Any]) -> str:
    """A service that does nothing, and ends at TERM."""
    return package(lab, name, BUSYBOX, "sleep", "100000", **sections)


def echo(lab: Lab, name: str, port: int = 80, **sections: dict[str, Any]) -> str:
    """A service that answers on TCP ``port`` as `ECHO` says."""
    return package(
        lab,
        name,
        "/usr/bin/python3",
        "-ISu",
        "/app/echo.py",
        name,
        str(port),
        files={"echo.py": ECHO},
        **sections,
    )


def on(network: str, **keys: Any) -> dict[str, Any]:
    return {"network": network, **keys}


def ask(lab: Lab, address: str, port: int, netns: str | None = None, seconds: int = 1) -> str:
    """What an echo service there answers to somebody in ``netns``; empty where nobody answers in that time."""
    done = lab.run(
        BUSYBOX,
        "nc",
        "-w",
        str(seconds),
        address,
        str(port),
        input="",
        netns=netns,
        check=False,
        timeout=10,
    )
    return str(done.stdout).strip()


def answer(lab: Lab, address: str, port: int, netns: str | None = None) -> str:
    """As `ask`, of a service that may not listen yet: its answer, else the test fails."""
    where = f"an answer of {address}:{port} to {netns or 'the host'}"
    found: str = lab.wait_for(lambda: ask(lab, address, port, netns), 10, where)
    return found


def ps(lab: Lab, name: str) -> dict[str, Any]:
    rows = json.loads(lab.niso("ps", "--json").stdout)
    found: dict[str, Any] = next(row for row in rows if row["service"] == name)
    return found


def inspect(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.niso("inspect", name).stdout)
    return found


def pid_of(lab: Lab, name: str) -> int:
    """The pid of a service's PID 1 in the lab."""
    found = inspect(lab, name)["pid"]
    assert isinstance(found, int)
    return found


def environment_of(lab: Lab, pid: int) -> list[str]:
    """The environment of the service below the PID 1 ``pid``."""
    child = lab.run("cat", f"/proc/{pid}/task/{pid}/children").stdout.split()[0]
    return lab.run("cat", f"/proc/{child}/environ").stdout.split("\0")


def address(lab: Lab, name: str) -> str:
    """The address that the kernel has on the service's eth0."""
    found: str = inside(lab, name, "eth0")["addr_info"][0]["local"]
    return found


def inside(lab: Lab, name: str, link: str) -> dict[str, Any]:
    """A link inside a service's namespace as ``ip -j address`` shows it."""
    return lab.ip_json("-4", "address", "show", "dev", link, netns=f"niso-{name}")[0]


def refused(lab: Lab, *argv: str, status: int = 1, **options: Any) -> str:
    """The errors of a niso command that must fail with ``status`` and say so in niso's way."""
    done = lab.niso(*argv, check=False, **options)
    lines = str(done.stderr).splitlines()
    assert done.returncode == status, (argv, done.returncode, done.stdout, done.stderr)
    assert lines and all(line.startswith(("niso: ", "  hint: ", "    ")) for line in lines), (
        done.stderr
    )
    assert "Traceback" not in done.stderr and "bug in niso" not in done.stderr
    return str(done.stderr)


def busybox_rootfs(lab: Lab, folder: str) -> str:
    """A root file system of busybox alone, with users of its own; gives ``folder``."""
    for below in ("bin", "etc", "var", "home/web"):
        lab.path(f"{folder}/{below}").mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, lab.path(f"{folder}/bin/busybox"))
    for name in (
        "sh",
        "cat",
        "id",
        "sleep",
        "hostname",
        "nslookup",
        "ping",
        "ls",
        "nc",
        "env",
        "touch",
        "wget",
    ):
        lab.path(f"{folder}/bin/{name}").symlink_to("busybox")
    lab.path(f"{folder}/etc/passwd").write_text(
        "root:x:0:0::/:/bin/sh\nweb:x:33:44::/home/web:/bin/sh\n"
    )
    lab.path(f"{folder}/etc/group").write_text("root:x:0:\nweb:x:44:\nextra:x:55:web\n")
    return folder
