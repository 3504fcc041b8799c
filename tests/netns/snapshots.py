"""Take comparable snapshots of everything in a lab that niso could change."""

from __future__ import annotations

import json
from typing import Any

from conftest import Lab

Snapshot = dict[str, Any]

_SCRIPT = r"""
import json, os, re, sqlite3, subprocess
def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
VOLATILE = {"stats", "stats64", "ifindex", "link_index", "handle", "flags_counter", "valid_life_time", "preferred_life_time",
            "bytes", "packets", "gc_timer", "hello_timer", "tcn_timer", "topology_change_timer", "cache", "root_id",
            "forward_delay_timer", "hold_timer", "message_age_timer", "operstate", "tso_max_size", "gso_max_size", "gro_max_size",
            "fdb_n_learned"}
def still(value):
    if isinstance(value, dict):
        kept = {key: still(each) for key, each in value.items() if key not in VOLATILE}
        if isinstance(kept.get("flags"), list):
            kept["flags"] = [each for each in kept["flags"] if each not in ("LOWER_UP", "NO-CARRIER", "linkdown")]
        return kept
    if isinstance(value, list):
        return [still(each) for each in value]
    return value
def elements(listing):
    for thing in listing:
        for kind in ("set", "map"):
            if "dynamic" in thing.get(kind, {}).get("flags", ()):
                thing[kind].pop("elem", None)  # what rules remember of packets
            if kind in thing and "elem" in thing[kind]:
                thing[kind]["elem"].sort(key=json.dumps)
    return listing
def sysctls():
    found = {}
    for top in ("ipv4", "ipv6", "bridge"):
        for folder, folders, files in os.walk(f"/proc/sys/net/{top}"):
            folders[:] = [each for each in folders if each not in ("neigh", "route")]
            for name in files:
                if name in ("flush", "stat_refresh", "tcp_fastopen_key", "stable_secret", "ip_local_reserved_ports"):
                    continue
                path = f"{folder}/{name}"
                try:
                    fd = os.open(path, os.O_RDONLY)
                except OSError:
                    continue
                try:
                    found[path[14:]] = os.read(fd, 4096).decode().strip()
                except OSError:
                    pass
                finally:
                    os.close(fd)
    return found
def listed(ip, *commands):
    # what ip says to each command
    text = subprocess.run([*ip, "-j", "-d", "-batch", "-"], check=True, capture_output=True, text=True,
                          input="\n".join(commands)).stdout
    answers, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        answer, end = decoder.raw_decode(text)
        answers.append(sorted((still(each) for each in answer), key=json.dumps))
        text = text[end:]
    return dict(zip(commands, answers, strict=True))
found = {}
names = sorted(name for name in os.listdir("/run/netns") if name not in ("client", "neighbour"))  # other machines
found["namespaces"] = names
home = os.open("/proc/self/ns/net", os.O_RDONLY)
for name in ["", *names]:
    if name:
        there = os.open(f"/run/netns/{name}", os.O_RDONLY)
        os.setns(there, os.CLONE_NEWNET)
        os.close(there)
    view = listed(["ip"], "link", "address", "route show table all", "rule")
    view["-6 rule"] = listed(["ip", "-6"], "rule")["rule"]
    for command in ("link", "address"):
        view[command] = {each["ifname"]: each for each in view[command]}
    view["rules"] = elements(still([each for each in json.loads(run("nft", "-j", "list", "ruleset"))["nftables"] if "metainfo" not in each]))
    view["sysctls"] = sysctls()
    found[f"in {name or 'the host'}"] = view
    os.setns(home, os.CLONE_NEWNET)
found["mounts"] = sorted(" ".join(line.split()[:3]) for line in open("/proc/self/mounts"))
found["cgroups"] = sorted(folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
processes = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().replace(b"\0", b" ").decode().strip()
    except OSError:
        continue
    if int(pid) != os.getpid() and words:
        processes.append(f"{pid} {words}")
found["processes"] = sorted(processes)
files = {}
for top in ("/run", "/var/lib/niso"):
    for folder, folders, names_ in os.walk(top):
        folders[:] = [each for each in folders if each != "netns"]
        for name in [*folders, *names_]:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            content = ""
            if path.startswith("/run/niso/hosts") and os.path.isfile(path):
                content = open(path).read()
            if "/state.db" not in path:
                files[path] = [oct(info.st_mode), info.st_uid, content]
found["files"] = files
tables = {}
if os.path.exists("/var/lib/niso/state.db"):
    database = sqlite3.connect("file:/var/lib/niso/state.db?mode=ro", uri=True)
    try:
        for (table,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            tables[table] = sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
    except sqlite3.DatabaseError as error:
        tables["error"] = str(error)
found["store"] = tables
print(json.dumps(found))
"""

_STAYS = (
    "/run/niso/lock",
    "/run/niso/events",
    "/run/niso/health.",
    "/run/niso/skeletons",
    "/run/niso/crun/.cache",
    "/var/lib/niso/contents",
)
"""Files that may come with any command: locks (empty), crun's cache, digests of packages, past
events, and what niso health is asked."""

_FOLDERS = {"/run/niso", "/run/niso/crun", "/run/niso/hosts", "/run/niso/services"}
_FOLDERS |= {"/var/lib/niso/logs", "/var/lib/niso/packages"}
"""Folders of niso's own that the first use makes; what is in them counts."""


def take(lab: Lab) -> Snapshot:
    """Links, addresses, routes, rules and sysctls of every namespace of the host; mounts, cgroups, processes, files and the store."""
    found: Snapshot = json.loads(lab.run("python3", "-ISc", _SCRIPT).stdout)
    files = found["files"].items()
    found["files"] = {
        path: value for path, value in files if path not in _FOLDERS and not path.startswith(_STAYS)
    }
    # it ends by itself
    found["processes"] = [each for each in found["processes"] if "change.health_agent" not in each]
    found["store"].pop("deploy", None)  # the history, also of commands that changed nothing else
    return found


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """Every place where two snapshots differ, in words; empty where they are equal."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in sorted({*before, *after}):
            found += differences(before.get(key), after.get(key), f"{at}/{key}")
        return found
    if isinstance(before, list) and isinstance(after, list) and not at.startswith("/files"):
        gone = [each for each in before if each not in after]
        come = [each for each in after if each not in before]
        return [f"{at}: -{each}" for each in gone] + [f"{at}: +{each}" for each in come]
    return [f"{at}: {before!r} -> {after!r}"]
