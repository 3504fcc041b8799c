"""Networks that cannot be: what is refused, with which words, and that nothing has changed."""

from __future__ import annotations

import json

import pytest
from fake_world import World
from refusals import refuses

from niso.base.errors import Conflict, Error, UsageError
from niso.change import networks
from niso.change.deactivate import deactivate, remove
from niso.plan.subnets import NetworkRequest

FLAGS = ("--ipv6", "--internal", "--multicast", "--span")


def request(name: str, arguments: list[str]) -> NetworkRequest:
    """Return the request of a command line: options with their values, and flags."""
    values: dict[str, list[str]] = {}
    words = iter(arguments)
    for option in words:
        values.setdefault(option, []).append("" if option in FLAGS else next(words))
    mtu = values.get("--mtu")
    return NetworkRequest(
        name,
        tuple(values.get("--subnet", ())),
        "--ipv6" in values,
        tuple(values.get("--gateway", ())),
        "--internal" in values,
        int(mtu[0]) if mtu else None,
        span="--span" in values,
        multicast="--multicast" in values,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--subnet", "10.99.1.128/25"], ["overlaps 10.99.1.0/24", "network 'backend'"]),
        (["--subnet", "10.0.0.0/8"], ["overlaps", "network 'backend'"]),
        (["--subnet", "192.0.2.0/28"], ["overlaps 192.0.2.0/24", "uplink0"]),
        (["--subnet", "198.51.100.64/26"], ["overlaps 198.51.100.0/24", "uplink0"]),
        (["--subnet", "203.0.113.0/24"], ["overlaps 203.0.113.9/32", "uplink0"]),
        (["--subnet", "10.50.0.1/24"], ["--subnet", "10.50.0.1/24"]),
        (["--subnet", "10.50.0.0/31"], ["--subnet", "/8 to /30"]),
        (["--subnet", "127.1.0.0/24"], ["--subnet", "127.1.0.0/24"]),
        (["--subnet", "224.1.0.0/24"], ["--subnet", "224.1.0.0/24"]),
        (["--subnet", "2001:db8::/60"], ["overlaps 2001:db8::/64", "uplink0"]),
        (["--subnet", "2001:db8:77::/64"], ["overlaps 2001:db8:77::/48", "uplink0"]),
        (["--subnet", "fd00:99::/56"], ["overlaps fd00:99:0:5::/64", "network 'backend'"]),
        (
            ["--subnet", "10.50.0.0/24", "--subnet", "fd00:99:0:5::/96"],
            ["overlaps", "network 'backend'"],
        ),
        (["--subnet", "fd00::1/64"], ["--subnet 'fd00::1/64'", "did you mean fd00::/64?"]),
        (["--subnet", "fd00::/47"], ["--subnet fd00::/47", "/48 to /126"]),
        (["--subnet", "fd00::/127"], ["--subnet fd00::/127", "/48 to /126"]),
        *(
            (["--subnet", each], [f"--subnet {each}", "not in 2000::/3 or fc00::/7"])
            for each in (
                "::/64",
                "::ffff:0:0/96",
                "fe80::/64",
                "fec0::/64",
                "ff02::/64",
                "64:ff9b::/96",
                "4000::/64",
            )
        ),
        (["--subnet", "8.8.8.0/24"], ["8.8.8.0/24", "a public prefix", "10.0.0.0/8"]),
        (["--subnet", "172.0.0.0/8"], ["172.0.0.0/8", "a public prefix"]),
        (["--subnet", "2a00:1450::/64"], ["2a00:1450::/64", "a public prefix", "fd00::/8"]),
        (["--subnet", "fd00::/64", "--subnet", "fd01::/64"], ["one IPv6 subnet"]),
        (["--subnet", "10.50.0.0/24", "--subnet", "10.51.0.0/24"], ["one IPv4 subnet"]),
        (["--subnet", "fd00::/64", "--ipv6"], ["--ipv6", "fd00::/64"]),
        (["--subnet", "fd00::/64", "--gateway", "fd00::"], ["--gateway fd00::", "network itself"]),
        (
            ["--subnet", "fd00::/64", "--gateway", "fd01::1"],
            ["--gateway fd01::1", "not in fd00::/64"],
        ),
        (
            ["--subnet", "10.50.0.0/24", "--gateway", "fd00::1"],
            ["--gateway fd00::1", "not in 10.50.0.0/24"],
        ),
        (["--ipv6", "--gateway", "nonsense"], ["--gateway 'nonsense'"]),
        (
            ["--subnet", "10.50.0.0/24", "--gateway", "10.50.0.3", "--gateway", "10.50.0.4"],
            ["--gateway 10.50.0.4", "only one gateway"],
        ),
        (["--ipv6", "--mtu", "1279"], ["--mtu 1279", "1280", "IPv6"]),
        (
            ["--subnet", "10.50.0.0/24", "--gateway", "10.51.0.1"],
            ["--gateway 10.51.0.1", "10.50.0.0/24"],
        ),
        (
            ["--subnet", "10.50.0.0/24", "--gateway", "10.50.0.0"],
            ["--gateway 10.50.0.0", "network itself"],
        ),
        (
            ["--subnet", "10.50.0.0/24", "--gateway", "10.50.0.255"],
            ["--gateway 10.50.0.255", "broadcast"],
        ),
        (["--multicast", "--span"], ["--multicast", "--span", "between hosts"]),
        (["--mtu", "100"], ["--mtu 100"]),
    ],
)
def test_network_that_cannot_be_is_refused_and_changes_nothing(
    world: World, arguments: list[str], words: list[str]
) -> None:
    world.kernel.own_addresses |= {
        "198.51.100.0/24": "uplink0",
        "203.0.113.9/32": "uplink0",
        "2001:db8::1/64": "uplink0",
        "2001:db8:77::/48": "uplink0",
    }
    taken = ["--subnet", "10.99.1.0/24", "--subnet", "fd00:99:0:5::/64"]
    networks.create(world.machine, request("backend", taken))
    before = world.picture()
    kind: type[Error] = Conflict if "overlaps" in words[0] else UsageError
    with pytest.raises(kind) as refused:
        networks.create(world.machine, request("new", arguments))
    said = f"{refused.value.key} {refused.value.message} {refused.value.hint}"
    assert all(word in said for word in words), said
    assert world.picture() == before


@pytest.mark.parametrize("subnet", ["8.8.8.0/24", "2a00:1450::/64"])
def test_public_prefix_is_accepted_if_asked_for(world: World, subnet: str) -> None:
    asked = NetworkRequest("front", (subnet,), allow_public=True)
    made = networks.create(world.machine, asked)
    assert made is not None and [one.cidr for one in made.subnets] == [subnet]
    assert networks.create(world.machine, asked) is None


@pytest.mark.parametrize(
    "subnet", ["100.64.0.0/24", "192.168.7.0/24", "172.31.0.0/16", "fd12::/64"]
)
def test_private_shared_and_unique_local_prefixes_are_accepted(world: World, subnet: str) -> None:
    assert networks.create(world.machine, NetworkRequest("front", (subnet,))) is not None


def test_public_address_makes_no_network(world: World) -> None:
    before = world.picture()
    with pytest.raises(Conflict) as caught:
        world.activate(world.package("api", network={"network": "front", "ip": "8.8.8.8"}))
    assert '"8.8.8.8" is a public address' in caught.value.message
    assert "--allow-public" in (caught.value.hint or "")
    assert world.picture() == before


V4, V6 = ["--subnet", "10.50.0.0/24"], ["--subnet", "fd00::/64"]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ([], []),
        (V4, V4),
        ([*V6, *V4], [*V4, "--subnet", "fd00:0::/64"]),
        (["--ipv6"], ["--ipv6"]),
        ([*V4, *V6], ["--ipv6"]),
        ([*V6, "--gateway", "fd00::5"], [*V6, "--gateway", "fd00::0005"]),
        (["--internal", "--mtu", "1300"], ["--internal"]),
    ],
)
def test_network_that_exists_as_requested_stays_so(
    world: World, first: list[str], again: list[str]
) -> None:
    assert networks.create(world.machine, request("backend", first)) is not None
    before = world.picture()
    assert networks.create(world.machine, request("backend", again)) is None
    assert world.picture() == before


@pytest.mark.parametrize(
    ("first", "again", "facts"),
    [
        (V4, ["--subnet", "10.51.0.0/24"], ["10.50.0.0/24"]),
        (V4, [*V4, "--ipv6"], ["10.50.0.0/24"]),
        (V4, V6, ["10.50.0.0/24"]),
        (V6, [], ["fd00::/64"]),
        (["--ipv6"], [], ["10.99.1.0/24", "fd"]),
        (["--ipv6"], ["--subnet", "10.99.1.0/24", *V6], ["10.99.1.0/24", "fd"]),
        (V6, [*V6, "--gateway", "fd00::2"], ["gateway fd00::1"]),
        (["--mtu", "1300"], ["--mtu", "1400"], ["mtu 1300"]),
        ([], ["--internal"], ["not internal"]),
        (["--internal"], [], ["internal"]),
    ],
)
def test_network_that_exists_as_another_one_is_a_conflict(
    world: World, first: list[str], again: list[str], facts: list[str]
) -> None:
    networks.create(world.machine, request("backend", first))
    before = world.picture()
    with refuses(Conflict, "'backend'", *facts, hint="match it, or choose another name"):
        networks.create(world.machine, request("backend", again))
    assert world.picture() == before


def test_pool_of_the_environment_can_be_used_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NISO_POOL", "172.30.0.0/23")
    made = networks.create(world.machine, request("one", []))
    assert made is not None and [one.cidr for one in made.subnets] == ["172.30.1.0/24"]
    hint = "set NISO_POOL to a free prefix, or niso net create two --subnet CIDR"
    with refuses(Conflict, "172.30.0.0/23", "172.30.1.0/24", "'one'", "niso-default", hint=hint):
        networks.create(world.machine, request("two", []))
    world.activate(world.package("api"))
    assert world.store.addresses("api") == [("niso-default", "172.30.0.2")]
    for wrong in ("10.0.0.0/25", "nonsense", "fd00::/48", "10.50.0.0/24"):
        monkeypatch.setenv("NISO_POOL", wrong)
        with pytest.raises(Error) as caught:
            networks.create(world.machine, request("two", []))
        assert "NISO_POOL" in f"{caught.value.message} {caught.value.hint}"


def test_full_network_is_an_error_that_names_the_inactive_services(world: World) -> None:
    world.make("tiny", "10.50.0.0/29")
    tiny = {"network": "tiny"}
    world.activate(*(world.package(f"s{number}", network=tiny) for number in range(5)))
    more = world.package("more", network=tiny)
    with refuses(Conflict, "10.50.0.0/29", hint="create a larger network"):
        world.activate(more)
    deactivate(world.machine, ["s3"])
    with refuses(Conflict, "'tiny'", "10.50.0.0/29") as caught:
        world.activate(more)
    said = f"{caught.value.message} {caught.value.hint}"
    assert "s3" in said and "s2" not in said
    remove(world.machine, ["s3"])
    world.activate(more)
    assert world.store.addresses("more") == [("tiny", "10.50.0.5")]
    world.assert_whole()


# --- the commands --------------------------------------------------------------------------------


def test_commands_of_networks_print_what_there_is(world: World) -> None:
    assert world.niso("net", "list", "--json").stdout == "[]\n"
    assert world.niso("net", "list").stdout == "NAME  SUBNET  SERVICES\n"
    made = world.niso("net", "create", "backend", "--subnet", "10.99.1.0/24").stdout
    assert made == "backend: created  10.99.1.0/24  niso-backend\n"
    again = world.niso("net", "create", "backend").stdout
    assert again.startswith("backend: already exists, unchanged")
    for name, network in (
        ("api", {"network": "backend", "ports": ["8080:8080"]}),
        ("worker", {"network": "backend"}),
        ("other", {}),
    ):
        world.niso("activate", world.package(name, network=network))
    world.niso("deactivate", "worker")
    for name in ("zoo", "niso-a"):
        world.niso("net", "create", name)
    lines = [line.split() for line in world.niso("net", "list").stdout.splitlines()]
    assert lines[:3] == [
        ["NAME", "SUBNET", "SERVICES"],
        ["niso-default", "10.99.0.0/24", "1"],
        ["backend", "10.99.1.0/24", "2"],
    ]
    rows = json.loads(world.niso("net", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["niso-default", "backend", "niso-a", "zoo"]
    assert rows[1] == {
        "name": "backend",
        "subnet": "10.99.1.0/24",
        "services": 2,
        "elsewhere": 0,
        "vni": None,
    }
    assert world.niso("net", "inspect", "backend").stdout == (
        "Name: backend\nSubnet: 10.99.1.0/24\nBridge: niso-backend\nServices:\n"
        "  api     10.99.1.2  ports: 8080→8080\n"
        "  worker  10.99.1.3  ports: none (inactive)\n"
    )
    found = json.loads(world.niso("net", "inspect", "backend", "--json").stdout)
    assert found["services"][0]["ports"] == [
        {"host_ip": "0.0.0.0", "host_port": 8080, "container_port": 8080, "proto": "tcp"}
    ]
    for words in (("inspect", "nothing"), ("remove", "nothing")):
        assert "no network 'nothing'" in world.refused("net", *words)
    for name in ("default", "Backend", "1st", "a_b", "x" * 64, "-a", "a/b", ""):
        assert "NAME" in world.refused("net", "create", "--", name, status=2)


def test_network_of_both_families_is_listed_with_both(world: World) -> None:
    subnets = ("10.99.1.0/24", "fd00:1::/64")
    words = [word for subnet in subnets for word in ("--subnet", subnet)]
    world.niso("net", "create", "backend", "--internal", *words)
    world.niso(
        "activate", world.package("api", network={"network": "backend", "ports": ["8080:80"]})
    )
    (line,) = world.niso("net", "list").stdout.splitlines()[1:]
    assert line.split() == ["backend", f"{subnets[0]},", subnets[1], "1"]
    assert world.niso("net", "inspect", "backend").stdout == (
        f"Name: backend\nSubnet: {', '.join(subnets)}\nBridge: niso-backend\nInternal: yes\n"
        "Services:\n  api  10.99.1.2, fd00:1::2  ports: 8080→80\n"
    )
    found = json.loads(world.niso("net", "inspect", "backend", "--json").stdout)
    gateways = [(each["cidr"], each["gateway"]) for each in found["subnets"]]
    assert gateways == [(subnets[0], "10.99.1.1"), (subnets[1], "fd00:1::1")]
    assert found["internal"] is True


def test_network_that_a_known_service_is_on_is_not_removed(world: World) -> None:
    world.niso("net", "create", "free")
    world.niso("net", "create", "kept")
    world.niso("activate", world.package("api", network={"networks": ["kept", "made"]}))
    world.niso("deactivate", "api")
    before = world.picture()
    for name in ("kept", "made"):
        assert f"{name!r} is used by api" in world.refused("net", "remove", "free", name)
    assert world.picture() == before
    world.niso("remove", "api")
    assert world.store.network_names() == ["free", "kept"]
    world.niso("net", "remove", "free", "kept")
    assert not world.kernel.bridges and world.store.network_names() == []


def test_dry_run_prints_the_steps_that_then_run(world: World) -> None:
    world.make("backend")
    for words in (("create", "new", "--ipv6", "--internal"), ("remove", "new")):
        before = world.picture()
        planned = world.niso("net", *words, "--dry-run").stdout
        assert world.picture() == before
        assert "ip link " in planned and " niso-new" in planned
        assert world.niso("net", *words, "-v").stderr == planned


def test_foreign_link_of_the_name_of_a_bridge_is_an_error(world: World) -> None:
    world.kernel.foreign_links["niso-backend"] = ""
    before = world.picture()
    assert "'niso-backend' exists" in world.refused("net", "create", "backend")
    assert world.picture() == before
