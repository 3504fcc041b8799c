"""Delay implausible changes: that most hosts, or all services, disappear at once."""

from __future__ import annotations

from collections.abc import Callable

from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster.host_values import Host
from niso.cluster.view import Known

if TYPE_CHECKING:
    from niso.cluster.view import Seen
    from niso.store.store import Store

GUARD_S = 60.0
"""How long names stay if most hosts, or all services, seem to disappear at once."""
_GUARDED = 4


class Guard:
    """Filters implausible changes out of what the engine reports.

    ``own`` is the name of this host, ``say`` takes one line of text.
    """

    def __init__(self, own: str, say: Callable[[str], None]) -> None:
        self._own = own
        self._say = say
        self._doubt_since: float | None = None

    @property
    def doubts(self) -> bool:
        """Return whether the last reported state was implausible."""
        return self._doubt_since is not None

    def guarded(self, store: Store, now: Seen, now_s: float) -> Seen:
        """Return the engine's state, or for a while (`GUARD_S`) the last one if it is implausible.

        If the engine has lost its data, or is cut off, all other hosts seem to have disappeared.
        """
        others = [host for host in now.hosts if host.name != self._own]
        empty = not any(
            a.host != self._own for service in now.services.values() for a in service.addresses
        )
        if now.only is not None and not empty:
            return now  # no host has changed
        now = now._replace(only=None)
        known = store.across.addresses() if empty else {}
        empty = bool(known)
        peers = store.across.peers()
        before = {name for name, (_, _, live) in peers.items() if live}
        gone = before - {host.name for host in others if host.alive}
        most = len(before) >= _GUARDED and len(gone) * 2 > len(before)
        if not (most or (empty and len(known) > 1)):
            self._doubt_since = None
            return now
        if self._doubt_since is None:
            self._doubt_since = now_s
        if now_s - self._doubt_since >= GUARD_S:
            return now
        what = "all services" if empty else f"{len(gone)} of {len(before)} hosts"
        self._say(f"{what} have gone at once: their names stay for {GUARD_S:.0f} s")
        if empty:
            services = now.services | {
                name: Known(rows, store.across.names(name)) for name, rows in known.items()
            }
            now = now._replace(services=services)
        hosts = [h._replace(alive=h.alive or h.name in gone) for h in now.hosts]
        missing = gone - {host.name for host in hosts}
        hosts += [Host(name, *peers[name][:2], 0, True) for name in sorted(missing)]
        return now._replace(hosts=tuple(hosts))
