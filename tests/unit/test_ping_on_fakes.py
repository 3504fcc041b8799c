"""Test what `niso net ping` sends, prints and explains; labs send the packets."""

from __future__ import annotations

import json

import pytest
from fake_world import World

from niso.base.errors import Error
from niso.kernel import probe


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Provide a list of (namespace, source, destination). An echo is answered while ``"mute"`` is not in it."""
    echoes: list[tuple[str, str, str]] = []

    def echo(netns: str, source: str, destination: str, timeout_s: float) -> float | None:
        is_mute = ("mute", "", "") in echoes
        echoes.append((netns, source, destination))
        return None if is_mute else 0.00042

    monkeypatch.setattr(probe, "echo", echo)
    return echoes


MUTE = ("mute", "", "")


def backend(world: World, subnet: str = "10.99.1.0/24") -> None:
    world.make("backend", subnet)
    named = {"network": "backend", "hostname": "postgres", "aliases": ["sql"]}
    world.activate(world.package("db", network=named))
    world.activate(world.package("api", network={"network": "backend"}))


def test_ping_is_between_services_by_any_of_their_names(
    world: World, sent: list[tuple[str, str, str]]
) -> None:
    backend(world)
    for to in ("db", "postgres", "sql", "postgres.niso.local"):
        said = world.niso("net", "ping", "api", to).stdout
        assert said == "api (10.99.1.3) → db (10.99.1.2): ok (0.4ms)\n"
    assert {*sent} == {("niso-api", "10.99.1.3", "10.99.1.2")}
    assert json.loads(world.niso("net", "ping", "api", "db", "--json").stdout) == {
        "from": {"service": "api", "address": "10.99.1.3", "host": None},
        "to": {"service": "db", "address": "10.99.1.2", "host": None},
        "ok": True,
        "seconds": 0.00042,
    }
    assert "did you mean 'api'?" in world.refused("net", "ping", "apo", "db")
    assert "no service 'nobody'" in world.refused("net", "ping", "api", "nobody")
    for other in ("host", "192.0.2.2", "fd00::1"):
        said = world.refused("net", "ping", "api", other, status=2)
        assert f"{other!r} is not a service" in said
    world.activate(world.package("web", network={"network": "front"}))
    assert world.refused("net", "ping", "web", "db") == (
        "niso: web and db have no common network: web is on front and db is on backend\n"
        "  hint: add one to network.networks of a manifest, or publish a port\n"
    )
    world.niso("deactivate", "db")
    for names in (("api", "db"), ("db", "api")):
        inactive = "niso: db is not active\n  hint: niso activate db\n"
        assert world.refused("net", "ping", *names) == inactive


def test_ping_is_on_the_first_network_that_the_sender_shares(
    world: World, sent: list[tuple[str, str, str]]
) -> None:
    for name, subnet in (
        ("backend", "10.99.1.0/24"),
        ("front", "10.99.2.0/24"),
        ("six", "fd00:99:3::/64"),
    ):
        world.make(name, subnet)
    both = ["front", "six", "backend"]
    world.activate(world.package("api", network={"networks": both}))
    world.activate(world.package("db", network={"networks": both[::-1]}))
    world.activate(world.package("only", network={"network": "six"}))
    for pair in (("api", "db"), ("db", "api"), ("only", "api")):
        world.niso("net", "ping", *pair)
    assert sent == [
        ("niso-api", "10.99.2.2", "10.99.2.3"),
        ("niso-db", "10.99.1.3", "10.99.1.2"),
        ("niso-only", "fd00:99:3::4", "fd00:99:3::2"),
    ]


@pytest.mark.parametrize("subnet", ["10.99.1.0/24", "fd00:99:1::/64"])
@pytest.mark.parametrize(
    ("db", "api", "key", "words"),
    [
        (
            {"deny_from": ["web", "api"]},
            {},
            "deny_from[1]",
            'denied by network.policy.deny_from[1] of db ("api")',
        ),
        (
            {"allow_from": ["web"]},
            {},
            "allow_from",
            "not listed in network.policy.allow_from of db",
        ),
        ({"allow_from": []}, {}, "allow_from", "network.policy.allow_from of db is empty"),
        (
            {},
            {"deny": ["db/icmp"]},
            "egress.deny[0]",
            'denied by network.policy.egress.deny[0] of api ("db/icmp")',
        ),
        (
            {},
            {"allow": ["192.0.2.1:80", "db:80", "db:81"]},
            "egress.allow[1]",
            "network.policy.egress.allow[1] of api, 'db:80', allows ports but no ICMP",
        ),
        (
            {"allow_from": ["api/tcp"]},
            {},
            "allow_from[0]",
            "network.policy.allow_from[0] of db, 'api/tcp', allows ports but no ICMP",
        ),
    ],
)
def test_policy_that_drops_the_echo_is_named(
    world: World,
    sent: list[tuple[str, str, str]],
    subnet: str,
    db: dict[str, object],
    api: dict[str, object],
    key: str,
    words: str,
) -> None:
    world.make("backend", subnet)
    own = {"network": "backend", "policy": db | ({"egress": api} if api else {})}
    world.activate(world.package("db", network=own if db else {"network": "backend"}))
    world.activate(world.package("api", network={"network": "backend"} if db else own))
    sent.append(MUTE)
    done = world.niso("net", "ping", "api", "db", "--json", check=False)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, done.stdout) == (1, "")
    assert error["message"].endswith(f": {words}") and error["key"] == f"network.policy.{key}"
    assert error["hint"] == "niso net explain api db"
    # the other direction is not their business
    said = world.refused("net", "ping", "db", "api")
    assert "although no rule of niso forbids it\n  hint: niso net check api" in said


def test_echo_that_cannot_be_sent_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(world)

    def echo(*_: object) -> None:
        raise Error("cannot send from 10.99.1.3 to 10.99.1.2: network is unreachable")

    monkeypatch.setattr(probe, "echo", echo)
    assert "network is unreachable" in world.refused("net", "ping", "api", "db")


@pytest.mark.parametrize(
    ("source", "to", "said"),
    [
        ("apo", "db:80", "did you mean 'api'?"),
        ("api", "dbb:80", "no service 'dbb'\n  hint: did you mean 'db'?"),
        ("api", "db:0", "'0' is not a valid port (1 to 65535)"),
        ("api", "db:65536", "is not a valid port"),
        ("api", "db:80-90", "'80-90' is not a valid port"),
        ("api", "db:http", "'http' is not a valid port"),
        ("api", "db:80/quic", "'quic' is not a valid protocol"),
        ("api", "db/tcp", "tcp needs a port"),
        ("api", "db:80/icmp", "icmp has no ports"),
        ("api", ":80", "the name or address is missing"),
        ("api", "[fd00::1", "brackets are for an IPv6 address"),
        ("10.0.0.0/8", "db:80", "'10.0.0.0/8' is not a valid address"),
        ("api", "300.1.1.1:80", "'300.1.1.1' is not a valid address"),
        ("::ffff:10.0.0.1", "db:80", "IPv4-mapped"),
        ("198.51.100.7", "db:80 --prove", "--prove sends from services and from the host"),
        (
            "192.0.2.2",
            "db:80 -6",
            "-6 conflicts with 192.0.2.2, which is an IPv4 address\n  hint: -4",
        ),
        ("api", "fd00::2 -4", "-4 conflicts with fd00::2, which is an IPv6 address\n  hint: -6"),
        ("192.0.2.2", "fd00::2", "192.0.2.2 and fd00::2 are of different families"),
        ("api", "0.0.0.0:80", "'0.0.0.0' is the unspecified address"),
        ("api", "[::]:80", "'::' is the unspecified address"),
    ],
)
def test_question_to_explain_that_cannot_be_is_refused(
    world: World, source: str, to: str, said: str
) -> None:
    world.activate(world.package("api"), world.package("db"))
    assert said in world.refused("net", "explain", source, *to.split(), status=2)


def test_explanation_in_words(world: World) -> None:
    for name, number in (("backend", 1), ("front", 2)):
        subnets = (f"10.99.{number}.0/24", f"fd00:99:{number}::/64")
        world.make(name, *subnets)
    back, front = {"network": "backend", "ports": ["5432:80"]}, {"network": "front"}
    ingress = {"network.policy": {"allow_from": ["api:80"]}}
    egress = {"network.policy.egress": {"allow": ["db:80-82"], "deny": ["db:81/tcp"]}}
    world.activate(
        world.package("db", network=back, **ingress),
        world.package("api", network={"network": "backend"}, **egress),
        world.package("web", network=front),
        world.package("both", network={"networks": ["front", "backend"]}),
    )
    done = world.niso("net", "explain", "api", "db:81", check=False)
    assert done.returncode == 1 and not done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == "api (10.99.1.3) → db (10.99.1.2):81/tcp: drop"
    assert '  egress   drop  denied by network.policy.egress.deny[0] of api ("db:81/tcp")' in rest
    assert "  ingress  drop  not listed in network.policy.allow_from of db" in rest
    assert "  path     pass  api and db are both on network backend" in rest
    direct = world.niso("net", "explain", "192.0.2.2", "db:80", check=False).stdout
    assert "only by its published ports" in direct.splitlines()[1]
    # one family where the other has another fate
    assert "over IPv6" not in world.niso("net", "explain", "both", "web").stdout
    policy = {"network.policy": {"deny_from": ["fd00::/8"]}}
    world.activate(world.package("web", network=front, **policy))
    differs = world.niso("net", "explain", "both", "web").stdout
    assert "over IPv6 (fd00:99:2::2) drop: denied by network.policy.deny_from[0]" in differs
    found = json.loads(world.niso("net", "explain", "both", "web", "--json").stdout)
    assert found["other_family"]["verdict"] == "drop"
    # a service that is not active sends nothing and gets nothing
    world.niso("deactivate", "web")
    found = json.loads(world.niso("net", "explain", "both", "web:80", "--json", check=False).stdout)
    assert found["path"]["words"] == "web is not active"
    said = world.refused("net", "explain", "web", "both:80", "--prove", status=2)
    assert "web is not active, so it cannot send\n  hint: niso activate web" in said
    assert world.niso("net", "explain", "web", "both:80", check=False).returncode == 1
