"""Find the manifest changes that would let a denied flow pass. Pure: nothing is changed."""

from __future__ import annotations

from collections.abc import Callable

from niso.base.addresses import bracketed, family_of
from niso.base.lite_typing import NamedTuple
from niso.plan import verdict
from niso.plan.known_world import World
from niso.plan.records import Entry, Peer, Policy
from niso.plan.verdict import Reason
from niso.see import seen as seer
from niso.see.seen import End, Seen

_MOST = 8
"""The most changes to suggest: a flow that needs more is forbidden on purpose."""
Name = Callable[[str, str], str | None]
"""Function (service, peer) -> the name by which the service's policy can mean the peer, or None."""


class Change(NamedTuple):
    """A policy entry to add to a service's manifest, or one to remove."""

    service: str
    key: str
    text: str
    adds: bool


def changes(world: World, seen: Seen, name: Name) -> tuple[Change, ...]:
    """Return the changes that let a denied flow pass, limited to its own port and protocol.

    A flow that only passes because a policy is in audit counts as denied. The result is empty if no
    manifest line helps: the path is closed, or an end no longer exists.
    """
    if (seen.passes and not seen.audited) or seen.gone:
        return ()
    needed: list[Change] = []
    ends = (seen.source.address, seen.destination.address)
    while (refusing := _refusing(world, seen)) is not None:
        change, entry = _change(refusing, seen, name)
        policy = _changed(world.services[change.service].policy, change, entry)
        if policy is None or len(needed) == _MOST:
            return ()
        needed.append(change)
        known = world.services[change.service]._replace(policy=policy)
        world = world._replace(services={**world.services, change.service: known})
    if seer.closed(world, *ends, seen.proto, seen.port) is not None:
        return ()
    return tuple(needed)


def _refusing(world: World, seen: Seen) -> Reason | None:
    ends = (seen.source.address, seen.destination.address)
    reasons = verdict.judge(world, *ends, seen.port, seen.proto)
    return next((reason for reason in reasons if not reason.passes or reason.audits), None)


def _change(refusing: Reason, seen: Seen, name: Name) -> tuple[Change, Entry | None]:
    """Return the change that removes one refusal, and the parsed entry if the change adds one."""
    key = refusing.key
    if key.endswith("]"):
        return Change(refusing.service, key, refusing.text, False), None
    peer = seen.destination if key == "network.policy.egress.allow" else seen.source
    who, called = _peer(peer, refusing.service, name)
    text = f"{called}:{seen.port}/{seen.proto}"
    entry = Entry(key, text, who, seen.port, seen.port, seen.proto)
    return Change(refusing.service, key, text, True), entry


def _peer(end: End, service: str, name: Name) -> tuple[Peer, str]:
    called = name(service, end.service) if end.service else None
    if called is not None:
        return Peer("service", end.service), called
    length = 32 if family_of(end.address) == 4 else 128
    return Peer("prefix", f"{end.address}/{length}"), bracketed(end.address)


def _changed(policy: Policy, change: Change, entry: Entry | None) -> Policy | None:
    """Return the policy after a change; None if the change has no effect on it."""
    key = change.key.partition("[")[0]

    def after(own: str, entries: tuple[Entry, ...] | None) -> tuple[Entry, ...] | None:
        if own != key:
            return entries
        kept = tuple(one for one in entries or () if one.key != change.key)
        return kept if entry is None else (*(entries or ()), entry)

    changed = policy._replace(
        allow_from=after("network.policy.allow_from", policy.allow_from),
        deny_from=after("network.policy.deny_from", policy.deny_from) or (),
        egress_allow=after("network.policy.egress.allow", policy.egress_allow),
        egress_deny=after("network.policy.egress.deny", policy.egress_deny) or (),
    )
    return None if changed == policy else changed
