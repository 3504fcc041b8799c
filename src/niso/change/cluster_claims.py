"""Reserve names and addresses of services in etcd, and report to the cluster which services are up.

Only services on networks that span hosts need such reservations, called claims. The content of a
service's claim follows from its manifest and from the rows of the services that share its
namespace. Only hosts of a cluster load this module.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from niso.base.errors import Conflict, Error, raise_all
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK
from niso.base.report import AskingCluster, Event, WarningEvent, silent
from niso.change import span_networks
from niso.change.admit import NoClaims
from niso.change.journal import locked
from niso.change.scope import Target, concerned, named_provider
from niso.cluster import mirror
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import NoAnswer
from niso.cluster.membership import ClusterKeys, require_own
from niso.cluster.own_claims import about, is_up, publish_claim, recorded, untold, wanted_by_rows
from niso.reconcile.change import change
from niso.runtime import units
from niso.runtime.machine import Machine
from niso.store.service_rows import SERVING, STARTING
from niso.store.snapshots import Scope
from niso.store.span_rows import ClaimRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.cluster.config import Config
    from niso.cluster.etcd import Etcd


_LOOK_S = 0.02
_LATER = "the agent says it once the cluster answers: niso cluster status"


class ActivationClaims:
    """The reservations in etcd (claims) of one activation's services.

    The object also has the networks of the cluster that the activation adds to this host.
    """

    def __init__(
        self,
        machine: Machine,
        joined: Config,
        engine: Etcd,
        arriving: span_networks.Arriving,
        unobserved: Collection[str],
        homes: Collection[str],
    ) -> None:
        self._unobserved = unobserved
        self.homes = homes
        """Services that own the namespaces of changed services, and are not changed themselves."""
        self._machine = machine
        self._joined = joined
        self._engine = engine
        self._arriving = arriving
        self._claims = Claims(engine, joined.host, joined.keys)
        self._held: dict[str, ClaimRow] = {}
        self._is_silent = False
        self.lost: NoAnswer | None = None
        """Why etcd's answers are ignored: etcd has lost the cluster's data. Otherwise None."""

    def __contains__(self, service: str) -> bool:
        return service in self._held

    def close(self) -> None:
        self._engine.close()

    def networks(self, service: str) -> Collection[str]:
        """Return the names of the networks that span hosts and on which a service has addresses."""
        claim = self._held.get(service)
        return claim.addresses if claim is not None else ()

    def claim(self, wanted: dict[str, tuple[Target, Wanted]]) -> None:
        """Reserve in etcd the names and addresses that services need.

        ``wanted`` maps services to their targets and claims. If etcd does not answer, this host's
        record of the claim is used, with a warning. Raises NoAnswer if the record lacks a name or
        address, Conflict if another host has reserved one, and ErrorGroup for several errors.
        """
        known = {name: self._own_record(name, *pair) for name, pair in wanted.items()}
        self._begin([name for name, record in known.items() if record is None])
        errors: list[Error] = []
        for name, (target, asked) in wanted.items():
            try:
                if self.lost is not None:
                    raise self.lost
                row = self._machine.store.service(name)
                renew = row is None or not row.active
                held = self._claims.claim(asked, target.take, keep=True, renew=renew)
                self._held[name] = recorded(held)
            except NoAnswer as error:
                if (record := known[name]) is None or self._replaces(target):
                    raise
                self._is_silent, self._held[name] = True, record
                text = f"{target.name} starts by this host's own record: {error.message}"
                self._machine.caution(text, (_LATER,))
            except Error as error:
                if error.key:
                    error.file, error.service = target.manifest_path, name
                errors.append(error)
        raise_all(errors)

    def _replaces(self, target: Target) -> bool:
        """Return whether an instance will replace instances that receive connections now. Without
        etcd, other hosts would continue to send connections to the replaced instances.
        """
        one, instances = target.instance, self._machine.store.instances
        return one is not None and one.state == STARTING and bool(instances.of(one.front, SERVING))

    def foresee(self, wanted: dict[str, tuple[Target, Wanted]]) -> None:
        """Compute the claims that `claim` would make. Raises Conflict or NoAnswer, too."""
        for name, (target, asked) in wanted.items():
            try:
                if self.lost is not None:
                    raise self.lost
                self._held[name] = recorded(self._claims.foreseen(asked, target.take))
            except NoAnswer:
                if (record := self._own_record(name, target, asked)) is None:
                    raise
                self._held[name] = record

    def _own_record(self, name: str, target: Target, asked: Wanted) -> ClaimRow | None:
        store = self._machine.store
        is_around = name in self.homes
        return store.across.claim(name) if is_around else own_record(store, target, asked)

    def _begin(self, services: list[str]) -> None:
        """Record intents and empty claims, so that recovery can release the claims made next."""
        store = self._machine.store
        if services:
            with Lock(), store.transaction():
                for name in services:
                    store.begin_intent(name, "activate", time.time())
                    if store.across.claim(name) is None:
                        store.across.set_claim(ClaimRow(name, "", 0, {}))

    def remove_displaced(self) -> None:
        """Delete remote services from this host's store if this host has claimed their addresses.

        Must not be called in a transaction.
        """
        machine = self._machine
        mirror.make_way(
            machine.store, machine.kernel, self._held, self._addresses(), machine.report
        )

    def scope(self) -> Scope:
        """Return the scope in which `record` writes: new networks and services of other hosts."""
        changed = self._changed_services()
        return mirror.scope_of(self._machine.store, changed, changed)

    def record(self) -> None:
        """Record new networks, claims and remote services, in the caller's transaction."""
        store, changed = self._machine.store, self._changed_services()
        self._arriving.record(self._machine, True, self._unobserved)
        mirror.write(store, self._arriving.seen, self._joined.host, changed)
        for name, claim in self._held.items():
            have = store.across.claim(name) if name in self.homes else None
            # skip an older claim for a shared namespace: another command may be changing it
            if have is None or have.gen < claim.gen:
                store.across.set_claim(claim)

    def _changed_services(self) -> dict[str, mirror.ClaimedService]:
        seen, own = self._arriving.seen, self._joined.host
        return mirror.changed_services(
            self._machine.store, seen, own, self._held, self._addresses()
        )

    def _addresses(self) -> set[tuple[str, str]]:
        claims = self._held.values()
        return {(net, a) for claim in claims for net, some in claim.addresses.items() for a in some}

    def publish(self) -> None:
        """Report to the cluster that the services are active.

        If etcd does not answer, a warning is reported and the agent publishes the services later.
        Raises Conflict if another host has replaced a claim since this command made it.
        """
        machine, store = self._machine, self._machine.store
        # `report_changes` does it for owners of namespaces that another command may be changing
        own = {name: claim for name, claim in self._held.items() if name not in self.homes}
        if self._is_silent:
            untold(store, own)
            own = {}
        for name, claim in own.items():
            try:
                row = store.service(name)
                up = row is None or is_up(store, row)
                held = self._claims.publish(name, claim.mark, up, about(store, name))
            except NoAnswer as error:
                untold(store, own)
                machine.caution(f"other hosts do not know yet that {name} is up", (_LATER,))
                machine.caution(error.message)
                break
            if not held:
                reason = f"another host has taken {name} over while it started"
                raise Conflict(reason, "niso ps --all-hosts shows where it is")
        units.wake_agent()


def prepare(
    machine: Machine,
    targets: Iterable[Target],
    made: Iterable[str],
    dry_run: bool = False,
    unobserved: Collection[str] = (),
) -> ActivationClaims | NoClaims:
    """Reserve in etcd the names and addresses that services need, and return the reservations.

    ``made`` are networks that the command creates on this host alone. ``unobserved`` are new
    networks whose flows are not recorded. With ``dry_run``, nothing is reserved. Raises Conflict,
    NoAnswer or Error. After an error, the caller must call `report_changes` to release the
    reservations.
    """
    store = machine.store
    every = list(targets)
    homes = {target.name: home_network(store, target, every) for target in every}
    names = needed_names(store, homes, every)
    around = needed_around(store, homes, names)
    targets = [target for target in every if target.spec.network.mode == "bridge"]
    on = sorted({net for target in targets for net in target.spec.network.networks} - {*made})
    spans = store.across.spanning(on)
    unknown = [net for net in on if net != DEFAULT_NETWORK and store.network(net) is None]
    joined = machine.joined() if spans or unknown or around else None
    if joined is None:
        return NoClaims()
    # if all claims are recorded already, the command can do without an answer, and waits less
    brief = not unknown and all(
        own_record(store, target, needs_of(store, target, spans, names)) for target in targets
    )
    engine = joined.engine(brief)
    machine.report(AskingCluster())
    lost: NoAnswer | None = None
    try:
        try:
            arriving = _arriving(store, joined, engine, unknown, brief)
        except Conflict as error:
            if not brief:
                raise
            arriving = span_networks.Arriving.none(joined)
            lost = NoAnswer(error.reason, error.hint)
        spans += [spec.name for spec in arriving.specs]
        wanted = {
            target.name: (target, needs_of(store, target, spans, names))
            for target in targets
            if not {*target.spec.network.networks}.isdisjoint(spans)
        }
        shared = ((homes[target.name], target) for target in every)
        wanted |= {home: (target, around[home]) for home, target in shared if home in around}
        held = ActivationClaims(machine, joined, engine, arriving, unobserved, around)
        held.lost = lost
        if dry_run:
            held.foresee(wanted)
        else:
            held.claim(wanted)
    except BaseException:
        engine.close()
        raise
    # otherwise the claims use the connection until the command ends
    if not wanted or dry_run:
        engine.close()
    return held if wanted else NoClaims()


def report_changes(machine: Machine, services: Iterable[str], final: bool = True) -> None:
    """Report the present state of services to the cluster. Never raises Error.

    The providers of these services are reported too. If etcd does not answer, the agent reports the
    services later. A service that another command is changing is skipped, because that command
    reports it. ``final`` is false if a request of this host may still reach etcd: then an empty
    claim stays recorded. The caller must have locked ``services``, but not their providers.
    """
    store = machine.store
    services = list(services)
    both = dict.fromkeys((*services, *(store.home(name) for name in services)))
    told = [name for name in both if store.across.claim(name) and store.intent(name) is None]
    joined = machine.joined() if told else None
    if joined is None:
        return
    with joined.engine(brief=True) as engine:
        claims = Claims(engine, joined.host, joined.keys)
        machine.report(AskingCluster())
        try:
            require_own(store, ClusterKeys(engine, joined.keys))
            for name in told:
                try:
                    publish_claim(store, machine.kernel, claims, name, final)
                except NoAnswer:
                    raise
                except Error as error:
                    machine.report(_caution(error))
        except NoAnswer as error:
            untold(store, told)
            machine.caution(f"other hosts do not know it yet: {error.message}", (_LATER,))
        except Error as error:
            machine.report(_caution(error))
    units.wake_agent()


def report_leaving(machine: Machine, instances: Iterable[str], end: float) -> None:
    """Publish that instances will stop, and wait until other hosts send them no new connections.

    The wait ends at the monotonic time ``end``, even if hosts may still send connections. If etcd
    does not answer, the wait always lasts until ``end``. The caller must have the lock of the
    instances' service. Raises no Error.
    """
    store = machine.store
    names = [name for name in instances if store.across.claim(name) is not None]
    joined = machine.joined() if names else None
    if joined is None:
        return
    with joined.engine(brief=True) as engine:
        claims = Claims(engine, joined.host, joined.keys)
        membership = ClusterKeys(engine, joined.keys)
        try:
            require_own(store, membership)
            since: dict[str, int] = {}  # by network: the revision from which on all have left
            for name in names:
                publish_claim(store, machine.kernel, claims, name)
                held = claims.held(name)
                for network in held.networks if held is not None else ():
                    since[network] = max(since.get(network, 0), held.revision if held else 0)
            units.wake_agent()
            own = joined.host
            while late := [h for on, at in since.items() for h in membership.unseen(on, at, own)]:
                if time.monotonic() >= end:
                    text = f"{', '.join(sorted({*late}))}: does not yet know which instances leave"
                    machine.caution(text, ("niso cluster status shows how far it is behind",))
                    break
                time.sleep(_LOOK_S)
        except Error as error:
            machine.report(_caution(error))
            time.sleep(max(0.0, end - time.monotonic()))


def hand_over(machine: Machine, service: str) -> None:
    """Release this host's claim of a service that other hosts run too.

    The service is then recorded as a service of other hosts, whose instances receive all
    connections to the service address. The caller must have the service's lock. If etcd does not
    answer, nothing changes here, and the agent releases the claim later. Raises KernelError.
    """
    store, joined = machine.store, machine.joined()
    if joined is None:
        return
    with joined.engine(brief=True) as engine:
        try:
            claims = Claims(engine, joined.host, joined.keys)
            held = claims.held(service)
            if held is None or held.host != joined.host or not held.others:
                return
            claims.release(service, held.mark)
        except Error as error:
            machine.report(_caution(error))
            return
    with Lock():
        scope = concerned(store, [service]).joined(mirror.scope_of(store, [service], {}))
        with change(machine.kernel, store, scope, machine.report):
            store.across.hand_over(service, store.names_there(service))


def _caution(error: Error) -> Event:
    event: Event = WarningEvent(error.message, (error.hint,) if error.hint else ())
    return event


def report_remaining(machine: Machine) -> None:
    """Release this host's claims for services that are not active. Raises no Error."""
    left = [claim.service for claim in machine.store.across.claims()]
    with locked(machine.store, left):
        report_changes(machine._replace(report=silent), left)


def _arriving(
    store: Store, joined: Config, engine: Etcd, unknown: list[str], brief: bool
) -> span_networks.Arriving:
    membership = ClusterKeys(engine, joined.keys)
    try:
        cluster = require_own(store, membership)
    except NoAnswer as error:
        if brief:
            return span_networks.Arriving.none(joined)
        if unknown:
            error.reason = f"network {unknown[0]!r} may be one of the cluster: {error.reason}"
        raise
    specs = [spec for name in unknown if (spec := membership.network(name)) is not None]
    if not specs:
        return span_networks.Arriving.none(joined)
    return span_networks.arriving(joined, engine, cluster, specs)


# --- what services need in the cluster ------------------------------------------------------------


def home_network(store: Store, target: Target, targets: Iterable[Target]) -> str:
    """Return the service whose network namespace a service will share after its activation.

    Returns "" if the service shares no namespace, or if no service has the name in the manifest.
    """
    share = target.spec.network.share
    for other in targets if share is not None else ():
        if share == other.name or share in other.spec.names:
            return other.name
    return named_provider(store, target) or ""


def _shares(store: Store, target: Target) -> bool:
    row = store.service(target.name)
    return row is not None and row.active and row.provider is not None


def needed_names(
    store: Store, homes: dict[str, str], targets: Iterable[Target]
) -> dict[str, tuple[str, ...]]:
    """Return {provider: sharers whose names the provider must claim}.

    If a sharer moves to another provider on this host, the new provider claims the sharer's names
    after the old provider has released them (`behind`).
    """
    providers = {*homes.values(), *(target.name for target in targets)} - {""}
    needed = {provider: {*store.sharers(provider)} for provider in providers}
    for target in targets:
        is_new = store.across.claim(target.name) is None and not _shares(store, target)
        if is_new and (home := homes[target.name]):
            needed[home].add(target.name)
    return {provider: tuple(sorted(names)) for provider, names in needed.items()}


def needed_around(
    store: Store, homes: dict[str, str], names: dict[str, tuple[str, ...]]
) -> dict[str, Wanted]:
    """Return the new claims of providers that the command itself does not change.

    A provider must also claim the names of changed services that will share its namespace. A
    provider that another command is changing is left out: the other command would take a new claim
    for a loss of its own.
    """
    wanted: dict[str, Wanted] = {}
    for home in {*homes.values()} - {*homes, ""}:
        row = store.service(home) if store.intent(home) is None else None
        on = store.across.spanning(row.networks) if row is not None else []
        if row is not None and on and store.across.claim(home) is not None:
            asked = wanted_by_rows(store, row, on)
            every = dict.fromkeys((*store.names(home), *names[home]))
            wanted[home] = asked._replace(names=tuple(every))
    return wanted


def behind(store: Store, services: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return the services whose claims must be updated after sharers have changed their provider.

    ``services`` are pairs (changed service, the service whose namespace it shared before, or None).
    In the result, services that release names precede services that claim these names.
    """
    concerned: dict[str, None] = {}
    for name, before in services:
        row = store.service(name)
        now = row.provider if row is not None else None
        if before or now:
            concerned |= dict.fromkeys(service for service in (before, name, now) if service)
    return list(concerned)


def needs_of(
    store: Store, target: Target, spans: list[str], names: dict[str, tuple[str, ...]]
) -> Wanted:
    """Return the claim that a service needs on networks that span hosts (``spans``).

    The claim contains the addresses in the manifest. If the manifest has none for a network, it
    contains the service's previous addresses there. A sharer leaves out the names that its provider
    has claimed.
    """
    spec = target.spec
    on = tuple(network for network in spec.network.networks if network in spans)
    had: dict[str, tuple[str, ...]] = {}
    for network, address in store.addresses(target.name):
        had[network] = (*had.get(network, ()), address)
    former = store.names(target.name) if _shares(store, target) else ()
    every = dict.fromkeys((*spec.names, *names.get(target.name, ())))
    called = tuple(name for name in every if name not in former)
    statics = {net: tuple(spec.network.statics(net)) for net in on}
    return Wanted(target.name, on, called, statics, had, spec.is_front)


def instances_elsewhere(machine: Machine, front: Target) -> set[int]:
    """Return the numbers of a service's instances that other hosts have reserved.

    This host's instances may be included. If etcd does not answer, the numbers come from this
    host's copy of the cluster's data.
    """
    store, on = machine.store, front.spec.network.networks
    known = {int(other.rpartition(".")[2]) for other in store.across.instances(front.name)}
    unknown = [net for net in on if net != DEFAULT_NETWORK and store.network(net) is None]
    joined = machine.joined() if unknown or store.across.spanning(on) else None
    if joined is None:
        return known
    with joined.engine(brief=True) as engine:
        try:
            return known | ClusterKeys(engine, joined.keys).instances(front.name)
        except NoAnswer:
            return known


def own_record(store: Store, target: Target, wanted: Wanted) -> ClaimRow | None:
    """Return this host's record of a claim. None if a name or address of ``wanted`` is missing."""
    claim = store.across.claim(target.name)
    if claim is None or {*claim.addresses} != {*wanted.networks}:
        return None
    statics = {address for some in wanted.requested.values() for address in some}
    held = {address for some in claim.addresses.values() for address in some}
    same = statics <= held and {*store.names(target.name)} == {*target.spec.names}
    return claim if same else None
