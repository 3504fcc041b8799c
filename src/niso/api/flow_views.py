"""List flows between services, with what decides about them."""

from __future__ import annotations

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from niso.api.session import Session
    from niso.see import seen as seer
    from niso.store.store import Store


class FlowEnd(NamedTuple):
    """One end of flows."""

    name: str
    """the service, host, the outside name of a policy, or the address"""
    service: str | None
    """name of the service; null if the address is not a service's"""
    address: str
    """an IPv4 or IPv6 address"""


class Flow(NamedTuple):
    """The flows from one address to one port of another, after DNAT."""

    from_: FlowEnd
    """the end that opened them"""
    to: FlowEnd
    """the other end"""
    port: int
    """port of the destination"""
    proto: str
    """tcp, udp or sctp"""
    verdict: str
    """pass, drop, or audit: it passed because a policy that denies it was in audit"""
    service: str | None
    """service whose manifest decides"""
    key: str | None
    """key of the manifest"""
    text: str | None
    """entry under the key"""
    words: str | None
    """the reason"""
    published: int | None
    """host port through which another machine connected"""
    agrees: bool
    """whether the present configuration decides the same"""
    new: int
    """new flows within a week, or attempts that were dropped; with -f since the last update"""
    last: str | None
    """time of the last new one, to the millisecond"""
    ago: float | None
    """seconds since then"""
    open: int
    """flows that are open now"""


class Flows:
    """Iterate over new `Flow` without end. Use it in a ``with`` block."""

    def __init__(self, session: Session, service: str | None, denied: bool) -> None:
        from niso.see import seen as seer

        self.session = session
        self._service, self._denied = service, denied
        self._before, _ = seer.read(session.kernel(), session.store(), with_open=False)

    def __enter__(self) -> Flows:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Flow]:
        import time

        while True:
            time.sleep(1)
            yield from self.read()

    def read(self) -> tuple[Flow, ...]:
        """Return the flows recorded since the last call, oldest first, without waiting."""
        from niso.see import seen as seer

        now, _ = seer.read(self.session.kernel(), self.session.store(), with_open=False)
        fresh = seer.changes(self._before, now)
        self._before = now
        return tuple(_flow(seen) for seen in _chosen(fresh, self._service, self._denied))


def flows(
    session: Session, name: str | None, denied: bool, since: float | None
) -> tuple[Flow, ...]:
    """List the flows: `Host.flows`. ``since`` is in seconds since 1970."""
    import time

    from niso.see import seen as seer

    store = session.store()
    service = None if name is None else _home(store, name)
    seen, missed = seer.read(session.kernel(), store)
    if missed:
        session.caution(
            f"{missed} new flows are not shown: there are more than the kernel remembers",
            ["docs/design/seeing.md has the limits"],
        )
    oldest = None if since is None else time.time() - since
    chosen = _chosen(seen, service, denied)
    return tuple(
        _flow(flow)
        for flow in chosen
        if oldest is None or flow.open or (flow.ago is not None and flow.ago <= oldest)
    )


def follow(session: Session, name: str | None, denied: bool) -> Flows:
    """Start following new flows: `Host.follow_flows`."""
    store = session.store()
    return Flows(session, None if name is None else _home(store, name), denied)


def _home(store: Store, name: str) -> str:
    """Return the service that owns a service's addresses. Raises Error if there are none."""
    home = store.home(store.resolve(name))
    row = store.service(home)
    whose = name if home == name else f"{name} shares the network of {home}, which"
    if row is not None and row.mode == "host":
        raise Error(f"{whose} has mode host: its flows are those of host", "niso net flows")
    if row is not None and row.mode == "none":
        raise Error(f"{whose} has mode none: it has only a loopback interface", "niso net flows")
    return home


def _chosen(seen: list[seer.Seen], service: str | None, denied: bool) -> list[seer.Seen]:
    return [
        flow
        for flow in seen
        if (service is None or service in (flow.source.service, flow.destination.service))
        and not (denied and flow.passes and not flow.audited)
    ]


def _flow(seen: seer.Seen) -> Flow:
    from niso.api.time_texts import exact_time_text
    from niso.see.seen import moment

    return Flow(
        end_of(seen.source),
        end_of(seen.destination),
        seen.port,
        seen.proto,
        seen.verdict,
        *decided(seen),
        seen.new,
        None if seen.ago is None else exact_time_text(moment(seen.ago)),
        None if seen.ago is None else round(seen.ago, 3),
        seen.open,
    )


def decided(
    seen: seer.Seen,
) -> tuple[str | None, str | None, str | None, str | None, int | None, bool]:
    """Return the fields of a `Flow` from ``service`` to ``agrees``."""
    reason = seen.reason
    return (
        reason.service or None if reason else None,
        reason.key or None if reason else None,
        reason.text or None if reason else None,
        reason.message if reason else None,
        seen.published.host_port if seen.published else None,
        seen.agrees,
    )


def end_of(end: seer.End) -> FlowEnd:
    """Convert an end of a flow to a result."""
    return FlowEnd(end.name, end.service or None, end.address)
