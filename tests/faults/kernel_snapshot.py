"""Run inside a lab: print as JSON everything that niso could have changed; equal for equal hosts.

Interfaces' numbers, random MACs, counters and handles are left out; a veth pair is named after the address that its
port may send with, since the number of the activation is in its name.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from typing import Any

SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
)
LINK_SYSCTLS = (
    "ipv4/conf/{}/route_localnet",
    "ipv4/conf/{}/forwarding",
    "ipv6/conf/{}/disable_ipv6",
)
GLOBAL_LINKS = ("all", "default")
KEPT_FILES = re.compile(
    r"^/(run/niso/(lock|on-exit|health\.(wake|asked)|events[^/]*(/.*)?|locks/(\.cgroup|\.health|\.events|niso\.health)\.lock|skeletons/.*|crun/\.cache.*)|var/lib/niso/(state\.db|contents/).*)$"
)
"""What may stay when no service and no network is known: the lock, what all services share, the store itself."""

CHANGING = ("created_at", "activated_at", "generation")
"""Columns of the store that are others after the same command again."""


def main() -> None:
    rules = _rules()
    veths = {}
    for table in ("inet", "bridge"):
        for set_name, elements in rules.get(f"{table} niso", {}).get("sets", {}).items():
            if set_name == "sources4":
                for element in elements:
                    port, _, address = element.split(" . ")
                    veths[port] = f"veth({address.split()[0]})"
    text = json.dumps(
        {
            "rules": rules,
            "namespaces": {name: _network(name) for name in ["", *_own_namespaces()]},
            "mounts": _mounts(),
            "cgroups": _cgroups(),
            "processes": _processes(),
            "homes": _homes(),
            "files": _files(),
            "store": _store(),
        },
        sort_keys=True,
    )
    for name, shown in veths.items():
        text = text.replace(name, shown)
    print(text)


def _json(*argv: str) -> list[dict[str, object]]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.stdout.strip() else []


def _ip(name: str, *commands: str) -> list[list[dict[str, object]]]:
    """What ``ip`` says to each of its commands in a namespace; nothing if that is none."""
    ip = ["ip", "-j", "-d", *(["-n", name] if name else []), "-batch", "-"]
    text = subprocess.run(
        ip, input="\n".join(commands), capture_output=True, text=True, check=False
    ).stdout
    answers, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:]
    return answers


def _rules() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for item in _json("nft", "-j", "list", "ruleset")["nftables"]:  # type: ignore[call-overload]
        for kind, body in item.items():
            if kind == "metainfo":
                continue
            name = body["name"] if kind == "table" else body["table"]
            table = found.setdefault(f"{body['family']} {name}", {"sets": {}, "rules": []})
            if kind in ("set", "map"):
                table["sets"][body["name"]] = sorted(
                    _element(each) for each in body.get("elem", ())
                )
            elif kind in ("chain", "rule"):
                text = re.sub(
                    r'"(handle|packets|bytes)": \d+', r'"\1": 0', json.dumps(body, sort_keys=True)
                )
                table["rules"].append(text)
    return found


def _element(value: object) -> str:
    if isinstance(value, list):
        return " : ".join(_element(each) for each in value)
    if isinstance(value, dict):
        if "elem" in value:
            return f"{_element(value['elem']['val'])} of {value['elem'].get('comment')}"
        if "concat" in value:
            return " . ".join(_element(each) for each in value["concat"])
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    return str(value)


def _own_namespaces() -> list[str]:
    folder = "/run/netns"
    return (
        sorted(name for name in os.listdir(folder) if name.startswith("niso-"))
        if os.path.isdir(folder)
        else []
    )


def _network(name: str) -> dict[str, object]:
    answers = _ip(name, "link", "address", "route")
    if len(answers) < 3:
        return {"not a namespace": True}
    links, addresses, routes = answers
    names = [str(link["ifname"]) for link in links]
    return {
        "links": {
            str(link["ifname"]): {
                "kind": link.get("linkinfo", {}).get("info_kind"),  # type: ignore[attr-defined]
                "hairpin": link.get("linkinfo", {}).get("info_slave_data", {}).get("hairpin"),  # type: ignore[attr-defined]
                "mac": link["address"] if name else None,
                **{key: link.get(key) for key in ("mtu", "master", "ifalias")},
                "up": "UP" in link["flags"],  # type: ignore[operator]
            }
            for link in links
        },
        "addresses": sorted(
            f"{link['ifname']} {address['local']}/{address['prefixlen']}"
            for link in addresses
            for address in link["addr_info"]  # type: ignore[attr-defined]
            if address["scope"] != "link"
        ),
        "routes": sorted(f"{r['dst']} {r.get('gateway')} {r.get('dev')}" for r in routes),
        "sysctls": _sysctls(name, names),
    }


def _sysctls(name: str, links: list[str]) -> dict[str, str | None]:
    wanted = [
        *SYSCTLS,
        *(f"net/{p.format(link)}" for p in LINK_SYSCTLS for link in (*GLOBAL_LINKS, *links)),
    ]
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    if name:
        there = os.open(f"/run/netns/{name}", os.O_RDONLY)
        os.setns(there, os.CLONE_NEWNET)
        os.close(there)
    try:
        return {each: _read(f"/proc/sys/{each}") for each in wanted}
    finally:
        os.setns(home, os.CLONE_NEWNET)
        os.close(home)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _mounts() -> list[str]:
    """Mount points; /run/netns as a mount of its own stays once made, as iproute2 leaves it."""
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        points = sorted(line.split()[4] for line in lines)
    return [point for point in points if point != "/run/netns"]


def _cgroups() -> list[str]:
    found = set()
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        found.update(
            os.path.join(folder, name) for name in folders if "niso-" in os.path.join(folder, name)
        )
    return sorted(re.sub("/niso-[0-9a-f]{8}", "/niso-ID", path) for path in found)


def _processes() -> list[str]:
    """Of all but this one, the words that do not change from start to start."""
    found = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = [word.decode() for word in file.read().split(b"\0") if word]
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if words and state not in "ZX":
            kept = [
                words[0],
                *(word for word in words[1:] if word.startswith(("/run/niso", "niso.runtime"))),
            ]
            found.append(" ".join(kept if "conmon" in words[0] else words))
    return sorted(found)


def _homes() -> dict[str, list[str]]:
    """Service -> the network namespaces that the processes in its cgroup are in, by name."""
    names = {_inode(f"/run/netns/{name}"): name for name in _own_namespaces()}
    homes: dict[str, set[str]] = {}
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        found = re.search(
            r"/niso-[0-9a-f]{8}/([a-z0-9][a-z0-9.-]*)", _read(f"/proc/{pid}/cgroup") or ""
        )
        inode = _inode(f"/proc/{pid}/ns/net")
        if found and inode:
            homes.setdefault(found[1], set()).add(names.get(inode, "another"))
    return {service: sorted(found) for service, found in homes.items()}


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _files() -> list[str]:
    """Files below niso's folders, and folders that are empty."""
    found = []
    for root in ("/run/niso", "/var/lib/niso"):
        for folder, folders, files in os.walk(root):
            if "/services/" in folder and "/run-" in folder:
                folders[:] = []
                continue
            if folder == "/var/lib/niso":
                folders[:] = [name for name in folders if name != "loaded"]  # it is the user's
            found += [os.path.join(folder, name) for name in files]
            if not folders and not files and folder.count("/") > root.count("/") + 1:
                found.append(f"{folder}/")
    return sorted(path for path in found if not KEPT_FILES.match(path))


def _store() -> dict[str, list[str]]:
    """The rows of all tables that have any, but for what says when and how many times."""
    path = "/var/lib/niso/state.db"
    if not os.path.isfile(path):
        return {}
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    try:
        tables = [
            row[0]
            for row in database.execute(
                "SELECT name FROM sqlite_master WHERE type='table' AND name!='meta'"
            )
        ]
        rows = {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    except sqlite3.Error as error:
        return {"cannot be read": [str(error)]}
    finally:
        database.close()
    rows["deploy"] = _last_successes(rows.get("deploy", []))
    kept = {
        name: sorted(
            _without_generation([row[key] for key in row.keys() if key not in CHANGING])  # noqa: SIM118  # sqlite3.Row iterates over values
            for row in found
        )
        for name, found in rows.items()
    }
    return {name: found for name, found in kept.items() if found}


def _last_successes(history: list[sqlite3.Row]) -> list[Any]:
    """The last success of each service in its history, without what differs from run to run.

    An interrupted command leaves a row of its failure, and the same command again one more.
    """
    last = {}
    for row in sorted(history, key=lambda row: row["at"]):
        if row["outcome"] in ("done", "stopped"):
            last[row["front"]] = {
                key: row[key] for key in ("front", "outcome", "manifest", "package")
            }
    return list(last.values())


def _without_generation(row: list[object]) -> str:
    """A row as text, its process spec without the number of the activation."""
    return re.sub(r'"generation": \d+, ', "", repr(row))


def differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Where two snapshots are not equal, a line each."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(wanted.keys() | found.keys()):
            lines += differences(wanted.get(key), found.get(key), f"{path}/{key}")
        return lines
    if isinstance(wanted, list) and isinstance(found, list):
        return [
            *(f"{path}: missing {each}" for each in wanted if each not in found),
            *(f"{path}: too much {each}" for each in found if each not in wanted),
        ]
    return [] if wanted == found else [f"{path}: wanted {wanted}, found {found}"]


if __name__ == "__main__":
    sys.exit(main())
