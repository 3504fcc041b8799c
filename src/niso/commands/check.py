"""check, repair and sweep: what should be against what is, each thing by its name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from niso.base import names, paths
from niso.base.errors import ErrorGroup, KernelError, NisoError, NotFound
from niso.base.lite_typing import NamedTuple
from niso.base.names import alias
from niso.commands import store_repair
from niso.explain import exposure
from niso.kernel import netns
from niso.kernel.read import read
from niso.plan.diff import Step, by_key, unhindered
from niso.plan.records import Network
from niso.plan.state import (
    Address,
    Attached,
    Bridge,
    Element,
    HostsFile,
    HostsLine,
    Neighbour,
    Netns,
    Route,
    Ruleset,
    State,
    Sysctl,
    Thing,
    Veth,
    kinds,
)
from niso.reconcile import flows, policy_flows
from niso.reconcile.converge import Lock, Report, compare, desired_now, repair, silent
from niso.runtime import hosts_mount, package, process, status
from niso.runtime.root import HOSTS
from niso.runtime.service_lock import service_lock
from niso.runtime.spec import APP, load, save
from niso.services import journal
from niso.store.store import ALL, Scope, ServiceRow, Store, bare_name, suggest


class Finding(NamedTuple):
    """``problem`` is missing, foreign or different; ``what`` names the thing; ``detail`` says how it differs."""

    problem: str
    what: str
    detail: str = ""

    def text(self) -> str:
        """One line."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


_LOOKS, _PAUSE_S = 3, 0.03
"""Of a veth pair that goes the kernel needs some 10 to 20 ms to be rid, while nobody holds the lock."""
_WAITS_S = 1.0
"""For another command, which as a rule holds the lock for some ms."""


def check(store: Store, name: str | None = None) -> list[Finding]:
    """All that is not as it should be: of everything, or of one service or network. Changes nothing.

    What is found is looked at again, under niso's lock where that is to be had, and told if it is still so: another command may have
    been in the middle of a change. Raises NotFound where there is no such service or network, KernelError.
    """
    found: list[Finding] | None
    try:
        found = _own(store, name)
    except KernelError:  # of what went between two looks
        found = None
    for _ in range(_LOOKS - 1):
        if found == []:
            break
        time.sleep(_PAUSE_S)
        with Lock(_WAITS_S):
            again = _own(store, name)
        known = {(each.problem, each.what) for each in (again if found is None else found)}
        found = [each for each in again if (each.problem, each.what) in known]
    networks, active = _concerned(store, name)
    return [*(found or ()), *_other_firewalls(networks), *_closed_links(active)]


def _concerned(store: Store, name: str | None) -> tuple[list[Network], list[str]]:
    """The networks that a check is about, and the active services."""
    if name is None:
        return store.networks(), store.active_services()
    scope, active = _scope(store, name)
    return [
        network for each in scope.networks or () if (network := store.network(each)) is not None
    ], active


def _own(store: Store, name: str | None) -> list[Finding]:
    """What is not as it should be of what is niso's."""
    lost = [_hole(each) for each in store_repair.holes(store)]
    if lost:  # what should be in the kernel is not known before they are back
        return lost
    if name is None:
        _, want, have, foreign = compare(store)
        strange = [Finding("foreign", error.message) for error in foreign.values()]
        return [
            *(
                _hole(store_repair.Hole("different", "service", row.name))
                for row in store_repair.damaged(store)
            ),
            *findings(want, have),
            *strange,
            *_processes(store, store.active_services()),
            *(
                Finding("foreign", f"process of service {name!r}", NOT_ACTIVE)
                for name in _left_running(store)
            ),
        ]
    scope, active = _scope(store, name)
    want = desired_now(store, scope)
    return [
        *findings(want, read(want, alias(store.state_id()), strays=True)),
        *_processes(store, active),
    ]


def _scope(store: Store, name: str) -> tuple[Scope, list[str]]:
    """What a name is about, and the active service that has it. Raises NotFound."""
    if store.network(name) is not None and store.name_holder(bare_name(name)) is None:
        return Scope((), (name,)), []
    if store.name_holder(bare_name(name)) is None:
        known = [*(each for each, _, _ in store.service_names()), *store.network_names()]
        raise NotFound(
            f"no service or network {name!r}",
            suggest(name, known, "niso ps and niso net list have all names"),
        )
    service = store.resolve(name)
    row = store.service(service)
    assert row is not None
    return Scope(store.with_companions([service]), row.networks), [service] if row.active else []


def _hole(found: store_repair.Hole) -> Finding:
    return Finding(
        found.problem,
        f"store: {found.table}{f' of service {found.service!r}' if found.service else ''}",
    )


def _other_firewalls(networks: Iterable[Network]) -> list[Finding]:
    return [
        Finding("foreign", drop.words(), f"add: {'; '.join(drop.remedy)}")
        for drop in exposure.drops(networks)
    ]


def _closed_links(active: list[str]) -> list[Finding]:
    """Of the host's links; where no service is active it is nobody's concern."""
    return (
        [Finding("foreign", what, remedy) for what, remedy in exposure.closed_links()]
        if active
        else []
    )


def findings(want: State, have: State) -> list[Finding]:
    """The differences; what only follows from another one (an address of a missing link) is not named again."""
    found: list[Finding] = []
    without: set[str] = set()
    want = unhindered(want, have)
    for wanted, present in zip(kinds(want), kinds(have), strict=True):
        before, more = by_key(wanted, present)
        for thing in sorted(wanted):
            was = before.pop(thing.key(), None)
            if was == thing or any(
                parent in without for parent in (*_parents(thing), *_followed(thing, was))
            ):
                continue
            if was is None:
                found.append(_absent(thing))
                without.add(_identity(thing))
            elif (
                isinstance(was, Sysctl) and was.name.endswith("/disable_ipv6") and was.value == "1"
            ):
                found += _different(thing, was, without)
                without.add(f"link /{was.netns}/{was.name.split('/')[3]} without IPv6")
            elif isinstance(was, Ruleset):
                found += _ruleset(was)
                without.update(text.partition(" ")[2] for text in was.wrong)
                if was._replace(wrong=()) != thing:
                    without.add("ruleset")
            else:
                found += _different(thing, was, without)
                if (
                    isinstance(was, Veth) and not was.peer
                ):  # what lies on the other end is out of sight
                    without.add(_identity(thing))
                if isinstance(was, Bridge | Veth) and not was.up:
                    without.update(
                        f"{each} down" for each in (_identity(was), f"link //{was.name}")
                    )
        for thing in sorted([*before.values(), *more]):
            if isinstance(thing, Sysctl) or any(parent in without for parent in _parents(thing)):
                continue
            found.append(Finding("foreign", _what(thing)))
            without.add(_identity(thing))
    return found


def plan_mend(store: Store, report: Report) -> None:
    """Report what `mend` would do now, but for what was left half-way. Changes nothing."""
    lost = store_repair.holes(store)
    for hole in lost:
        report(_filling(hole))
    if lost:
        copy = store.in_memory()
        store_repair.fill(copy, lost)
        store = copy
    homes = _nameless(store)
    for name, pid in homes:
        report(f"ip netns attach {names.netns(name)} {pid}")
    back = {names.netns(name) for name, _ in homes}
    steps, want, _, _ = compare(store)
    back |= {veth.name for veth in want.veths if veth.netns in back}
    for step in steps:
        if not (
            isinstance(step, Step)
            and ({step.thing.key()[0], getattr(step.thing, "netns", "")} & back)
        ):
            report(step.describe())
    for name in store.active_services():
        row = store.service(name)
        if row is not None and _package(row) is not None:
            report(f"copy package {os.path.dirname(row.manifest_path)}")
        finding = _process(name)
        if finding is not None:
            report(_mending(name, finding))
    for name in _left_running(store):
        report(f"stop {name}")


def mend(store: Store, report: Report = silent) -> int:
    """Recover what was left half-way, put everything right and start what should run; gives how much was done."""
    errors: list[NisoError] = []
    with Lock():
        recovered = _fill(store, report)  # where this cannot be, what should be is not known
        for damaged in store_repair.damaged(store):
            try:
                store_repair.mend(store, damaged)
                report(_filling(store_repair.Hole("different", "service", damaged.name)))
                recovered += 1
            except NisoError as error:
                errors.append(error)
    try:
        recovered += journal.recover(store, report, [intent.service for intent in store.intents()])
    except NisoError as error:
        errors.append(error)
    with Lock():
        try:
            recovered += _name_again(store, report)
            steps = repair(store, report)
        except NisoError as error:
            errors.append(error)
            steps = []
        if steps or errors:
            # flows that began while a rule was away have no NAT, and would keep their client from it
            flows.clear(desired_now(store, ALL))
            # and what came in while a policy was away is cut
            policy_flows.cut(
                store, [name for name in store.active_services() if store.policy(name) is not None]
            )
    done = recovered + len(steps)
    for name in store.active_services():
        with service_lock(name):
            row = store.service(name)
            if row is None or not row.active:
                continue
            try:
                done += _copy_again(row, report) + _write_spec_again(row, report)
            except NisoError as error:
                errors.append(error)
            finding = _process(name)
            if finding is not None:
                report(_mending(name, finding))
                try:
                    spec = journal.stored_spec(row)
                    if finding.detail == BLIND:
                        hosts_mount.swap_or_restart(spec, report)
                    else:
                        process.stop(name, spec.stop_timeout_s)
                        process.start(spec)
                except NisoError as error:
                    errors.append(error)
                done += 1
    for name in _left_running(store):
        with service_lock(name):
            if name not in _left_running(store):  # somebody was at it
                continue
            report(f"stop {name}")
            try:
                process.stop(name)
            except NisoError as error:
                errors.append(error)
            done += 1
    if errors:
        raise ErrorGroup(
            [
                each
                for error in errors
                for each in (error.errors if isinstance(error, ErrorGroup) else [error])
            ]
        )
    return done


def _copy_again(row: ServiceRow, report: Report) -> int:
    """Copy a service's package where the copy is gone; how much was done. Raises NisoError where it is another one by now."""
    if _package(row) is None:
        return 0
    folder = os.path.dirname(row.manifest_path)
    try:
        same = package.fingerprint(folder, row.rootfs, row.manifest_path) == row.fingerprint
    except NisoError:
        same = False
    if not same:
        words = f"{row.name}: its package copy {row.package} is gone, and {folder} has another package or none now"
        raise NisoError(words, f"niso activate {row.manifest_path}")
    report(f"copy package {folder}")
    package.copy(row.name, folder, row.rootfs, row.fingerprint, row.manifest_path)
    return 1


def _write_spec_again(row: ServiceRow, report: Report) -> int:
    """Write what a running service was started from where that is gone; how much was done. Raises NisoError."""
    finding = _process(row.name)
    if finding is None or finding.detail != UNKNOWN:
        return 0
    report(_mending(row.name, finding))
    try:
        save(journal.stored_spec(row))
    except OSError as error:
        raise NisoError(f"{row.name}: cannot write spec.json: {error.strerror}") from error
    return 1


def _fill(store: Store, report: Report) -> int:
    lost = store_repair.holes(store)
    if lost:
        with store.transaction():
            store_repair.fill(store, lost)
    for hole in lost:
        report(_filling(hole))
    return len(lost)


def _filling(hole: store_repair.Hole) -> str:
    verb = "delete" if hole.problem == "foreign" else "write"
    return f"{verb} {hole.table}{f' of {hole.service}' if hole.service else ''} in the store"


def _nameless(store: Store) -> list[tuple[str, int]]:
    """(active service, pid of its process) where its network namespace has lost its name and the process is still in it."""
    mark = alias(store.state_id())
    found = []
    for name in store.active_services():
        spec = load(name)
        pid = status.read(name).pid
        if (
            spec is None
            or pid is None
            or spec.netns != paths.netns_path(name)
            or netns.exists(names.netns(name))
        ):
            continue
        if netns.marked(pid) == mark:
            found.append((name, pid))
    return found


def _name_again(store: Store, report: Report) -> int:
    homes = _nameless(store)
    for name, pid in homes:
        report(f"ip netns attach {names.netns(name)} {pid}")
        netns.attach(names.netns(name), pid, alias(store.state_id()))
    return len(homes)


NOT_ACTIVE = "it is not active"


def _left_running(store: Store) -> list[str]:
    """The services that have a process, or what is left of one, and are not active; what somebody is at is left out."""
    found = []
    for name in status.services():
        row = store.service(name)
        if (row is None or not row.active) and store.intent(name) is None:
            found.append(name)
    return found


def _processes(store: Store, active: list[str]) -> list[Finding]:
    found = []
    for name in active:
        if store.intent(name) is not None:  # somebody is at it
            continue
        row = store.service(name)
        lost = None if row is None else _package(row)
        found += [each for each in (lost, _process(name)) if each is not None]
    return found


def _package(row: ServiceRow) -> Finding | None:
    """Whether the copy that a service shows at /app is there; what is in it is not looked at."""
    if os.path.isdir(row.package):
        return None
    return Finding(
        "missing",
        f"package copy {row.package} of service {row.name!r}",
        f"niso activate {row.manifest_path}",
    )


def _mending(name: str, finding: Finding) -> str:
    if finding.detail == UNKNOWN:
        return f"write spec.json of {name}"
    return f"show {name} its hosts file" if finding.detail == BLIND else f"start {name}"


def _process(name: str) -> Finding | None:
    """What is wrong with an active service's process; an end that its conmon has seen is not."""
    what = f"process of service {name!r}"
    if status.outside_cgroup(name):
        return Finding(
            "different", f"cgroup of service {name!r}", "its process was moved out of it"
        )
    now = status.read(name, closely=True)
    if now.state in ("none", "failed"):
        return Finding("missing", what, now.error or "")
    if now.state != "running":
        return None
    spec = load(name)
    if spec is None:
        return Finding("missing", f"spec.json of service {name!r}", UNKNOWN)
    if _lost_sight(spec.package, now.pid):
        return Finding("different", what, "its package copy was removed under it")
    if not status.in_own_netns(name):
        return Finding("different", what, "it runs in another network namespace")
    if not _sees_hosts(name, now.pid):
        return Finding("different", what, BLIND)
    if not status.conmon_alive(name):
        return Finding(
            "missing", f"conmon of service {name!r}", "nobody keeps its log or restarts it"
        )
    if now.pid is not None and not status.known_to_crun(name, now.pid):
        return Finding("missing", f"crun's state of service {name!r}", "exec does not find it")
    return None


UNKNOWN = "what it was started from, by which its process is known"
BLIND = "it does not see its hosts file: the folder was removed"


def _lost_sight(copy: str, pid: int | None) -> bool:
    """Whether a service shows a package copy that has been removed, while there is one to show."""
    try:
        return os.stat(f"/proc/{pid}/root{APP}").st_nlink == 0 and os.path.isdir(copy)
    except OSError:
        return False


def _sees_hosts(name: str, pid: int | None) -> bool:
    """Whether the folder that a service reads its names from is the one that niso writes; True where that cannot be told."""
    spec = load(name)
    try:
        return spec is None or os.path.samestat(
            os.stat(f"/proc/{pid}/root/etc/{HOSTS}"), os.stat(spec.hosts_folder)
        )
    except OSError:
        return True


def _absent(thing: Thing) -> Finding:
    if isinstance(thing, HostsFile) and os.path.lexists(_hosts_path(thing)):
        return Finding("different", _what(thing), "not as niso has written it")
    return Finding("missing", _what(thing))


def _hosts_path(file: HostsFile) -> str:
    return os.path.join(paths.hosts_root(), file.folder, "hosts")


def _ruleset(was: Ruleset) -> list[Finding]:
    if not was.wrong:
        return [
            Finding(
                "different",
                "nftables tables inet niso and bridge niso",
                "of another version of niso",
            )
        ]
    return [
        Finding(problem, f"nftables {what}")
        for problem, _, what in (text.partition(" ") for text in was.wrong)
    ]


def _different(thing: Thing, was: Thing, without: set[str]) -> list[Finding]:
    """One finding with each field that differs, but those that follow from something missing."""
    texts = []
    for field, wanted, present in zip(type(thing)._fields, thing, was, strict=True):
        if wanted == present:
            continue
        if (
            isinstance(thing, Veth)
            and field in ("bridge", "hairpin")
            and f"link //{thing.bridge}" in without
        ):
            continue
        if (
            isinstance(thing, Veth)
            and field in ("netns", "peer", "mac", "up")
            and f"netns {thing.netns}" in without
        ):
            continue
        if (
            isinstance(thing, Veth)
            and present == "state disabled"
            and f"link //{thing.bridge} down" in without
        ):
            continue
        if field == "strange":
            texts.append(f"set otherwise: {present}")
            continue
        if field == "lasting":
            texts.append("it has a lifetime that ends")
            continue
        if field == "routed":
            texts.append("the kernel's route to its prefix is gone")
            continue
        shown = "not of the pair" if present in ("", -1) else present
        texts.append(f"{field} is {shown!r}, should be {wanted!r}")
    return [Finding("different", _what(thing), "; ".join(texts))] if texts else []


def _followed(thing: Thing, was: Thing | None) -> list[str]:
    """What this follows from if it is so: a link that is down has lost its routes, and of IPv6 its addresses."""
    if isinstance(thing, Address | Route) and ":" in (
        thing.address if isinstance(thing, Address) else thing.destination
    ):
        whole = f"link /{thing.netns}/all without IPv6"
        return [
            whole,
            *(f"link /{thing.netns}/{thing.link} {why}" for why in ("down", "without IPv6")),
        ]
    if isinstance(thing, Sysctl) and thing.name.endswith(
        "/default/disable_ipv6"
    ):  # set with that of all
        return [f"link /{thing.netns}/all without IPv6"]
    if isinstance(thing, Route) or (isinstance(thing, Address) and was is not None):
        return [f"link /{thing.netns}/{thing.link} down"]
    return []


def _identity(thing: Thing) -> str:
    """How the things that lie in this one name it as their parent."""
    if isinstance(thing, Bridge):
        return f"link //{thing.name}"
    if isinstance(thing, Veth):
        return f"link /{thing.netns}/{thing.peer}"
    if isinstance(thing, Netns):
        return f"netns {thing.name}"
    if isinstance(thing, Ruleset):
        return "ruleset"
    if isinstance(thing, HostsFile):
        return f"hosts {thing.folder}"
    return ""


def _parents(thing: Thing) -> list[str]:
    if isinstance(thing, Element):
        container = f"{thing.table} {thing.container}"
        return ["ruleset", f"table {thing.table}", f"set {container}", f"map {container}"]
    if isinstance(thing, HostsLine):
        return [f"hosts {thing.folder}"]
    if isinstance(thing, Veth):
        return [f"netns {thing.netns}"]
    if isinstance(thing, Address | Route | Neighbour):
        return [f"netns {thing.netns}", f"link /{thing.netns}/{thing.link}"]
    if isinstance(thing, Sysctl):
        # net/ipv4/conf/<link>/...
        parts = thing.name.split("/")
        return [
            f"netns {thing.netns}",
            *([f"link /{thing.netns}/{parts[3]}"] if parts[2:3] == ["conf"] else []),
        ]
    return []


def _what(thing: Thing) -> str:
    if isinstance(thing, Element):
        kind = "map element" if thing.value else "set element"
        value = f" : {thing.value}" if thing.value else ""
        owner = f" of {thing.comment!r}" if thing.comment else ""
        return (
            f"nftables {kind} {thing.table} {thing.container} {{ {thing.element}{value} }}{owner}"
        )
    if isinstance(thing, Ruleset):
        return "nftables tables inet niso and bridge niso"
    if isinstance(thing, Bridge):
        return f"bridge {thing.name}"
    if isinstance(thing, Netns):
        return f"network namespace {thing.name}"
    if isinstance(thing, Veth):
        return f"veth {thing.name}{f' to {thing.netns} {thing.peer}' if thing.netns else ''}"
    if isinstance(thing, Address):
        return f"address {thing.address} on {thing.link}{_in(thing.netns)}"
    if isinstance(thing, Route) and thing.type:
        return f"route {thing.type} {thing.destination}{_in(thing.netns)}"
    if isinstance(thing, Route):
        return f"route {thing.destination} via {thing.gateway} on {thing.link}{_in(thing.netns)}"
    if isinstance(thing, Sysctl):
        return f"sysctl {thing.name}={thing.value!r}{_in(thing.netns)}"
    if isinstance(thing, Attached):
        return f"link {thing.link} on bridge {thing.bridge}"
    if isinstance(thing, Neighbour):
        if not thing.address:
            return f"entry {thing.mac} of port {thing.link} in its bridge's table"
        return (
            f"neighbour entry {thing.address} lladdr {thing.mac} on {thing.link}{_in(thing.netns)}"
        )
    if isinstance(thing, HostsFile):
        return f"hosts file {_hosts_path(thing)}"
    return f"line {thing.address} {thing.names} in hosts file of {thing.folder}"


def _in(netns: str) -> str:
    return f" in {netns}" if netns else ""
