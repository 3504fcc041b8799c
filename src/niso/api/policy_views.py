"""Show what each policy entry has allowed, and what a change of policies would cut."""

from __future__ import annotations

import os
import time

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from niso.api.flow_views import FlowEnd
    from niso.api.session import Session
    from niso.kernel.flows import Open
    from niso.kernel.sensor import Recorded
    from niso.plan.known_world import World
    from niso.plan.records import Policy
    from niso.see.seen import Seen
    from niso.see.what_if import Effect

    _Count = tuple[int, float | None, str]  # packets, seconds since the last, element


class PolicyEntry(NamedTuple):
    """An entry of a service's policy, or the default where none matches."""

    service: str
    """name of the service"""
    key: str
    """key of the manifest; without an index for the list's default"""
    text: str | None
    """the entry; null for the list's default"""
    passes: bool
    """whether it allows"""
    packets: int
    """first packets of flows that it decided on since the policy last changed"""
    open: int
    """flows that it lets pass and that are open now"""
    last: str | None
    """time of the last new flow, within a week; it survives changes of the policy"""
    ago: float | None
    """seconds since then"""
    note: str
    """the addresses of an outside name, how the entry could be narrower, or an empty string"""
    audited: bool
    """whether it denies, but the policy is in audit, so that the packets pass"""


class PolicyEffect(NamedTuple):
    """The effect of a change of policies on the flows from one address to one port of another."""

    effect: str
    """cut, pass, new: it was denied and would pass, or audit: it would be cut without the audit"""
    from_: FlowEnd
    """the end that opened them"""
    to: FlowEnd
    """the other end"""
    port: int
    """port of the destination"""
    proto: str
    """tcp, udp or sctp"""
    service: str | None
    """service whose manifest would decide"""
    key: str | None
    """key of the manifest"""
    text: str | None
    """entry under the key"""
    words: str | None
    """the reason"""
    new: int
    """new flows within a week"""
    ago: float | None
    """seconds since the last one"""
    open: int
    """flows that are open now"""


# --- show ----------------------------------------------------------------------------------------


def show(session: Session, name: str, unused_s: float | None) -> tuple[PolicyEntry, ...]:
    """Return the entries of a service's policy with their use: `Host.policy`."""
    from niso.api.time_texts import exact_time_text
    from niso.services import auditing

    store = session.store()
    service = store.home(store.resolve(name))
    policy = store.policy(service)
    if policy is None:
        return ()
    term = auditing.terms(store).get(service)
    in_audit = term is not None and term.lasts
    listed = {entry.key: entry.text for entry in policy.entries()}
    outside = {e.key: e.peer.name for e in policy.entries() if e.peer.kind == "outside"}
    counts, passing = _counted(service, policy)
    used = _used(session, service)
    if unused_s is not None:
        _say_how_long(session, service, unused_s)
    result = []
    for key, its in counts.items():
        ages = [seconds for _, seconds, _ in its if seconds is not None]
        open_, remembered = used.get(key, (0, None))
        ago = min([*ages, *([] if remembered is None else [remembered])], default=None)
        needed = open_ or (unused_s is not None and ago is not None and ago < unused_s)
        if unused_s is not None and (key not in listed or needed):
            continue
        last = None if ago is None else exact_time_text(time.time() - ago)
        note = ", ".join(store.outside.meant(outside[key])) if key in outside else ""
        note = note or _narrower(listed.get(key), its)
        audited = in_audit and key not in passing
        note = note or (f"audit until {term.text}" if term is not None and audited else "")
        packets = sum(number for number, _, _ in its)
        text = listed.get(key)
        result.append(
            PolicyEntry(
                service, key, text, key in passing, packets, open_, last, ago, note, audited
            )
        )
    return tuple(result)


def _counted(service: str, policy: Policy) -> tuple[dict[str, list[_Count]], set[str]]:
    """Return the counters of each key of a policy, and the keys that allow. Raises KernelError.

    An allow list also has a key of its own, for what none of its entries matches.
    """
    from niso.kernel import nft_sets
    from niso.kernel.nft_elements import HEADERS, Nfnetlink
    from niso.kernel.nft_tables import INET
    from niso.plan.policy_maps import PASSES

    listed = {entry.key for entry in policy.entries()}
    passing = {e.key for e in (*(policy.allow_from or ()), *(policy.egress_allow or ()))}
    counts: dict[str, list[_Count]] = {entry.key: [] for entry in policy.entries()}
    for key, entries in (
        ("network.policy.allow_from", policy.allow_from),
        ("network.policy.egress.allow", policy.egress_allow),
    ):
        if entries is not None:
            counts[key] = []
    with Nfnetlink() as kernel:
        for container in sorted(nft_sets.COUNTED):
            for counted in kernel.counts(HEADERS[INET, container]):
                owner, _, key = counted.comment.partition(" ")
                if owner != service or key not in counts:
                    continue
                counts[key].append((counted.packets, counted.ago, counted.key))
                if key not in listed and counted.value == PASSES:
                    passing.add(key)
    return counts, passing


def _say_how_long(session: Session, service: str, unused_s: float) -> None:
    """Warn if the flows of a service are known for a shorter time than requested."""
    from niso.api.learning import watched_s
    from niso.api.time_texts import period_text

    row = session.store().service(service)
    watched = None if row is None else watched_s(row)
    if watched is not None and watched < unused_s:
        text = f"{service} has been watched for {period_text(watched)}: what is rarer was not seen"
        session.caution(text, [])


def _used(session: Session, service: str) -> dict[str, tuple[int, float | None]]:
    """Return the number of open flows and the age of the last flow, for each key of a policy.

    The ages come from recorded flows, because the rules' counters restart whenever the policy, a
    peer's address or an outside name's address changes.
    """
    from niso.plan import known_world, verdict
    from niso.reconcile.world import read_world
    from niso.see import seen as seer

    world = read_world(session.kernel(), session.store())
    memory = seer.remembered(session.kernel(), world)
    own = set(known_world.addresses_of(world.services[service]))

    def of_it[T: (Recorded, Open)](rows: Iterable[T]) -> tuple[T, ...]:
        return tuple(row for row in rows if row.source in own or row.destination in own)

    memory = memory._replace(
        passed=of_it(memory.passed), refused=of_it(memory.refused), opened=of_it(memory.opened)
    )
    ever = world._replace(outside=world.outside_ever)
    used: dict[str, tuple[int, float | None]] = {}
    for seen in seer.joined(world, memory):
        if seen.gone or not seen.agrees:
            continue
        # for a flow that passed, the policies of both ends have decided
        both = verdict.judge(ever, *seen.key[:2], seen.port, seen.proto)
        for reason in both if seen.passes else (seen.reason,):
            if reason is not None and reason.service == service and reason.key:
                count, ago = used.get(reason.key, (0, None))
                ages = [age for age in (ago, seen.ago) if age is not None]
                used[reason.key] = count + seen.open, min(ages, default=None)
    return used


def _narrower(text: str | None, counts: Iterable[_Count]) -> str:
    """Return the entry narrowed to a protocol, if all packets that it allowed were of that one."""
    if text is None or "/" in text.rpartition(":")[2] or ":" not in text:
        return ""
    used = set()
    for packets, _, key in counts:
        fields = key.split(" . ")
        if packets:
            used |= {field for field in fields if field in ("tcp", "udp", "sctp")} or {""}
    return f'"{text}/{used.pop()}" would do' if len(used) == 1 and "" not in used else ""


# --- test ----------------------------------------------------------------------------------------


def effects(session: Session, what: Sequence[str], since: float | None) -> tuple[PolicyEffect, ...]:
    """Return the effects of activating files: `Host.policy_effects`."""
    from niso.commands import activate
    from niso.commands import stack as stacks
    from niso.manifest import load, stack_file
    from niso.services import targets

    machine = session.machine()
    stack = what[0] if len(what) == 1 else ""
    if os.path.basename(stack) == stack_file.FILE_NAME or (
        os.path.isfile(os.path.join(stack, stack_file.FILE_NAME))
        and not os.path.exists(os.path.join(stack, load.FILE_NAME))
    ):
        loaded = stacks.load(stack)
        names = frozenset(stacks.outlined(machine.store, stack).after)
        worlds = stacks.foreseen(machine, loaded, replace=True)
    else:
        wanted = targets.find_targets(machine.store, what, True, None)
        names = frozenset(target.name for target in wanted)
        worlds = activate.foreseen(machine, wanted)
    return _of_change(session, *worlds, names, since)


def _of_change(
    session: Session, before: World, after: World, names: frozenset[str], since: float | None
) -> tuple[PolicyEffect, ...]:
    from niso.see import seen as seer
    from niso.see import what_if

    changed = {name for name, known in after.services.items() if before.services.get(name) != known}
    memory = seer.remembered(session.kernel(), before)
    joined = seer.joined(before, memory)
    oldest = None if since is None else time.time() - since
    recent = [
        flow
        for flow in joined
        if oldest is None or flow.open or (flow.ago is not None and flow.ago <= oldest)
    ]
    return tuple(map(_effect, what_if.effects(before, after, recent, names | changed)))


def _effect(effect: Effect) -> PolicyEffect:
    from niso.api.flow_views import end_of

    seen: Seen = effect.seen
    reason = effect.reason
    return PolicyEffect(
        effect.kind,
        end_of(seen.source),
        end_of(seen.destination),
        seen.port,
        seen.proto,
        reason.service or None if reason else None,
        reason.key or None if reason else None,
        reason.text or None if reason else None,
        reason.message if reason else None,
        seen.new,
        None if seen.ago is None else round(seen.ago, 3),
        seen.open,
    )
