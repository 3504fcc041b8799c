"""Facts of the host that a plan needs: its default route's MTU, the prefixes that it uses, its resolver."""

from __future__ import annotations

import ipaddress

from niso.base.names import is_marked
from niso.kernel import sysctl
from niso.kernel.rtnetlink import Rtnl

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_MTU = 1500
RESOLVED_UPSTREAMS = "/run/systemd/resolve/resolv.conf"


def default_mtu() -> int:
    """The MTU (bytes) of the link of the IPv4 default route, else of the IPv6 one, else 1500."""
    with Rtnl() as rtnl:
        routes = rtnl.routes()
        for everywhere in ("0.0.0.0/0", "::/0"):
            for route in routes:
                if route.destination == everywhere and route.index:
                    for link in rtnl.links():
                        if link.index == route.index:
                            return link.mtu
    return DEFAULT_MTU


def used_prefixes(except_alias: str) -> list[tuple[Network, str]]:
    """(prefix, link) of all routes and addresses of this host but default routes and those of links with this alias."""
    found: dict[tuple[Network, str], None] = {}
    with Rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        for route in rtnl.routes():
            link = links.get(route.index)
            net = ipaddress.ip_network(route.destination)
            if (
                net.prefixlen
                and not (link and link.alias == except_alias)
                and not net.is_link_local
            ):
                found[net, link.name if link else "no link"] = None
        for address in rtnl.addresses():
            link = links.get(address.index)
            net = ipaddress.ip_interface(address.address).network
            if link and link.alias != except_alias and not net.is_link_local:
                found[net, link.name] = None
    return list(found)


def lacks_ipv6() -> str | None:
    """Why this host can have no network with IPv6, in words; None if it can (ip-sysctl.rst, conf/all/disable_ipv6)."""
    disabled = sysctl.read("net/ipv6/conf/all/disable_ipv6")
    if disabled is None:
        return "this kernel has no IPv6, or was started with ipv6.disable=1"
    return (
        "IPv6 is switched off here (sysctl net.ipv6.conf.all.disable_ipv6 is 1)"
        if disabled == "1"
        else None
    )


def receiving6() -> list[str]:
    """The links at which IPv6 packets of others can arrive: all but lo, and ports of bridges, which receive for them.

    A name that is not a sysctl's folder of its own ("all", "default") is left out.
    """
    with Rtnl() as rtnl:
        links = rtnl.links()
    bridges = {link.index for link in links if link.kind == "bridge"}
    return [
        link.name
        for link in links
        if link.name not in ("lo", "all", "default") and link.master not in bridges
    ]


def not_forwarding() -> dict[str, set[str]]:
    """The links of others that are up, have IPv4 addresses and forward nothing that comes by them while the host forwards:
    name -> addresses. Their own sysctls say so (ip-sysctl.rst, conf/interface/forwarding). Raises KernelError."""
    if sysctl.read("net/ipv4/ip_forward") != "1":
        return {}
    found: dict[str, set[str]] = {}
    with Rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        for each in rtnl.addresses():
            address, link = ipaddress.ip_interface(each.address).ip, links.get(each.index)
            if (
                address.version == 4
                and not address.is_loopback
                and link
                and link.up
                and not is_marked(link.alias)
            ):
                found.setdefault(link.name, set()).add(str(address))
    return {
        name: own
        for name, own in found.items()
        if sysctl.read(f"net/ipv4/conf/{name}/forwarding") == "0"
    }


def resolv_conf() -> tuple[str, str | None]:
    """(text for a service's /etc/resolv.conf, a warning or None).

    The host's, without its loopback servers, which a service cannot reach: systemd-resolved's upstreams stand in for them
    where they are known (systemd-resolved.service(8)).
    """
    text = _read("/etc/resolv.conf")
    if not any(_is_loopback(line) for line in text.splitlines()):
        return text, None
    upstreams = _read(RESOLVED_UPSTREAMS)
    for candidate in (upstreams, text):
        kept = [line for line in candidate.splitlines() if not _is_loopback(line)]
        if any(line.split()[:1] == ["nameserver"] for line in kept):
            return "\n".join(kept) + "\n", None
    rest = [line for line in text.splitlines() if not _is_loopback(line)]
    warning = "the host's only name servers are on its loopback, which services cannot reach: outside names will not resolve"
    return "".join(f"{line}\n" for line in rest), warning


def _is_loopback(line: str) -> bool:
    words = line.split()
    if words[:1] != ["nameserver"] or len(words) < 2:
        return False
    try:
        return ipaddress.ip_address(words[1].partition("%")[0]).is_loopback
    except ValueError:
        return False


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""
