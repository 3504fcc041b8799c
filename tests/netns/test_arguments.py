"""Hostile command lines, on the real kernel."""

from __future__ import annotations

import os
import pathlib

from conftest import Lab
from services import idle, refused

DRIVER = str(pathlib.Path(__file__).with_name("argument_driver.py"))
EXAMPLES = 3000 if os.environ.get("NISO_TEST_LONG") else 100

FOREIGN = 'table inet foreign { chain c { comment "theirs"; }; }'


def test_whatever_is_on_the_command_line_niso_answers_in_its_own_way(lab: Lab) -> None:
    idle(lab, "api", network={"network": "backend", "ports": ["8080:80"]})
    idle(lab, "web", network={"network": "backend"})
    lab.write(
        "/tmp/stack/stack.toml",
        '[stack]\nname = "s"\n[[service]]\nname = "web"\npackage = "/tmp/packages/web"\n',
    )
    lab.run("nft", FOREIGN)
    before = [thing for thing in lab.nft_json() if "foreign" in str(thing)]
    links = {link["ifname"] for link in lab.ip_json("link")}
    done = lab.run("python", DRIVER, str(EXAMPLES), timeout=EXAMPLES, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert "all answered" in done.stdout
    # nothing but niso's own has changed, and nothing is in the way of the next command
    lab.niso("net", "repair")
    assert [thing for thing in lab.nft_json() if "foreign" in str(thing)] == before
    made = {link["ifname"] for link in lab.ip_json("link")} - links
    assert all(name.startswith(("ni", "niso-")) for name in made), made
    tables = {(t["table"]["family"], t["table"]["name"]) for t in lab.nft_json() if "table" in t}
    assert tables <= {("inet", "foreign"), ("inet", "niso"), ("bridge", "niso")}


HOSTILE = [
    (("activate", "/tmp/caf\udce9"), 2, "is not valid UTF-8"),
    (("exec", "api", "--", "echo", "caf\udce9"), 125, "is not valid UTF-8"),
    (("ps", "\x1b[2J"), 2, "unexpected argument '\\x1b[2J'"),
    (("net", "ping", "api", "a\nniso: done"), 2, "a\\nniso: done"),
    (("net", "create", "x" * 100_000), 2, "NAME"),
]


def test_what_no_name_can_be_is_told_in_what_a_terminal_can_show(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    for arguments, status, words in HOSTILE:
        assert words in refused(lab, *arguments, status=status)
    assert (
        lab.niso("logs", "api", "-n", "9" * 30).stdout == ""
    )  # more lines than can be counted are all
    folder, odd = idle(lab, "web"), "/tmp/caf\udce9"
    lab.run("mv", folder, odd)
    assert "the path is not UTF-8" in refused(lab, "activate", ".", cwd=odd)
    assert "web" not in lab.niso("ps").stdout
