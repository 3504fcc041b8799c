"""Inspect network namespaces that other programs made, before and after niso attaches them."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple
from niso.base.names import is_marked
from niso.kernel import netns
from niso.kernel.rtnetlink import Rtnl


class ForeignNetns(NamedTuple):
    """The properties of an existing foreign network namespace."""

    cookie: int
    mark: str  # niso's mark on the namespace's lo, "" if niso did not create the namespace
    links: frozenset[str]
    routed: frozenset[int]  # the families with a default route
    is_host: bool = False  # the namespace is the caller's own


def look(path: str) -> ForeignNetns | None:
    """Return the properties of the namespace at ``path``; None if there is none.

    Raises KernelError.
    """
    cookie = netns.cookie_at(path)
    if cookie is None:
        return None
    with netns.Elsewhere(path, path), Rtnl() as rtnl:
        links = rtnl.links()
        routes = rtnl.routes()
    lo = next((link for link in links if link.name == "lo"), None)
    return ForeignNetns(
        cookie,
        lo.alias if lo is not None and is_marked(lo.alias) else "",
        frozenset(link.name for link in links),
        frozenset(
            6 if route.destination == "::/0" else 4
            for route in routes
            if route.destination in ("0.0.0.0/0", "::/0")
        ),
        cookie == netns.own_cookie(),
    )


def dead_names(marked: set[tuple[int, int]]) -> list[str]:
    """Return attachments' symlinks that lead nowhere, or to the inner end of a pair in ``marked``.

    ``marked`` are veth pairs with niso's mark, as indexes of the inner and of the outer end. One
    index alone is not enough, because it is unique only within a namespace. Raises KernelError.
    """
    names = []
    for name in netns.symlinks():
        if not netns.exists(name):
            names.append(name)
            continue
        with netns.inside(name), Rtnl() as rtnl:
            if marked & {(x.index, x.peer_index) for x in rtnl.links() if x.kind == "veth"}:
                names.append(name)
    return names
