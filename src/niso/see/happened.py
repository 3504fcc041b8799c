"""Derive events from two snapshots of services and networks. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from niso.base.lite_typing import NamedTuple

ENDED = ("exited", "restarting", "failed", "none")
"""States of a process that has ended."""


class Shown(NamedTuple):
    """The compared properties of a service. Times are in seconds since 1970."""

    active: bool
    attached: bool
    """Whether the service is an attachment, which has no process."""
    job: bool = False
    activated_at: float | None = None
    state: str = ""
    """State of the process (`niso.runtime.status.Status`); attached or gone for an attachment."""
    exit_code: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    restarts: int = 0
    error: str = ""
    restart: str = ""
    """The restart policy."""
    health: str = ""
    """Result of the last health check: starting, healthy or unhealthy; "" if there was none."""
    failure: str = ""
    probed_at: float | None = None
    addresses: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    """Ports of the manifest, as texts: 8080→80."""
    forwards: tuple[str, ...] = ()
    """Ports that port-forward published, as texts."""


class Look(NamedTuple):
    """A snapshot of the compared properties: services, and subnets of networks."""

    services: dict[str, Shown]
    networks: dict[str, tuple[str, ...]]


class Change(NamedTuple):
    """One event. ``at`` is in seconds since 1970."""

    at: float
    service: str
    network: str
    what: str
    detail: str = ""
    exit_code: int | None = None
    program: str = ""
    pid: int | None = None


def between(before: Look, after: Look, now: float) -> list[Change]:
    """Return the events between two snapshots, by time."""
    changes: list[Change] = []
    for service in sorted(before.services.keys() | after.services.keys()):
        changes += _service(service, before.services.get(service), after.services.get(service), now)
    first = min((change.at for change in changes), default=now)
    for network in sorted(before.networks.keys() | after.networks.keys()):
        old, new = before.networks.get(network), after.networks.get(network)
        if old is None and new is not None:
            # a network comes before the services on it
            changes.insert(0, Change(first, "", network, "network created", ", ".join(new)))
        elif new is None:
            changes.append(Change(now, "", network, "network removed"))
    return sorted(changes, key=lambda change: change.at)


def past(look: Look, since: float) -> list[Change]:
    """Return the events since a time (seconds since 1970) that a snapshot still shows, by time."""
    changes: list[Change] = []
    for name, shown in look.services.items():
        if not shown.active:
            continue
        changes.append(_began(name, shown, shown.activated_at or 0.0))
        if shown.restarts and shown.started_at is not None:
            changes.append(_restarted(name, shown, shown.started_at))
        if shown.state in ENDED and shown.ended_at is not None:
            changes.append(_ended(name, shown, shown.ended_at))
        if shown.health == "unhealthy" and shown.probed_at is not None:
            changes.append(Change(shown.probed_at, name, "", "unhealthy", shown.failure))
    return sorted((c for c in changes if c.at >= since), key=lambda change: change.at)


def _service(name: str, old: Shown | None, new: Shown | None, now: float) -> Iterator[Change]:
    if old is None or not old.active:
        if new is not None and new.active:
            yield _began(name, new, _time(new.activated_at, now))
            yield from _process(name, new._replace(state="running", health=""), new, now)
        elif new is None:
            yield Change(now, name, "", "removed")
        return
    if new is None or not new.active:
        yield Change(now, name, "", "detached" if old.attached else "deactivated")
        return
    if new.activated_at != old.activated_at:
        yield _began(name, new, _time(new.activated_at, now))
        if new.started_at != old.started_at:  # another process
            old = new._replace(state="running", health="")
    else:
        yield from _ports(name, old, new, now)
    yield from _process(name, old, new, now)


def _ports(name: str, old: Shown, new: Shown, now: float) -> Iterator[Change]:
    for before, after, note in (
        (old.ports, new.ports, ""),
        (old.forwards, new.forwards, " (port-forward)"),
    ):
        for port in before:
            if port not in after:
                yield Change(now, name, "", "unpublished", port + note)
        for port in after:
            if port not in before:
                yield Change(now, name, "", "published", port + note)


def _process(name: str, old: Shown, new: Shown, now: float) -> Iterator[Change]:
    """Yield events of the process and its health, or of an attachment's namespace."""
    if new.attached:
        if new.state == "gone" != old.state:
            yield Change(now, name, "", "gone", "its network namespace has ended")
        return
    # the status files may no longer exist, and then started_at is None
    same_run = new.started_at in (None, old.started_at)
    if not same_run:
        started = _time(new.started_at, now)
        if new.restarts > old.restarts and old.state not in ENDED:
            # it ended and was restarted between the two snapshots
            yield _ended(name, new._replace(state="restarting"), started)
        yield _restarted(name, new, started)
    has_ended = new.state in ENDED
    if has_ended and (not same_run or old.state not in ENDED):
        yield _ended(name, new, _time(new.ended_at, now))
    elif new.state in ("failed", "none") and old.state != new.state:
        yield _ended(name, new, now)
    if new.health != old.health and new.health in ("healthy", "unhealthy"):
        yield Change(_time(new.probed_at, now), name, "", new.health, new.failure)


def _began(name: str, new: Shown, at: float) -> Change:
    ports = (*new.ports, *(f"{port} (port-forward)" for port in new.forwards))
    detail = ", ".join((*new.addresses, *ports))
    return Change(at, name, "", "attached" if new.attached else "activated", detail)


def _restarted(name: str, new: Shown, at: float) -> Change:
    detail = f"restart {new.restarts} since its activation" if new.restarts else ""
    return Change(at, name, "", "restarted", detail)


def _ended(name: str, new: Shown, at: float) -> Change:
    if new.state in ("failed", "none") or new.exit_code is None:
        return Change(at, name, "", "failed", new.error or f"no process: niso net check {name}")
    if new.job and not new.exit_code:
        return Change(at, name, "", "completed", "", 0)
    code = new.exit_code
    return Change(at, name, "", f"exited ({code})", f"restart: {new.restart}", code)


def _time(at: float | None, now: float) -> float:
    """Return the recorded time of an event; ``now`` if there is none, or if it is in the future."""
    return now if at is None else min(at, now)
