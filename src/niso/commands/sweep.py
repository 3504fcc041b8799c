"""Remove everything of niso's from the kernel (``niso net repair --sweep``), without a store."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from niso.base import failpoint, paths
from niso.base.errors import Conflict, Error, ErrorGroup
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.locks import Lock, locked_services, service_lock
from niso.base.names import state_id_of
from niso.base.report import Event, Report, silent
from niso.base.service_events import Command, Stopping
from niso.kernel import nft_sets, nft_tables
from niso.kernel.kinds.element import NftTransaction
from niso.kernel.kinds.kind import Step
from niso.kernel.kinds.named import Named
from niso.kernel.kinds.namespace import Netns
from niso.plan import nft
from niso.reconcile import forwarding
from niso.runtime.lost_services import Lost
from niso.store.sqlite import connected, unusable
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.runtime.processes import Processes


class EndingLost(NamedTuple):
    """Reported when processes of a service without a run folder are killed."""

    cgroup: str

    def describe(self) -> str:
        return f"kill the processes in the cgroup {self.cgroup}"


_TRIES = 50


def sweep(
    kernel: Kernel, processes: Processes, report: Report = silent, dry_run: bool = False
) -> tuple[int, Error | None]:
    """Remove everything that niso created in the kernel, for all state folders. Needs no store.

    Processes end first, then namespaces and links, tables last. Returns (number of removed objects,
    error of updating the store or None). Raises an ErrorGroup of all failed removals after trying
    the rest.
    """
    errors: list[Error] = []
    gone = 0
    untold: Error | None = None
    with Lock() if dry_run else _alone():
        marked = kernel.marked_links()
        lost = processes.lost(state_id_of(mark) for mark in marked.values())
        _refuse_strangers(lost)
        for thing in (
            *_running(processes, lost),
            *_marked(kernel, marked),
            *_all_rules(kernel, marked),
        ):
            if errors and thing.is_guard:  # the objects that the table protects may still exist
                continue
            report(thing.event)
            gone += 1
            if dry_run:
                continue
            try:
                failpoint.hit(thing.event.describe())
                thing.remove()
            except OSError as error:
                errors.append(Error(f"{thing.event.describe()}: {error.strerror}"))
            except Error as error:
                errors.append(error)
        if not dry_run:
            kernel.clear_hosts()
        if not dry_run and not errors:
            try:
                _forget_active(kernel, Store.open(create=False))
            except Error as error:  # an unusable store is the very case that a sweep is for
                untold = error
    if errors:
        raise ErrorGroup(errors)
    return gone, untold


class _Thing(NamedTuple):
    """An object of niso and the function that removes it."""

    event: Event
    remove: Callable[[], object]
    is_guard: bool = False  # a table: its rules protect everything else


@contextmanager
def _alone() -> Iterator[None]:
    """Hold niso's lock and those of all services, so that no other command is changing anything.

    Raises Conflict if new locks keep appearing.
    """
    for _ in range(_TRIES):
        known = locked_services()
        with ExitStack() as locks:
            for name in sorted(known):
                locks.enter_context(service_lock(name))
            locks.enter_context(Lock())
            # retry if a lock was added: locks are always taken in order, so that no deadlock is
            # possible
            if locked_services() <= known:
                yield
                return
    raise Conflict(
        "other niso commands keep starting and locking services",
        "try again when they have finished",
    )


def _refuse_strangers(lost: list[Lost]) -> None:
    """Raise Conflict if services of another run folder are running, which need their network."""
    for one in lost:
        if one.stranger is not None:
            raise Conflict(
                f"service {one.service!r} of the niso state folder with id {one.state_id} "
                f"runs (pid {one.stranger}), under another run folder",
                "set NISO_STATE_DIR and NISO_RUN_DIR to theirs, or end its processes first",
            )


def _running(processes: Processes, lost: list[Lost]) -> Iterator[_Thing]:
    """Yield all processes of services."""
    for name in processes.services():
        yield _Thing(Stopping(name), partial(processes.stop, name, 0))
    for one in lost:
        yield _Thing(EndingLost(one.cgroup), partial(processes.end_lost, one))


def _marked(kernel: Kernel, links: dict[str, str]) -> Iterator[_Thing]:
    """Yield all namespaces, links and routing rules with niso's mark, in removal order.

    For a namespace of another program, only the name in /run/netns is niso's, whatever
    mark a program has made in it.
    """
    attached = _attached()
    for name, mark in kernel.marked_netns().items():
        if attached and kernel.cookie_at(os.path.join(paths.NETNS_DIR, name)) in attached:
            continue
        step = Step("delete", Netns(name, mark))
        yield _Thing(Command(step.describe()), partial(kernel.write, [step]))
    for name in kernel.marked_names():
        unnamed = Step("delete", Named(name, "", 0))
        yield _Thing(Command(unnamed.describe()), partial(kernel.write, [unnamed]))
    for name in links:
        yield _Thing(Command(f"ip link delete {name}"), partial(kernel.end_links, [name]))
    for rule in kernel.marked_rules():
        delete = Step("delete", rule)
        yield _Thing(Command(delete.describe()), partial(kernel.write, [delete]))


def _attached() -> frozenset[int]:
    """Return the cookies of the namespaces that others made, of active attachments on record.

    The store is only read, and may be missing or damaged. To open it as commands do would record a
    move or a reboot.
    """
    query = (
        "SELECT cookie FROM attached a JOIN service s ON s.name=a.service"
        " WHERE a.netns!='' AND s.active=1"
    )
    try:
        if not os.path.lexists(paths.database()):
            return frozenset()
        db = connected(paths.database())
        try:
            return frozenset(row[0] for row in db.execute(query))
        finally:
            db.close()
    except (Error, OSError, sqlite3.DatabaseError):
        return frozenset()


def _all_rules(kernel: Kernel, going: dict[str, str]) -> Iterator[_Thing]:
    """Yield niso's tables, preceded by the sysctls whose former values they record.

    Sysctls of the links in ``going`` vanish with the links.
    """
    marks = kernel.list_elements(nft_tables.INET, "before") or ()
    for name, value in forwarding.to_put_back(kernel, dict(map(nft.sysctl_before, marks))):
        if not going.keys() & set(name.split("/")):
            put_back = Command(f"sysctl -w {name}={value}")
            yield _Thing(put_back, partial(kernel.set_sysctl, name, value))
    for table in nft_sets.CONTAINERS:
        if kernel.list_elements(table, "owner") is not None:
            destroy = f"destroy table {table}"
            write = partial(kernel.write, [NftTransaction((destroy,))])
            yield _Thing(Command(f"nft {destroy}"), write, is_guard=True)


def _forget_active(kernel: Kernel, store: Store) -> None:
    """Record all services as inactive after a sweep, and restore forwarding. Raises Error."""
    try:
        with store.transaction():
            for name in store.active_services():
                store.set_active(name, False)
            for intent in store.intents():
                store.end_intent(intent.service)
            forwarding.put_back(kernel, store)
    except sqlite3.DatabaseError as error:
        raise unusable(error) from error
