"""Define the kind of addresses on links."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step, in_netns, inside, link_place, netns_place

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.writing import Writer


class Address(NamedTuple):
    """An address with its prefix length, on a link.

    ``routed``: the kernel's own route to the prefix exists on this link. A bridge has this route; a
    service does not, since it reaches its prefix by its gateway's MAC (plan/desired.py).
    ``lasting``: the address has no limited lifetime.
    """

    netns: str
    link: str
    address: str
    routed: bool = True
    lasting: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.link, self.address)


class _Addresses(Kind[Address]):
    names_links = True
    is_read_by_link = True

    def space(self, thing: Address) -> str:
        return thing.netns

    def links(self, thing: Address) -> tuple[str, ...]:
        return (thing.link,)

    def place(self, thing: Address) -> str:
        """Return the parent of the link's IPv4 neighbours.

        They are lost with the link's last IPv4 address.
        """
        return "" if ":" in thing.address else f"{link_place(thing.netns, thing.link)} IPv4"

    def lies_in(self, thing: Address) -> tuple[str, ...]:
        return (netns_place(thing.netns), link_place(thing.netns, thing.link))

    def describe(self, step: Step[Address]) -> str:
        address = step.thing
        start = inside(address.netns)
        if step.action != "change":
            alone = "" if address.routed or step.action == "delete" else " noprefixroute"
            return f"{start}address {step.action} {address.address} dev {address.link}{alone}"
        was = step.was or address
        commands = []
        if not was.lasting:
            forever = "valid_lft forever preferred_lft forever"
            commands.append(
                f"{start}address replace {address.address} dev {address.link} {forever}"
            )
        if was.routed != address.routed:
            from niso.kernel.rtnl_records import prefix

            verb = "add" if address.routed else "delete"
            route = f"{prefix(address.address)} dev {address.link} proto kernel"
            commands.append(f"{start}route {verb} {route}")
        return " && ".join(commands)

    def what(self, thing: Address) -> str:
        return f"address {thing.address} on {thing.link}{in_netns(thing.netns)}"

    def follows_from(self, thing: Address, was: Address | None) -> tuple[str, ...]:
        """Return the condition that the link is down.

        A link that is down loses its routes and IPv6 addresses.
        """
        link = link_place(thing.netns, thing.link)
        if ":" in thing.address:
            whole = link_place(thing.netns, "all")
            return (f"{whole} without IPv6", f"{link} down", f"{link} without IPv6")
        return (f"{link} down",) if was is not None else ()

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "lasting":
            return "its lifetime is limited"
        if wanted:
            return "the kernel's route to its prefix is missing"
        return "the kernel's route to its prefix bypasses the gateway"

    def read(self, space: Space, things: Collection[Address]) -> Iterable[Address]:
        """Read all addresses of the candidates' links.

        The kernel's routes to their prefixes are compared in services; on the host, only with
        strays.
        """
        for link in space.links_of_concern():
            by_link = space.routes(link) if space.name or space.reading.strays else None
            destinations = {route.destination for route in by_link or () if not route.gateway}
            for address in space.addresses(link):
                routed = by_link is None or _is_routed(address.address, destinations)
                yield Address(space.name, link.name, address.address, routed, address.lasts)

    def write(self, writer: Writer, steps: Sequence[Step[Address]]) -> None:
        (step,) = steps
        address = step.thing
        rtnl, index = writer.link(address.netns, address.link)
        if step.action == "delete":
            if index is not None:
                rtnl.delete_address(index, address.address)
                if address.netns:
                    # the kernel keeps the route to a prefix while the link has another address in
                    # it
                    rtnl.delete_connected_route(index, address.address)
            return
        index = writer.existing(index, address.link)
        if step.action == "add":
            rtnl.add_address(index, address.address, routed=address.routed)
            return
        if step.was is not None and not step.was.lasting:
            rtnl.add_address(index, address.address, replace=True, routed=address.routed)
        if address.routed:
            rtnl.add_connected_route(index, address.address)
        else:
            rtnl.delete_connected_route(index, address.address)


def _is_routed(address: str, destinations: set[str]) -> bool:
    """Return whether the kernel's route to the address's prefix exists.

    An address with a full-length prefix needs no route.
    """
    from niso.kernel.rtnl_records import prefix

    return address.endswith("/128" if ":" in address else "/32") or prefix(address) in destinations


KIND = _Addresses(Address)
