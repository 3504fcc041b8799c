"""Look at network namespaces that others made, before and after niso attaches them."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple
from niso.base.names import is_marked
from niso.kernel import netns
from niso.kernel.rtnetlink import Rtnl


class ForeignNetns(NamedTuple):
    """A network namespace as it is found."""

    cookie: int
    mark: str  # niso's mark on its lo, "" if niso did not make it
    links: frozenset[str]
    routed: frozenset[int]  # the families that have a default route
    is_host: bool = False  # it is the caller's own


def look(path: str) -> ForeignNetns | None:
    """Return the namespace at ``path``; None if there is none. Raises KernelError."""
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
    """Return the symlinks of attachments that lead nowhere, or to the end of a pair in ``marked``.

    ``marked`` are pairs with niso's mark: the indexes of the inner and of the outer end. A number
    alone is used in every namespace. Raises KernelError.
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
