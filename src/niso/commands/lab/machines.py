"""Build the lab's network: the host and two more machines on a segment without an uplink."""

from __future__ import annotations

import os

from niso.base.lite_typing import NamedTuple
from niso.kernel import bridge_flags, netns
from niso.kernel.rtnetlink import Rtnl

_MTU = 1500
_V4, _V6 = 24, 64  # prefix lengths
_GATEWAY = ("192.0.2.2", "2001:db8::2")


class _Machine(NamedTuple):
    """A machine on the segment."""

    port: str
    """Its veth end on the segment's bridge."""
    link: str
    """Its own veth end."""
    mac: str
    addresses: tuple[str, str]
    """IPv4, IPv6."""


_HOST = _Machine("host", "uplink0", "02:00:c0:00:02:01", ("192.0.2.1", "2001:db8::1"))
_OTHERS = {
    "client": _Machine("client", "eth0", "02:00:c0:00:02:02", ("192.0.2.2", "2001:db8::2")),
    "neighbour": _Machine("neighbour", "eth0", "02:00:c0:00:02:03", ("192.0.2.3", "2001:db8::3")),
}


def build() -> int:
    """Build the network in the lab's new, empty network namespace. Raises KernelError.

    Returns a descriptor of the unnamed namespace with the segment's bridge; closing it ends that
    namespace.
    """
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    for name in _OTHERS:
        netns.create(name)
    os.unshare(os.CLONE_NEWNET)
    segment = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with Rtnl() as rtnl:
        rtnl.add_bridge("segment", mtu=_MTU, alias="")
        _plug(rtnl, _HOST, home)
        for name, machine in _OTHERS.items():
            far = netns.open_fd(name)
            _plug(rtnl, machine, far)
            os.close(far)
    os.setns(home, os.CLONE_NEWNET)
    os.close(home)
    _configure(_HOST, _GATEWAY)
    for name, machine in _OTHERS.items():
        with netns.inside(name):
            _configure(machine, ())
            if name == "client":
                # The host's gateway has no route onward. With forwarding on, it answers
                # "unreachable", so that name look-ups need not wait for a timeout.
                _write("/proc/sys/net/ipv4/ip_forward", "1")
                if os.path.exists("/proc/sys/net/ipv6"):
                    _write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    return segment


def _plug(rtnl: Rtnl, machine: _Machine, far: int) -> None:
    """Connect a machine, in the network namespace ``far``, to the segment."""
    rtnl.add_veth(
        machine.port,
        peer=machine.link,
        peer_netns_fd=far,
        peer_mac=machine.mac,
        mtu=_MTU,
        bridge="segment",
        port=bridge_flags.new_port(hairpin=False, learns=True),
        alias="",
    )


def _configure(machine: _Machine, gateways: tuple[str, ...]) -> None:
    """Set up the links, addresses and default routes of a machine in its network namespace."""
    families = 2 if os.path.exists("/proc/sys/net/ipv6") else 1
    _no_forwarding()
    if families == 2:
        # The addresses are unique; duplicate address detection would delay them by 2 s.
        _write(f"/proc/sys/net/ipv6/conf/{machine.link}/accept_dad", "0")
    with Rtnl() as rtnl:
        rtnl.set_link("lo", up=True)
        rtnl.set_link(machine.link, up=True)
        link = rtnl.link(machine.link)
        index = link.index if link else 0
        for address, length in list(zip(machine.addresses, (_V4, _V6), strict=True))[:families]:
            rtnl.add_address(index, f"{address}/{length}")
        for gateway, everywhere in list(zip(gateways, ("0.0.0.0/0", "::/0"), strict=False))[
            :families
        ]:
            rtnl.add_route(everywhere, gateway, index)


def _no_forwarding() -> None:
    """Turn off IPv4 forwarding, which a new namespace can inherit.

    See net.core.devconf_inherit_init_net, Documentation/admin-guide/sysctl/net.rst.
    """
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        forwards = file.read().strip() != "0"
    if forwards:
        _write("/proc/sys/net/ipv4/ip_forward", "0")


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
