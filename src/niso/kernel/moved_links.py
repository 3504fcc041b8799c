"""Hand the inner end of a veth pair to an engine, which moves it into a namespace of its own.

Docker requests a link on the host at a time when its container has no namespace yet.
"""

from __future__ import annotations

import os

from niso.base.lite_typing import NamedTuple
from niso.kernel import netns
from niso.kernel.netlink import Message, text, u32
from niso.kernel.rtnetlink import NEWLINK, Rtnl, ifinfo
from niso.kernel.rtnl_records import IFF_UP, IFLA_IFNAME

_IFLA_NET_NS_FD = 28  # linux/if_link.h


class Moved(NamedTuple):
    """The inner end of a veth pair, at the place to which its engine has moved it."""

    cookie: int  # index in the namespace
    interface: str


def new_namespace() -> int:
    """Create a network namespace that exists until the returned descriptor is closed.

    Raises KernelError.
    """
    with netns.unnamed():
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def hand_over(space: int, interface: str, name: str) -> None:
    """Move a link from the namespace ``space`` (a descriptor) into the caller's, as ``name``.

    The link is down afterwards. Raises KernelError.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netns.Elsewhere("(new)", f"/proc/self/fd/{space}"), Rtnl() as rtnl:
            index = rtnl.index(interface)
            what = f"hand '{interface}' over as '{name}'"
            moved = ifinfo(index) + text(IFLA_IFNAME, name) + u32(_IFLA_NET_NS_FD, home)
            rtnl.transact(
                Message(what, NEWLINK, 0, ifinfo(index, 0, IFF_UP)),
                Message(what, NEWLINK, 0, moved),
            )
    finally:
        os.close(home)


def find(path: str, host_end: str, address: str) -> Moved | None:
    """Return the other end of ``host_end`` in the namespace at ``path``.

    Returns None until the engine has set the link up with its address. Raises KernelError.
    """
    cookie = netns.cookie_at(path)
    if cookie is None:
        return None
    with Rtnl() as rtnl:
        outer = rtnl.link(host_end)
    if outer is None:
        return None
    with netns.Elsewhere(path, path), Rtnl() as rtnl:
        ends = ((x.index, x.peer_index, x) for x in rtnl.links() if x.kind == "veth" and x.up)
        link = next((x for *pair, x in ends if pair == [outer.peer_index, outer.index]), None)
        if link is None:
            return None
        if address not in {x.address.partition("/")[0] for x in rtnl.addresses(link.index)}:
            return None
    return Moved(cookie, link.name)
