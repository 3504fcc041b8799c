"""check, repair and sweep: what should be against what is, each thing by its name."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import NamedTuple

from niso import exposure, failpoint, forwarding, paths, policies, portmap, services
from niso.apply import Lock, Report, compare, desired_now, repair, silent
from niso.errors import Conflict, ErrorGroup, NisoError, NotFound
from niso.kernel import netns, sysctl
from niso.kernel.nftables import Nft
from niso.kernel.read import read
from niso.kernel.rtnetlink import Rtnl
from niso.names import alias
from niso.package import delete_tree
from niso.plan import FORWARDING, FORWARDING6
from niso.records import Network
from niso.render import nft
from niso.runtime import cgroup, process
from niso.runtime.lock import service_lock
from niso.runtime.root import HOSTS
from niso.runtime.spec import load
from niso.state import (
    Address,
    Bridge,
    Element,
    HostsFile,
    HostsLine,
    Netns,
    Route,
    Ruleset,
    State,
    Sysctl,
    Thing,
    Veth,
    kinds,
)
from niso.store.sqlite import unusable
from niso.store.store import Scope, Store, suggest


class Finding(NamedTuple):
    """``problem`` is missing, foreign or different; ``what`` names the thing; ``detail`` says how it differs."""

    problem: str
    what: str
    detail: str = ""

    def text(self) -> str:
        """One line."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


def check(store: Store, name: str | None = None) -> list[Finding]:
    """All that is not as it should be: of everything, or of one service or network. Changes nothing.

    Raises NotFound where there is no such service or network.
    """
    if name is None:
        _, want, have, foreign = compare(store)
        strange = [Finding("foreign", error.message) for error in foreign.values()]
        return [
            *findings(want, have),
            *strange,
            *_processes(store, store.active_services()),
            *_other_firewalls(store.networks()),
        ]
    if store.network(name) is not None and store.name_holder(name) is None:
        scope, names = Scope((), (name,)), []
    else:
        if store.name_holder(name) is None:
            known = [*(each for each, _, _ in store.service_names()), *store.network_names()]
            raise NotFound(
                f"no service or network {name!r}", suggest(name, known, "niso ps and niso net list have all names")
            )
        service = store.resolve(name)
        row = store.service(service)
        assert row is not None
        scope, names = Scope(store.with_companions([service]), row.networks), [service] if row.active else []
    want = desired_now(store, scope)
    return [
        *findings(want, read(want, alias(store.state_id()))),
        *_processes(store, names),
        *_other_firewalls(network for each in scope.networks or () if (network := store.network(each))),
    ]


def _other_firewalls(networks: Iterable[Network]) -> list[Finding]:
    return [Finding("foreign", drop.words(), f"add: {'; '.join(drop.remedy)}") for drop in exposure.drops(networks)]


def findings(want: State, have: State) -> list[Finding]:
    """The differences; what only follows from another one (an address of a missing link) is not named again."""
    found: list[Finding] = []
    without: set[str] = set()
    for wanted, present in zip(kinds(want), kinds(have), strict=True):
        before: dict[tuple[str, ...], Thing] = {thing.key(): thing for thing in present}
        for thing in sorted(wanted):
            was = before.pop(thing.key(), None)
            if was == thing or any(parent in without for parent in _parents(thing)):
                continue
            if was is None:
                found.append(Finding("missing", _what(thing)))
                without.add(_identity(thing))
            elif isinstance(was, Ruleset):
                found += _ruleset(was)
                without.update(text.removeprefix("missing ") for text in was.wrong)
                if was._replace(wrong=()) != thing:
                    without.add("ruleset")
            else:
                found += _different(thing, was, without)
        for thing in sorted(before.values()):
            if isinstance(thing, Sysctl) or any(parent in without for parent in _parents(thing)):
                continue
            found.append(Finding("foreign", _what(thing)))
            without.add(_identity(thing))
    return found


def plan_mend(store: Store, report: Report) -> None:
    """Report what `mend` would do now, but for what was left half-way. Changes nothing."""
    for step in compare(store)[0]:
        report(step.describe())
    for name in store.active_services():
        if _process(name) is not None:
            report(f"start {name}")


def mend(store: Store, report: Report = silent) -> int:
    """Recover what was left half-way, put everything right and start what should run; gives how much was done."""
    errors: list[NisoError] = []
    recovered = 0
    try:
        recovered = services.recover(store, report, [intent.service for intent in store.intents()])
    except NisoError as error:
        errors.append(error)
    with Lock():
        try:
            steps = repair(store, report)
        except NisoError as error:
            errors.append(error)
            steps = []
        if steps or errors:
            # flows that began while a port was away have no NAT, and would keep their client from it
            portmap.flush_ports((port.proto, port.host_port, port.last) for _, port in store.active_ports())
            # and what came in while a policy was away is cut
            policies.cut(store, [name for name in store.active_services() if store.policy(name) is not None])
    done = recovered + len(steps)
    for name in store.active_services():
        with service_lock(name):
            row = store.service(name)
            if row is None or not row.active:
                continue
            if _process(name) is not None:
                spec = services.stored_spec(row)
                report(f"start {name}")
                try:
                    process.stop(name, spec.stop_timeout_s)
                    process.start(spec)
                except NisoError as error:
                    errors.append(error)
                done += 1
    if errors:
        raise ErrorGroup(
            [each for error in errors for each in (error.errors if isinstance(error, ErrorGroup) else [error])]
        )
    return done


def sweep(report: Report = silent, dry_run: bool = False) -> int:
    """Remove all that is niso's from the kernel, whichever state folder made it: no store is needed.

    Processes first, then namespaces and links, tables last. Gives how many things went; raises an ErrorGroup of what could
    not be done after doing the rest.
    """
    errors: list[NisoError] = []
    gone = 0
    with Lock():
        _refuse_strangers()
        for words, remove in chain(_all_of_niso(), _all_rules()):
            if errors and words.startswith("nft "):  # what they guard may still be there
                continue
            report(words)
            gone += 1
            if dry_run:
                continue
            try:
                failpoint.hit(words)
                remove()
            except OSError as error:
                errors.append(NisoError(f"{words}: {error.strerror}"))
            except NisoError as error:
                errors.append(error)
        if not dry_run:
            delete_tree(paths.hosts_root())
    if errors:
        raise ErrorGroup(errors)
    return gone


def _refuse_strangers() -> None:
    """Raise Conflict where services run that this run folder does not know: their network is not for us to take."""
    known = set(_listed(os.path.join(paths.run_dir(), "services")))
    with Rtnl() as rtnl:
        ids = {link.alias.partition(":")[2] for link in rtnl.links() if link.alias.startswith("niso:")}
    for state_id in sorted(ids):
        for name in sorted({name for root in cgroup.roots() for name in _listed(f"{root}/niso-{state_id}")} - known):
            pids = cgroup.pids(f"/niso-{state_id}/{name}")
            if pids:
                raise Conflict(
                    f"service {name!r} of the niso state folder with id {state_id} runs (pid {pids[0]}), under another run folder",
                    "set NISO_STATE_DIR and NISO_RUN_DIR to theirs, or end its processes first",
                )


def _all_of_niso() -> list[tuple[str, Callable[[], None]]]:
    """(words, how to remove it) of everything that carries a mark of niso, in the order in which it can go."""
    things: list[tuple[str, Callable[[], None]]] = []
    for name in _listed(os.path.join(paths.run_dir(), "services")):
        things.append((f"stop {name}", partial(process.stop, name, 0)))
    for name in netns.names():
        with netns.inside(name), Rtnl() as rtnl:
            lo = rtnl.link("lo")
        if lo is not None and lo.alias.startswith("niso:"):
            things.append((f"ip netns delete {name}", partial(netns.delete, name)))
    with Rtnl() as rtnl:
        links = sorted(rtnl.links(), key=lambda link: link.kind == "bridge")
    for link in links:
        if link.alias.startswith("niso:"):
            things.append((f"ip link delete {link.name}", partial(_delete_link, link.name)))
    return things


def _all_rules() -> list[tuple[str, Callable[[], None]]]:
    """The same of the rules; and of forwarding, where the rules say that it was off before."""
    things: list[tuple[str, Callable[[], None]]] = []
    with Nft() as kernel:
        closed = kernel.elements(nft.INET, "closed") or ()
        # of IPv6 the first also ends force_forwarding of all links there are, the other that of those to come
        switches = (4, FORWARDING), (6, FORWARDING6), (6, f"{forwarding.CONF6}/default/{forwarding.FORCE}")
        for family, name in switches:
            if nft.closed(family).element in closed and sysctl.read(name) is not None:
                things.append((f"sysctl -w {name}=0", partial(sysctl.write, name, "0")))
        for table in nft.CONTAINERS:
            if kernel.elements(table, "owner") is not None:
                things.append((f"nft destroy table {table}", partial(_destroy_table, table)))
    return things


def _delete_link(name: str) -> None:
    with Rtnl() as rtnl:
        rtnl.delete_link(name)


def _destroy_table(table: str) -> None:
    with Nft() as kernel:
        kernel.run(f"destroy table {table}")


def forget_active(store: Store) -> None:
    """After a sweep: no service is active, and forwarding goes back to what it was. Raises NisoError."""
    try:
        with Lock(), store.transaction():
            for name in store.active_services():
                store.set_active(name, False)
            for intent in store.intents():
                store.end_intent(intent.service)
            forwarding.put_back(store)
    except sqlite3.DatabaseError as error:
        raise unusable(error) from error


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _processes(store: Store, names: list[str]) -> list[Finding]:
    found = []
    for name in names:
        if store.intent(name) is not None:  # somebody is at it
            continue
        finding = _process(name)
        if finding is not None:
            found.append(finding)
    return found


def _process(name: str) -> Finding | None:
    """What is wrong with an active service's process; an end that its conmon has seen is not."""
    what = f"process of service {name!r}"
    status = process.status(name)
    if status.state in ("none", "failed"):
        return Finding("missing", what, status.error or "")
    if status.state != "running":
        return None
    if not process.at_home(name):
        return Finding("different", what, "it runs in another network namespace")
    if not _sees_hosts(name, status.pid):
        return Finding("different", what, "it does not see its hosts file: the folder was removed")
    if not process.conmon_alive(name):
        return Finding("different", what, "its conmon is gone: nobody keeps its log or restarts it")
    return None


def _sees_hosts(name: str, pid: int | None) -> bool:
    """Whether the folder that a service reads its names from is the one that niso writes; True where that cannot be told."""
    spec = load(name)
    try:
        return spec is None or os.path.samestat(os.stat(f"/proc/{pid}/root/etc/{HOSTS}"), os.stat(spec.hosts_folder))
    except OSError:
        return True


def _ruleset(was: Ruleset) -> list[Finding]:
    if not was.wrong:
        return [Finding("different", "nftables tables inet niso and bridge niso", "of another version of niso")]
    return [Finding(problem, f"nftables {what}") for problem, _, what in (text.partition(" ") for text in was.wrong)]


def _different(thing: Thing, was: Thing, without: set[str]) -> list[Finding]:
    """One finding with each field that differs, but those that follow from something missing."""
    texts = []
    for field, wanted, present in zip(type(thing)._fields, thing, was, strict=True):
        if wanted == present:
            continue
        if isinstance(thing, Veth) and field in ("bridge", "hairpin") and f"link //{thing.bridge}" in without:
            continue
        if isinstance(thing, Veth) and field in ("netns", "peer", "mac", "up") and f"netns {thing.netns}" in without:
            continue
        shown = "not of the pair" if present in ("", -1) else present
        texts.append(f"{field} is {shown!r}, should be {wanted!r}")
    return [Finding("different", _what(thing), "; ".join(texts))] if texts else []


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
        return ["ruleset", f"table {thing.table}", f"set {thing.container}"]
    if isinstance(thing, HostsLine):
        return [f"hosts {thing.folder}"]
    if isinstance(thing, Veth):
        return [f"netns {thing.netns}"]
    if isinstance(thing, Address | Route):
        return [f"netns {thing.netns}", f"link /{thing.netns}/{thing.link}"]
    if isinstance(thing, Sysctl):
        # net/ipv4/conf/<link>/...
        parts = thing.name.split("/")
        return [f"netns {thing.netns}", *([f"link /{thing.netns}/{parts[3]}"] if parts[2:3] == ["conf"] else [])]
    return []


def _what(thing: Thing) -> str:
    if isinstance(thing, Element):
        kind = "map element" if thing.value else "set element"
        value = f" : {thing.value}" if thing.value else ""
        owner = f" of {thing.comment!r}" if thing.comment else ""
        return f"nftables {kind} {thing.table} {thing.container} {{ {thing.element}{value} }}{owner}"
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
    if isinstance(thing, Route):
        return f"route {thing.destination} via {thing.gateway} on {thing.link}{_in(thing.netns)}"
    if isinstance(thing, Sysctl):
        return f"sysctl {thing.name}={thing.value!r}{_in(thing.netns)}"
    if isinstance(thing, HostsFile):
        return f"hosts file {os.path.join(paths.hosts_root(), thing.folder, 'hosts')}"
    return f"line {thing.address} {thing.names} in hosts file of {thing.folder}"


def _in(netns: str) -> str:
    return f" in {netns}" if netns else ""
