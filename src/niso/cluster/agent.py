"""Synchronise one host with the cluster.

`Agent.poll` synchronises once, in both directions: it copies the services of other hosts from etcd
to this host, and writes this host's services to etcd. One such synchronisation is called a poll.
The agent can be killed at any point, because all of its state is in files: the store, and the id of
this host's etcd lease in the run folder. While the agent or etcd is down, services continue to run,
but changes on other hosts do not reach this host.

Another file contains the time of the last poll, and the time at which each dead host was first
found dead. Both are times of this host's monotonic clock, because clocks of different hosts are
never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable

from niso.base import files, paths
from niso.base.errors import Conflict, Error
from niso.base.locks import Busy, service_lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.cluster import encryption, mirror, own_claims
from niso.cluster.claims import Claims
from niso.cluster.engine import COMPACTED, Batch, Keys, KeyValue, Refused
from niso.cluster.key_values import HostEntry, host_of
from niso.cluster.membership import ClusterKeys
from niso.cluster.mirror import ClaimedService, EngineView, View
from niso.cluster.own_claims import OwnClaims
from niso.runtime import units
from niso.store.sqlite import unusable
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.cluster.etcd import Etcd
    from niso.kernel.real import Kernel


TTL_S = 10
KEEP_S = 3.0
MEND_S = 1.0
LOOK_S = 30.0
"""Seconds between complete polls, which find changes that no watch reported."""
GATHER_S = 0.005
LEAST_S = 0.05
"""The minimum interval in seconds between two polls: at most 20 a second."""
SPREAD_S = 0.001
"""Seconds for each host that a poll waits, at random, if only hosts join or leave."""
LATE_S = 5.0
"""The lag in seconds from which on the agent reports that it is behind."""
GUARD_S = 60.0
"""Seconds for which niso keeps services if most hosts or all services disappear at once."""
_GUARDED = 4


class Agent:
    """The agent that synchronises this host with the cluster.

    ``me`` has this host's name, and the ids of its state folder, cluster and boot. ``connect``
    returns a client of etcd. ``end`` deactivates services that another host has taken over.
    ``tend`` does periodic work: it is called with True about every `LOOK_S` seconds, and with False
    when hosts join or leave. ``mend`` repairs the WireGuard tunnel: it is called every `MEND_S`
    seconds in a separate thread, with True if a complete check is due.
    """

    def __init__(
        self,
        me: tuple[str, str, str, str],
        connect: Callable[[], Etcd],
        end: Callable[[list[str]], None],
        log: Callable[[str], None],
        keys: Keys | None = None,
        tend: Callable[[Etcd, bool], None] = lambda engine, whole: None,
        mend: Callable[[bool], None] | None = None,
    ) -> None:
        self.host, self.state_id, self.cluster, self.boot = me
        self.connect = connect
        self.end = end
        self.log = log
        self.keys = keys or Keys()
        self.tend = tend
        self.lag = Lag()
        self.host_keys = WatchedKeys(self.keys.hosts)
        self._host_items: dict[str, KeyValue] = {}
        self._decoded: dict[KeyValue, HostEntry] = {}
        self._hosts: tuple[HostEntry, ...] = ()  # sorted by name, as of the last poll
        self._view = View(self.keys, self.host)
        self.mend = mend
        self._wake = threading.Event()
        self._hurry = threading.Event()  # set if more has changed than the list of hosts
        self._called = threading.Event()  # set when a command has woken the agent
        self._over = threading.Event()
        self._followed: set[str] = set()
        self._kept: dict[str, WatchedKeys] = {}  # by network
        self._own = OwnClaims(log, self._say)
        self._doubt_since: float | None = None  # since when etcd's state is implausible
        self._lives = 0  # the lease on which this host's live key was last written
        self._seen: dict[str, tuple[int, int]] = {}  # by network: lease and revision
        self._said = ""
        self._wrong: tuple[str, ...] = ()

    def poll(
        self, store: Store, kernel: Kernel, engine: Etcd, now_s: float, whole: bool = True
    ) -> list[str]:
        """Synchronise with etcd once. Return the names of changed services of other hosts.

        Without ``whole``, only services that changed in etcd since the last poll are compared,
        unless that poll was not completed, or hosts or networks have changed. ``now_s`` is a
        monotonic time in seconds. Raises NoAnswer and Error.
        """
        if whole:
            self._view.doubt()
        if self._has_left(store):
            return []
        membership = ClusterKeys(engine, self.keys)
        cluster = membership.cluster()
        # an etcd that was replaced or lost its data must not delete the services of this host
        if cluster is None or cluster.identity != self.cluster:
            other = f"cluster {cluster.identity}" if cluster else "no cluster"
            self._say(f"etcd has {other}, not {self.cluster}: nothing is changed")
            self._own.doubt()
            self._view.doubt()
            return []
        if bool(cluster.encryption) != (store.across.tunnel() is not None):
            self._say("the cluster is otherwise encrypted than this host: nothing is changed")
            return []
        hosts, own = self.read_hosts(engine, now_s)
        member = own is not None and own.state_id == self.state_id
        spans = self._spans(store, kernel, engine, member)
        items = {name: self.kept(name).items(engine, now_s) for name in spans}
        subnets = {n.name: tuple((s.cidr, s.gateway) for s in n.subnets) for n in store.networks()}
        now = self._view.seen(hosts, items, subnets)
        if now.wrong and now.wrong != self._wrong:
            self.log(f"without a valid value, and ignored: {', '.join(now.wrong[:20])}")
        self._wrong = now.wrong
        claims = Claims(engine, self.host, self.keys)
        fenced = mirror.fenced(store, now, self.host)
        lost, is_sure = self._taken_over(store, claims, fenced), not fenced
        if member:
            others, is_so = self._own.bring(store, kernel, claims, now, now_s)
            lost, is_sure = sorted({*lost, *others}), is_sure and is_so
            now = self._guarded(store, now, now_s)
        if lost:
            self.log(f"taken over by other hosts, and ended here: {', '.join(lost)}")
            # before any other change, because another host already uses the addresses
            self.end(lost)
            mirror.drop_claims(store, kernel, lost)
        # other hosts may now use the addresses that this host had in the cluster
        if not member:
            self._say(f"{self.host} is not a host of the cluster: nothing is changed")
            return []
        if store.across.tunnel() is not None:
            encryption.follow(store, kernel, hosts, self.host)
        # some claims of this host differed from the store, so any service may be affected
        if not is_sure:
            now = now._replace(only=None)
        changed = mirror.apply_claims(store, kernel, now, self.host)
        if is_sure and self._doubt_since is None:
            self._view.done()
        self.lag.caught_up(now_s)
        if self._doubt_since is None:
            self._say_seen(membership, spans)
        with contextlib.suppress(OSError):  # this record is only displayed
            note((host.name for host in hosts if not host.alive), now_s)
        self._said = self._said if self._doubt_since is not None else ""
        return changed

    def _say_seen(self, membership: ClusterKeys, networks: Iterable[str]) -> None:
        """Write to etcd the revision up to which this host has applied changes of instances. A
        deploy on another host waits for this revision before it stops an instance.
        """
        lease = self._lives
        for network in networks if lease else ():
            now = (lease, self._view.newest.get(network, 0))
            if now[1] and self._seen.get(network) != now:
                with contextlib.suppress(Error):  # the next pass tries again
                    membership.say_seen(network, self.host, *now)
                    self._seen[network] = now

    def _has_left(self, store: Store) -> bool:
        if store.cluster_id() == self.cluster:
            return False
        self._say(f"this host has left cluster {self.cluster}")
        self.stop()
        return True

    def _spans(self, store: Store, kernel: Kernel, engine: Etcd, member: bool) -> list[str]:
        """Compare this host's networks that span hosts with etcd. Return the names of the networks
        that this host has afterwards. If this host is in the cluster (``member``), a network that
        etcd lacks is removed from this host. If services of this host use the network, it is
        written to etcd again instead.
        """
        here = {n.name: n.span.vni for n in store.networks() if n.span is not None}
        if not member:
            return list(here)
        # read after the rows: a command creates a network in the cluster before it writes the row
        index = ClusterKeys(engine, self.keys).index()[1] if here else {}
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

    def _restore(self, store: Store, engine: Etcd, name: str) -> None:
        if not any(name in claim.addresses for claim in store.across.claims()):
            self._say(f"the cluster does not have network {name}, which has services here")
            return
        spec = own_claims.spec_of(store.require_network(name))
        try:
            base = own_claims.base_of(store)
            ClusterKeys(engine, self.keys).restore_network(spec._replace(base=base))
            self.log(f"the cluster did not have network {name}, which has services here: restored")
        except Conflict as error:
            self._say(f"the cluster does not have network {name} any more: {error.message}")

    def _taken_over(self, store: Store, claims: Claims, lost: list[str]) -> list[str]:
        """Return those services in ``lost`` that another host has now reserved in etcd. A service
        that a command is changing is left out, and the agent requests another poll.
        """
        ended = []
        for service in lost:
            try:
                with service_lock(service, 0):
                    held, record = claims.held(service), store.across.claim(service)
                    if held and record and held.host != self.host and held.gen > record.gen:
                        ended.append(service)
            except Busy:
                self._notice()
        return ended

    def renew_lease(self, engine: Etcd, lease: int) -> int:
        """Renew this host's etcd lease, or create one if it has expired. Return the lease's id.

        If an earlier process created the lease, the host may have left and joined again since then.
        The host's key ``live`` is therefore written again. Returns 0 outside the cluster.
        """
        if not (lease and engine.renew_lease(lease)):
            lease = engine.grant(TTL_S)
        elif lease == self._lives:
            return lease
        if ClusterKeys(engine, self.keys).live(self.host, self.state_id, lease, self.boot):
            self._lives = lease
            if self._view.newest:
                self._notice()  # the keys of `_say_seen` need the new lease
            return lease
        engine.revoke(lease)
        self._say(f"{self.host} is not a host of the cluster: nothing is changed")
        return 0

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.log(text)

    def _guarded(self, store: Store, now: EngineView, now_s: float) -> EngineView:
        """Return the cluster's state ``now``. If too many hosts disappeared at once, add the
        disappeared ones. If etcd has lost its data, or this host's member is cut off, all other
        hosts seem to have disappeared. They and their services therefore stay for `GUARD_S`
        seconds.
        """
        others = [host for host in now.hosts if host.name != self.host]
        empty = not any(
            a.host != self.host for service in now.services.values() for a in service.addresses
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
                name: ClaimedService(rows, store.across.names(name)) for name, rows in known.items()
            }
            now = now._replace(services=services)
        hosts = [h._replace(alive=h.alive or h.name in gone) for h in now.hosts]
        missing = gone - {host.name for host in hosts}
        hosts += [HostEntry(name, *peers[name][:2], 0, True) for name in sorted(missing)]
        return now._replace(hosts=tuple(hosts))

    def run(self, store: Store, kernel: Kernel) -> None:
        """Synchronise periodically and after changes here or in etcd, until `stop` is called."""
        for target in (self._alive, self._listen, *((self._mend,) if self.mend else ())):
            threading.Thread(target=target, daemon=True).start()
        engine = None
        self.watch(())
        tended, whole_s = -LOOK_S, 0.0
        hosts: set[str] = set()
        while not self._over.is_set():
            if not self._wake.wait(max(0.0, whole_s - time.monotonic())):
                self._hurry.set()
            time.sleep(GATHER_S)
            # every host polls when one joins or leaves: spread the polls
            self._hurry.wait(about(SPREAD_S) * len(hosts))
            self._wake.clear()
            self._hurry.clear()
            try:
                began = time.monotonic()
                # clear the flag only if it is set, so that a call that arrives now is not lost
                if called := self._called.is_set():
                    self._called.clear()
                whole = called or began >= whole_s
                self.lag.notice(began)
                if self._has_left(store):
                    break
                engine = engine or self.connect()
                self.poll(store, kernel, engine, began, whole)
                whole_s = began + about(LOOK_S) if whole else whole_s
                hosts, before = {*store.across.peers()}, hosts
                is_due = time.monotonic() - tended >= LOOK_S
                tended = time.monotonic() if is_due else tended
                if is_due or hosts != before:
                    self.tend(engine, is_due)
                self.watch(net.name for net in store.networks() if net.span is not None)
            # files disappear when the host leaves its cluster, and the store may be locked for long
            except (Error, OSError, sqlite3.Error) as error:
                self._say(_text(error))
                self._over.wait(about(1.0))
                self._wake.set()
            self._over.wait(LEAST_S)

    def read_hosts(
        self, engine: Etcd, now_s: float
    ) -> tuple[tuple[HostEntry, ...], HostEntry | None]:
        """Return (all hosts of the cluster, this host or None if it has left). Raises NoAnswer."""
        item = ClusterKeys(engine, self.keys).host_item(self.host)
        items = self.host_keys.items(engine, now_s, item)
        if items is not self._host_items:
            decoded: dict[KeyValue, HostEntry] = {}
            hosts = []
            for key, each in sorted(items.items()):
                if "/" not in key.removeprefix(self.keys.hosts):
                    decoded[each] = self._decoded.get(each) or host_of(each, self.keys)
                    hosts.append(decoded[each]._replace(alive=f"{key}/live" in items))
            self._host_items, self._decoded, self._hosts = items, decoded, tuple(hosts)
        return self._hosts, self._decoded.get(item) if item is not None else None

    def kept(self, network: str) -> WatchedKeys:
        """Return the cache of a network's address keys in etcd. Creates it if it is missing."""
        if network not in self._kept:
            self._kept[network] = WatchedKeys(self.keys.addresses(network))
        return self._kept[network]

    def watch(self, networks: Iterable[str]) -> None:
        """Start threads that watch the keys of hosts and of these networks in etcd."""
        watched = [(self.keys.hosts, self.host_keys, False)]
        watched += [(self.keys.network(name), self.kept(name), True) for name in networks]
        for prefix, kept, hurry in watched:
            if prefix not in self._followed:
                self._followed.add(prefix)
                words = (prefix, self.connect, self._notice, self._over, hurry)
                threading.Thread(target=kept.follow, args=words, daemon=True).start()

    def stop(self) -> None:
        """Make `run` return within a short time."""
        self._over.set()
        self._wake.set()
        self._hurry.set()

    def _notice(self, hurry: bool = True) -> None:
        """Request a poll. Without ``hurry``, the poll may start later, at a random time."""
        self.lag.notice(time.monotonic())
        self._wake.set()
        if hurry:
            self._hurry.set()

    def _listen(self) -> None:
        def called() -> None:
            self._called.set()
            self._notice()

        try:
            units.listen(units.AGENT, called, self._over)
        except OSError as error:
            self.log(f"commands of this host cannot wake the agent: {error}")

    def _mend(self) -> None:
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
        """Renew this host's etcd lease until `stop`, and write the result of `Lag` to etcd."""
        engine = connected(self.connect, self._over)
        path = os.path.join(paths.run_dir(), "lease")
        lease, said = 0, True  # an earlier process may have reported its lag with the same lease
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            lease = int(file.read())
        while engine is not None and not self._over.is_set():
            try:
                kept = self.renew_lease(engine, lease)
                if kept != lease:
                    lease = kept
                    with open(path, "w", encoding="ascii") as file:
                        file.write(str(lease))
                late = self.lag.seconds(time.monotonic())
                late = late if late >= LATE_S else 0
                if lease and (late or said):
                    ClusterKeys(engine, self.keys).say_late(self.host, lease, int(late))
                    said = bool(late)
            except (Error, OSError):
                pass  # the main thread reports errors of etcd
            self._over.wait(KEEP_S)


def _text(error: Exception) -> str:
    error = unusable(error) if isinstance(error, sqlite3.Error) else error
    return error.message if isinstance(error, Error) else str(error)


def last() -> tuple[float | None, dict[str, float]]:
    """Return (time of the last poll, {dead host: time at which a poll first found it dead}). The
    times are seconds of the monotonic clock. If no poll is recorded, returns (None, {}).
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(files.read(_path()) or b"{}")
        gone = {str(host): float(seen_s) for host, seen_s in kept["gone"].items()}
        return float(kept["at"]), gone
    return None, {}


def note(gone: Iterable[str], now_s: float) -> None:
    """Record for `last` that a poll at the time ``now_s`` found the hosts ``gone`` dead."""
    before = last()[1]
    now = {host: before.get(host, now_s) for host in sorted(gone)}
    kept = json.dumps({"at": now_s, "gone": now})
    files.replace(_path(), kept.encode(), 0o600)


def _path() -> str:
    return os.path.join(paths.run_dir(), "gone")


# --- the cache of etcd's keys ---------------------------------------------------------------------
#
# All keys with a prefix are read, and then updated from the events of a watch. If many hosts each
# read all keys, this is expensive for etcd. Each host therefore caches the keys. To check whether a
# cache is complete, a host needs only a cheap request.


TRUST_S = 6.0
"""Seconds of silence after which each use checks the cache. niso's etcd reports every 5 s."""
CHECK_S = 30.0
"""Seconds after which the cache is checked with etcd, even if the watch works."""
WHOLE_S = 600.0
"""Seconds after which all keys are read again."""
SILENCE_S = 12.0
_AGAIN_S = 1.0
_BACK_OFF_S = (0.2, 5.0)


class WatchedKeys:
    """A cache of the etcd keys with a prefix. One thread may call `follow`, another `items`.

    While no watch updates the cache, `items` asks etcd whether the cache is up to date. All times
    are seconds of the monotonic clock.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._lock = threading.Lock()
        self._items: dict[str, KeyValue] = {}  # the dict is replaced, never changed
        self._is_followed = False  # whether a watch updates the cache
        self._all = 0  # all events up to this revision are applied: older ones are ignored
        self._at = 0  # the newest revision seen
        self._heard_s = self._checked_s = 0.0
        self._whole_s: float | None = None  # when all keys were last read

    def begin(self, engine: Etcd, now_s: float) -> int:
        """Read all keys. Return the revision at which the new watch must start. Raises NoAnswer."""
        self.lose()
        self.items(engine, now_s)
        with self._lock:
            self._is_followed = True
            self._heard_s = now_s
            return self._at + 1

    def hear(self, batch: Batch, now_s: float) -> bool:
        """Apply the events of a watch to the cache. Return False if a new watch is needed."""
        with self._lock:
            if not self._is_followed:
                return False
            self._heard_s = now_s
            revision, events = batch
            if not events:
                self._at = max(self._at, revision)
                return True
            items = {**self._items}
            for key, item, modified in events:
                if modified <= self._all:
                    continue
                self._at = max(self._at, modified)
                if not key.startswith(self.prefix):
                    continue
                if item is None:
                    items.pop(key, None)
                else:
                    items[key] = item
            self._items = items
        return True

    def follow(
        self,
        prefix: str,
        connect: Callable[[], Etcd],
        notice: Callable[[bool], None],
        over: threading.Event,
        hurry: bool,
    ) -> None:
        """Watch a prefix in etcd until ``over`` is set, and update this cache by the events.

        ``prefix`` may be shorter than the cache's prefix. ``notice`` is called to request a poll,
        with True if the poll must start at once: at the start of each watch, and with ``hurry``
        after each change.
        """
        wait = _BACK_OFF_S[0]
        engine = connected(connect, over)
        while engine is not None and not over.is_set():
            try:
                start = self.begin(engine, time.monotonic())
                notice(True)  # for changes from before the watch
                try:
                    for batch in engine.watch(prefix, start, SILENCE_S):
                        wait = _BACK_OFF_S[0]
                        if not self.hear(batch, time.monotonic()):
                            break
                        if batch[1]:
                            notice(hurry)
                        if over.is_set():
                            return
                finally:
                    self.lose()
            except Error as error:
                if isinstance(error, Refused) and error.code == COMPACTED:
                    continue  # begin again with all keys
                over.wait(about(wait))
                wait = min(2 * wait, _BACK_OFF_S[1])

    def lose(self) -> None:
        """Record that no watch updates the cache, so that `items` compares it with etcd."""
        with self._lock:
            self._is_followed = False

    def items(
        self, engine: Etcd, now_s: float, known: KeyValue | None = None
    ) -> dict[str, KeyValue]:
        """Return {name: key with value} for all keys with the prefix. Updates an outdated cache.

        If nothing has changed, the dict is the same object as before. ``known`` is a key that the
        caller has just read. If this key differs from the cache, all keys are read.
        """
        with self._lock:
            items = self._items
            is_sure = (
                self._is_followed
                and now_s - self._heard_s < TRUST_S
                and now_s - self._checked_s < CHECK_S
            )
            is_old = self._whole_s is None or now_s - self._whole_s >= WHOLE_S
        if not is_old and (known is None or items.get(known.key) == known):
            if is_sure:
                return items
            if (same := self._checked(engine, now_s)) is not None:
                return same
        return self._read(engine, now_s)

    def _read(self, engine: Etcd, now_s: float) -> dict[str, KeyValue]:
        with self._lock:
            before = self._at
        answer = engine.get(self.prefix)
        items = {item.key: item for item in answer.items}
        with self._lock:
            # etcd was restored from a backup: later changes are lost
            if answer.revision < before:
                self._is_followed = False
            if answer.revision < before or self._at <= answer.revision:
                self._items = items
                self._all = self._at = answer.revision
                self._checked_s = self._whole_s = now_s
        return items

    def _checked(self, engine: Etcd, now_s: float) -> dict[str, KeyValue] | None:
        """Return the cached keys, or None if `Etcd.mark` shows that etcd's keys have changed."""
        with self._lock:
            before = self._at
        revision, newest, lease, number = engine.mark(self.prefix)
        with self._lock:
            items = self._items.values()
            last = max((item.modified for item in items), default=0)
            leases = {item.lease for item in items if item.modified == last} or {0}
            same = (last, len(items)) == (newest, number) and lease in leases
            if revision < before or not same:
                return None
            self._all = max(self._all, revision)
            self._at = max(self._at, revision)
            self._checked_s = now_s
            return self._items


def connected(connect: Callable[[], Etcd], over: threading.Event) -> Etcd | None:
    """Call ``connect`` until it succeeds and return its result, or None if ``over`` is set."""
    while not over.is_set():
        try:
            return connect()
        except (Error, OSError):
            over.wait(about(_AGAIN_S))
    return None


def about(seconds: float) -> float:
    """Return a random number from 0.5 to 1.5 times ``seconds``, to spread requests over time."""
    return seconds * (0.5 + os.urandom(1)[0] / 255)


class Lag:
    """A timer of how long changes wait until a poll applies them. Threads may call `notice`."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = 0.0

    def notice(self, now_s: float) -> None:
        """Record that at ``now_s`` a change came that a poll must apply."""
        self._last_s = now_s
        if self._since_s is None:
            self._since_s = now_s

    def caught_up(self, began_s: float) -> None:
        """Record that a poll that began at ``began_s`` has applied all earlier changes."""
        self._since_s = self._last_s if self._last_s > began_s else None

    def seconds(self, now_s: float) -> float:
        """Return for how many seconds the oldest change has waited for a poll, or 0 for none."""
        since_s = self._since_s
        return 0.0 if since_s is None else max(0.0, now_s - since_s)
