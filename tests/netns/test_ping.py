"""Test niso net ping: an echo between two services, and the reason on failure."""

from __future__ import annotations

import json
import re

import pytest
from conftest import Lab
from services import counts, idle, on, refused

BACKEND = ("niso", "net", "create", "backend", "--subnet", "10.99.1.0/24")


def policy(**keys: object) -> dict[str, object]:
    return {"network.policy": keys}


@pytest.fixture
def backend(lab: Lab) -> Lab:
    lab.run(*BACKEND)
    lab.niso(
        "activate", idle(lab, "db", network=on("backend", hostname="postgres", aliases=["sql"]))
    )
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    return lab


@pytest.mark.rootless
def test_two_services_of_one_network_in_the_form_of_the_seed(backend: Lab) -> None:
    for to in ("db", "postgres", "sql", "postgres.niso.local"):
        out = backend.niso("net", "ping", "api", to).stdout
        assert re.fullmatch(r"api \(10\.99\.1\.3\) → db \(10\.99\.1\.2\): ok \(\d+\.\d+ms\)\n", out)


def test_arrow_is_one_that_the_terminal_can_show(backend: Lab) -> None:
    ascii_only: dict[str, str | None] = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    argv = ("python", "-m", "niso.cli", "net", "ping", "api", "db")  # the command ignores these
    out = backend.run(*argv, env=ascii_only).stdout
    assert "api (10.99.1.3) -> db (10.99.1.2): ok (" in out


@pytest.mark.rootless
def test_echo_is_sent_by_the_source_and_answered_by_the_target(backend: Lab) -> None:
    """Both links carry it: the service's own sees a reply that it did not have before."""

    def echoes(name: str) -> list[int]:
        found = counts(backend, name)
        return [found["IcmpInEchos"], found["IcmpOutEchoReps"], found["IcmpInEchoReps"]]

    before = echoes("api"), echoes("db")
    backend.niso("net", "ping", "api", "db")
    api, db = (
        [b - a for a, b in zip(old, echoes(name), strict=True)]
        for name, old in zip(("api", "db"), before, strict=True)
    )
    assert (api, db) == ([0, 0, 1], [1, 1, 0])


def test_json(backend: Lab) -> None:
    found = json.loads(backend.niso("net", "ping", "api", "db", "--json").stdout)
    assert found.pop("seconds") > 0
    assert found == {
        "from": {"service": "api", "address": "10.99.1.3", "host": None},
        "to": {"service": "db", "address": "10.99.1.2", "host": None},
        "ok": True,
    }


def test_address_is_that_of_the_first_shared_network_and_ipv6_where_only_that_is_there(
    lab: Lab,
) -> None:
    lab.run(*BACKEND)
    lab.niso("net", "create", "front", "--subnet", "10.99.2.0/24")
    lab.niso("net", "create", "six", "--subnet", "fd00:99:3::/64")
    both = ["front", "six", "backend"]
    lab.niso(
        "activate",
        idle(lab, "api", network={"networks": both}),
        idle(lab, "db", network={"networks": both[::-1]}),
    )
    assert lab.niso("net", "ping", "api", "db").stdout.startswith(
        "api (10.99.2.2) → db (10.99.2.3): ok"
    )
    assert lab.niso("net", "ping", "db", "api").stdout.startswith(
        "db (10.99.1.3) → api (10.99.1.2): ok"
    )
    lab.niso("activate", idle(lab, "only", network=on("six")))
    assert lab.niso("net", "ping", "only", "api").stdout.startswith(
        "only (fd00:99:3::4) → api (fd00:99:3::2): ok"
    )


@pytest.mark.rootless
def test_unknown_names_and_what_is_no_service(backend: Lab) -> None:
    assert "did you mean 'api'?" in refused(backend, "net", "ping", "apo", "db")
    assert "no service 'nobody'" in refused(backend, "net", "ping", "api", "nobody")
    for other in ("host", "192.0.2.2", "fd00::1"):
        assert f"{other!r} is not a service" in refused(
            backend, "net", "ping", "api", other, status=2
        )
    assert "FROM" in refused(backend, "net", "ping", status=2)


def test_inactive_and_apart(backend: Lab) -> None:
    backend.niso("activate", idle(backend, "web", network=on("front")))
    assert refused(backend, "net", "ping", "web", "db") == (
        "niso: web and db have no common network: web is on front and db is on backend\n"
        "  hint: add one to network.networks of a manifest, or publish a port\n"
    )
    backend.niso("deactivate", "db")
    inactive = "niso: db is not active\n  hint: niso activate db\n"
    assert (
        refused(backend, "net", "ping", "api", "db")
        == refused(backend, "net", "ping", "db", "api")
        == inactive
    )


DROPPED = (
    (
        {"deny_from": ["web", "api"]},
        {},
        "network.policy.deny_from[1]",
        'denied by network.policy.deny_from[1] of db ("api")',
    ),
    (
        {"allow_from": ["web"]},
        {},
        "network.policy.allow_from",
        "not listed in network.policy.allow_from of db",
    ),
    (
        {"allow_from": []},
        {},
        "network.policy.allow_from",
        "network.policy.allow_from of db is empty",
    ),
    (
        {},
        {"deny": ["db/icmp"]},
        "network.policy.egress.deny[0]",
        'denied by network.policy.egress.deny[0] of api ("db/icmp")',
    ),
    (
        {},
        {"allow": ["192.0.2.1:80", "db:80", "db:81"]},
        "network.policy.egress.allow[1]",
        "network.policy.egress.allow[1] of api, 'db:80', allows ports but no ICMP",
    ),
    (
        {"allow_from": ["api/tcp"]},
        {},
        "network.policy.allow_from[0]",
        "network.policy.allow_from[0] of db, 'api/tcp', allows ports but no ICMP",
    ),
)


@pytest.mark.parametrize("subnet", ["10.99.1.0/24", "fd00:99:1::/64"])
def test_policy_that_drops_it_is_named(lab: Lab, subnet: str) -> None:
    lab.niso("net", "create", "backend", "--subnet", subnet)
    for db, api, key, words in DROPPED:
        more = {"network.policy.egress": api} if api else {}
        lab.niso(
            "activate",
            idle(lab, "db", network=on("backend"), **({"network.policy": db} if db else {})),
            idle(lab, "api", network=on("backend"), **more),
        )
        done = lab.niso("net", "ping", "api", "db", "--json", check=False)
        error = json.loads(done.stderr)["error"]
        assert (done.returncode, done.stdout) == (1, "")
        assert error["message"].endswith(f": {words}") and error["key"] == key
        assert error["hint"] == "niso net explain api db"
        # and the other way it is not their business
        assert ": ok (" in lab.niso("net", "ping", "db", "api").stdout


def test_policy_that_allows_icmp_lets_it_pass(lab: Lab) -> None:
    lab.run(*BACKEND)
    lab.niso("activate", idle(lab, "db", network=on("backend"), **policy(allow_from=["api/icmp"])))
    lab.niso(
        "activate",
        idle(lab, "api", network=on("backend"), **{"network.policy.egress": {"allow": ["db"]}}),
    )
    assert ": ok (" in lab.niso("net", "ping", "api", "db").stdout


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
    assert words == "niso: cannot send from 10.99.1.2 to 10.99.1.3: network is unreachable\n"
