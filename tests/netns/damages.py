"""Read damages.txt; ``tests/unit/test_damages.py`` holds it to the kinds of `niso.kernel.kinds.kind`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from damage_world import FORWARDING6


class Damage(NamedTuple):
    """One of damages.txt. ``of`` is a case: ``Veth missing``, ``Veth.mtu``, or a word of `OTHERS`.

    ``found`` is (problem, text of what); `fits` compares a finding with it.
    """

    of: tuple[str, ...]
    commands: tuple[str, ...]
    found: tuple[tuple[str, str], ...]
    anew: bool
    quiet: bool
    stack: str


def fits(text: str, what: str) -> bool:
    """Return whether a finding is the one that a text of damages.txt names."""
    pattern = re.escape(text).replace(r"\.\.\.", ".*").replace(r"\*", r"\S+")
    return re.fullmatch(pattern, what) is not None


def _damages() -> dict[str, Damage]:
    text = Path(__file__).with_name("damages.txt").read_text()
    text = text.replace("$forwarding6", FORWARDING6).replace("$hosts", "/run/niso/hosts")
    made = {}
    for name, of, flags, body in re.findall(
        r"^([^# \n].*) \[(.*)\](.*)\n((?:  .*\n)+)", text, re.M
    ):
        lines = [line.strip() for line in body.splitlines()]
        found = [re.match(r"(missing|different|foreign): (.*)", line) for line in lines]
        commands = [line for line, match in zip(lines, found, strict=True) if not match]
        stack = next((word for word in ("dual", "single") if word in flags), "")
        made[name] = Damage(
            tuple(of.split(", ")),
            tuple(commands),
            tuple((match[1], match[2]) for match in found if match),
            "anew" in flags,
            "quiet" in flags,
            stack,
        )
    return made


DAMAGES = _damages()

OTHERS = (
    "chain",
    "rule",
    "set",
    "table",
    "conmon",
    "process",
    "crun",
    "cgroup",
    "hosts folder",
    "namespace mount",
    "store row",
)
"""Kinds that are no kind of State, or more than one."""

NO_CASE = {
    "Ruleset foreign": "of tables with our names that are not ours: a conflict, in test_networks",
    "Ruleset.digest": "it is told by the elements of the set owner",
    "Sysctl missing": "a sysctl goes with its link only",
    "Sysctl foreign": "a sysctl of niso's has a value, and no other end",
    "Element.entry": "the comment of an element has it with its owner",
    "Bridge.alias": "a link without the mark is somebody else's: a conflict",
    "Veth.alias": "the same",
    "Netns.alias": "the same",
    "NetnsName missing": "of an attachment: in test_attach",
    "NetnsName foreign": "one that no row has is a sweep's, in test_attach",
    "NetnsName.target": "the same",
    "Route.last": "of an attachment: in test_attach",
    "NetnsName.cookie": "another namespace is a finding of its own, in test_attach",
    "ForeignPort missing": "none is wanted",
    "Neighbour missing": "none is wanted",
    "Vxlan.alias": "as of a bridge",
    "WireGuard.alias": "the same",
    "RoutingRule missing": "of kernels without bridge filters: in test_flushed",
    "RoutingRule.drift": "the same",
    "Bridge.internal": "a network stays internal",
    "WireGuard.form": "a kernel that gets WireGuard, or loses it: in test_encryption",
    "WireGuard foreign": "it has one name, and is wanted as long as a network spans hosts",
    "Shaper.netns": "of the pair, which is a finding of its own",
    "Shaper.peer": "the same",
}

OF_SPANS = {
    *(f"Vxlan {case}" for case in ("missing", "foreign")),
    *(
        f"Vxlan.{field}"
        for field in ("vni", "local", "port", "mtu", "bridge", "device", "up", "drift")
    ),
    *("Fdb missing", "Fdb foreign", "Fdb.host", "Fdb.fixed"),
}
"""Cases of networks that span hosts, which `test_span_kernel` has."""

OF_WIREGUARD = {
    "WireGuard missing",
    *(f"WireGuard.{field}" for field in ("address", "port", "mtu", "public", "others", "up")),
}
"""Cases of encrypted clusters, which `test_cluster_encryption` has."""
