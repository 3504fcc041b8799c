"""List the kinds of kernel objects in the order of their creation; deletion is in reverse.

Rules are created before anything that could carry a packet, and deleted after it, so that a partial
state is never wider than declared. Each kind is defined in the file of its name in this folder.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from niso.kernel.kinds.kind import Kind

NAMES = (
    "ruleset",
    "element",
    "routing_rule",
    "wireguard",
    "bridge",
    "vxlan",
    "namespace",
    "named",
    "setting",
    "fdb",
    "veth",
    "shaper",
    "address",
    "route",
    "peer",
    "attached",
    "neighbour",
    "hosts_file",
    "hosts_leftover",
    "hosts_line",
)

SELDOM = frozenset(("routing_rule", "wireguard", "vxlan", "fdb", "shaper", "attached", "neighbour"))
"""Kinds that most commands need not load: `Kind.read` returns only requested objects of them.

Their files are loaded by code that creates an object of the kind, and by `load` before everything
is read.
"""

KINDS: list[Kind[Any]] = []
"""The loaded kinds, in order. No State has an object of another kind."""


def register(kind: Kind[Any]) -> None:
    """Add a kind to `KINDS` when its file is loaded."""
    KINDS.append(kind)
    KINDS.sort(key=lambda one: NAMES.index(one.file))


def load(names: Iterable[str] = NAMES) -> None:
    """Load the files of these kinds, by default of all."""
    for name in names:
        __import__(f"niso.kernel.kinds.{name}")
