"""Define the kind of routing rules of internal networks (ip-rule(8)).

They still isolate these networks if niso's nftables rules are flushed.

The rule of a bridge prohibits every packet from the bridge that is not for the host. It does not
match packets with the mark that niso's nftables rules set: while those rules exist, they decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step

if TYPE_CHECKING:
    from niso.kernel.reading import Reading, Space
    from niso.kernel.writing import Writer


class RoutingRule(NamedTuple):
    """The rule of a bridge for a family, 4 or 6. ``drift`` names what differs from niso's rule."""

    link: str
    family: int
    drift: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.link, str(self.family))


class _RoutingRules(Kind[RoutingRule]):
    def describe(self, step: Step[RoutingRule]) -> str:
        from niso.kernel.routing_rules import selector

        rule = step.thing
        start = f"ip -{rule.family} rule"
        add = f"{start} add {selector(rule.link)}"
        if step.action == "add":
            return add
        delete = f"{start} delete iif {rule.link} protocol {_protocol()}"
        return delete if step.action == "delete" else f"{delete} && {add}"

    def what(self, thing: RoutingRule) -> str:
        return f"IPv{thing.family} routing rule of bridge {thing.link}"

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        return str(present)

    def claimed(self, reading: Reading) -> Iterable[RoutingRule]:
        from niso.kernel import routing_rules

        return (
            RoutingRule(rule.link, family)
            for family in (4, 6)
            for rule in routing_rules.of_niso(reading.host.rtnl, family)
        )

    def read(self, space: Space, things: Collection[RoutingRule]) -> Iterable[RoutingRule]:
        if space.name or not things:
            return
        from niso.kernel import routing_rules

        for family in sorted({thing.family for thing in things}):
            names = {thing.link for thing in things if thing.family == family}
            for rule in routing_rules.of_niso(space.rtnl, family):
                if rule.link in names:
                    yield RoutingRule(rule.link, family, rule.drift)

    def write(self, writer: Writer, steps: Sequence[Step[RoutingRule]]) -> None:
        from niso.kernel import routing_rules

        (step,) = steps
        rtnl, rule = writer.rtnl(""), step.thing
        if step.action != "delete":
            routing_rules.add(rtnl, rule.link, rule.family)
        # the wrong rule is deleted once the right one exists
        if step.action == "delete":
            routing_rules.delete(rtnl, rule.link, rule.family, rule.drift)
        elif step.was is not None:
            routing_rules.delete(rtnl, rule.link, rule.family, step.was.drift)


def _protocol() -> int:
    from niso.kernel.routing_rules import PROTOCOL

    return PROTOCOL


KIND = _RoutingRules(RoutingRule)
