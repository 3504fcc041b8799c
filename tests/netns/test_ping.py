"""Test niso net ping: an echo between two services, and the reason on failure."""

from __future__ import annotations

import re

import pytest
from conftest import Lab
from services import counts, idle, on, refused

BACKEND = ("niso", "net", "create", "backend", "--subnet", "10.99.1.0/24")


@pytest.fixture
def backend(lab: Lab) -> Lab:
    lab.run(*BACKEND)
    lab.niso(
        "activate", idle(lab, "db", network=on("backend", hostname="postgres", aliases=["sql"]))
    )
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    return lab


@pytest.mark.rootless
def test_echo_is_sent_by_the_source_and_answered_by_the_target(backend: Lab) -> None:
    """Both links carry it: the service's own sees a reply that it did not have before."""

    def echoes(name: str) -> list[int]:
        found = counts(backend, name)
        return [found["IcmpInEchos"], found["IcmpOutEchoReps"], found["IcmpInEchoReps"]]

    before = echoes("api"), echoes("db")
    out = backend.niso("net", "ping", "api", "postgres").stdout
    assert re.fullmatch(r"api \(10\.99\.1\.3\) → db \(10\.99\.1\.2\): ok \(\d+\.\d+ms\)\n", out)
    api, db = (
        [b - a for a, b in zip(old, echoes(name), strict=True)]
        for name, old in zip(("api", "db"), before, strict=True)
    )
    assert (api, db) == ([0, 0, 1], [1, 1, 0])
    ascii_only: dict[str, str | None] = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    argv = ("python", "-m", "niso.cli", "net", "ping", "api", "db")  # the command ignores these
    out = backend.run(*argv, env=ascii_only).stdout
    assert "api (10.99.1.3) -> db (10.99.1.2): ok (" in out


def test_no_answer_where_nothing_of_nisos_forbids_it(backend: Lab) -> None:
    backend.run("ip", "link", "set", "eth0", "down", netns="niso-db")
    words = refused(backend, "net", "ping", "api", "db")
    assert (
        "no reply within 1s, although no rule of niso forbids it\n  hint: niso net check db"
        in words
    )
    assert words.startswith("niso: waiting for a reply from db (1s)\n")
    assert (
        str(backend.niso("net", "ping", "api", "db", "--json", check=False).stderr).count("\n") == 1
    )  # the error alone
    words = refused(backend, "net", "ping", "db", "api")
    assert "niso: cannot send from 10.99.1.2 to 10.99.1.3: network is unreachable\n" in words
