"""Parse [network.policy], and read the administrator's policies for attachments.

A policy entry is a peer, then optionally ``:PORT`` or ``:PORT-PORT``, then optionally ``/PROTO``:
``frontend:8080/tcp``. A peer is a service (name or hostname, with or without .niso.local),
``network:NAME``, an address or a prefix. An IPv6 address or prefix is in brackets if a port follows
(RFC 3986, 3.2.2). In ``egress.allow`` of a manifest a peer may also be a DNS name: a domain name
with a dot that is not below niso.local. `niso.plan.verdict` defines what an entry matches.

An attachment is a service that a container engine or another program starts. The user of this
program writes the attachment's policy. In addition, the administrator's policies in
``/etc/niso/policies/*.toml`` must allow each packet of the attachment. Such a file has tables
``[[policy]]`` with matchers that select attachments (name, network, owner, pod_namespace, as
patterns of fnmatch(3)), and the keys of ``[network.policy]``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatchcase

from niso.base import files, paths
from niso.base import text as base_text
from niso.base.errors import Error, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import DOMAIN, ip_address, ip_network
from niso.kernel.policy_rules import NEVER
from niso.manifest import toml, values
from niso.plan.records import METADATA, METADATA_WORD, OUTSIDE, Entry, Peer, Policy

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any

    _Prefix = IPv4Network | IPv6Network


# --- [network.policy] -----------------------------------------------------------------------------


PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
ALL_PORTS = (0, 65535)
"""The ports of an entry that sets no ports. Such an entry also matches protocols without ports."""
RIGHT = (
    "PEER[:PORT[-PORT]][/tcp|udp|sctp|icmp], PEER a service, outside, network:NAME, address or"
    " prefix"
)
EXAMPLE = '"frontend:8080/tcp"'
EGRESS_ALLOW = "network.policy.egress.allow"
MOST_NAMES = 32
"""The maximum number of DNS names in a policy."""

DATE = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
"""A regular expression for the values of ``audit_until``: a date, or a date and time."""

NO_END = "never"
"""The value of ``audit_until`` for an audit period without an end."""
AUDIT_ENDS = f'a date, a date and time, or "{NO_END}"'
"""A description of the valid values of ``audit_until``, for messages."""

_NETWORK = "network:"
_NOT_HERE = "names outside niso.local can only be in network.policy.egress.allow of a manifest"
_MAX_DOMAIN = 253  # characters (RFC 1035, 2.3.4, less the length of the first and last label)
_OF_IPV4 = values.DIGITS | {"."}


def parse(
    allow_from: Iterable[str] | None,
    deny_from: Iterable[str],
    egress_allow: Iterable[str] | None,
    egress_deny: Iterable[str],
    log: bool,
    outside: bool = True,
    base: str = "network.policy",
) -> Policy:
    """Build a Policy from the four lists of entries in a manifest.

    An allow list is None if the manifest does not have it. With ``outside``, ``egress_allow`` may
    have DNS names. ``base`` is the policy's key path, for errors. Raises InvalidInput for the first
    invalid entry.
    """

    def entries(
        texts: Iterable[str], key: str, rule: Callable[[str, str], Entry]
    ) -> tuple[Entry, ...]:
        return tuple(rule(text, f"{base}.{key}[{i}]") for i, text in enumerate(texts))

    to = parse_egress_allow if outside else parse_egress
    return Policy(
        None if allow_from is None else entries(allow_from, "allow_from", parse_ingress),
        entries(deny_from, "deny_from", parse_ingress),
        None if egress_allow is None else entries(egress_allow, "egress.allow", to),
        denials(entries(egress_deny, "egress.deny", parse_egress)),
        log,
    )


def denials(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return egress.deny with entries for the clouds' metadata services before each "metadata". The
    entry "metadata" stays, because a service may have this name: it must be denied too.
    """
    result: list[Entry] = []
    for entry in entries:
        if entry.peer.kind == "service" and _split(entry.text, entry.key)[0] == METADATA_WORD:
            for address in METADATA:
                prefix = str(ip_network(address))
                result.append(entry._replace(peer=Peer("prefix", prefix)))
        result.append(entry)
    return tuple(result)


def audit_end(text: str, key: str) -> int:
    """Parse the end of an audit period to a Unix time in seconds. Raises InvalidInput.

    ``text`` is a date or date-time of TOML (RFC 3339), or "never". A date means the start of the
    day. Without an offset, the time zone is the host's. For "never", the result is
    `niso.kernel.policy_rules.NEVER`.
    """
    if text == NO_END:
        return NEVER
    try:
        if not re.fullmatch(DATE, text):
            raise ValueError  # fromisoformat also takes other forms of ISO 8601
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        raise values.wrong(key, text, "is not a valid date", AUDIT_ENDS, "2026-12-10") from None


def problems(network: Mapping[str, object], parsed: Mapping[str, object]) -> Iterator[InvalidInput]:
    """Yield an error for each DNS name in a policy that is also in extra_hosts, and an error for
    too many DNS names. ``network`` is the table [network]. ``parsed`` maps key paths to values.
    """
    hosts = network.get("extra_hosts")
    names: list[str] = []
    for path, entry in parsed.items():
        if not (isinstance(entry, Entry) and entry.peer.kind == "outside"):
            continue
        names += [entry.peer.name] if entry.peer.name not in names else []
        if isinstance(hosts, dict) and entry.peer.name in hosts:
            reason = "its name has another address in network.extra_hosts"
            right = "the address, or remove it from network.extra_hosts"
            yield _wrong_entry(
                entry.text, path, reason, right, base_text.shown(hosts[entry.peer.name])
            )
    if len(names) > MOST_NAMES:
        reason = f"has {len(names)} names outside {DOMAIN}"
        yield values.wrong(EGRESS_ALLOW, names, reason, f"at most {MOST_NAMES} of them")


def parse_ingress(text: str, key: str) -> Entry:
    """Parse an entry of ``allow_from`` or ``deny_from``. Raises InvalidInput."""
    return parse_entry(text, key, False)


def parse_egress(text: str, key: str) -> Entry:
    """Parse an entry of ``egress.deny``, which cannot be a DNS name. Raises InvalidInput."""
    return parse_entry(text, key, True)


def parse_egress_allow(text: str, key: str) -> Entry:
    """Parse an entry of ``egress.allow``, which may be a DNS name. Raises InvalidInput."""
    return parse_entry(text, key, True, True)


def parse_entry(text: str, key: str, egress: bool, outside: bool = False) -> Entry:
    """Parse an entry of a policy. Raises InvalidInput if the value is invalid.

    ``key`` is the key path of the entry. With ``egress``, the entry is for connections from the
    service. With ``outside``, its peer may be a DNS name.
    """
    peer, suffix = _split(text, key)
    ports, slash, proto = (
        suffix[1:].partition("/") if suffix.startswith(":") else ("", suffix, suffix[1:])
    )
    if slash and not proto:
        raise _wrong_entry(text, key, "nothing follows the /")
    if slash and proto not in PROTOCOLS:
        raise _wrong_entry(text, key, f"{base_text.shown(proto)} is not a valid protocol")
    if not suffix.startswith(":"):
        first, last = ALL_PORTS
    elif proto == "icmp":
        right = f"{base_text.shown(f'{peer}/icmp')}, or a port of another protocol"
        raise _wrong_entry(text, key, "ICMP has no ports", right)
    else:
        first, last = _range(ports, text, key)
    if _is_domain(peer):
        return Entry(key, text, _outside(peer, text, key, outside), first, last, proto)
    return Entry(key, text, _peer(peer, suffix, text, key, egress), first, last, proto)


def _split(text: str, key: str) -> tuple[str, str]:
    """Split an entry into (peer without brackets, the rest such as ``:80/tcp``)."""
    if text.startswith("["):
        peer, bracket, suffix = text[1:].partition("]")
        if not bracket or ":" not in peer or (suffix and suffix[0] not in ":/"):
            reason = "it does not start with an IPv6 address or prefix in brackets"
            raise _wrong_entry(text, key, reason)
        return peer, suffix
    # network:8080 is a port of a service called network
    if text.startswith(_NETWORK) and text[(start := len(_NETWORK)) :][:1] not in values.DIGITS:
        ends = [index for index in (text.find(":", start), text.find("/", start)) if index >= 0]
        end = min(ends, default=len(text))
        return text[:end], text[end:]
    if text.count(":") == 1:
        peer, _, ports = text.partition(":")
        return peer, f":{ports}"
    peer, slash, tail = text.rpartition("/")
    return (text, "") if not slash or tail[:1] in values.DIGITS else (peer, f"/{tail}")


def _range(ports: str, text: str, key: str) -> tuple[int, int]:
    low, dash, high = ports.partition("-")
    first = values.port_number(low)
    last = values.port_number(high) if dash else first
    if first is None or last is None:
        shown = base_text.shown(ports)
        reason = f"{shown} is not a valid port" if ports else "no port follows the :"
        raise _wrong_entry(text, key, reason, "ports 1 to 65535")
    if last < first:
        what = f"range {first}-{last} ends before it starts"
        raise _wrong_entry(text, key, what, f"{last}-{first}")
    return first, last


def _peer(peer: str, suffix: str, text: str, key: str, egress: bool) -> Peer:
    """Parse the peer of the policy entry ``text``. Raises InvalidInput. ``suffix`` is the part of
    the entry after the peer, such as ``:80/tcp``.
    """
    if not peer:
        everybody = f'"outside{suffix}" for other machines, "0.0.0.0/0{suffix}" for all of IPv4'
        raise _wrong_entry(text, key, "the peer is missing", everybody if suffix else RIGHT)
    if peer.startswith(_NETWORK) and peer.count(":") == 1:
        return Peer("network", _network(peer.removeprefix(_NETWORK), text, key))
    if peer == OUTSIDE.name:
        return OUTSIDE
    if ":" in peer or "/" in peer or peer[0] in values.DIGITS:
        return Peer("prefix", str(_prefix(peer, suffix, text, key)))
    return Peer("service", _service(peer, text, key, egress))


def _is_domain(peer: str) -> bool:
    if "." not in peer or ":" in peer or "/" in peer:
        return False
    if peer[0] in values.DIGITS:  # 10.1.2.x is a mistyped address, 1.example.com is a name
        return peer.rpartition(".")[2][:2].isalpha() and len(peer.rpartition(".")[2]) > 1
    service = peer.removesuffix(f".{DOMAIN}")
    return service == peer or "." in service


def _outside(peer: str, text: str, key: str, allowed: bool) -> Peer:
    """Parse a peer that is a DNS name (RFC 1123, 2.1; RFC 1035, 2.3.4). Raises InvalidInput."""
    example = '"api.example.com:443"'
    if peer == DOMAIN or peer.endswith(f".{DOMAIN}"):
        raise _wrong_entry(text, key, f"only NAME.{DOMAIN} is a name of a service")
    if "*" in peer:
        reason = "a wildcard stands for names that cannot be listed, so for no known addresses"
        right = "each name, or a prefix" if allowed else "a service, an address or a prefix"
        raise _wrong_entry(text, key, reason, right, example if allowed else '"203.0.113.0/24"')
    if not allowed:
        right = "a service, an address or a prefix"
        raise _wrong_entry(text, key, _NOT_HERE, right, '"203.0.113.7:443"')
    labels = peer.split(".")
    if not peer.isascii():
        raise _wrong_entry(text, key, "it is not ASCII", "the form of DNS: xn--...", example)
    if peer != peer.lower():
        raise _wrong_entry(text, key, "it is not in lower case", f'"{text.lower()}"')
    if not labels[-1]:
        right = f'"{text.replace(peer, peer[:-1], 1)}"' if len(labels) > 2 else RIGHT
        raise _wrong_entry(text, key, "it ends with a dot", right)
    valid = all(
        label
        and len(label) <= values.MAX_NAME
        and values.NAME_CHARACTERS.issuperset(label)
        and not (label.startswith("-") or label.endswith("-"))
        for label in labels
    )
    if not valid or len(peer) > _MAX_DOMAIN or labels[-1][0] not in values.LOWER:
        right = "labels of a-z, 0-9 and -, with dots between them"
        raise _wrong_entry(text, key, "it is not a valid domain name", right, example)
    if labels[-1] == "localhost":
        raise _wrong_entry(text, key, "it is a loopback address (RFC 6761, 6.3)", "remove it")
    return Peer("outside", peer)


def _network(name: str, text: str, key: str) -> str:
    if name == "default":
        reason = "the default network is called niso-default"
        raise _wrong_entry(text, key, reason, '"network:niso-default"')
    try:
        return values.network_name(name, key)
    except InvalidInput:
        reason = f"{base_text.shown(name)} is not a valid network name"
        right = f"network:NAME, NAME of {values.NETWORK_RIGHT}"
        raise _wrong_entry(text, key, reason, right, '"network:backend"') from None


def _service(peer: str, text: str, key: str, egress: bool) -> str:
    name = peer.removesuffix(f".{DOMAIN}")
    if name in ("host", "localhost"):
        if egress:
            reason = "the host is not a service"
            raise _wrong_entry(text, key, reason, "an address of the host", '"192.0.2.1:53"')
        raise _wrong_entry(text, key, "the host can always connect", "remove it")
    try:
        return values.host_label(name, key)
    except InvalidInput:
        reason = f"{base_text.shown(name)} is not a valid service name"
        raise _wrong_entry(text, key, reason, RIGHT) from None


def _prefix(peer: str, suffix: str, text: str, key: str) -> _Prefix:
    address, slash, length = peer.partition("/")
    if not (values.is_ipv4(address) or values.is_ipv6(address)):
        raise _wrong_entry(text, key, _not_an_address(address, bool(slash)))
    number = ip_address(address)
    bits = values.port_number(length) if slash else number.max_prefixlen
    bits = 0 if length == "0" else bits
    if bits is None or bits > number.max_prefixlen:
        if number.version == 6 and ":" in length:
            reason = "ports follow an IPv6 prefix without brackets"
            example = f'"[{address}/{length.replace(":", "]:", 1)}{suffix}"'
            raise _wrong_entry(text, key, reason, "put it in brackets", example)
        reason = f"{base_text.shown(length)} is not a valid prefix length of IPv{number.version}"
        raise _wrong_entry(text, key, reason, f"0 to {number.max_prefixlen}")
    prefix = ip_network(f"{number}/{bits}", strict=False)
    if prefix.network_address != number:
        whole, single = (_written(str(peer), suffix) for peer in (prefix, number))
        right = f"{whole}, or {single} for the one address"
        raise _wrong_entry(text, key, "host bits are set", right, whole)
    if reason_and_right := _not_a_peer(prefix):
        raise _wrong_entry(text, key, *reason_and_right)
    return prefix


def _not_an_address(text: str, with_length: bool) -> str:
    shown = base_text.shown(text)
    if ":" not in text:
        if with_length and not _OF_IPV4.issuperset(text):
            return f"{shown} is not an address, and only addresses have a prefix length"
        return f"{shown} is not a valid IPv4 address"
    if "%" in text:
        return f"{shown} has a zone, which means nothing to other machines"
    return f"{shown} is not a valid IPv6 address"


def _written(peer: str, suffix: str) -> str:
    if ":" in peer and suffix.startswith(":"):
        return f'"[{peer}]{suffix}"'
    return f'"{peer}{suffix}"'


def _not_a_peer(prefix: _Prefix) -> tuple[str, str] | None:
    """Return (reason, valid form) if no peer can have an address in a prefix, otherwise None."""
    if prefix.version == 6 and int(prefix.network_address) >> 32 == 0xFFFF:  # ::ffff:0:0/96
        number = ip_network((int(prefix.network_address) & 0xFFFFFFFF, prefix.prefixlen - 96))
        plain = str(number.network_address) if number.prefixlen == 32 else str(number)
        return "it is IPv4-mapped", f'"{plain}"'
    if prefix.prefixlen == prefix.max_prefixlen and prefix.network_address.is_unspecified:
        right = f'"{prefix.network_address}/0" for all of IPv{prefix.version}'
        return "no host has this address", right
    if prefix.is_loopback:
        reason = "services never see loopback addresses of others, and the host can always connect"
        return reason, "remove it"
    return None


def _wrong_entry(
    text: str, key: str, reason: str, right: str = RIGHT, example: str = ""
) -> InvalidInput:
    example = example or (EXAMPLE if right == RIGHT else "")
    return values.wrong(key, text, f"is not a valid entry: {reason}", right, example)


# --- /etc/niso/policies ---------------------------------------------------------------------------


MATCHERS = ("name", "network", "owner", "pod_namespace")
_LISTS = ("allow_from", "deny_from")
_EGRESS = ("allow", "deny")
_FURTHER = ("log", "egress")
_LONGEST_NAME = 30
"""The maximum length of a policy file's name in characters. The name is part of the comments of
nftables elements, whose length is limited."""


def about(
    name: str, networks: tuple[str, ...], owner: str, labels: Mapping[str, str]
) -> Iterator[Policy]:
    """Yield the administrator's policies for the attachment ``name``. Raises Error. A policy
    selects attachments by their names, networks, owners and labels.
    """
    subject: dict[str, tuple[str, ...]] = {label: (text,) for label, text in labels.items()}
    subject |= {"name": (name,), "network": networks, "owner": (owner,)}
    for file in _files():
        for number, table in enumerate(_tables(file)):
            if _is_about(table, subject):
                egress = table.get("egress", {})
                yield parse(
                    table.get("allow_from"),
                    table.get("deny_from", ()),
                    egress.get("allow"),
                    egress.get("deny", ()),
                    bool(table.get("log", False)),
                    outside=False,
                    base=f"{os.path.basename(file)}:policy[{number}]",
                )


def _files() -> list[str]:
    folder = paths.policy_dir()
    try:
        # a user who can change the folder or its parent folder can remove policies
        for at in (os.path.dirname(folder), folder):
            if how := files.changed_by_others(at, {0}):
                raise InvalidInput(f"{at}: it {how}", _untrusted(at))
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Error(f"{folder}: {error.strerror}") from error
    return [os.path.join(folder, name) for name in sorted(names) if name.endswith(".toml")]


def _untrusted(path: str) -> str:
    return f"chown root: {path}; chmod go-w {path}; nothing is attached until then"


def _tables(file: str) -> list[dict[str, Any]]:
    """Return the [[policy]] tables of a policy file. Raises Error if the file is invalid."""
    if len(os.path.basename(file)) > _LONGEST_NAME:
        raise InvalidInput(f"{file}: its name is too long", f"at most {_LONGEST_NAME} characters")
    data = toml.load(file, "file of policies", {0}, _untrusted(file))
    tables = data.get("policy", [])
    if data.keys() - {"policy"} or not isinstance(tables, list):
        raise _wrong_file(file, "has other keys than tables [[policy]]")
    for number, table in enumerate(tables):
        where = f"policy[{number}]"
        if not isinstance(table, dict):
            raise _wrong_file(file, f"{where} is not a table")
        for key, value in table.items():
            if key not in (*MATCHERS, *_LISTS, *_FURTHER):
                raise _wrong_file(file, f"{where}.{key} is not a known key")
            if key not in _FURTHER:
                one = key in MATCHERS and isinstance(value, str)
                _require_texts(file, f"{where}.{key}", [value] if one else value)
        if not isinstance(table.get("log", False), bool):
            raise _wrong_file(file, f"{where}.log is neither true nor false")
        egress = table.get("egress", {})
        if not isinstance(egress, dict) or egress.keys() - set(_EGRESS):
            raise _wrong_file(file, f"{where}.egress has other keys than allow and deny")
        for key, value in egress.items():
            _require_texts(file, f"{where}.egress.{key}", value)
    return tables


def _require_texts(file: str, key: str, value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong_file(file, f"{key} is not a list of texts")


def _wrong_file(file: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{file}: {reason}", "nothing is attached until this file is right")


def _is_about(table: Mapping[str, Any], subject: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether each matcher in a [[policy]] table matches the attachment ``subject``.
    ``subject`` maps each matcher, such as network, to the attachment's values.
    """
    for matcher in table.keys() & {*MATCHERS}:
        given = table[matcher]
        patterns = [given] if isinstance(given, str) else given
        own = subject.get(matcher, ())
        if not any(fnmatchcase(value, pattern) for value in own for pattern in patterns):
            return False
    return True
