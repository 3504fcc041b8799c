"""Keep the cluster's keys of this host's services as their rows say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.locks import Busy, remove_locks, service_lock
from niso.cluster.claims import Claims
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.membership import Membership
from niso.cluster.settle import is_so, settle

if TYPE_CHECKING:
    from niso.cluster.view import Seen
    from niso.kernel.interface import Kernel
    from niso.store.store import Store

ORPHAN_S = 60.0
"""How long a claim may exist without a service, which a command may be about to record."""
STRAY_S = 600.0
"""The interval between searches for this host's claims on networks that it does not have."""


class OwnClaims:
    """Synchronises this host's claims from its rows to the cluster.

    ``log`` takes one line of text; ``say`` does too, and omits repetitions.
    """

    def __init__(self, log: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._log = log
        self._say = say
        self._orphans: dict[str, float] = {}  # service -> since when its claim is not as recorded
        self._is_settled = False  # whether all claims of this host were compared in full
        self._strays_s: float | None = None  # when all claims were last searched

    def doubt(self) -> None:
        """Make the next call of `bring` compare all claims in full."""
        self._is_settled = False

    def bring(
        self, store: Store, kernel: Kernel, claims: Claims, now: Seen, now_s: float
    ) -> tuple[list[str], bool]:
        """Update the cluster's keys of this host's services: claimed, up, down, or released.

        A service that a command is changing is skipped. Returns the services that other hosts have
        now, and whether the cluster's keys were all right before.
        """
        lost, is_sure = [], True
        records = store.across.claims(now.only)
        if now.only is None:
            recorded = {record.service for record in records}
            self._orphans = {n: since for n, since in self._orphans.items() if n in recorded}
        for record in records:
            so = is_so(store, record, now)
            if so and self._is_settled:
                self._orphans.pop(record.service, None)
                continue
            since = now_s if so else self._orphans.setdefault(record.service, now_s)
            is_sure = False
            try:
                with service_lock(record.service, 0):
                    is_free = store.intent(record.service) is None
                    final = now_s - since >= ORPHAN_S
                    if is_free and not settle(store, kernel, claims, record.service, final):
                        lost.append(record.service)
                    if store.service(record.service) is None:
                        remove_locks(record.service)
            except Refused as error:  # continue: the states of other services matter all the same
                self._say(error.message)
            except NoAnswer:
                raise
            except Busy:
                continue
            # a conflict: another host has the service, and its newer claim fences this host
            except Error as error:
                self._say(error.message)
        self._is_settled = True
        try:
            is_sure = self._end_strays(store, claims, now, now_s) and is_sure
        except Refused as error:
            self._say(error.message)
            is_sure = False
        return lost, is_sure

    def _end_strays(self, store: Store, claims: Claims, now: Seen, now_s: float) -> bool:
        """Release claims of this host that it has no record of; return whether there were none.

        They appear if a request was carried out late, if another host gave back a service that it
        had taken over, or if the engine or the store was restored from a backup.
        """
        names = now.services if now.only is None else now.only & now.services.keys()
        own = {
            name
            for name in names
            if all(address.host == claims.host for address in now.services[name].addresses)
        }
        if self._strays_s is None or now_s - self._strays_s >= STRAY_S:
            own |= {*Membership(claims.engine, claims.keys).services_of(claims.host)}
            self._strays_s = now_s
        strays = own - {record.service for record in store.across.claims(own)}
        for service in sorted(strays):
            with contextlib.suppress(Busy), service_lock(service, 0):
                held = claims.held(service)
                if held and held.host == claims.host and store.across.claim(service) is None:
                    claims.release(service, held.mark)
                    self._log(f"{service} is not on this host: its claim is given up")
                if store.service(service) is None:
                    remove_locks(service)
        return not strays
