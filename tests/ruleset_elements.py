"""Elements of every kind that niso's sets and maps can hold, for tests of the ruleset."""

from __future__ import annotations

import time
from collections.abc import Iterator

from niso.base import names
from niso.kernel.nft_elements import HEADERS, Element, pack_range, unpack_range, written
from niso.kernel.ruleset import INET
from niso.manifest.policy import parse_entry
from niso.plan import elements
from niso.plan import policy_elements as plan_policy_elements
from niso.plan.records import Audit, Limits, Member, Policed, Policy, PortMapping, SubnetRecord

ODD_NAMES = (
    "a",
    "a0",
    "a-9",
    "x" * 63,
    "a" + "-" * 61 + "z",
    "n1-2-3",
    "inet",
    "table",
    "set",
    "add",
    "comment",
    "drop",
)

SYSCTLS = [
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/eth0.5/accept_ra", "1"),
    ("net/ipv6/conf/a23456789012345/force_forwarding", "0"),
]
"""Sysctls and what they were before, as the set ``before`` keeps them."""


def element_of(
    container: str, key: str, value: str = "", comment: str = "", table: str = INET
) -> Element:
    """Return an element from its parts as nft writes them."""
    header = HEADERS[table, container]
    fields = atoms(header.key, key)
    owner, _, entry = comment.partition(" ")
    values = tuple(value.split()) if header.value is None else atoms(header.value, value)
    return Element(table, container, fields, values, owner, entry)


def atoms(kinds: tuple[int, ...], text: str) -> tuple[object, ...]:
    """Return the fields of a key or value that is written as by nft."""
    return tuple(
        next(
            atom
            for atom in _candidates(field)
            if _takes(kind, atom) and written((kind,), (atom,)) == field
        )
        for kind, field in zip(kinds, text.split(" . ") if text else (), strict=True)
    )


def _candidates(field: str) -> Iterator[object]:
    low, _, high = field.partition("-")
    if low.isdigit():
        yield int(low)
        yield int(low), int(high or low)
    yield field.strip('"')


def _takes(kind: int, atom: object) -> bool:
    try:
        return unpack_range(kind, *pack_range(kind, atom)) == atom
    except (ValueError, TypeError, AttributeError, KeyError, OSError):
        return False


def all_elements(service: str, network: str, number: int = 0) -> list[Element]:
    """Return every kind of element that a service on a network can bring, of both families."""
    link = names.veth(service, network, number + 1)
    mac = names.mac(service, network, "0123abcd")
    four, six = f"10.{number}.0.2", f"fd00:{number:x}::2"
    subnets = (
        SubnetRecord(4, f"10.{number}.0.0/24", f"10.{number}.0.1"),
        SubnetRecord(6, f"fd00:{number:x}::/64", f"fd00:{number:x}::1"),
    )
    first = 1000 + 10 * number
    ports = (
        PortMapping("", 1 + number, 65535, "tcp"),
        PortMapping("0.0.0.0", 60000 + number, 1, "udp"),
        PortMapping("::", 60000 + number, 1, "tcp"),
        PortMapping("", 50000 + number, 1, "sctp"),
        PortMapping("192.0.2.1", 50000 + number, 1, "tcp"),
        PortMapping("2001:db8::1", 50000 + number, 1, "tcp"),
        PortMapping("127.0.0.1", first, first, "udp", 10),
        PortMapping("2001:db8::1", first, first, "udp", 10),
        PortMapping("", first, first, "sctp", 10),
        PortMapping("", first, first + 1, "tcp", 10),
        *(
            PortMapping(host, 40_000 + first, 40_000 + first, "sctp", 10)
            for host in ("", "192.0.2.1", "2001:db8::1")
        ),
    )
    return [
        *elements.network(
            network, names.bridge(network), mac, subnets, internal=True, multicast=True
        ),
        *elements.endpoint(service, link, mac, (four, six), Limits(1, 2, 3, 20), multicast=True),
        *elements.receivers(service, mac, mac, (four, six)),
        *(element for port in ports for element in elements.published(service, port, (four, six))),
        *(
            element
            for port in ports
            for element in elements.published(service, port, (four, six), names.bridge(network))
        ),
        *(
            element
            for index, port in enumerate(ports[:6])
            for bridge, addresses in (
                ("", (four, six)),
                ("nb", (f"10.{number}.1.2", f"fd00:{number:x}:1::2")),
            )
            for element in elements.published(
                f"{service[:60]}-s",
                port._replace(host_port=2000 + 10 * number + index),
                addresses,
                bridge,
                front=True,
            )
        ),
        *(
            element
            for address in (four, six)
            for element in elements.service_address(
                f"{service[:60]}-s", names.bridge(network), mac, address, {1: address}, {2: address}
            )
        ),
        *elements.hairpin(service, ((four, subnets[0].gateway), (six, subnets[1].gateway))),
        elements.wire(4000 + number),
        elements.sealed(4000 + number),
        *elements.spans(network, names.vxlan(network)),
        elements.here(service, 1 << number, mac),
        *(
            element
            for host in ("198.51.100.2", "2001:db8::2")
            for element in elements.claim(
                *(f"{service[:60]}-at", host, number + 1, 1 << number, names.vxlan(network)),
                *(mac, (four, six)),
            )
            if element.container.startswith(("vx", "heard"))
        ),
    ]


def policy_elements() -> list[Element]:
    """Return the elements of a policy with something in each part, and of one in audit."""
    written = [
        *("db/icmp", "db:80/tcp", "db:90-95", "10.0.0.0/8:80", "[fd00::/8]:90-95"),
        *("0.0.0.0/0:80", "[::/0]:80", "0.0.0.0/0:9-10", "[::/0]:9-10", "outside:81"),
    ]
    ingress = tuple(
        parse_entry(text, f"network.policy.allow_from[{i}]", False)
        for i, text in enumerate(written)
    )
    egress = tuple(
        parse_entry(text, f"network.policy.egress.allow[{i}]", True)
        for i, text in enumerate(written)
    )
    own = Policed("api", ("10.99.1.2", "fd00::2"), Policy(allow_from=ingress, egress_allow=egress))
    odd = tuple(
        parse_entry(f"{everybody}:{port}", f"network.policy.deny_from[{i}]", False)
        for everybody in ("0.0.0.0/0", "[::/0]")
        for i, port in enumerate(range(1, 20, 2))
    )
    some = tuple(
        parse_entry(text, f"network.policy.allow_from[{i}]", False)
        for i, text in enumerate(("10.0.0.0/8", "fd00::/8"))
    )
    large = Policy(allow_from=some, deny_from=odd, egress_allow=some, egress_deny=odd)
    now = int(time.time())
    audited = Policy(allow_from=(), audit=Audit("", now, now + 3600))
    result = []
    for number, each in enumerate(
        (
            own,
            Policed("large", ("10.99.1.8", "fd00::8"), large),
            Policed("loud", ("10.99.1.9", "fd00::9"), audited),
        )
    ):
        policed = each._replace(hears=tuple((at, f"n{number}") for at in each.addresses))
        made = plan_policy_elements.elements(
            policed, [Member("service", "db", ("10.99.1.3", "fd00::3"))]
        )
        result += [*made, *plan_policy_elements.heard(policed, made)]
    return result
