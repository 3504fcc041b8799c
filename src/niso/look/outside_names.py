"""List the DNS names outside niso.local that policies use, and warn if addresses are missing."""

from __future__ import annotations

import time

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of
from niso.base.text import period_text, time_text
from niso.plan.dns_answers import FORMER, NOW, Outside

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.look.session import Session
    from niso.store.store import Store


OVERDUE_S = 600.0  # seconds without an answer after which `Host.check` warns


class OutsideName(NamedTuple):
    """A DNS name outside niso.local that policies use, and its addresses."""

    name: str  # the DNS name
    services: tuple[str, ...]  # strings: the active services whose policies use the name
    addresses: tuple[str, ...]  # strings: the name's addresses in the rules and in hosts files
    former: tuple[str, ...]
    """strings: addresses that the rules still allow, for programs that resolved the name earlier"""
    asked_at: str | None  # when the name was last resolved; null if never
    until: str | None  # when the answer expires; null without addresses
    problem: str | None  # why the last query failed; null if it succeeded


def described(store: Store, names: Iterable[str] | None = None) -> tuple[OutsideName, ...]:
    """Return these DNS names, or the names of all policies, with addresses, sorted by name."""
    if not store.names_outside():
        return ()
    rows = store.outside
    wanted = rows.named() if names is None else sorted(names)
    return tuple(_described(rows.answer(name), rows.naming([name])) for name in wanted)


def _described(answer: Outside, services: list[str]) -> OutsideName:
    ends = [known.until for known in answer.addresses if known.state == NOW]
    return OutsideName(
        answer.name,
        tuple(services),
        answer.in_state(NOW),
        answer.in_state(FORMER),
        time_text(answer.asked_at or None),
        time_text(min(ends, default=None)),
        answer.problem or None,
    )


def next_due(session: Session) -> float:
    """Return the seconds until the next DNS name must be resolved, at most 60."""
    store, now = session.store(), time.time()
    answers = store.outside.answers() if store.names_outside() else []
    return min([60.0, *(max(answer.due_at - now, 1.0) for answer in answers)])


def warn(session: Session, name: str | None) -> None:
    """Warn of each DNS name without a valid address in the policies of a service, or of all."""
    rows, now = session.store().outside, time.time()
    unknown: dict[tuple[str, str], list[str]] = {}  # by (services, reason)
    for answer in map(rows.answer, rows.named(active=True)):
        services = rows.naming([answer.name])
        if name is not None and name not in services:
            continue
        warn_of_families(session, answer, services if name is None else [name])
        by = ", ".join(services)
        ends = [known.until for known in answer.addresses if known.state == "now"]
        if not ends:
            reason = answer.problem or "it has not been asked for"
            unknown.setdefault((by, reason), []).append(answer.name)
        elif min(ends) + OVERDUE_S < now:
            since = period_text(now - min(ends))
            reason = f": {answer.problem}" if answer.problem else ""
            session.caution(
                f"{answer.name}, which {by} may connect to, has addresses whose time ended"
                f" {since} ago{reason}",
                ("niso net refresh asks again; niso enable SERVICE lets systemd do so",),
            )
    for (by, reason), names in unknown.items():
        has = "has" if len(names) == 1 else "have"
        session.caution(
            f"{', '.join(names)}, which {by} may connect to, {has} no address: {reason}",
            ("niso net refresh asks again",),
        )


def warn_of_families(session: Session, answer: Outside, services: Iterable[str]) -> None:
    """Warn if a DNS name has only addresses of an IP version for which a service has no route."""
    store = session.store()
    known = {family_of(address) for address in answer.in_state("now")}
    for service in services if known else ():
        first = next(iter(store.networks_of(service)), None)
        network = None if first is None else store.network(first)
        families = {subnet.family for subnet in network.subnets} if network is not None else known
        if not known & families:
            lacks, has = (
                " or ".join(f"IPv{n}" for n in sorted(some)) for some in (families, known)
            )
            session.caution(
                f"{answer.name}, which {service} may connect to, has no {lacks} address,"
                f" and network {first} no {has} subnet",
                (f"name a network with {has} first; niso net create NAME --ipv6 makes one",),
            )
