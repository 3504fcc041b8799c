"""Remove everything of niso from the kernel (``niso net repair --sweep``), without a store."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain

from niso.base import failpoint, paths
from niso.base.errors import Conflict, ErrorGroup, NisoError
from niso.base.lite_typing import NamedTuple
from niso.base.locks import Lock, locked_services, service_lock
from niso.base.names import is_marked, state_id_of
from niso.base.report import Command, EndingLost, Event, Report, Stopping, silent
from niso.kernel import netns, nft_tables, sysctl
from niso.kernel.libnftables import Nft
from niso.kernel.real import Real
from niso.kernel.rtnetlink import Rtnl
from niso.plan import nft
from niso.reconcile import forwarding
from niso.runtime import cgroup, process, status
from niso.runtime.package import delete_tree
from niso.store.sqlite import unusable
from niso.store.store import Store

_TRIES = 50


def sweep(report: Report = silent, dry_run: bool = False) -> tuple[int, NisoError | None]:
    """Remove everything of niso from the kernel, for all state folders. No store is needed.

    Processes end first, then namespaces and links, tables last. Return (number of removed objects,
    error of updating the store or None). Raises an ErrorGroup of all failed removals after trying
    the rest.
    """
    errors: list[NisoError] = []
    gone = 0
    untold: NisoError | None = None
    with Lock() if dry_run else _alone():
        _refuse_strangers()
        for thing in chain(_all_of_niso(), _all_rules()):
            if errors and thing.is_guard:  # the objects that it protects may still exist
                continue
            report(thing.event)
            gone += 1
            if dry_run:
                continue
            try:
                failpoint.hit(thing.event.describe())
                thing.remove()
            except OSError as error:
                errors.append(NisoError(f"{thing.event.describe()}: {error.strerror}"))
            except NisoError as error:
                errors.append(error)
        if not dry_run:
            delete_tree(paths.hosts_root())
        if not dry_run and not errors:
            try:
                _forget_active(Store.open(create=False))
            except NisoError as error:  # the very case that a sweep is for
                untold = error
    if errors:
        raise ErrorGroup(errors)
    return gone, untold


class _Thing(NamedTuple):
    """Pair an object of niso with its removal."""

    event: Event
    remove: Callable[[], None]
    is_guard: bool = False  # a table: its rules guard everything else


@contextmanager
def _alone() -> Iterator[None]:
    """Hold niso's lock and those of all services, so that no other command is in a change.

    Raises Conflict if new locks keep appearing.
    """
    for _ in range(_TRIES):
        known = locked_services()
        with ExitStack() as locks:
            for name in sorted(known):
                locks.enter_context(service_lock(name))
            locks.enter_context(Lock())
            # on a new lock, retry: locks are always taken in order, so that none deadlock
            if locked_services() <= known:
                yield
                return
    raise Conflict(
        "other niso commands keep starting and locking services",
        "try again when they have finished",
    )


def _refuse_strangers() -> None:
    """Raise Conflict if services of another run folder run, since they need their network."""
    for name, path in _homeless():
        pids = cgroup.pids(path)
        if pids and not process.has_conmon(name):
            state_id = path.split("/")[1].removeprefix("niso-")
            raise Conflict(
                f"service {name!r} of the niso state folder with id {state_id} "
                f"runs (pid {pids[0]}), under another run folder",
                "set NISO_STATE_DIR and NISO_RUN_DIR to theirs, or end its processes first",
            )


def _homeless() -> list[tuple[str, str]]:
    """Return (service, cgroup) of services with links here that this run folder does not know."""
    known = set(status.services())
    with Rtnl() as rtnl:
        ids = {state_id_of(link.alias) for link in rtnl.links() if is_marked(link.alias)}
    return [
        (name, f"/niso-{state_id}/{name}")
        for state_id in sorted(ids)
        for name in sorted(
            {name for root in cgroup.roots() for name in _folders(f"{root}/niso-{state_id}")}
            - known
        )
    ]


def _all_of_niso() -> list[_Thing]:
    """Return all processes, namespaces and links with niso's mark, in removal order."""
    things: list[_Thing] = []
    for name in status.services():
        things.append(_Thing(Stopping(name), partial(process.stop, name, 0)))
    for name, path in _homeless():
        things.append(_Thing(EndingLost(path), partial(process.end_orphans, name, path)))
    for name in netns.names():
        with netns.inside(name), Rtnl() as rtnl:
            lo = rtnl.link("lo")
        if lo is not None and is_marked(lo.alias):
            delete = Command(f"ip netns delete {name}")
            things.append(_Thing(delete, partial(netns.delete, name)))
    with Rtnl() as rtnl:
        links = sorted(rtnl.links(), key=lambda link: link.kind == "bridge")
    for link in links:
        if is_marked(link.alias):
            delete = Command(f"ip link delete {link.name}")
            things.append(_Thing(delete, partial(_delete_link, link.name)))
    return things


def _all_rules() -> list[_Thing]:
    """Return niso's tables, preceded by the sysctls whose former values they record."""
    things: list[_Thing] = []
    with Rtnl() as rtnl:
        going = {link.name for link in rtnl.links() if is_marked(link.alias)}
    with Nft() as kernel:
        marks = kernel.elements(nft_tables.INET, "before") or ()
        for name, value in forwarding.to_put_back(Real(), dict(map(nft.sysctl_before, marks))):
            if going & set(name.split("/")):
                continue
            put_back = Command(f"sysctl -w {name}={value}")
            things.append(_Thing(put_back, partial(sysctl.write, name, value)))
        for table in nft_tables.CONTAINERS:
            if kernel.elements(table, "owner") is not None:
                destroy = Command(f"nft destroy table {table}")
                things.append(_Thing(destroy, partial(_destroy_table, table), is_guard=True))
    return things


def _delete_link(name: str) -> None:
    with Rtnl() as rtnl:
        rtnl.delete_link(name)


def _destroy_table(table: str) -> None:
    with Nft() as kernel:
        kernel.run(f"destroy table {table}")


def _forget_active(store: Store) -> None:
    """Record all services as inactive after a sweep, and restore forwarding. Raises NisoError."""
    try:
        with store.transaction():
            for name in store.active_services():
                store.set_active(name, False)
            for intent in store.intents():
                store.end_intent(intent.service)
            forwarding.put_back(Real(), store)
    except sqlite3.DatabaseError as error:
        raise unusable(error) from error


def _folders(folder: str) -> list[str]:
    return [name for name in _listed(folder) if os.path.isdir(os.path.join(folder, name))]


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
