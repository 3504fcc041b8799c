"""Remove this host from its cluster."""

from __future__ import annotations

from niso.base import wake
from niso.base.errors import Conflict
from niso.base.locks import Lock, service_lock
from niso.base.report import Report
from niso.cluster import config, mirror
from niso.cluster.config import Config
from niso.cluster.engine import NoAnswer
from niso.cluster.membership import Membership
from niso.commands.cluster import LOCK, LOCK_S, clear, end_member, voting
from niso.services import cluster_claims
from niso.services.machine import Machine


def leave(machine: Machine, force: bool, report: Report) -> Config:
    """Remove this host from its cluster; return its former configuration.

    With ``force`` also if the cluster does not answer, which then still lists this host. Raises
    Conflict if the host has services there, NoAnswer, Error.
    """
    store = machine.store
    own = config.require()
    with service_lock(LOCK, LOCK_S):
        spans = [network.name for network in store.networks() if network.span is not None]
        held = [service for name in spans for service, _ in store.members(name)]
        if held:
            raise Conflict(
                f"services are on networks of the cluster: {', '.join(sorted(set(held)))}",
                "the host can leave once they are removed, or on other networks",
            )
        if store.cluster_id():
            cluster_claims.tell_rest(machine)
            _give_notice(machine, own, force, report)
        for name in spans:
            mirror.drop_network(store, machine.kernel, name, report)
        with Lock(), store.transaction():
            store.across.set_cluster("")
        wake.agent()
        clear(machine, report)
    return own


def _give_notice(machine: Machine, own: Config, force: bool, report: Report) -> None:
    """Remove this host from the cluster's keys and from etcd's members."""
    try:
        with own.engine() as engine:
            membership = Membership(engine, own.keys)
            alone = all(host.name == own.host for host in membership.hosts())
            if own.member is not None and not alone and voting(engine) < 2:
                raise Conflict(
                    "this host runs the only member of etcd",
                    "niso cluster member add on another host makes a second one",
                )
            membership.leave(own.host, machine.store.state_id())
            if own.member is not None and not alone:
                end_member(machine, own, engine, report)
            if not alone:
                membership.withdraw(own.host)
    except NoAnswer as error:
        if not force:
            raise NoAnswer(
                error.reason,
                "with --force the host leaves without it; another host forgets it, if none has",
                error.unknown,
            ) from error
