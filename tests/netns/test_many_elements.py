"""Test that tables with many elements are created in two transactions, if and only if there were none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Lab
from services import CLIENT, HOST, answer, echo, idle

PORTS = [f"{10_000 + number}:{1 + number}" for number in range(600)]
OK = "OK: the kernel matches the configuration\n"
KILLED = -9


@pytest.fixture(scope="module")
def many() -> Iterator[Lab]:
    with Lab(deadline_seconds=300) as lab:
        lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}))
        lab.niso("activate", idle(lab, "wide", network={"ports": PORTS}))
        yield lab


def points(lab: Lab) -> list[str]:
    """The steps of a repair of flushed rules, by failpoint."""
    lab.run("nft", "flush", "ruleset")
    env: dict[str, str | None] = {"NISO_FAILPOINT": "0", "NISO_FAILPOINT_LOG": "/tmp/points"}
    lab.niso("net", "repair", env=env)
    lines = lab.path("/tmp/points").read_text(encoding="utf-8").splitlines()
    lab.path("/tmp/points").unlink()
    return [line for line in lines if not line.startswith("-")]


def number(lab: Lab, words: str) -> str:
    (line,) = (line for line in points(lab) if words in line)
    return line.partition(" ")[0]


def whole(lab: Lab) -> None:
    assert lab.niso("net", "check").stdout == OK
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"


def test_repair_of_flushed_rules_restores_all(many: Lab) -> None:
    steps = points(many)
    assert sum("add the elements of both tables" in step for step in steps) == 1, steps
    whole(many)
    assert many.niso("net", "repair").stdout.startswith("nothing")


def test_repair_killed_between_tables_and_elements_is_done_again(many: Lab) -> None:
    at = number(many, "add the elements of both tables")
    many.run("nft", "flush", "ruleset")
    died = many.niso("net", "repair", env={"NISO_FAILPOINT": f"{at}:kill"}, check=False)
    assert died.returncode == KILLED
    assert "missing" in many.niso("net", "check", check=False).stdout
    many.niso("activate", idle(many, "next"))  # any change creates both tables again
    whole(many)


def test_elements_that_the_kernel_refuses_leave_no_tables(many: Lab) -> None:
    at = number(many, "add the elements of both tables")
    many.run("nft", "flush", "ruleset")
    many.niso("net", "repair", env={"NISO_FAILPOINT": f"{at}:ENOMEM"}, check=False)
    assert many.run("nft", "list", "tables").stdout == ""
    many.niso("net", "repair")
    whole(many)


def test_tables_that_exist_are_replaced_in_one_transaction(many: Lab) -> None:
    many.run("nft", "flush", "chain", "inet", "niso", "forward")
    log: dict[str, str | None] = {"NISO_FAILPOINT": "0", "NISO_FAILPOINT_LOG": "/tmp/points"}
    many.niso("net", "repair", env=log)
    steps = many.path("/tmp/points").read_text(encoding="utf-8")
    assert "add the elements of both tables" not in steps and "apply nftables rules" in steps
    whole(many)
