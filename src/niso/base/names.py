"""Derive the names and MACs of bridges, interfaces and namespaces. Parse and format addresses.
Check names that users choose.

All names and MACs are deterministic. An interface name has at most 15 characters (IFNAMSIZ - 1,
linux/if.h).

The functions for addresses and prefixes replace `ipaddress` for input that is already validated.
`ipaddress` would take 6 of the 182 million instructions of an attachment.
"""

from __future__ import annotations

from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import lazy, sha256, socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from niso.base import text as base_text
else:
    base_text = lazy("niso.base.text")

MAX_IFNAME = 15
DEFAULT_NETWORK = "niso-default"
BRIDGES = '"niso-*"'
"""A pattern for nftables rules that matches all bridges of niso. Matching it takes less than half
the time of a lookup in a set."""
BRIDGE_GROUP, PORT_GROUP, TUNNEL_GROUP = 0x6E696F00, 0x6E696F10, 0x6E696F12
"""The groups (IFLA_GROUP, ip-link(8)) of niso's bridges, of their ports, and of VXLAN devices.

A rule compares a group in half the time of a name. Rules compare names wherever a packet of an
interface without its group could otherwise pass. The numbers are even: `Rtnl.delete_links` uses odd
ones.
"""
DOMAIN = "niso.local"
MAC_PREFIX = "0a:"
"""The first byte of every MAC that niso assigns. These are the MACs of bridges, of services, and of
the host's ends of veth pairs."""


def _digest(text: str, length: int) -> str:
    return sha256(text.encode()).hexdigest()[:length]


def bridge(network: str) -> str:
    """Return the bridge name of a network: ``niso-backend`` for ``backend``."""
    if network == DEFAULT_NETWORK:
        return DEFAULT_NETWORK
    name = f"niso-{network}"
    if len(name) <= MAX_IFNAME:
        return name
    return f"niso-{network[:4].rstrip('-')}-{_digest(network, 5)}"


def vxlan(network: str) -> str:
    """Return the name of a network's VXLAN device: ``nx-backend`` for ``backend``."""
    name = f"nx-{network}"
    if len(name) <= MAX_IFNAME:
        return name
    return f"nx-{network[:6].rstrip('-')}-{_digest(network, 5)}"


def veth(service: str, network: str, generation: int) -> str:
    """Return the name of the host's end of the veth pair that connects a service to a network.

    Each activation (``generation``) uses a new name, because the kernel deletes the interfaces of a
    deleted namespace only some time later. The digest in the name has 28 bits, so two interfaces
    may get the same name: `niso.change.admit` then chooses another generation.
    """
    return f"ni{link_prefix(service)}-{_digest(f'{service}/{network}/{generation}', 7)}"


def link_prefix(service: str) -> str:
    """Return the first 5 characters of a service's name, for the names of its interfaces."""
    return service[:5].rstrip("-")


def owner(service: str) -> str:
    """Return the service that a name belongs to: ``web`` for ``web`` and its instance ``web.2``."""
    return service.partition(".")[0]


def netns(service: str) -> str:
    return f"niso-{service}"


_MARK = "niso:"


def alias(state_id: str) -> str:
    """Return the alias (IFLA_IFALIAS) for interfaces that niso creates for this state folder."""
    return f"{_MARK}{state_id}"


def is_marked(alias: str) -> bool:
    """Return whether an interface's alias shows that niso created it, for any state folder."""
    return alias.startswith(_MARK)


def state_id_of(alias: str) -> str:
    """Return the id of the state folder in the alias of a network interface that niso created."""
    return alias.removeprefix(_MARK)


def mac(service: str, network: str, owner: str) -> str:
    """Return the MAC of a service on a network: locally administered and unicast (IEEE 802, 8.2.2).

    ``owner`` is the id of the state folder, or the id of the cluster if the network spans hosts.
    The MAC therefore stays the same when the service is activated again, or moves to another host.
    """
    return MAC_PREFIX + bytes.fromhex(_digest(f"{owner}/{service}/{network}", 10)).hex(":")


def own_hosts_folder(service: str) -> str:
    """Return the name of the folder with the hosts file that only this service reads. The name
    starts with "=", unlike the folders of shared hosts files.
    """
    return f"={service}"


def hosts_folder(networks: tuple[str, ...]) -> str:
    """Return the folder name of the hosts file for services on these networks. All services that
    are on exactly these networks, in this order, share the file.
    """
    plain = "+".join(networks)
    return plain if len(plain) <= 100 else f"{plain[:80]}+{_digest(plain, 16)}"


def family_of(address: str) -> int:
    """Return the IP version, 4 or 6, of an address or prefix string."""
    return 6 if ":" in address else 4


def bracketed(address: str) -> str:
    """Return an address as in a URL: ``[fd00::1]`` for IPv6, IPv4 unchanged (RFC 3986, 3.2.2)."""
    return f"[{address}]" if family_of(address) == 6 else address


def span(first: int, count: int) -> str:
    """Format ``count`` ports from ``first`` on: ``8000`` for one port, or ``8000-8010``."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


_COMPATIBLE = bytes(10)
_SIZES = {4: 4, 6: 16}
"""Maps the IP version to the number of bytes of an address."""


def packed(address: str) -> bytes:
    """Return the bytes of an address in network byte order. Raises OSError for invalid text."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def number(address: str) -> int:
    """Return an address as an integer. Raises OSError for invalid text."""
    return int.from_bytes(packed(address))


def unpacked(address: bytes) -> str:
    """Format the 4 or 16 bytes of an address, in network byte order, as `ipaddress` does."""
    if len(address) == 4:
        return socket.inet_ntop(socket.AF_INET, address)
    # inet_ntop(3) writes some IPv6 addresses with a dotted IPv4 part
    if address.startswith(_COMPATIBLE):
        return str(ip_address(address))
    return socket.inet_ntop(socket.AF_INET6, address)


def ip_address(text: str | bytes) -> IPv4Address | IPv6Address:
    """Return `ipaddress.ip_address`. Importing `ipaddress` takes a millisecond."""
    import ipaddress

    return ipaddress.ip_address(text)


def ip_network(text: str | tuple[int, int], strict: bool = True) -> IPv4Network | IPv6Network:
    """Return `ipaddress.ip_network`."""
    import ipaddress

    return ipaddress.ip_network(text, strict)


class Prefix(NamedTuple):
    """An IP prefix as (IP version, first address, length). 10.99.1.0/24 is (4, 0x0a630100, 24)."""

    version: int
    start: int
    length: int

    @property
    def num_addresses(self) -> int:
        """Return the number of addresses in the prefix, like `ipaddress.IPv4Network`."""
        return 1 << (_SIZES[self.version] * 8 - self.length)

    def address_at(self, offset: int) -> str:
        """Return the address at ``offset`` in the prefix. Raises ValueError outside the prefix."""
        if not 0 <= offset < self.num_addresses:
            raise ValueError(offset)
        return unpacked((self.start + offset).to_bytes(_SIZES[self.version]))

    def offset(self, address: str) -> int:
        """Return the distance of an address from the first address of the prefix."""
        return number(address) - self.start

    def contains(self, address: str) -> bool:
        """Return whether the prefix contains an address."""
        return family_of(address) == self.version and 0 <= self.offset(address) < self.num_addresses


def prefix(cidr: str) -> Prefix:
    """Parse a prefix string that is already validated, such as ``10.99.1.0/24``."""
    start, _, length = cidr.partition("/")
    return Prefix(family_of(cidr), number(start), int(length))


def within(addresses: Iterable[str]) -> Callable[[bytes], bool]:
    """Return a function that tests whether a packed address (4 or 16 bytes) is covered by
    ``addresses``, which are addresses and prefixes.
    """
    exact, prefixes = set(), []
    for text in addresses:
        if "/" in text:
            prefixes.append(prefix(text))
        else:
            exact.add(packed(text))

    def contains(address: bytes) -> bool:
        value, version = int.from_bytes(address), 6 if len(address) == 16 else 4
        return address in exact or any(
            one.version == version and 0 <= value - one.start < one.num_addresses
            for one in prefixes
        )

    return contains


# --- names that users choose ----------------------------------------------------------------------


LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
DIGITS = frozenset("0123456789")
NAME_CHARACTERS = LOWER | DIGITS | {"-"}
MAX_NAME = 63  # a label of RFC 1035, 2.3.4

NAME_RIGHT = "a-z, 0-9 and -, first a letter, last a letter or digit, at most 63 characters"
NETWORK_RIGHT = "a-z, 0-9 and -, first a letter, at most 63 characters"
_CHARACTERS_RIGHT = "a-z, 0-9, -"


def wrong(key: str, value: object, reason: str, right: str, example: str = "") -> InvalidInput:
    """Build the error for the invalid value of a key.

    ``reason`` says what is invalid, such as "is out of range". ``right`` says what is valid, such
    as "1 to 65535".
    """
    hint = f"for example {example}" if example else None
    error = InvalidInput(reason, hint, key, value=base_text.shown(value), right=right)
    error.example = example
    return error


def require(text: str, key: str, reason: str | None, right: str, example: str = "") -> str:
    """Return ``text`` if it is valid: ``reason`` is None or "". Otherwise raise InvalidInput.

    `wrong` builds the error from the arguments.
    """
    if reason:
        raise wrong(key, text, reason, right, example)
    return text


def _name(text: str, key: str, right: str, example: str, *, is_label: bool = True) -> str:
    """Return ``text`` if it is a valid name, and with ``is_label`` also a valid host name."""
    reason = ""
    invalid = next((character for character in text if character not in NAME_CHARACTERS), None)
    if not text:
        reason = "it is empty"
    elif len(text) > MAX_NAME:
        reason = f"it has {len(text)} characters"
    elif invalid is not None:
        reason, right = f"{base_text.shown(invalid)} is not allowed", _CHARACTERS_RIGHT
    elif text[0] not in LOWER:
        reason = "it does not start with a letter"
    elif is_label and text.endswith("-"):
        reason = "it ends with -"
    elif is_label and (text in ("host", "localhost", "outside") or text.startswith("ip6-")):
        reason = "it is reserved by the system"
    return require(text, key, reason and f"is not a valid name: {reason}", right, example)


def service_name(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name of a service. Raises InvalidInput."""
    return _name(text, key, NAME_RIGHT, '"api"')


def host_label(text: str, key: str) -> str:
    """Return ``text`` if it is a valid lower-case host name (RFC 1123, 2.1) and not reserved."""
    return _name(text, key, NAME_RIGHT, '"web"')


def network_name(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name of a network. Raises InvalidInput.

    ``default`` is refused, because its bridge would have the same name as the bridge of
    ``niso-default``. ``none`` and ``host`` are refused, because they are values of network.mode: a
    network ``none`` would mean the opposite of Docker's ``--network none``.
    """
    _name(text, key, NETWORK_RIGHT, '"backend"', is_label=False)
    if text == "default":
        reason = "is not a valid name: the default network is called niso-default"
        raise wrong(key, text, reason, NETWORK_RIGHT, '"backend"')
    right = f'did you mean mode = "{text}"?' if key.startswith("network") else NETWORK_RIGHT
    is_mode = text in ("none", "host")
    return require(text, key, "is not a network but a mode" if is_mode else None, right)
