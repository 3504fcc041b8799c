"""Attach network namespaces of other programs to niso's networks, and detach them.

An attachment is a service row of mode ``attached``. Admission, plan and rules are those of every
service (`niso.services.admit`, `niso.plan.desired`); an attachment has no package and no process.
This module imports nothing that only processes need, because an engine waits for each call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable

from niso.base.errors import Conflict, Error, ErrorGroup, InvalidInput, NotFound
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.locks import Lock
from niso.base.report import Report, silent
from niso.kernel.foreign_netns import ForeignNetns
from niso.plan.records import Port
from niso.reconcile.change import change
from niso.services import journal
from niso.services.admit import LinkNames, Target, record, release
from niso.services.attach_request import BY_INTERFACE, Request, Wish, target_of
from niso.services.concern import leaving, scope_of
from niso.services.machine import Machine
from niso.store.attached_rows import Attached, wishes
from niso.store.policy_rows import policy_of
from niso.store.store import ServiceRow, Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.services import cluster_claims

POD_POLICY = "pod_policy"
"""Label of Kubernetes pods.

Other components translate packets to pods, even from a pod to itself, as published ports do.
"""


_TRIES = 20
"""Attempts to attach again while another process, such as an agent, does the same."""
_MOVING_S = 120
"""How long an engine may take to move an interface into a starting container, in seconds."""


class Done(NamedTuple):
    """The result of an attachment."""

    service: str
    changed: bool
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]


# --- attach -----------------------------------------------------------------------------------


def attach(
    machine: Machine,
    request: Request,
    report: Report = silent,
    instead_of: Attached | None = None,
) -> Done:
    """Attach a namespace to the networks of ``request``, and to no others.

    The administrator's policies must allow a packet too (`niso.manifest.policy_files`). For an
    attachment in the same namespace, only the difference is applied. An attachment is replaced if
    its namespace no longer exists, or if the same owner gave it the same id. With ``instead_of``,
    the call fails unless that is the present attachment. Raises InvalidInput, NotFound, Conflict,
    KernelError; then nothing has changed, except that an attachment whose namespace no longer
    exists may have been removed.
    """
    store, kernel = machine.store, machine.kernel
    if store.intents():
        journal.recover(machine, report, [request.name])
    with journal.locked_one(store, request.name):
        before, row = store.attachments.get(request.name), store.service(request.name)
        request, foreign = _located(kernel, request, before)
        if instead_of is not None and before != instead_of:
            raise Conflict(f"{request.name!r} was attached again or detached meanwhile")
        if foreign is not None:
            _refuse_attached(kernel, store, request, foreign.cookie)
        if before is not None and row is not None and not _is_same(before, row, request, foreign):
            if row.active and before.lives(kernel) and not _is_of(before, request):
                raise Conflict(
                    f"{request.name!r} is already attached, by {shown(before)}",
                    "choose another name, or detach it first",
                    "NAME",
                )
            _forget(machine, row, report)
            before = None
        target = target_of(store, request, foreign, before)
        held: cluster_claims.Held | None = None
        try:
            held = _held(machine, target, report) if store.cluster_id() else None
            done = _apply(machine, target, held, report)
        except BaseException as error:
            from niso.services.undo import undo_all

            undo_all(machine, [request.name], error, report)
            raise
        finally:
            if held is not None:
                held.close()
        if held is None and store.cluster_id():
            _tell(machine, request.name, report)
        return done


def _held(machine: Machine, target: Target, report: Report) -> cluster_claims.Held | None:
    """Claim what an attachment needs on networks that span hosts; None if it is on none.

    Raises InvalidInput, Conflict, NoAnswer, Error.
    """
    from niso.services import cluster_claims

    held = cluster_claims.prepare(machine, [target], (), report)
    own = [link for link in target.links if link.mac] if held is not None else []
    for link in own:
        if held is not None and link.network in held.networks(target.name):
            held.close()
            raise InvalidInput(
                f"network {link.network!r} spans hosts, which derive the MAC address of what is"
                " there from its name",
                "leave out the MAC address",
            )
    return held


def _tell(machine: Machine, name: str, report: Report) -> None:
    """Release the cluster's claim of an attachment that no longer needs one."""
    from niso.services import cluster_claims

    cluster_claims.tell(machine, [name], report)


def _apply(
    machine: Machine, target: Target, held: cluster_claims.Held | None, report: Report
) -> Done:
    """Record an attachment and update the kernel; the caller undoes it after an error."""
    store, kernel, name = machine.store, machine.kernel, target.name
    alone = frozenset([name])
    with Lock():
        scope = scope_of(store, [target])
        if held is not None:
            held.make_way(report)
            scope = scope.joined(held.scope())
        with change(kernel, store, scope, report, rows_first=True) as made:
            if held is not None:
                held.record()
            release(store, target)
            recorded = record(machine, target, "", alone, alone, LinkNames(store))
            assert target.attached is not None
            if POD_POLICY in wishes(target.attached)["labels"] and not store.publishes(name):
                to = next((link for link in target.links if link.routes), target.links[0])
                store.put_published_row(name, (name, to.network, 0))
            intent = store.intent(name)
            assert intent is not None
            as_before = store.is_as_before(intent)
        was = recorded.before.networks if recorded.before is not None else ()
        left = set(was) - set(recorded.row.networks)
        if held is None:
            _end(machine, name, left, report)
    if held is not None:
        held.publish(report)
        with Lock():
            _end(machine, name, left, report)
    return Done(
        name,
        bool(made.steps) or not as_before,
        tuple(address for _, address in store.addresses(name)),
        tuple(port for _, port in store.ports(name)),
    )


def _end(machine: Machine, name: str, left: set[str], report: Report) -> None:
    """Record that an attachment is done, which has left these networks."""
    store = machine.store
    with leaving(machine, left, report):
        store.end_intent(name)
        store.attachments.drop_released()
        store.drop_implicit_networks(left)


def _located(
    kernel: Kernel, request: Request, before: Attached | None
) -> tuple[Request, ForeignNetns | None]:
    """Return the request with the canonical path of its namespace, and the namespace's description.

    Raises NotFound, InvalidInput and Conflict if the namespace cannot be attached.
    """
    if not request.netns:
        return request, None
    # the last part is a magic link in /proc, which must not be resolved
    folder, _, last = os.path.abspath(request.netns).rpartition("/")
    path = os.path.join(os.path.realpath(folder or "/"), last)
    foreign = kernel.look_at(path)
    cookie = foreign.cookie if foreign is not None else None
    if request.awaited and before is not None and cookie != before.cookie:
        foreign = ForeignNetns(before.cookie, "", frozenset(), frozenset())
    if foreign is None:
        raise NotFound(
            f"{request.netns}: the network namespace does not exist",
            "a path like /proc/PID/ns/net or /run/netns/NAME",
        )
    if foreign.is_host:
        raise InvalidInput(
            f"{request.netns} is the network namespace of the host itself",
            "name the namespace of a container",
        )
    # the attached program may have set the mark itself, to prevent a change of its policy
    if foreign.mark and (before is None or before.cookie != foreign.cookie):
        raise Conflict(
            f"{request.netns} is the network namespace of a service of niso",
            "network.networks in its manifest names its networks",
        )
    return request._replace(netns=path), foreign


def _refuse_attached(kernel: Kernel, store: Store, request: Request, cookie: int) -> None:
    """Raise Conflict if the namespace with this cookie is attached under another name."""
    for other in store.attachments.of_cookie(cookie):
        row = store.service(other.service)
        if other.service == request.name or other.owner == request.owner == BY_INTERFACE:
            continue
        if row is not None and row.active and other.lives(kernel):
            raise Conflict(
                f"this network namespace is already attached as {other.service!r}",
                f"attach {other.service} to more networks, or detach it first",
            )


def _is_same(
    before: Attached, row: ServiceRow, request: Request, foreign: ForeignNetns | None
) -> bool:
    """Return whether an attachment has the request's namespace, owner and id."""
    if not row.active or (before.owner, before.id) != (request.owner, request.id):
        return False
    if foreign is None:
        return not before.netns
    return (before.netns, before.cookie) == (request.netns, foreign.cookie)


def _is_of(before: Attached, request: Request) -> bool:
    """Return whether an attachment is the request's own, from an earlier namespace."""
    return request.id != "" and (before.owner, before.id) == (request.owner, request.id)


def current(store: Store, name: str) -> Request | None:
    """Return the request that would produce the present attachment; None if there is none.

    To change a part of an attachment, change this request and attach again.
    """
    row, attached = store.service(name), store.attachments.get(name)
    if row is None or attached is None:
        return None
    spec, asked = row.require_service(), wishes(attached)
    return Request(
        name,
        attached.netns,
        tuple(
            Wish(link.network, link.interface, spec.statics(link.network), link.mac)
            for link in store.attachments.links(name)
        ),
        tuple(published.port for published in spec.ports),
        spec.aliases,
        policy_of(asked["policy"]),
        attached.owner,
        attached.id,
        attached.given,
        tuple(sorted(asked["labels"].items())),
        tuple(sorted(spec.bandwidth.items())),
        tuple((on, policy_of(policy)) for on, policy in sorted(asked.get("policies", {}).items())),
    )


def apply_policies(machine: Machine, report: Report = silent) -> list[Done]:
    """Attach all live attachments again, to apply the administrator's present policies.

    Raises an ErrorGroup of all failures, after trying the others; failed ones keep their policy.
    """
    store = machine.store
    done, errors = [], list[Error]()
    for name in [attached.service for attached in store.attachments.all()]:
        for _ in range(_TRIES):
            row, attached = store.service(name), store.attachments.get(name)
            request = current(store, name)
            if row is None or attached is None or request is None:
                break
            if not row.active or not attached.lives(machine.kernel):
                break
            try:
                done.append(attach(machine, request, report, instead_of=attached))
                break
            except Error as error:
                if store.attachments.get(name) == attached:
                    error.service = error.service or name
                    errors.append(error)
                    break
        else:
            errors.append(Conflict(f"{name!r} is attached again and again", "try again"))
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)
    return done


# --- detach -----------------------------------------------------------------------------------


def detach(machine: Machine, name: str, id: str | None = None, report: Report = silent) -> bool:
    """Detach an attachment; return whether there was one.

    No-op if it does not exist, or if the name now belongs to another ``id``. Raises Conflict if the
    name is that of a service, KernelError.
    """
    store = machine.store
    if store.intents():
        journal.recover(machine, report, [name])
    if store.service(name) is None:
        return False
    with journal.locked_one(store, name):
        row, attached = store.service(name), store.attachments.get(name)
        if row is None or (id is not None and (attached is None or attached.id != id)):
            return False
        if row.has_process:
            raise Conflict(
                f"{name!r} is a service, not an attachment",
                "niso deactivate --help",
                "NAME",
            )
        _forget(machine, row, report)
    return True


def _forget(machine: Machine, row: ServiceRow, report: Report) -> None:
    """Remove an attachment from the network and delete its rows; the caller holds its lock."""
    from niso.services import withdraw

    store = machine.store
    with Lock(), store.transaction():
        store.begin_intent(row.name, "remove", time.time())
    withdraw.withdraw(machine, [row], report, ends=True, forgets=True)
    if store.cluster_id():
        _tell(machine, row.name, report)


# --- ended namespaces -------------------------------------------------------------------------


def is_moving(attached: Attached) -> bool:
    """Return whether an engine is moving the attachment's interface into its container.

    The path is a symlink that is created when the interface is handed over, and has the time 0 once
    the interface has arrived. For a container that ends, the engine itself detaches.
    """
    if attached.owner != BY_INTERFACE:
        return False
    try:
        return 0 <= time.time() - os.lstat(attached.netns).st_mtime < _MOVING_S
    except OSError:
        return False


def gone(kernel: Kernel, store: Store, only: Container[str] | None = None) -> list[str]:
    """Return the active attachments whose namespace no longer exists.

    ``only`` limits this to some names.
    """
    ended = []
    for row in store.attachments.rows():
        if row.active and (only is None or row.name in only):
            attached = store.attachments.get(row.name)
            if attached is None or not (attached.lives(kernel) or is_moving(attached)):
                ended.append(row.name)
    return ended


def collect(
    machine: Machine,
    owner: str | None = None,
    valid: Iterable[str] | None = None,
    report: Report = silent,
) -> list[str]:
    """Detach the attachments whose namespace no longer exists; return their names.

    ``owner`` limits this to one owner. After a reboot that is all of them. With ``valid``,
    attachments with another id are detached too.
    """
    store, kernel = machine.store, machine.kernel
    known = None if valid is None else set(valid)
    done = []
    for attached in store.attachments.all(owner):
        row = store.service(attached.service)
        if row is None:
            continue
        is_kept = known is None or attached.id in known
        if row.active and is_kept and (attached.lives(kernel) or is_moving(attached)):
            continue
        if detach(machine, attached.service, attached.id, report):
            done.append(attached.service)
    return done


def shown(attached: Attached) -> str:
    """Return the owner and the shortened id for a message: ``podman b186d057f65e``."""
    return f"{attached.owner} {attached.id[:12]}".strip()
