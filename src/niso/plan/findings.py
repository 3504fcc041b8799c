"""Findings: the differences between what should be and what is, each named once."""

from __future__ import annotations

from collections.abc import Container

from niso.base import paths
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.plan.diff import by_key, unhindered
from niso.plan.records import family_of
from niso.plan.state import (
    Address,
    Attached,
    Bridge,
    Element,
    HostsFile,
    HostsLine,
    Neighbour,
    Netns,
    Route,
    Ruleset,
    State,
    Sysctl,
    Thing,
    Veth,
    kinds,
)

if TYPE_CHECKING:
    from typing import Literal

    Problem = Literal["missing", "foreign", "different"]


class Finding(NamedTuple):
    """``what`` names the thing, ``detail`` says how it differs; both are for people.

    ``defect`` is a name of its own for what repair treats in its own way (niso.runtime.defects).
    """

    problem: Problem
    what: str
    detail: str = ""
    defect: str = ""

    def text(self) -> str:
        """One line."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


def findings(want: State, have: State, strange: Container[str]) -> list[Finding]:
    """The differences; what only follows from another one (an address of a missing link) is not named again.

    ``strange`` are the folders of hosts files that are there, but not as niso writes them: they are in no State.
    """
    found: list[Finding] = []
    without: set[str] = set()
    want = unhindered(want, have)
    for wanted, present in zip(kinds(want), kinds(have), strict=True):
        before, more = by_key(wanted, present)
        for thing in sorted(wanted):
            was = before.pop(thing.key(), None)
            if was == thing or any(
                parent in without for parent in (*_parents(thing), *_followed(thing, was))
            ):
                continue
            if was is None:
                found.append(_absent(thing, strange))
                without.add(_identity(thing))
            elif (
                isinstance(was, Sysctl) and was.name.endswith("/disable_ipv6") and was.value == "1"
            ):
                found += _different(thing, was, without)
                without.add(f"link /{was.netns}/{was.name.split('/')[3]} without IPv6")
            elif isinstance(was, Ruleset):
                found += _ruleset(was)
                without.update(name for _, name in was.wrong)
                if was._replace(wrong=()) != thing:
                    without.add("ruleset")
            else:
                found += _different(thing, was, without)
                if (
                    isinstance(was, Veth) and not was.peer
                ):  # what lies on the other end is out of sight
                    without.add(_identity(thing))
                if isinstance(was, Bridge | Veth) and not was.up:
                    without.update(
                        f"{each} down" for each in (_identity(was), f"link //{was.name}")
                    )
        for thing in sorted([*before.values(), *more]):
            if isinstance(thing, Sysctl) or any(parent in without for parent in _parents(thing)):
                continue
            found.append(Finding("foreign", _what(thing)))
            without.add(_identity(thing))
    return found


def _absent(thing: Thing, strange: Container[str]) -> Finding:
    if isinstance(thing, HostsFile) and thing.folder in strange:
        return Finding("different", _what(thing), "not as niso has written it")
    return Finding("missing", _what(thing))


def _ruleset(was: Ruleset) -> list[Finding]:
    if not was.wrong:
        return [
            Finding(
                "different",
                "nftables tables inet niso and bridge niso",
                "of another version of niso",
            )
        ]
    return [Finding(problem, f"nftables {name}") for problem, name in was.wrong]


def _different(thing: Thing, was: Thing, without: set[str]) -> list[Finding]:
    """One finding with each field that differs, but those that follow from something missing."""
    texts = []
    for field, wanted, present in zip(type(thing)._fields, thing, was, strict=True):
        if wanted == present:
            continue
        if (
            isinstance(thing, Veth)
            and field in ("bridge", "hairpin")
            and f"link //{thing.bridge}" in without
        ):
            continue
        if (
            isinstance(thing, Veth)
            and field in ("netns", "peer", "mac", "up")
            and f"netns {thing.netns}" in without
        ):
            continue
        if (
            isinstance(thing, Veth)
            and present == "state disabled"
            and f"link //{thing.bridge} down" in without
        ):
            continue
        if field == "strange":
            texts.append(f"set otherwise: {present}")
            continue
        if field == "lasting":
            texts.append("it has a lifetime that ends")
            continue
        if field == "routed":
            texts.append("the kernel's route to its prefix is gone")
            continue
        shown = "not of the pair" if present in ("", -1) else present
        texts.append(f"{field} is {shown!r}, should be {wanted!r}")
    return [Finding("different", _what(thing), "; ".join(texts))] if texts else []


def _followed(thing: Thing, was: Thing | None) -> list[str]:
    """What this follows from if it is so: a link that is down has lost its routes, and of IPv6 its addresses."""
    if (
        isinstance(thing, Address | Route)
        and family_of(thing.address if isinstance(thing, Address) else thing.destination) == 6
    ):
        whole = f"link /{thing.netns}/all without IPv6"
        return [
            whole,
            *(f"link /{thing.netns}/{thing.link} {why}" for why in ("down", "without IPv6")),
        ]
    if isinstance(thing, Sysctl) and thing.name.endswith(
        "/default/disable_ipv6"
    ):  # set with that of all
        return [f"link /{thing.netns}/all without IPv6"]
    if isinstance(thing, Route) or (isinstance(thing, Address) and was is not None):
        return [f"link /{thing.netns}/{thing.link} down"]
    return []


def _identity(thing: Thing) -> str:
    """How the things that lie in this one name it as their parent."""
    if isinstance(thing, Bridge):
        return f"link //{thing.name}"
    if isinstance(thing, Veth):
        return f"link /{thing.netns}/{thing.peer}"
    if isinstance(thing, Netns):
        return f"netns {thing.name}"
    if isinstance(thing, Ruleset):
        return "ruleset"
    if isinstance(thing, HostsFile):
        return f"hosts {thing.folder}"
    return ""


def _parents(thing: Thing) -> list[str]:
    if isinstance(thing, Element):
        container = f"{thing.table} {thing.container}"
        return ["ruleset", f"table {thing.table}", f"set {container}", f"map {container}"]
    if isinstance(thing, HostsLine):
        return [f"hosts {thing.folder}"]
    if isinstance(thing, Veth):
        return [f"netns {thing.netns}"]
    if isinstance(thing, Address | Route | Neighbour):
        return [f"netns {thing.netns}", f"link /{thing.netns}/{thing.link}"]
    if isinstance(thing, Sysctl):
        # net/ipv4/conf/<link>/...
        parts = thing.name.split("/")
        return [
            f"netns {thing.netns}",
            *([f"link /{thing.netns}/{parts[3]}"] if parts[2:3] == ["conf"] else []),
        ]
    return []


def _what(thing: Thing) -> str:
    if isinstance(thing, Element):
        kind = "map element" if thing.value else "set element"
        value = f" : {thing.value}" if thing.value else ""
        owner = f" of {thing.comment!r}" if thing.comment else ""
        return (
            f"nftables {kind} {thing.table} {thing.container} {{ {thing.element}{value} }}{owner}"
        )
    if isinstance(thing, Ruleset):
        return "nftables tables inet niso and bridge niso"
    if isinstance(thing, Bridge):
        return f"bridge {thing.name}"
    if isinstance(thing, Netns):
        return f"network namespace {thing.name}"
    if isinstance(thing, Veth):
        return f"veth {thing.name}{f' to {thing.netns} {thing.peer}' if thing.netns else ''}"
    if isinstance(thing, Address):
        return f"address {thing.address} on {thing.link}{_in(thing.netns)}"
    if isinstance(thing, Route) and thing.type:
        return f"route {thing.type} {thing.destination}{_in(thing.netns)}"
    if isinstance(thing, Route):
        return f"route {thing.destination} via {thing.gateway} on {thing.link}{_in(thing.netns)}"
    if isinstance(thing, Sysctl):
        return f"sysctl {thing.name}={thing.value!r}{_in(thing.netns)}"
    if isinstance(thing, Attached):
        return f"link {thing.link} on bridge {thing.bridge}"
    if isinstance(thing, Neighbour):
        if not thing.address:
            return f"entry {thing.mac} of port {thing.link} in its bridge's table"
        return (
            f"neighbour entry {thing.address} lladdr {thing.mac} on {thing.link}{_in(thing.netns)}"
        )
    if isinstance(thing, HostsFile):
        return f"hosts file {paths.hosts_file(thing.folder)}"
    return f"line {thing.address} {thing.names} in hosts file of {thing.folder}"


def _in(netns: str) -> str:
    return f" in {netns}" if netns else ""
