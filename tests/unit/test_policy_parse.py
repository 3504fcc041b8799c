"""Test the parsing of policies: each form of an entry, each error, the whole table."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from refusals import refuses
from samples import samples

from niso.base.errors import InvalidInput
from niso.manifest.json_schema import manifest_schema
from niso.manifest.policy import EXAMPLE, RIGHT, parse, parse_egress_allow, parse_entry
from niso.plan.records import Entry, Peer

HEAD = '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "x"\n'
VALIDATOR = Draft202012Validator(manifest_schema())
KEY = "network.policy.allow_from[0]"

ACCEPTED: list[tuple[str, str, str, int, int, str]] = [
    ("frontend", "service", "frontend", 0, 65535, ""),
    ("frontend:8080", "service", "frontend", 8080, 8080, ""),
    ("frontend:8000-8010/tcp", "service", "frontend", 8000, 8010, "tcp"),
    ("frontend:1-65535", "service", "frontend", 1, 65535, ""),
    ("frontend:53/udp", "service", "frontend", 53, 53, "udp"),
    ("frontend:80-80/sctp", "service", "frontend", 80, 80, "sctp"),
    ("frontend/udp", "service", "frontend", 0, 65535, "udp"),
    ("frontend/icmp", "service", "frontend", 0, 65535, "icmp"),
    ("db.niso.local", "service", "db", 0, 65535, ""),
    ("db.niso.local:5432", "service", "db", 5432, 5432, ""),
    ("db.niso.local/tcp", "service", "db", 0, 65535, "tcp"),
    ("hosts", "service", "hosts", 0, 65535, ""),
    ("tcp/tcp", "service", "tcp", 0, 65535, "tcp"),
    ("a" * 63, "service", "a" * 63, 0, 65535, ""),
    ("network", "service", "network", 0, 65535, ""),
    ("network:8080", "service", "network", 8080, 8080, ""),
    ("network/tcp", "service", "network", 0, 65535, "tcp"),
    ("network.niso.local:80", "service", "network", 80, 80, ""),
    ("network:backend", "network", "backend", 0, 65535, ""),
    ("network:niso-default", "network", "niso-default", 0, 65535, ""),
    ("network:hosts", "network", "hosts", 0, 65535, ""),
    ("network:network:80", "network", "network", 80, 80, ""),
    ("network:backend:8080/tcp", "network", "backend", 8080, 8080, "tcp"),
    ("network:backend:8000-8010", "network", "backend", 8000, 8010, ""),
    ("network:backend/icmp", "network", "backend", 0, 65535, "icmp"),
    ("10.1.2.3", "prefix", "10.1.2.3/32", 0, 65535, ""),
    ("10.1.2.3/32", "prefix", "10.1.2.3/32", 0, 65535, ""),
    ("10.1.2.3:80", "prefix", "10.1.2.3/32", 80, 80, ""),
    ("10.1.2.3/udp", "prefix", "10.1.2.3/32", 0, 65535, "udp"),
    ("10.0.0.0/8", "prefix", "10.0.0.0/8", 0, 65535, ""),
    ("10.0.0.0/8/tcp", "prefix", "10.0.0.0/8", 0, 65535, "tcp"),
    ("10.0.0.0/8:8000-8010/tcp", "prefix", "10.0.0.0/8", 8000, 8010, "tcp"),
    ("0.0.0.0/0:443", "prefix", "0.0.0.0/0", 443, 443, ""),
    ("126.0.0.0/7", "prefix", "126.0.0.0/7", 0, 65535, ""),
    ("224.0.0.251:5353/udp", "prefix", "224.0.0.251/32", 5353, 5353, "udp"),
    ("fd00::1", "prefix", "fd00::1/128", 0, 65535, ""),
    ("FD00:0:0::01", "prefix", "fd00::1/128", 0, 65535, ""),
    ("fd00::1:80", "prefix", "fd00::1:80/128", 0, 65535, ""),
    ("fd00::1/tcp", "prefix", "fd00::1/128", 0, 65535, "tcp"),
    ("fd00::/8", "prefix", "fd00::/8", 0, 65535, ""),
    ("fd00::/8/icmp", "prefix", "fd00::/8", 0, 65535, "icmp"),
    ("fe80::1", "prefix", "fe80::1/128", 0, 65535, ""),
    ("::/0", "prefix", "::/0", 0, 65535, ""),
    ("[::/0]:443", "prefix", "::/0", 443, 443, ""),
    ("[fd00::1]", "prefix", "fd00::1/128", 0, 65535, ""),
    ("[fd00::1]/sctp", "prefix", "fd00::1/128", 0, 65535, "sctp"),
    ("[fd00::1]:80/udp", "prefix", "fd00::1/128", 80, 80, "udp"),
    ("[fd00::/8]:80", "prefix", "fd00::/8", 80, 80, ""),
    ("[64:ff9b::192.0.2.1]:80-90", "prefix", "64:ff9b::c000:201/128", 80, 90, ""),
]


@pytest.mark.parametrize("egress", [False, True])
@pytest.mark.parametrize(("text", "kind", "name", "first", "last", "proto"), ACCEPTED)
def test_form_of_an_entry_is_parsed(
    text: str, kind: str, name: str, first: int, last: int, proto: str, egress: bool
) -> None:
    assert parse_entry(text, KEY, egress) == Entry(KEY, text, Peer(kind, name), first, last, proto)


NETWORK = (
    "network:NAME, NAME of a-z, 0-9 and -, first a letter, at most 63 characters"
    ' | "network:backend"'
)
OUTSIDE = 'a service, an address or a prefix | "203.0.113.7:443"'
NO_OUTSIDE = "names outside niso.local can only be in network.policy.egress.allow of a manifest"
IS_SERVICE = "only NAME.niso.local is a name of a service"
PORTS = "ports 1 to 65535"
LOOPBACK = "services never see loopback addresses of others, and the host can always connect"
BRACKETS = "it does not start with an IPv6 address or prefix in brackets"
FORMS = f"{RIGHT} | {EXAMPLE}"
ALL_HTTP = '"outside:80" for other machines, "0.0.0.0/0:80" for all of IPv4'
REFUSED: list[tuple[str, str, str]] = [
    # names
    ("", "the peer is missing", FORMS),
    (":80", "the peer is missing", ALL_HTTP),
    (
        "/tcp",
        "the peer is missing",
        '"outside/tcp" for other machines, "0.0.0.0/0/tcp" for all of IPv4',
    ),
    ("Frontend", '"Frontend" is not a valid service name', FORMS),
    ("frontend ", '"frontend " is not a valid service name', FORMS),
    (" frontend:80", '" frontend" is not a valid service name', FORMS),
    ("front_end", '"front_end" is not a valid service name', FORMS),
    ("frontend-", '"frontend-" is not a valid service name', FORMS),
    ("a" * 64, f'"{"a" * 64}" is not a valid service name', FORMS),
    ("*", '"*" is not a valid service name', FORMS),
    ("ip6-x", '"ip6-x" is not a valid service name', FORMS),
    ("Db.niso.local", '"Db" is not a valid service name', FORMS),
    (".niso.local", '"" is not a valid service name', FORMS),
    ("api.example.com:443", NO_OUTSIDE, OUTSIDE),
    ("example.com", NO_OUTSIDE, OUTSIDE),
    ("1.example.com:443", NO_OUTSIDE, OUTSIDE),
    ("a.db.niso.local", IS_SERVICE, FORMS),
    ("db.niso.local.", NO_OUTSIDE, OUTSIDE),
    ("niso.local", IS_SERVICE, FORMS),
    ("network:", '"" is not a valid network name', NETWORK),
    ("network:Back", '"Back" is not a valid network name', NETWORK),
    ("network:/tcp", '"" is not a valid network name', NETWORK),
    ("network:a.niso.local", '"a.niso.local" is not a valid network name', NETWORK),
    (
        "network:default:80",
        "the default network is called niso-default",
        '"network:niso-default"',
    ),
    ("network:back:end", '"end" is not a valid port', PORTS),
    ("network:9a", '"9a" is not a valid port', PORTS),
    # ports and protocols
    ("frontend:", "no port follows the :", PORTS),
    ("frontend:/tcp", "no port follows the :", PORTS),
    ("frontend:0", '"0" is not a valid port', PORTS),
    ("frontend:65536", '"65536" is not a valid port', PORTS),
    ("frontend:080", '"080" is not a valid port', PORTS),
    ("frontend:-80", '"-80" is not a valid port', PORTS),
    ("frontend:80-", '"80-" is not a valid port', PORTS),
    ("frontend:80-0", '"80-0" is not a valid port', PORTS),
    ("frontend:0-80", '"0-80" is not a valid port', PORTS),
    ("frontend:1-2-3", '"1-2-3" is not a valid port', PORTS),
    ("frontend:http", '"http" is not a valid port', PORTS),
    ("frontend:80,81", '"80,81" is not a valid port', PORTS),
    ("frontend:٣", '"٣" is not a valid port', PORTS),
    ("frontend:8010-8000", "range 8010-8000 ends before it starts", "8000-8010"),
    ("frontend/", "nothing follows the /", FORMS),
    ("frontend:80/", "nothing follows the /", FORMS),
    ("10.0.0.0/", "nothing follows the /", FORMS),
    ("frontend:80/TCP", '"TCP" is not a valid protocol', FORMS),
    ("frontend/icmpv6", '"icmpv6" is not a valid protocol', FORMS),
    ("frontend:80/tcp/udp", '"tcp/udp" is not a valid protocol', FORMS),
    ("[fd00::1]/64", '"64" is not a valid protocol', FORMS),
    ("frontend:80/icmp", "ICMP has no ports", '"frontend/icmp", or a port of another protocol'),
    ("[fd00::/8]:80/icmp", "ICMP has no ports", '"fd00::/8/icmp", or a port of another protocol'),
    (
        "frontend/tcp:80",
        '"frontend" is not an address, and only addresses have a prefix length',
        FORMS,
    ),
    ("frontend/8", '"frontend" is not an address, and only addresses have a prefix length', FORMS),
    # addresses
    ("10.1.2", '"10.1.2" is not a valid IPv4 address', FORMS),
    ("10.1.2.256", '"10.1.2.256" is not a valid IPv4 address', FORMS),
    ("010.1.2.3", '"010.1.2.3" is not a valid IPv4 address', FORMS),
    ("10.1/16", '"10.1" is not a valid IPv4 address', FORMS),
    ("1234", '"1234" is not a valid IPv4 address', FORMS),
    ("10.0.0.0/33", '"33" is not a valid prefix length of IPv4', "0 to 32"),
    ("10.0.0.0/08", '"08" is not a valid prefix length of IPv4', "0 to 32"),
    ("10.0.0.0/255.0.0.0", '"255.0.0.0" is not a valid prefix length of IPv4', "0 to 32"),
    ("fd00::/129", '"129" is not a valid prefix length of IPv6', "0 to 128"),
    ("[fd00::/]:80", '"" is not a valid prefix length of IPv6', "0 to 128"),
    (
        "10.1.2.3/8",
        "host bits are set",
        '"10.0.0.0/8", or "10.1.2.3" for the one address | "10.0.0.0/8"',
    ),
    (
        "10.9.9.9/8:80/tcp",
        "host bits are set",
        '"10.0.0.0/8:80/tcp", or "10.9.9.9:80/tcp" for the one address | "10.0.0.0/8:80/tcp"',
    ),
    (
        "1.2.3.4/0",
        "host bits are set",
        '"0.0.0.0/0", or "1.2.3.4" for the one address | "0.0.0.0/0"',
    ),
    (
        "fd00::1/8",
        "host bits are set",
        '"fd00::/8", or "fd00::1" for the one address | "fd00::/8"',
    ),
    (
        "[fd00::1/8]:80",
        "host bits are set",
        '"[fd00::/8]:80", or "[fd00::1]:80" for the one address | "[fd00::/8]:80"',
    ),
    (
        "fd00::/8:80",
        "ports follow an IPv6 prefix without brackets",
        'put it in brackets | "[fd00::/8]:80"',
    ),
    (
        "::/0:80-90/tcp",
        "ports follow an IPv6 prefix without brackets",
        'put it in brackets | "[::/0]:80-90/tcp"',
    ),
    ("frontend:80:90", '"frontend:80:90" is not a valid IPv6 address', FORMS),
    ("fd00::g", '"fd00::g" is not a valid IPv6 address', FORMS),
    ("fe80::1%eth0", '"fe80::1%eth0" has a zone, which means nothing to other machines', FORMS),
    (
        "[fe80::1%eth0]:80",
        '"fe80::1%eth0" has a zone, which means nothing to other machines',
        FORMS,
    ),
    ("::ffff:10.0.0.1", "it is IPv4-mapped", '"10.0.0.1"'),
    ("[::ffff:a00:1]:80", "it is IPv4-mapped", '"10.0.0.1"'),
    ("::ffff:10.0.0.0/104", "it is IPv4-mapped", '"10.0.0.0/8"'),
    ("::ffff:0:0/96", "it is IPv4-mapped", '"0.0.0.0/0"'),
    ("[frontend]:80", BRACKETS, FORMS),
    ("[10.0.0.0/8]:80", BRACKETS, FORMS),
    ("[fd00::1", BRACKETS, FORMS),
    ("[fd00::1]80", BRACKETS, FORMS),
    ("[", BRACKETS, FORMS),
    ("0.0.0.0", "no host has this address", '"0.0.0.0/0" for all of IPv4'),
    ("0.0.0.0/32", "no host has this address", '"0.0.0.0/0" for all of IPv4'),
    ("::", "no host has this address", '"::/0" for all of IPv6'),
    ("[::]:80", "no host has this address", '"::/0" for all of IPv6'),
    ("127.0.0.1:80", LOOPBACK, "remove it"),
    ("127.0.0.0/8", LOOPBACK, "remove it"),
    ("::1", LOOPBACK, "remove it"),
    ("\x1b[31m", '"\\u001b[31m" is not a valid service name', FORMS),
]


@pytest.mark.parametrize("egress", [False, True])
@pytest.mark.parametrize(("text", "reason", "right"), REFUSED)
def test_wrong_entry_is_refused_with_reason_and_the_right_form(
    text: str, reason: str, right: str, egress: bool
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_entry(text, KEY, egress)
    right, _, example = right.partition(" | ")
    message = caught.value.message
    assert message.startswith(f'{KEY}: "')
    assert message.endswith(f" is not a valid entry: {reason} ({right})")
    assert caught.value.hint == (f"for example {example}" if example else None)
    assert caught.value.key == KEY
    assert message.isprintable()


@pytest.mark.parametrize(
    "text", ["host", "localhost", "host:80", "localhost/tcp", "host.niso.local:80"]
)
def test_host_is_no_peer_and_the_message_says_what_holds_in_that_direction(text: str) -> None:
    with refuses(InvalidInput, key="network.policy.allow_from[0]"):
        parse_entry(text, KEY, False)
    with refuses(
        InvalidInput, key="network.policy.allow_from[0]", hint='for example "192.0.2.1:53"'
    ) as caught:
        parse_entry(text, KEY, True)
    assert caught.value.hint == 'for example "192.0.2.1:53"'


def test_what_a_message_calls_right_is_accepted() -> None:
    advised = [each for _, _, right in REFUSED for each in right.split('"')[1::2]]
    assert len(set(advised)) > 15
    for each in advised:
        assert parse_entry(each, KEY, True).text == each


TEXTS = st.one_of(
    st.text(max_size=20),
    st.from_regex(
        r"\[?[a-z0-9.:/%-]{0,20}\]?(:[0-9]{1,5}(-[0-9]{1,5})?)?(/[a-z]{0,4})?", fullmatch=True
    ),
    st.builds(
        "{}{}{}".format,
        st.one_of(
            st.ip_addresses().map(str),
            st.ip_addresses(v=6).map("[{}]".format),
            st.builds(
                lambda address, bits: ipaddress.ip_network((address, bits), False),
                st.ip_addresses(v=4),
                st.integers(0, 32),
            ),
            st.builds(
                lambda address, bits: f"[{ipaddress.ip_network((address, bits), False)}]",
                st.ip_addresses(v=6),
                st.integers(0, 128),
            ),
            st.from_regex(r"(network:)?[a-z][a-z0-9-]{0,5}(\.niso\.local)?", fullmatch=True),
        ),
        st.sampled_from(["", ":80", ":80-90", ":0", ":90-80", ":65535"]),
        st.sampled_from(["", "/tcp", "/udp", "/icmp", "/sctp", "/x"]),
    ),
)


@settings(deadline=None, max_examples=samples(40, 500))
@given(TEXTS, st.booleans(), st.booleans())
def test_any_text_is_an_entry_or_an_error_that_is_safe_to_print(
    text: str, egress: bool, outside: bool
) -> None:
    """What is taken keeps to its form, means the same when written anew, and passes the schema."""
    try:
        entry = parse_entry(text, KEY, egress, outside)
    except InvalidInput as error:
        assert error.message.isprintable()
        assert error.key == KEY
        return
    assert 0 <= entry.first <= entry.last <= 65535
    assert entry.proto in ("", "tcp", "udp", "sctp", "icmp")
    if entry.peer.kind == "prefix":
        assert str(ipaddress.ip_network(entry.peer.name)) == entry.peer.name
    peer = {
        "prefix": "[{}]" if ":" in entry.peer.name else "{}",
        "network": "network:{}",
        "service": "{}",
        "outside": "{}",
    }
    ports = "" if (entry.first, entry.last) == (0, 65535) else f":{entry.first}-{entry.last}"
    again = (
        peer[entry.peer.kind].format(entry.peer.name)
        + ports
        + (f"/{entry.proto}" if entry.proto else "")
    )
    assert parse_entry(again, KEY, egress, outside)._replace(text=text) == entry
    policy: dict[str, Any] = {"allow_from": [text], "egress": {"deny": [text]}}
    if entry.peer.kind == "outside":
        policy = {"egress": {"allow": [text]}}
    data = {
        "package": {"name": "api", "version": "1"},
        "binary": {"entrypoint": "x"},
        "network": {"policy": policy},
    }
    assert VALIDATOR.is_valid(data)


@pytest.mark.parametrize(
    "text",
    [
        "host",
        "localhost:80",
        "Frontend",
        "*.example.com",
        "frontend:0",
        "frontend:80/icmp",
        "[fd00::1",
        "a/b",
        "network:default",
    ],
)
def test_schema_refuses_what_it_can_see_is_wrong(text: str) -> None:
    data = {"package": {"name": "api", "version": "1"}, "binary": {"entrypoint": "x"}}
    for policy in ({"deny_from": [text]}, {"egress": {"allow": [text]}}):
        assert not VALIDATOR.is_valid({**data, "network": {"policy": policy}})


# --- outside names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "first", "last", "proto"),
    [
        ("api.example.com", "api.example.com", 0, 65535, ""),
        ("api.example.com:443", "api.example.com", 443, 443, ""),
        ("1.pool.ntp.org:123/udp", "1.pool.ntp.org", 123, 123, "udp"),
        ("xn--bcher-kva.example/icmp", "xn--bcher-kva.example", 0, 65535, "icmp"),
        ("network.example:80-90/tcp", "network.example", 80, 90, "tcp"),
        ("host.example.com", "host.example.com", 0, 65535, ""),
        ("nas.local:445", "nas.local", 445, 445, ""),
        (f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}", None, 0, 65535, ""),
    ],
)
def test_name_with_a_dot_is_an_outside_one(
    text: str, name: str | None, first: int, last: int, proto: str
) -> None:
    key = "network.policy.egress.allow[0]"
    entry = parse_egress_allow(text, key)
    assert entry == Entry(key, text, Peer("outside", name or text), first, last, proto)
    data = {"package": {"name": "api", "version": "1"}, "binary": {"entrypoint": "x"}}
    for table, valid in (
        ({"egress": {"allow": [text]}}, True),
        ({"egress": {"deny": [text]}}, False),
        ({"allow_from": [text]}, False),
    ):
        assert VALIDATOR.is_valid({**data, "network": {"policy": table}}) is valid


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("*.example.com:443", "a wildcard stands for names that cannot be listed"),
        ("api.Example.com", "it is not in lower case"),
        ("api.example.com.:443", "it ends with a dot"),
        ("bücher.example", "it is not ASCII"),
        ("a..example", "it is not a valid domain name"),
        ("-a.example", "it is not a valid domain name"),
        ("a_b.example", "it is not a valid domain name"),
        ("api.example.123", "it is not a valid domain name"),
        (f"{'a' * 64}.example", "it is not a valid domain name"),
        (".".join(["a" * 62] * 5), "it is not a valid domain name"),
        ("db.localhost:80", "it is a loopback address"),
        ("a.db.niso.local", IS_SERVICE),
        ("10.1.2.x", '"10.1.2.x" is not a valid IPv4 address'),
        ("1.2.3.4.5", '"1.2.3.4.5" is not a valid IPv4 address'),
        ("api.example.com:0", '"0" is not a valid port'),
    ],
)
def test_outside_name_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_egress_allow(text, "network.policy.egress.allow[0]")
    assert reason in raised.value.message


def test_metadata_in_a_deny_list_is_the_addresses_and_a_service_of_that_name() -> None:
    texts = ["metadata:80/tcp", "metadata.niso.local", "metadata2"]
    policy = parse(texts, texts, texts, texts, False)
    assert [(e.peer.name, e.first, e.proto, e.key[-3:]) for e in policy.egress_deny] == [
        ("169.254.169.254/32", 80, "tcp", "[0]"),
        ("fd00:ec2::254/128", 80, "tcp", "[0]"),
        ("metadata", 80, "tcp", "[0]"),
        ("metadata", 0, "", "[1]"),
        ("metadata2", 0, "", "[2]"),
    ]
    for entries in (policy.allow_from, policy.deny_from, policy.egress_allow):
        assert entries is not None
        assert {entry.peer.kind for entry in entries} == {"service"}
