"""Define the kind of routes in the main table of services' namespaces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step, in_netns, inside, link_place, netns_place

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.writing import Writer


LAST = 0x7FFFFFFF
"""The metric of routes that give way to others. The kernel takes the route with the lowest one."""


class Route(NamedTuple):
    """A route. ``destination`` is a prefix; a default route has ``0.0.0.0/0`` or ``::/0``.

    ``type`` is "" for a unicast route, as all of niso's are. For blackhole, unreachable, prohibit
    and throw there is no link. A ``last`` route gives way to every other one to its destination.
    """

    netns: str
    destination: str
    gateway: str
    link: str
    type: str = ""
    last: bool = False

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.destination, self.type)


class _Routes(Kind[Route]):
    names_links = True
    is_read_by_link = True

    def space(self, thing: Route) -> str:
        return thing.netns

    def links(self, thing: Route) -> tuple[str, ...]:
        return (thing.link,)

    def lies_in(self, thing: Route) -> tuple[str, ...]:
        return (netns_place(thing.netns), link_place(thing.netns, thing.link))

    def describe(self, step: Step[Route]) -> str:
        route = step.thing
        start = f"{inside(route.netns)}route"
        if route.type:
            return f"{start} delete {route.type} {route.destination}"
        verb = "replace" if step.action == "change" else step.action
        by = (
            f"via {route.gateway} dev {route.link} onlink" if route.gateway else f"dev {route.link}"
        )
        metric = f" metric {LAST}" if route.last else ""
        return f"{start} {verb} {route.destination} {by}{metric}"

    def what(self, thing: Route) -> str:
        if thing.type:
            return f"route {thing.type} {thing.destination}{in_netns(thing.netns)}"
        by = f" via {thing.gateway}" if thing.gateway else ""
        last = ", after all others" if thing.last else ""
        return f"route {thing.destination}{by} on {thing.link}{last}{in_netns(thing.netns)}"

    def follows_from(self, thing: Route, was: Route | None) -> tuple[str, ...]:
        """Return the conditions under which the kernel drops all routes of the link.

        IPv4 routes are lost with the link's last IPv4 address (fib_disable_ip,
        net/ipv4/fib_frontend.c).
        """
        link = link_place(thing.netns, thing.link)
        if ":" in thing.destination:
            whole = link_place(thing.netns, "all")
            return (f"{whole} without IPv6", f"{link} down", f"{link} without IPv6")
        return (f"{link} down", f"{link} IPv4")

    def read(self, space: Space, things: Collection[Route]) -> Iterable[Route]:
        """Read all routes of the candidates' links, except the kernel's own.

        Those lead to the prefix of an address, and `Address` compares them by their destination,
        because any program can label its route as the kernel's. Routes of the host's own namespace
        are not niso's.
        """
        if not space.name:
            return
        from niso.kernel.rtnetlink import KERNEL, NOWHERE
        from niso.kernel.rtnl_records import prefix

        for link in space.links_of_concern():
            prefixes = {prefix(address.address) for address in space.addresses(link)}
            for route in space.routes(link):
                connected = route.protocol == KERNEL and not route.gateway
                if not connected or route.destination not in prefixes:
                    last = route.metric == LAST
                    yield Route(space.name, route.destination, route.gateway, link.name, last=last)
        if space.reading.strays:
            names = {number: word for word, number in NOWHERE.items()}
            for route in space.all_routes():
                if route.type in names and route.protocol != KERNEL:
                    yield Route(space.name, route.destination, "", "", names[route.type])

    def write(self, writer: Writer, steps: Sequence[Step[Route]]) -> None:
        (step,) = steps
        route = step.thing
        if route.type:  # none of these types is ever desired
            writer.rtnl(route.netns).delete_nowhere(route.destination, route.type)
            return
        gone = route if step.action == "delete" else step.was
        if gone is not None:
            rtnl, index = writer.link(gone.netns, gone.link)
            if index is not None:
                metric = LAST if gone.last else 0
                rtnl.delete_route(gone.destination, gone.gateway, index, metric)
        if step.action != "delete":
            rtnl, index = writer.link(route.netns, route.link)
            index = writer.existing(index, route.link)
            rtnl.add_route(route.destination, route.gateway, index, LAST if route.last else 0)


KIND = _Routes(Route)
