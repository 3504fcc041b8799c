"""Run the same steps on the real and the fake kernel: same errno, same resulting objects."""

from __future__ import annotations

import subprocess

import pytest
from fakes.kernel import Fake
from kernel_world import throw_away_host
from ruleset_elements import element_of

from niso.base.errors import Conflict, KernelError
from niso.kernel import ruleset
from niso.kernel.kinds.addresses import Address, Fdb, PermanentNeighbour, Route
from niso.kernel.kinds.kind import AnyStep, State, Step
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.kinds.nft import NftTransaction, owner
from niso.kernel.kinds.sysctls import Sysctl
from niso.kernel.kinds.tunnels import Vxlan
from niso.kernel.link_records import prefix
from niso.kernel.nft_elements import Element
from niso.kernel.real import Kernel

ALIAS = "niso:0123abcd"
BRIDGE = Bridge("niso-b", 1500, ALIAS, mac="0a:00:00:00:00:01")
SPACE = Netns("niso-s", ALIAS)
PAIR = Veth("niapi-1", "niso-s", "eth0", "0a:00:00:00:00:02", 1500, "niso-b", False, ALIAS)
OWN = Address("niso-s", "eth0", "10.99.0.2/24")
OWN6 = Address("niso-s", "eth0", "fd00:99::2/64")
WAY = Route("niso-s", "0.0.0.0/0", "10.99.0.1", "eth0")
WAY6 = Route("niso-s", "::/0", "fd00:99::1", "eth0")
IPV6 = Sysctl("niso-s", "net/ipv6/conf/default/disable_ipv6", "0")


def edits(verb: str, *elements: Element) -> NftTransaction:
    return NftTransaction(tuple((verb, each) for each in elements))


def add(*things: object) -> tuple[Step, ...]:
    return tuple(Step("add", thing) for thing in things)


def delete(*things: object) -> tuple[Step, ...]:
    return tuple(Step("delete", thing) for thing in things)


TABLES = NftTransaction(
    (
        *(f"destroy table {table}" for table in ruleset.CONTAINERS),
        ruleset.TABLES,
        *(("add", each) for each in owner("0123abcd")),
    )
)
PORT = element_of("publish_any4", "tcp . 8080", "10.99.0.2 . 80")
BY_HAND = Sysctl("niso-s", "net/ipv6/conf/default/addr_gen_mode", "1")
SPANS = BRIDGE._replace(mtu=1450)
TUNNEL = Vxlan("nx-b", 4097, "198.51.100.1", 4799, 1450, "niso-b", ALIAS)
LED = Fdb("nx-b", "0a:00:00:00:00:09", "198.51.100.2")
KNOWN, KNOWN6 = (PermanentNeighbour("", "niso-b", a, LED.mac) for a in ("10.99.0.9", "fd00:99::9"))
LINKS = add(BRIDGE, SPACE, IPV6, BY_HAND, PAIR)
OWNED = ((WAY, OWN), (WAY6, OWN6))
WHOLE = (*LINKS, *add(OWN, OWN6, WAY, WAY6))
GATEWAY, GATEWAY6 = (
    PermanentNeighbour("niso-s", "eth0", a, BRIDGE.mac) for a in (WAY.gateway, WAY6.gateway)
)

CASES: dict[str, tuple[AnyStep, ...]] = {
    "a service": WHOLE,
    "a service that goes": (*WHOLE, *delete(PAIR, SPACE, BRIDGE)),
    "what is not there goes": delete(PAIR, SPACE, BRIDGE),
    "two bridges of one name": add(BRIDGE, BRIDGE),
    "bridge of too long a name": add(BRIDGE._replace(name="a234567890123456")),
    "two namespaces of one name": add(SPACE, SPACE),
    "pair into no namespace": add(BRIDGE, PAIR),
    "pair on no bridge": add(SPACE, PAIR),
    "two pairs of one name": (*LINKS, *add(PAIR._replace(peer="eth1"))),
    "two pairs of one inner name": (*LINKS, *add(PAIR._replace(name="niapi-2"))),
    "change of a bridge that is not there": (Step("change", BRIDGE, BRIDGE),),
    "change of a pair that is not there": (*add(BRIDGE, SPACE), Step("change", PAIR, PAIR)),
    "address of no link": add(SPACE, OWN),
    "address of no namespace": add(OWN),
    "address twice": (*LINKS, *add(OWN, OWN)),
    "address that is not there goes": (*LINKS, *delete(OWN)),
    "addresses without the kernel's route": (
        *LINKS,
        *add(*(each._replace(routed=False) for each in (OWN, OWN6))),
        *add(WAY, WAY6),
        *add(*(way._replace(destination=prefix(own.address)) for way, own in OWNED)),
    ),
    "addresses that lose the kernel's route, and get it back": (
        *WHOLE,
        *(Step("change", each._replace(routed=False), each) for each in (OWN, OWN6, OWN)),
        Step("change", OWN, OWN._replace(routed=False)),
    ),
    "first address of a prefix goes": (
        *LINKS,
        *add(OWN, OWN._replace(address="10.99.0.3/24")),
        *delete(OWN),
    ),
    "the last address takes its routes and neighbours": (
        *WHOLE,
        *add(GATEWAY, GATEWAY6),
        *delete(OWN),
    ),
    "the last IPv6 address takes none": (*WHOLE, *add(GATEWAY, GATEWAY6), *delete(OWN6)),
    "route without an address": (*LINKS, *add(WAY)),
    "route without an address, IPv6": (*LINKS, *add(WAY6)),
    "route twice": (*LINKS, *add(OWN, WAY, WAY)),
    "another route to one place": (*LINKS, *add(OWN, WAY, WAY._replace(gateway="10.99.0.9"))),
    "route that is not there goes": (*LINKS, *delete(WAY)),
    "permanent neighbours": (*WHOLE, *add(KNOWN, GATEWAY, GATEWAY6)),
    "they go": (*WHOLE, *add(KNOWN, GATEWAY), *delete(KNOWN, GATEWAY, GATEWAY)),
    "they go with their links": (*WHOLE, *add(KNOWN, GATEWAY), *delete(PAIR, SPACE, BRIDGE)),
    "neighbour on no link": (*add(SPACE, GATEWAY), *add(GATEWAY._replace(netns="niso-x"))),
    "a network that spans hosts": add(SPANS, TUNNEL, LED, KNOWN, KNOWN6),
    "its underlay is IPv6": add(
        SPANS, TUNNEL._replace(local="2001:db8::1"), LED._replace(host="2001:db8::2")
    ),
    "it goes": (*add(SPANS, TUNNEL, LED, KNOWN), *delete(KNOWN, TUNNEL)),
    "its bridge goes": (*add(SPANS, TUNNEL, KNOWN), *delete(SPANS)),
    "its entries go, twice": (
        *add(SPANS, TUNNEL, LED, KNOWN, KNOWN6),
        *delete(LED, KNOWN, KNOWN6, LED, KNOWN),
    ),
    "service of another host moves": (
        *add(SPANS, TUNNEL, LED, KNOWN),
        Step("change", LED._replace(host="198.51.100.3"), LED),
        Step("change", KNOWN._replace(mac="0a:00:00:00:00:0a"), KNOWN),
        *add(LED, KNOWN),
    ),
    "VXLAN device on no bridge": add(TUNNEL),
    "two VXLAN devices of one name": add(SPANS, TUNNEL, TUNNEL._replace(vni=4098)),
    "two VXLAN devices of one VNI": add(SPANS, TUNNEL, TUNNEL._replace(name="nx-c")),
    "two VXLAN devices on one port": (
        *add(SPANS, TUNNEL, TUNNEL._replace(name="nx-c", vni=4098)),
        *delete(TUNNEL),
    ),
    "VXLAN device that is not there goes": delete(TUNNEL),
    "entry of no VXLAN device": add(SPANS, LED),
    "neighbour on no bridge": add(KNOWN),
    "sysctl of no link": add(Sysctl("", "net/ipv4/conf/nonesuch/forwarding", "1")),
    "sysctl of no namespace": add(Sysctl("niso-x", "net/ipv4/ip_forward", "1")),
    "tables": (TABLES, edits("add", PORT)),
    "element without tables": (edits("add", PORT),),
    "element twice": (TABLES, edits("add", PORT), edits("add", PORT)),
    "element with another value": (
        TABLES,
        edits("add", PORT),
        edits("add", PORT._replace(value=("10.99.0.3", 80))),
    ),
    "element that is not there goes": (TABLES, edits("delete", PORT)),
    "a transaction that fails at its end": (
        TABLES,
        edits("add", PORT),
        edits("delete", PORT, element_of("publish_any4", "tcp . 9", "10.99.0.2 . 9")),
    ),
    "prefix inside another": (
        TABLES,
        edits("add", element_of("subnets4", "10.99.0.0/24")),
        edits("add", element_of("subnets4", "10.99.0.128/25")),
    ),
    "prefix around another": (
        TABLES,
        edits("add", element_of("subnets4", "10.99.0.128/25")),
        edits("add", element_of("subnets4", "10.99.0.0/24")),
    ),
    "ports that overlap others": (
        TABLES,
        edits("add", element_of("range_any4", "tcp . 9000-9010", "10.99.0.2")),
        edits("add", element_of("range_any4", "tcp . 9010-9020", "10.99.0.2")),
    ),
    "ports inside others": (
        TABLES,
        edits("add", element_of("range_any4", "tcp . 9000-9010", "10.99.0.2")),
        edits("add", element_of("range_any4", "tcp . 9002-9003", "10.99.0.3")),
    ),
}


def outcome(kernel: Kernel, steps: tuple[AnyStep, ...]) -> tuple[list[int], set[object], object]:
    """The errno of each step, 0 where it is taken, and what there is then and is marked."""
    numbers = []
    for step in steps:
        try:
            kernel.write([step])
            numbers.append(0)
        except KernelError as error:
            numbers.append(error.errno)
        except Conflict:
            numbers.append(-1)
    marked = list(kernel.marked_links().items()), kernel.marked_netns()
    return numbers, set(kernel.read_all(State(), ALIAS, {})), marked


@pytest.mark.parametrize("case", CASES)
@throw_away_host
def test_both_kernels_take_and_refuse_the_same(case: str) -> None:
    assert outcome(Kernel(), CASES[case]) == outcome(Fake(), CASES[case])


@throw_away_host
def test_links_are_ended_by_name() -> None:
    kernels: tuple[Kernel, ...] = (Kernel(), Fake())
    for kernel in kernels:
        kernel.write(LINKS)
        kernel.delete_detached(["niapi-1", "niso-b", "nonesuch"])
        assert kernel.marked_links() == {}
        kernel.delete_detached(["niso-b"])


@pytest.mark.first
@throw_away_host
def test_bridge_is_full_at_1023_ports() -> None:
    """Add 1,023 ports by hand: the fake and the real kernel refuse the next one."""
    from fakes.kernel import MOST_PORTS

    real, fake = Kernel(), Fake()
    for kernel in (real, fake):
        kernel.write(add(BRIDGE, SPACE))
    lines = "".join(
        f"link add p{n} master niso-b type veth peer name q{n}\n" for n in range(MOST_PORTS)
    )
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    fake.write(add(*(PAIR._replace(name=f"p{n}", peer=f"e{n}") for n in range(MOST_PORTS))))
    for kernel in (real, fake):
        with pytest.raises(KernelError) as raised:
            kernel.write(add(PAIR))
        assert raised.value.errno == 54  # EXFULL
