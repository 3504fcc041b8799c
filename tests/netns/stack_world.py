"""Stacks of tiny services, for the tests of `niso stack`."""

from __future__ import annotations

import json
from typing import Any

from conftest import Lab
from services import package, toml

FOLDER = "/tmp/stack"

SERVER = """\
import socket, sys, time
time.sleep(float(sys.argv[2]))
server = socket.create_server(("", int(sys.argv[1])), backlog=64)
while True:
    server.accept()[0].close()
"""
"""Listens on a port after some seconds."""

NEEDS = """\
import signal, socket, sys
def reach(when):
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
        print(when, "reached", flush=True)
    except OSError as error:
        print(when, "not reached", error, flush=True)
        sys.exit(7)
def end(*_):
    reach("end")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
reach("start")
while True:
    signal.pause()
"""
"""Lives only if it reaches a service when it starts, and says whether it still does when it is asked to end."""


def write(
    lab: Lab,
    *services: dict[str, Any],
    name: str = "shop",
    networks: dict[str, Any] | None = None,
    prefix: bool | None = None,
) -> str:
    """Write a stack.toml; a key whose value is a table, but ``depends_on``, ``policy`` and ``ip``, is a table of its own. Gives the folder."""
    lines = ["[stack]", f"name = {toml(name)}"]
    lines += [] if prefix is None else [f"prefix = {toml(prefix)}"]
    lines.append("[networks]")
    lines += [f"{key} = {toml(value)}" for key, value in (networks or {}).items()]
    for service in services:
        lines.append("[[service]]")
        tables = {
            key: value
            for key, value in service.items()
            if isinstance(value, dict) and key not in ("depends_on", "policy", "ip")
        }
        lines += [f"{key} = {toml(value)}" for key, value in service.items() if key not in tables]
        for key, value in tables.items():
            lines += [
                f"[service.{key}]",
                *(f"{inner} = {toml(each)}" for inner, each in value.items()),
            ]
    lab.write(f"{FOLDER}/stack.toml", "\n".join(lines) + "\n")
    return FOLDER


def members(lab: Lab) -> list[str]:
    """The known services of the stack; status shows those that are in the file alone too."""
    rows = json.loads(lab.niso("stack", "ps", FOLDER, "--json").stdout)
    return [row["service"] for row in rows if row["mode"]]


def service(name: str, folder: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "package": folder, **keys}


def server(lab: Lab, name: str, port: int = 80, after_s: float = 0.0, **sections: Any) -> str:
    argv = ("/usr/bin/python3", "-ISu", "/app/server.py", str(port), str(after_s))
    return package(lab, name, *argv, files={"server.py": SERVER}, **sections)


def needs(lab: Lab, name: str, host: str, port: int = 80, **sections: Any) -> str:
    argv = ("/usr/bin/python3", "-ISu", "/app/needs.py", host, str(port))
    return package(
        lab, name, *argv, files={"needs.py": NEEDS}, **{"service": {"restart": "no"}, **sections}
    )
