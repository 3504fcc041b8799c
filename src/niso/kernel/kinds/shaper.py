"""Define the kind of bandwidth limits: one for each veth pair with a limit.

The traffic that a service receives is limited on the host end of the pair, and the traffic that it
sends on the inner end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step, link_place, netns_place

if TYPE_CHECKING:
    from niso.kernel.qdiscs import Qdisc
    from niso.kernel.reading import Space
    from niso.kernel.writing import Writer


class Shaper(NamedTuple):
    """Limits in bytes per second; 0 means none.

    ``drift`` names other settings that differ from niso's.
    """

    name: str  # the host end of the pair
    netns: str
    peer: str  # the inner end of the pair
    inward: int  # what the service receives
    outward: int
    drift: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Shapers(Kind[Shaper]):
    def space(self, thing: Shaper) -> str:
        return thing.netns

    def lies_in(self, thing: Shaper) -> tuple[str, ...]:
        return (netns_place(thing.netns), link_place(thing.netns, thing.peer))

    def describe(self, step: Step[Shaper]) -> str:
        shaper, was = step.thing, step.was
        return " && ".join(
            _command(inside, link, 0 if step.action == "delete" else rate)
            for inside, link, rate, before in (
                ("", shaper.name, shaper.inward, was.inward if was else 0),
                (shaper.netns, shaper.peer, shaper.outward, was.outward if was else 0),
            )
            if rate or before or shaper.drift
        )

    def what(self, thing: Shaper) -> str:
        return f"bandwidth of {thing.netns} {thing.peer}"

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "drift":
            return f"it has {present}"
        return f"{field[:-4]} is {_bits(present)}, should be {_bits(wanted)}"

    def read(self, space: Space, things: Collection[Shaper]) -> Iterable[Shaper]:
        from niso.kernel import qdiscs

        host = space.reading.host
        asked = {thing.name: (thing.netns, thing.peer) for thing in things}
        if space.reading.everything and space.name:
            for link in space.links_of_concern():
                end = host.other_end(link)
                if end is not None and end.alias == space.reading.alias:
                    asked[end.name] = (space.name, link.name)
        for name, (netns, peer) in asked.items():
            near, far = host.own_link(name), space.link(peer)
            if near is None or far is None:
                continue
            ends = (qdiscs.limit_of(host.rtnl, near), qdiscs.limit_of(space.rtnl, far))
            rates = [_rate(end) for end in ends]
            if any(rates):
                yield Shaper(name, netns, peer, rates[0], rates[1], _drift(ends))

    def write(self, writer: Writer, steps: Sequence[Step[Shaper]]) -> None:
        from niso.kernel import qdiscs

        (step,) = steps
        shaper = step.thing
        for netns, link, rate in (
            ("", shaper.name, shaper.inward),
            (shaper.netns, shaper.peer, shaper.outward),
        ):
            rtnl, index = writer.link(netns, link)
            if rate and step.action != "delete":
                qdiscs.set_rate(rtnl, writer.existing(index, link), rate)
            elif index is not None:
                qdiscs.clear(rtnl, index)


def _rate(end: Qdisc | None) -> int:
    return end.rate if end is not None else 0


def _drift(ends: Iterable[Qdisc | None]) -> str:
    from niso.kernel import qdiscs

    return ", ".join(
        f"a queue of {end.limit} bytes"
        for end in ends
        if end is not None and end.rate and end.limit != qdiscs.limit(end.rate)
    )


def _command(netns: str, link: str, rate: int) -> str:
    from niso.kernel import qdiscs

    start = f"tc {f'-n {netns} ' if netns else ''}qdisc"
    if not rate:
        return f"{start} delete dev {link} root"
    sizes = f"burst {qdiscs.burst(rate)} limit {qdiscs.limit(rate)}"
    return f"{start} replace dev {link} root tbf rate {rate * 8}bit {sizes}"


def _bits(rate: object) -> str:
    return f"{int(str(rate)) * 8}bit/s" if rate else "unlimited"


KIND = _Shapers(Shaper)
