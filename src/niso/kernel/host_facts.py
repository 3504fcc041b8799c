"""Read facts about the host on which plans depend: MTU, prefixes in use and name servers."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from collections.abc import Iterable, Sequence

from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import family_of, is_marked
from niso.base.native import socket
from niso.kernel import proc_sys
from niso.kernel.link_records import Link
from niso.kernel.netlink import address_family
from niso.kernel.rtnetlink import Rtnl
from niso.kernel.ruleset import ROUTED_KINDS, TUNNEL

if TYPE_CHECKING:
    import ipaddress

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_MTU = 1500
RESOLVED_UPSTREAMS = "/run/systemd/resolve/resolv.conf"


def _network(text: str) -> Network:
    """Return the network that contains an address with a prefix length. Raises ValueError."""
    import ipaddress

    return ipaddress.ip_network(text, strict=False)


def default_mtu() -> int:
    """Return the MTU in bytes of the interface of the default route: the IPv4 route, otherwise the
    IPv6 route. Without a default route, return 1500.
    """
    with Rtnl() as rtnl:
        routes = rtnl.routes()
        mtus = {link.index: link.mtu for link in rtnl.links()}
    indexes = (r.index for all_ in ("0.0.0.0/0", "::/0") for r in routes if r.destination == all_)
    return next((mtus[index] for index in indexes if index in mtus), DEFAULT_MTU)


def mtu_of(address: str) -> int | None:
    with Rtnl() as rtnl:
        for own in rtnl.addresses():
            if own.address.partition("/")[0] == address:
                return next((link.mtu for link in rtnl.links() if link.index == own.index), None)
    return None


def used_prefixes(except_alias: str) -> list[tuple[Network, str]]:
    """Return (prefix, interface) of all routes and addresses of the host. Default routes,
    link-local prefixes, and interfaces with the alias ``except_alias`` are left out.
    """
    used: dict[tuple[Network, str], None] = {}
    with Rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        for route in rtnl.routes():
            link = links.get(route.index)
            net = _network(route.destination)
            is_excluded = link is not None and link.alias == except_alias
            if net.prefixlen and not is_excluded and not net.is_link_local:
                used[net, link.name if link else "no link"] = None
        for address in rtnl.addresses():
            link = links.get(address.index)
            net = _network(address.address)
            if link and link.alias != except_alias and not net.is_link_local:
                used[net, link.name] = None
    return list(used)


_LOCAL, _RTN_LOCAL = 255, 2  # RT_TABLE_LOCAL and RTN_LOCAL, linux/rtnetlink.h


def local_prefixes() -> list[Network]:
    """Return the host's own addresses, and prefixes that ``ip route add local`` has made local."""
    with Rtnl() as rtnl:
        routes = rtnl.routes(table=_LOCAL)
    return [_network(one.destination) for one in routes if one.type == _RTN_LOCAL]


# the kinds of bridge ports that lead to containers and virtual machines, not out of the host
_VIRTUAL = ("veth", "tun", "vxlan")


def engine_prefixes() -> list[tuple[Network, str]]:
    """Return (prefix, bridge) for bridges of container engines and virtual machines: those without
    niso's mark that have only virtual ports. A bridge with another port, or with a default route,
    connects the host to other machines and is left out.
    """
    found: dict[tuple[Network, str], None] = {}
    with Rtnl() as rtnl:
        links, routes = rtnl.links(), rtnl.routes()
        outward = {link.master for link in links if link.master and link.kind not in _VIRTUAL}
        outward |= {route.index for route in routes if route.destination.endswith("/0")}
        names = {
            link.index: link.name
            for link in links
            if link.kind == "bridge" and link.index not in outward and not is_marked(link.alias)
        }
        there = [(route.index, route.destination) for route in routes]
        there += [(address.index, address.address) for address in rtnl.addresses()]
    for index, text in there:
        net = _network(text)
        if index in names and not (net.is_link_local or net.is_multicast):
            found[net, names[index]] = None
    return list(found)


def why_no_ipv6() -> str | None:
    """Return why this host cannot have a network with IPv6 (ip-sysctl.rst), or None if it can."""
    disabled = proc_sys.read("net/ipv6/conf/all/disable_ipv6")
    if disabled is None:
        return "this kernel has no IPv6 or was booted with ipv6.disable=1"
    return (
        "IPv6 is disabled (sysctl net.ipv6.conf.all.disable_ipv6 is 1)" if disabled == "1" else None
    )


def receiving6() -> list[str]:
    """Return the network interfaces that can receive IPv6 packets from other machines.

    These are all interfaces except lo, ports of bridges (the bridge receives for them), and the
    WireGuard interface of an encrypted cluster, which carries only VXLAN. Interfaces called "all"
    or "default" are left out, because sysctl folders with these names are not for one interface.
    """
    with Rtnl() as rtnl:
        links = rtnl.links()
    bridges = {link.index for link in links if link.kind == "bridge"}
    return [
        link.name
        for link in links
        if link.name not in ("lo", "all", "default", TUNNEL) and link.master not in bridges
    ]


def routed_links() -> list[Link]:
    """Return the interfaces of container engines and VPNs (`ROUTED_KINDS`), which need forwarding.
    niso's own interfaces and ports of bridges are left out.
    """
    with Rtnl() as rtnl:
        links = rtnl.links()
    return [
        link
        for link in links
        if link.kind in ROUTED_KINDS and not link.master and not is_marked(link.alias)
    ]


def not_forwarding() -> dict[str, set[str]]:
    """Return {name: IPv4 addresses} of other programs' interfaces that are up but do not forward
    IPv4 although the host does. The sysctl is conf/INTERFACE/forwarding (ip-sysctl.rst).
    """
    if proc_sys.read("net/ipv4/ip_forward") != "1":
        return {}
    by_link: dict[str, set[str]] = {}
    with Rtnl() as rtnl:
        for entry in rtnl.addresses():
            address = entry.address.partition("/")[0]
            if family_of(address) == 4 and not address.startswith("127."):
                by_link.setdefault(rtnl.name(entry.index), set()).add(address)
        # one link at a time: there may be a thousand links without an address
        links = [link for name in by_link if name and (link := rtnl.link(name)) is not None]
    return {
        link.name: by_link[link.name]
        for link in links
        if link.up
        and not is_marked(link.alias)
        and proc_sys.read(f"net/ipv4/conf/{link.name}/forwarding") == "0"
    }


def resolv_conf(
    dns: Sequence[str] | None = None, search: Sequence[str] | None = None
) -> tuple[str, str | None]:
    """Return the content of a service's /etc/resolv.conf, and a warning or None. ``dns`` are name
    servers and ``search`` are domains. If a parameter is None, the host's values are used.
    """
    text, warning = _host_resolv_conf()
    replaced = {"nameserver": dns, "search": search, "domain": search}
    lines = [line for line in text.splitlines() if replaced.get((line.split() or [""])[0]) is None]
    lines += [f"nameserver {address}" for address in dns or ()]
    lines += [f"search {' '.join(search)}"] if search else []
    if dns is None and search is None:
        return text, warning
    return "".join(f"{line}\n" for line in lines), None if dns else warning


def _host_resolv_conf() -> tuple[str, str | None]:
    """Return the content of /etc/resolv.conf for a service that uses the host's name servers, and a
    warning or None. Loopback servers are left out, because a service cannot reach them. The stub of
    systemd-resolved(8) is replaced by its upstream servers, if these can be read.
    """
    text = _read("/etc/resolv.conf")
    if not any(map(_is_loopback, text.splitlines())):
        return text, None
    remaining = ""
    for candidate in (_read(RESOLVED_UPSTREAMS), text):
        lines = [line for line in candidate.splitlines() if not _is_loopback(line)]
        remaining = "".join(f"{line}\n" for line in lines)
        if any(line.split()[:1] == ["nameserver"] for line in lines):
            return remaining, None
    warning = (
        "the host's only name servers are on its loopback, which services cannot reach:"
        " external names will not resolve"
    )
    return remaining, warning


def _is_loopback(line: str) -> bool:
    words = line.split()
    if words[:1] != ["nameserver"] or len(words) < 2:
        return False
    try:
        return _network(words[1].partition("%")[0]).is_loopback
    except ValueError:
        return False


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(65536)
    return ""


# linux/in.h, linux/in6.h: IP_MTU and IPV6_MTU; addresses for documentation (RFC 5737, RFC 3849)
_MTU = {
    4: (socket.AF_INET, socket.IPPROTO_IP, 14, "203.0.113.1"),
    6: (socket.AF_INET6, socket.IPPROTO_IPV6, 24, "2001:db8:ffff::1"),
}


def mtu_outwards(family: int) -> tuple[int, str] | None:
    """Return (MTU in bytes of the host's default route, the host's source address for this route).
    Returns None if the IP version ``family`` has no default route. See IP_MTU in ip(7).
    """
    domain, level, option, far = _MTU[family]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with contextlib.closing(socket.socket(domain, kind)) as asker:
        try:
            asker.connect((far, 9))  # a socket for the route lookup; it sends nothing
            return asker.getsockopt(level, option), str(asker.getsockname()[0])
        except OSError:
            return None


def mute_name_servers(lists: Iterable[tuple[str, ...]], seconds: float) -> list[tuple[str, ...]]:
    """Return the lists of name servers in which no server answers within ``seconds``. All name
    servers are queried at once, for the SOA record of the root (RFC 1035, 4.1). Any answer counts,
    even a refusal.
    """
    token = os.urandom(2)
    query = token + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + b"\0" + struct.pack("!HH", 6, 1)
    poll, waiting, mute = select.poll(), {}, list(lists)
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        for server in {server: None for servers in mute for server in servers}:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            asker = socket.socket(address_family(server), kind)
            stack.callback(asker.close)
            with contextlib.suppress(OSError):
                asker.connect((server, 53))
                asker.send(query)
                poll.register(asker, select.POLLIN)
                waiting[asker.fileno()] = asker, server
        while mute and waiting:
            events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            for fd, _ in events:
                asker, server = waiting[fd]
                try:
                    answer = asker.recv(512)
                except BlockingIOError:
                    continue
                except OSError:  # an ICMP error: no program listens there
                    poll.unregister(fd)
                    del waiting[fd]
                    continue
                if answer[:2] == token and len(answer) > 2 and answer[2] & 0x80:
                    mute = [servers for servers in mute if server not in servers]
            if not events or time.monotonic() >= deadline:
                break
    return mute
