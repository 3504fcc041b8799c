"""Order the services of a stack by their dependencies, and validate the dependencies."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping

from niso.base import convert
from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING, Literal, NamedTuple
from niso.manifest import validate, values
from niso.plan.service_spec import ServiceSpec

if TYPE_CHECKING:
    from typing import Any

Condition = Literal["started", "healthy", "completed"]


class Item(NamedTuple):
    """The properties of a stack's service that the checks of other services need."""

    key: str
    name: str
    after: dict[str, Condition]
    listed: bool  # whether depends_on is an array

    def path(self, dependency: str) -> str:
        """Return the manifest key of a dependency."""
        base = f"{self.key}.depends_on"
        return (
            f"{base}[{list(self.after).index(dependency)}]"
            if self.listed
            else validate.join(base, dependency)
        )


def item(own: Mapping[str, Any], key: str) -> Item:
    """Build the item of a service; values of a wrong type are skipped."""
    needs = own.get("depends_on")
    after: dict[str, Condition] = {}
    if isinstance(needs, list):
        after = {name: "started" for name in needs if isinstance(name, str)}
    for name, state in needs.items() if isinstance(needs, dict) else ():
        if state in convert.kind(Condition)[str]:
            after[name] = state
    return Item(key, str(own.get("name", "")), after, isinstance(needs, list))


def ordered(after: Mapping[str, Iterable[str]]) -> list[str]:
    """Sort names so that each follows its dependencies; unchanged if there is a cycle."""
    try:
        return [name for name in graphlib.TopologicalSorter(after).static_order() if name in after]
    except graphlib.CycleError:
        return list(after)


def dependencies(
    items: Mapping[str, Item], known: Mapping[str, ServiceSpec]
) -> Iterable[InvalidInput]:
    """Yield an error for each invalid dependency.

    Invalid are dependencies on an unknown service, on the health of a service without a
    healthcheck, on the completion of a service that is not a job, and cycles.
    """
    for item in items.values():
        for name, condition in item.after.items():
            path = item.path(name)
            if name not in items:
                near = validate.nearest(name, list(items))
                right = f"one of {', '.join(sorted(items))}"
                example = values.shown(near) if near else ""
                yield values.wrong(path, name, "is not a service of the stack", right, example)
            elif condition == "healthy" and name in known and known[name].healthcheck is None:
                reason = f"is not possible: {name!r} has no healthcheck"
                right = f'"started", or add [healthcheck] to the manifest of {name!r}'
                yield values.wrong(path, condition, reason, right)
            elif condition == "completed" and name in known and known[name].kind != "job":
                reason = f"is not possible: {name!r} is not a job"
                right = f'"started", or service.kind = "job" for {name!r}'
                yield values.wrong(path, condition, reason, right)
    cycle = _cycle(
        {item.name: [name for name in item.after if name in items] for item in items.values()}
    )
    if cycle:
        first = items[min(cycle, key=list(items).index)]
        reason = f"is a dependency cycle: {' -> '.join(cycle)}"
        key = f"{first.key}.depends_on"
        yield values.wrong(key, list(first.after), reason, "remove one of these dependencies")


def _cycle(after: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the services of one cycle; empty if there is none.

    Each is followed by its dependency. The first is repeated at the end.
    """
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []
