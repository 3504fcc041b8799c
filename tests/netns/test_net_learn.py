"""Test niso net learn: what it learns is activated, lets pass what was seen, and drops everything else."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import tomllib

from conftest import Lab
from services import CLIENT, ECHO, answer, ask, echo, idle, inspect, on, send

KEEP = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80)); print(s.recv(99).decode(), flush=True)
while line := sys.stdin.readline():
    s.sendall(line.encode()); print(s.recv(99).decode(), end="", flush=True)
"""
DB4, DB6 = "10.99.1.2", "fd00:99:1::2"


def refused(lab: Lab) -> set[tuple[str, str, int, str]]:
    rows = json.loads(lab.niso("net", "flows", "--denied", "--since", "1h", "--json").stdout)
    return {
        (r["from"]["name"], r["to"]["name"], r["port"], r["proto"]) for r in rows if r["agrees"]
    }


def test_learn_write_activate(lab: Lab) -> None:
    """On a bridge that nobody tracked, with a connection that stays open, UDP, and both families."""
    lab.niso("net", "create", "back", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
    db = echo(lab, "db", network=on("back"))
    lab.niso("activate", db)
    lab.niso(
        "activate", *(idle(lab, name, network=on("back")) for name in ("api", "six", "dns", "mute"))
    )
    # somebody who is called as another service must not get its entry
    path = f"{db}/manifest.toml"
    text = "# the database\n" + lab.path(path).read_text() + "# end\n"
    lab.path(path).write_text(text)
    kept = lab.popen("/usr/bin/python3", "-ISuc", KEEP, DB4, netns="niso-api", stdin=-1)
    assert kept.stdout is not None and kept.stdin is not None
    assert kept.stdout.readline().startswith(b"db ")
    ask(lab, DB6, 80, "niso-six")
    send(lab, "niso-dns", DB4, 53)
    answer(lab, DB4, 80)
    learned = lab.niso("net", "learn", "db")
    assert tomllib.loads(learned.stdout) == {
        "network": {"policy": {"allow_from": ["api:80/tcp", "dns:53/udp", "six:80/tcp"]}}
    }
    assert "1 open" in learned.stdout and "has not been seen" in learned.stderr
    # it asks, at a terminal alone
    done = lab.niso("net", "learn", "db", "--write", check=False)
    assert done.returncode == 2 and "--yes" in done.stderr and lab.path(path).read_text() == text
    done = lab.niso("net", "learn", "db", "--write", "--yes")
    assert '+  "api:80/tcp",' in done.stdout and "niso activate" in done.stderr
    after = lab.path(path).read_text()
    assert after.startswith("# the database\n") and "# end\n" in after
    done = lab.niso("net", "learn", "db", "--write", "--yes")
    assert (done.stdout, "not active yet" in done.stderr) == ("unchanged\n", False)
    # a list that is not active yet is not known to be wider: it is replaced, and that is said
    lab.path(path).write_text(after.replace('"api:80/tcp"', '"mute"'))
    done = lab.niso("net", "learn", "db", "--write", "--yes")
    assert "network.policy.allow_from is not active yet" in done.stderr
    assert lab.path(path).read_text() == after
    lab.niso("activate", db)
    # what was seen passes, from now on too
    kept.stdin.write(b"still\n")
    kept.stdin.flush()
    assert kept.stdout.readline() in (b"\n", b"still\n")
    kept.stdin.close()
    assert answer(lab, DB4, 80, "niso-api").startswith("db ")
    ask(lab, DB6, 80, "niso-six")
    send(lab, "niso-dns", DB4, 53)
    answer(lab, DB4, 80)
    assert refused(lab) == set()
    # nothing else does
    assert ask(lab, DB4, 80, "niso-mute") == ""
    assert ask(lab, DB4, 81, "niso-api") == ""
    ask(lab, DB6, 80, "niso-mute")
    send(lab, "niso-dns", DB6, 54)
    send(lab, "niso-api", DB4, 53)
    assert refused(lab) == {
        ("mute", "db", 80, "tcp"),
        ("api", "db", 81, "tcp"),
        ("dns", "db", 54, "udp"),
        ("api", "db", 53, "udp"),
    }
    text = lab.niso("net", "learn", "db").stdout
    assert '# "mute:80/tcp",' in text and tomllib.loads(text)["network"]["policy"][
        "allow_from"
    ] == ["api:80/tcp", "dns:53/udp", "six:80/tcp"]


STACK = f"""\
# the shop
[stack]
name = "shop"
prefix = true

[services.db]      # keeps all
[services.db.binary]
entrypoint = "/usr/bin/python3"
args = ["-ISuc", {json.dumps(ECHO)}, "db", "80"]
[services.db.network]
ports = ["8080:80"]

[services.web]
[services.web.binary]
entrypoint = "/usr/bin/busybox"
args = ["sleep", "1000"]
# end
"""


def test_stack_that_has_its_services_itself(lab: Lab) -> None:
    """Its file gets the policies, by the short names; published ports are for machines outside; egress; a terminal is asked."""
    lab.write("/tmp/shop/stack.toml", STACK)
    lab.niso("stack", "up", "/tmp/shop")
    # a service elsewhere that is called web too
    lab.niso("net", "create", "other")
    lab.niso("activate", idle(lab, "web", network=on("other")))
    db = inspect(lab, "shop-db")["endpoints"][0]["address"][0]
    answer(lab, db, 80, "niso-shop-web")
    answer(lab, "192.0.2.1", 8080, "client")
    send(lab, "niso-shop-web", CLIENT, 53)
    text = lab.niso("net", "learn", "shop-db", "shop-web", "--egress").stdout
    tables = tomllib.loads(text)["services"]
    assert tables["db"]["network"]["policy"] == {
        "allow_from": ["outside:80/tcp", "web:80/tcp"],
        "egress": {"allow": []},
    }
    assert tables["web"]["network"]["policy"] == {
        "allow_from": [],
        "egress": {"allow": [f"{CLIENT}:53/udp", "db:80/tcp"]},
    }
    for words, code, changed in ((b"n\n", 1, False), (b"y\n", 0, True)):
        master, terminal = pty.openpty()
        asked = lab.popen(
            "niso", "net", "learn", "shop-db", "shop-web", "--egress", "--write", stdin=terminal
        )
        os.write(master, words)
        out, _ = asked.communicate(timeout=30)
        os.close(master)
        os.close(terminal)
        assert asked.returncode == code and "[y/N]" in out
        assert ("web:80/tcp" in lab.path("/tmp/shop/stack.toml").read_text()) == changed
    written = lab.path("/tmp/shop/stack.toml").read_text()
    assert all(line in written for line in STACK.splitlines())
    lab.niso("stack", "up", "/tmp/shop")
    answer(lab, db, 80, "niso-shop-web")
    answer(lab, "192.0.2.1", 8080, "client")
    assert refused(lab) == set()
    # a service that was never seen stays out, also by the published port
    assert ask(lab, "192.0.2.1", 8080, "niso-web") == ""
    answer(lab, "192.0.2.1", 8080, "neighbour")
    answer(lab, "127.0.0.1", 8080)
    lab.niso("net", "flows", "--forget")
    send(lab, "niso-shop-web", CLIENT, 54)
    assert refused(lab) == {("shop-web", CLIENT, 54, "udp")}
    # a watch ends early with Ctrl-C, and shows what was new meanwhile
    watcher = lab.popen("niso", "net", "learn", "shop-db", "--for", "1h")
    assert watcher.stderr is not None and b"Ctrl-C ends it" in watcher.stderr.readline()
    answer(lab, db, 80, "niso-shop-web")
    watcher.send_signal(signal.SIGINT)
    out, _ = watcher.communicate(timeout=20)
    assert watcher.returncode == 0
    assert tomllib.loads(out)["services"]["db"]["network"]["policy"]["allow_from"] == ["web:80/tcp"]


def cells(text: str) -> list[list[str]]:
    """The lines of a table without its header, the times in it, and how often a refused client tried."""
    text = re.sub(r"(are denied\)\s+)\d+|(new .*/tcp\s+)\d+", r"\1\2n", text)
    return [
        re.split(r"\s{2,}", re.sub(r"\b(now|\d+\w+ ago)\b", "t", line))
        for line in text.splitlines()[1:]
    ]


def test_policy_show_and_test(lab: Lab) -> None:
    """What would be cut is said by test and by a dry run, changes nothing, and is what the kernel then drops."""
    subnets = ("--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
    lab.niso("net", "create", "back", *subnets)
    rules = {"network.policy": {"allow_from": ["api", "web:80", "six:80/tcp", "gone"]}}
    db = echo(lab, "db", network=on("back"), **rules)
    lab.niso(
        "activate", db, *(idle(lab, name, network=on("back")) for name in ("api", "web", "six"))
    )
    lab.niso("activate", idle(lab, "bad", network=on("back")))
    for name in ("api", "api", "web"):
        answer(lab, DB4, 80, f"niso-{name}")
    ask(lab, DB6, 80, "niso-six")
    ask(lab, DB4, 80, "niso-bad")
    assert cells(lab.niso("net", "policy", "show", "db").stdout) == [
        ["allow_from[0]", "api", "2", "-", "t", "-"],
        ["allow_from[1]", "web:80", "1", "-", "t", '"web:80/tcp" would do'],
        ["allow_from[2]", "six:80/tcp", "1", "-", "t", "-"],
        ["allow_from[3]", "gone", "0", "-", "never", "-"],
        ["allow_from", "(others are denied)", "n", "-", "t", "-"],
    ]
    rules["network.policy"]["allow_from"] = ["api", "bad:80"]
    echo(lab, "db", network=on("back"), **rules)
    before = lab.run("nft", "-s", "list", "table", "inet", "niso").stdout
    tested = lab.niso("net", "policy", "test", db, check=False)
    assert tested.returncode == 1
    assert cells(tested.stdout) == [
        ["cut", "six", "db:80/tcp", "1", "-", "t", "db allow_from"],
        ["cut", "web", "db:80/tcp", "1", "-", "t", "db allow_from"],
        ["new", "bad", "db:80/tcp", "n", "-", "t", 'db allow_from[1] "bad:80"'],
        ["pass", "api", "db:80/tcp", "2", "-", "t", 'db allow_from[0] "api"'],
        ["2 flows that exist would be cut"],
    ]
    dry = lab.niso("activate", db, "--dry-run").stdout.splitlines()
    assert cells("\n".join(dry[-5:])) == [
        *cells(tested.stdout)[:3],
        ["2 flows that exist would be cut"],
    ]
    assert lab.run("nft", "-s", "list", "table", "inet", "niso").stdout == before
    lab.niso("activate", db)
    for name in ("api", "bad"):
        answer(lab, DB4, 80, f"niso-{name}")
    assert not ask(lab, DB4, 80, "niso-web")
    ask(lab, DB6, 80, "niso-six")
    assert {source for source, *_ in refused(lab)} == {"web", "six"}
    # a change begins the counters again; what is remembered or open is not unused for that
    kept = lab.popen("/usr/bin/python3", "-ISuc", KEEP, DB4, netns="niso-api", stdin=-1)
    assert kept.stdout is not None and kept.stdout.readline().startswith(b"db ")
    for sets in ("seen4", "seen6"):
        lab.run("nft", "flush", "set", "inet", "niso", sets)
    answer(lab, DB4, 80, "niso-bad")
    rules["network.policy"]["allow_from"] = ["late", "api", "bad:80"]
    lab.niso("activate", echo(lab, "db", network=on("back"), **rules))
    shown = cells(lab.niso("net", "policy", "show", "db").stdout)
    assert [line[1:5] for line in shown[:3]] == [
        ["late", "0", "-", "never"],
        ["api", "0", "1", "never"],
        ["bad:80", "0", "-", "t"],
    ]
    done = lab.niso("net", "policy", "show", "db", "--unused", "1h")
    assert [line[1] for line in cells(done.stdout)] == ["late"]
    assert "db has been watched for 0m: what is rarer was not seen" in done.stderr
    kept.kill()
