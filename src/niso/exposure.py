"""From where a published port can be reached, as far as this host can tell."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from niso.kernel.rtnetlink import Rtnl
from niso.records import ANY4, ANY6, Port


def ways_in(ports: Iterable[Port]) -> list[list[str]]:
    """For each port (with one address, or all of one family): who can reach it, in words. Raises KernelError."""
    by_link = _addresses()
    return [_ways(port, by_link) for port in ports]


def _addresses() -> list[tuple[str, str, bool]]:
    """(address, link, the link is one to other machines) of this host."""
    with Rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        found = []
        for each in rtnl.addresses():
            address = ipaddress.ip_interface(each.address).ip
            link = links.get(each.index)
            if link is not None and not address.is_link_local:
                outside = not address.is_loopback and not link.alias.startswith("niso:") and link.name != "lo"
                found.append((str(address), link.name, outside))
    return found


def _ways(port: Port, addresses: list[tuple[str, str, bool]]) -> list[str]:
    if port.host_ip in (ANY4, ANY6):
        there = [each for each in addresses if (":" in each[0]) == (port.host_ip == ANY6)]
    elif port.host_ip.startswith("127."):
        return ["this host"]
    else:
        there = [each for each in addresses if each[0] == port.host_ip]
        if not there:
            return [f"nobody: this host has no address {port.host_ip} now"]
    outside = [f"{address} on {link}" for address, link, is_outside in there if is_outside]
    others = [f"other machines by {', '.join(outside)}"] if outside else []
    return ["this host", "services", *others]
