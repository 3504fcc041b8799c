"""Follow the cluster on one host: `Agent.look` does all that is due, `Agent.run` says when.

The agent has no state but the store, and a file with its lease in the run folder. Killed anywhere,
it starts again. Nothing that runs depends on it: without it, or without the engine, a host keeps
what it knows, and does not hear what is new.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable

from niso.base import paths, wake
from niso.base.errors import Conflict, Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.locks import Busy, remove_locks, service_lock
from niso.cluster import gone, mirror, restore
from niso.cluster.claims import Claims
from niso.cluster.index import index_of
from niso.cluster.kept import Kept
from niso.cluster.keys import Keys
from niso.cluster.lag import Lag
from niso.cluster.membership import Host, Membership
from niso.cluster.requests import NoAnswer, Refused
from niso.cluster.roster import Roster
from niso.cluster.settle import is_so, settle
from niso.cluster.view import Known, View
from niso.cluster.watchers import Watches, about, connected
from niso.store.sqlite import sqlite3, unusable

if TYPE_CHECKING:
    from niso.cluster.requests import Engine
    from niso.cluster.view import Seen
    from niso.kernel.interface import Kernel
    from niso.store.store import Store

TTL_S = 10
KEEP_S = 3.0
MEND_S = 1.0
LOOK_S = 30.0
"""A look without any event: what a watch has missed is made up for by it."""
GATHER_S = 0.005
LEAST_S = 0.05
"""Seconds between two looks at least: 20 a second."""
SPREAD_S = 0.001
"""A look that is only because hosts come or go first waits about so long for each host."""
LATE_S = 5.0
"""From so many seconds on, the agent says that it is behind."""
GUARD_S = 60.0
"""How long names stay if most hosts, or all services, seem to go at once."""
ORPHAN_S = 60.0
"""How long a claim may be without its service, which a command is about to record."""
STRAY_S = 600.0
"""Between two looks for claims of this host on networks that it does not have."""
_GUARDED = 4


class Me(NamedTuple):
    """This host in the cluster."""

    host: str
    state_id: str
    cluster: str
    boot: str


class Agent:
    """``end`` ends services that another host has taken over, ``log`` takes one line of text.

    ``tend`` is called at the start and about every `LOOK_S` seconds, and when hosts come or go. Its
    second argument is false if it is only because of the latter.
    ``mend`` is called in a thread of its own, every `MEND_S` seconds; it gets whether a whole look
    is due.
    """

    def __init__(
        self,
        me: Me,
        connect: Callable[[], Engine],
        end: Callable[[list[str]], None],
        log: Callable[[str], None],
        keys: Keys | None = None,
        tend: Callable[[Engine, bool], None] = lambda engine, whole: None,
        mend: Callable[[bool], None] | None = None,
    ) -> None:
        self.me = me
        self.connect = connect
        self.end = end
        self.log = log
        self.keys = keys or Keys()
        self.tend = tend
        self.lag = Lag()
        self.roster = Roster(self.keys)
        self._view = View(self.keys, me.host)
        self.mend = mend
        self._wake = threading.Event()
        self._hurry = threading.Event()  # more than that hosts come or go
        self._called = threading.Event()  # a command has changed something here
        self._over = threading.Event()
        self._watches = Watches(connect, self._notice, self._over)
        self._kept: dict[str, Kept] = {}  # by network
        self._doubt_since: float | None = None
        self._orphans: dict[str, float] = {}  # service -> since when its claim is not as recorded
        self._is_sure = False  # nothing that this look has found needs another one
        self._is_settled = False  # all claims of this host were compared in full
        self._lives = 0  # the lease by which this host is known to live
        self._whole = False  # the last look has done all
        self._strays_s: float | None = None  # when all claims were looked at
        self._said = ""
        self._wrong: tuple[str, ...] = ()

    # --- one look -------------------------------------------------------------

    def look(
        self, store: Store, kernel: Kernel, engine: Engine, now_s: float, whole: bool = True
    ) -> list[str]:
        """Do all that is due; return the services of others that changed.

        Unless ``whole``, it compares only services that have changed in the cluster since the last
        look, if that one was completed and hosts and networks are the same. ``now_s`` is of a
        clock that only goes forward. Raises NoAnswer, Refused and Error.
        """
        if whole:
            self._view.doubt()
        if self._has_left(store):
            return []
        membership = Membership(engine, self.keys)
        cluster = membership.cluster()
        if cluster is None or cluster.identity != self.me.cluster:
            other = f"cluster {cluster.identity}" if cluster else "no cluster"
            self._say(f"etcd has {other}, not {self.me.cluster}: nothing is changed")
            self._is_settled = False
            self._view.doubt()
            return []
        if bool(cluster.encryption) != (store.across.tunnel() is not None):
            self._say("the cluster is otherwise encrypted than this host: nothing is changed")
            return []
        hosts, own = self.roster.look(engine, self.me.host, now_s)
        member = own is not None and own.state_id == self.me.state_id
        spans = self._spans(store, kernel, engine, member)
        items = {name: self.kept(name).items(engine, now_s) for name in spans}
        subnets = {n.name: tuple((s.cidr, s.gateway) for s in n.subnets) for n in store.networks()}
        now = self._view.seen(hosts, items, subnets)
        if now.wrong and now.wrong != self._wrong:
            self.log(f"without a valid value, and ignored: {', '.join(now.wrong[:20])}")
        self._wrong = now.wrong
        self._is_sure = True
        lost = self._still(store, engine, mirror.fenced(store, now, self.me.host))
        if member:
            lost = sorted({*lost, *self._own(store, kernel, engine, now, now_s)})
            now = self._guarded(store, now, now_s)
        if lost:
            self.log(f"taken over by other hosts, and ended here: {', '.join(lost)}")
            self.end(lost)
            mirror.drop_claims(store, kernel, lost)
            self._is_sure = False
        if not member:  # others gave up what it had, and it may be somebody's by now
            self._say(f"{self.me.host} is not a host of the cluster: nothing is changed")
            return []
        if store.across.tunnel() is not None:
            from niso.cluster import encryption

            encryption.follow(store, kernel, hosts, self.me.host)
        if not self._is_sure:  # by this host's own claims others may be meant now
            now = now._replace(only=None)
        changed = mirror.follow(store, kernel, now, self.me.host)
        if self._is_sure and self._doubt_since is None:
            self._view.done()
        self._whole = True
        with contextlib.suppress(OSError):  # only lists show it
            gone.note((host.name for host in hosts if not host.alive), now_s)
        self._said = "" if self._doubt_since is None else self._said
        return changed

    def _has_left(self, store: Store) -> bool:
        """Return whether this host has left the cluster: then the agent ends."""
        if store.cluster_id() == self.me.cluster:
            return False
        self._say(f"this host has left cluster {self.me.cluster}")
        self.stop()
        return True

    def _spans(self, store: Store, kernel: Kernel, engine: Engine, member: bool) -> list[str]:
        """Return this host's networks that span hosts; of a member, those that are gone go."""
        here = {n.name: n.span.vni for n in store.networks() if n.span is not None}
        if not member:
            return list(here)
        # read after the rows: a command makes a network in the cluster first
        items = engine.get(self.keys.nets, one=True).items if here else ()
        index = index_of(items[0]) if items else {}
        kept = []
        for name, vni in here.items():
            if index.get(name, {}).get("vni") == vni:
                kept.append(name)
            elif mirror.drop_network(store, kernel, name):
                self.log(f"the cluster does not have network {name} any more: removed here")
            else:
                kept.append(name)
                self._restore(store, engine, name)
        return kept

    def _restore(self, store: Store, engine: Engine, name: str) -> None:
        """Write a network to the cluster again, if this host has claims there by its record.

        The engine's data are from a backup. Without one, a network with claims is not removed.
        """
        if not any(name in claim.addresses for claim in store.across.claims()):
            self._say(f"the cluster does not have network {name}, which has services here")
            return
        spec = restore.spec_of(store.require_network(name))
        try:
            base = restore.base_of(store)
            Membership(engine, self.keys).restore_network(spec._replace(base=base))
            self.log(f"the cluster did not have network {name}, which has services here: restored")
        except Conflict as error:
            self._say(f"the cluster does not have network {name} any more: {error.message}")

    def _own(
        self, store: Store, kernel: Kernel, engine: Engine, now: Seen, now_s: float
    ) -> list[str]:
        """Bring the cluster what this host's services are: there, up, down, or removed.

        A service that a command is changing is left to it. Return those that other hosts have.
        """
        lost = []
        claims = Claims(engine, self.me.host, self.keys)
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
            self._is_sure = False
            try:
                with service_lock(record.service, 0):
                    if store.intent(record.service) is None:
                        final = now_s - since >= ORPHAN_S
                        if not settle(store, kernel, claims, record.service, final):
                            lost.append(record.service)
                    if store.service(record.service) is None:
                        remove_locks(record.service)
            except Refused as error:  # what others have counts all the same
                self._say(error.message)
            except NoAnswer:
                raise
            except Busy:
                continue
            except Error as error:  # a clash: the other one has it, and this host is fenced by it
                self._say(error.message)
        self._is_settled = True
        try:
            self._end_strays(store, claims, now, now_s)
        except Refused as error:
            self._say(error.message)
        return lost

    def _end_strays(self, store: Store, claims: Claims, now: Seen, now_s: float) -> None:
        """Give up claims of this host that it has no record of.

        A request has come late, another host has given one back that had been taken over, or one of
        the two has data from a backup.
        """
        names = now.services if now.only is None else now.only & now.services.keys()
        own = {
            name
            for name in names
            if all(address.host == self.me.host for address in now.services[name].addresses)
        }
        if self._strays_s is None or now_s - self._strays_s >= STRAY_S:
            own |= {*Membership(claims.engine, self.keys).services_of(self.me.host)}
            self._strays_s = now_s
        recorded = {record.service for record in store.across.claims(own)}
        for service in sorted(own - recorded):
            self._is_sure = False
            with contextlib.suppress(Busy), service_lock(service, 0):
                held = claims.held(service)
                if held and held.host == self.me.host and store.across.claim(service) is None:
                    claims.release(service, held.mark)
                    self.log(f"{service} is not on this host: its claim is given up")
                if store.service(service) is None:
                    remove_locks(service)

    def _still(self, store: Store, engine: Engine, lost: list[str]) -> list[str]:
        """Return those that another host has now too: a command may have taken one meanwhile."""
        claims = Claims(engine, self.me.host, self.keys)
        ended = []
        for service in lost:
            try:
                with service_lock(service, 0):
                    held, record = claims.held(service), store.across.claim(service)
                    if held and record and held.host != self.me.host and held.gen > record.gen:
                        ended.append(service)
            except Busy:
                self._is_sure = False
                self._notice()
        return ended

    def _guarded(self, store: Store, now: Seen, now_s: float) -> Seen:
        """Return what was seen; for a while without what cannot well be true.

        An engine whose data were lost, or a cut of its own, looks as if all others had gone.
        """
        others = [host for host in now.hosts if host.name != self.me.host]
        empty = not any(
            a.host != self.me.host for each in now.services.values() for a in each.addresses
        )
        if now.only is not None and not empty:
            return now  # hosts are as they were
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

    def keep(self, engine: Engine, lease: int) -> int:
        """Keep this host's lease; return it, or a new one. Raises NoAnswer, Refused, Error.

        One that another process has left says nothing before it is that of this host's key: the
        host may have left since, and joined again.
        """
        if not (lease and engine.keep(lease)):
            lease = engine.grant(TTL_S)
        elif lease == self._lives:
            return lease
        if Membership(engine, self.keys).live(self.me.host, self.me.state_id, lease, self.me.boot):
            self._lives = lease
            return lease
        engine.revoke(lease)
        self._say(f"{self.me.host} is not a host of the cluster: nothing is changed")
        return 0

    def _say(self, text: str) -> None:
        """Log a line, unless it was the last one."""
        if text != self._said:
            self._said = text
            self.log(text)

    # --- for ever -------------------------------------------------------------

    def run(self, store: Store, kernel: Kernel) -> None:
        """Look whenever there is something to see, until `stop`."""
        for target in (self._alive, self._listen, *((self._mend,) if self.mend else ())):
            threading.Thread(target=target, daemon=True).start()
        engine = None
        self.watch(())
        due, tended, whole_s = True, -LOOK_S, 0.0
        hosts: set[str] = set()
        while not self._over.is_set():
            if not due and not self._wake.wait(max(0.0, whole_s - time.monotonic())):
                self._hurry.set()
            time.sleep(GATHER_S)
            # all hosts look when one comes or goes: not all at once
            self._hurry.wait(about(SPREAD_S) * len(hosts))
            self._wake.clear()
            self._hurry.clear()
            due, self._whole = False, False
            try:
                began = time.monotonic()
                called = self._called.is_set()
                if called:  # else one that comes now would be cleared too
                    self._called.clear()
                whole = called or began >= whole_s
                self.lag.notice(began)
                if self._has_left(store):
                    break
                engine = engine or self.connect()
                self.look(store, kernel, engine, began, whole)
                whole_s = began + about(LOOK_S) if whole else whole_s
                if self._whole:
                    self.lag.caught_up(began)
                hosts, before = {*store.across.peers()}, hosts
                is_due = time.monotonic() - tended >= LOOK_S
                tended = time.monotonic() if is_due else tended
                if is_due or hosts != before:
                    self.tend(engine, is_due)
                self.watch(net.name for net in store.networks() if net.span is not None)
            # files vanish while the host leaves its cluster, and a busy store is locked for long
            except (Error, OSError, sqlite3.Error) as error:
                self._say(_text(error))
                due = not self._over.wait(about(1.0))
            self._over.wait(LEAST_S)

    def kept(self, network: str) -> Kept:
        """Return what is kept of a network: the addresses of services on all hosts."""
        if network not in self._kept:
            self._kept[network] = Kept(self.keys.addresses(network))
        return self._kept[network]

    def watch(self, networks: Iterable[str]) -> None:
        """Follow hosts, and networks that are not followed yet, in threads."""
        self._watches.follow(self.keys.hosts, self.roster.kept, hurry=False)
        for name in networks:
            self._watches.follow(self.keys.network(name), self.kept(name), hurry=True)

    def stop(self) -> None:
        """End `run` soon."""
        self._over.set()
        self._wake.set()
        self._hurry.set()

    def _notice(self, hurry: bool = True) -> None:
        """Have the agent look soon."""
        self.lag.notice(time.monotonic())
        self._wake.set()
        if hurry:
            self._hurry.set()

    def _listen(self) -> None:
        def called() -> None:
            self._called.set()
            self._notice()

        try:
            wake.listen(wake.AGENT, called, self._over)
        except OSError as error:
            self.log(f"commands of this host cannot wake the agent: {error}")

    def _mend(self) -> None:
        """Keep up what packets go through, whether the engine answers or not."""
        assert self.mend is not None
        whole = -LOOK_S
        while not self._over.is_set():
            now_s = time.monotonic()
            due = now_s - whole >= LOOK_S
            whole = now_s if due else whole
            try:
                self.mend(due)
            except (Error, OSError, sqlite3.Error) as error:
                whole = -LOOK_S
                self._say(_text(error))
            self._over.wait(MEND_S)

    def _alive(self) -> None:
        """Keep the lease, which outlives this process for a while: a restart is not noticed."""
        engine = connected(self.connect, self._over)
        path = os.path.join(paths.run_dir(), "lease")
        lease, said = 0, True  # another process may have said it by the same lease
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            lease = int(file.read())
        while engine is not None and not self._over.is_set():
            try:
                kept = self.keep(engine, lease)
                if kept != lease:
                    lease = kept
                    with open(path, "w", encoding="ascii") as file:
                        file.write(str(lease))
                late = self.lag.seconds(time.monotonic())
                late = late if late >= LATE_S else 0
                if lease and (late or said):
                    Membership(engine, self.keys).say_late(self.me.host, lease, int(late))
                    said = bool(late)
            except (Error, OSError):
                pass  # the main thread says what is wrong
            self._over.wait(KEEP_S)


def _text(error: Exception) -> str:
    """Return what the log says of an error."""
    error = unusable(error) if isinstance(error, sqlite3.Error) else error
    return error.message if isinstance(error, Error) else str(error)


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
