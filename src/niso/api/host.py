"""Define `Host`, the entry point of the Python API: ``host = niso.connect()``.

The ``niso`` command uses this API too. Its JSON output follows from the types of the results, and
docs/reference/json.md is generated from these types.
"""

from __future__ import annotations

import time

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import AskingCluster, Finished
from niso.look.session import (
    ApiPart,
    moment,
    open_session,
    path,
    seconds,
    since_time,
    text,
    texts,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from typing import Any

    import niso
    from niso.api.host_attachments import Attachments
    from niso.api.host_cluster import Clusters
    from niso.api.host_kubernetes import Kubernetes
    from niso.api.host_networks import Networks
    from niso.api.host_services import Services
    from niso.api.host_stacks import Stacks
    from niso.api.host_volumes import Volumes
    from niso.kernel.kinds.kind import Finding
    from niso.look.session import Progress
    from niso.runtime.machine import Machine


def connect(
    *,
    state_dir: str | os.PathLike[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Host:
    """Return a `Host` for this machine. Nothing on the machine is created or changed.

    The state and run folders default to those of the ``niso`` command: ``NISO_STATE_DIR`` or
    /var/lib/niso, and ``NISO_RUN_DIR`` or /run/niso. A folder given here applies to the whole
    process and its children. ``progress`` is called with each event (`niso.Event`). Raises
    `niso.Error` if the process is not root.
    """
    return Host(open_session(state_dir, run_dir, progress))


class Repaired(NamedTuple):
    """The result of `Host.repair`: how many repair steps were executed."""

    steps: int  # number of steps taken


class Swept(NamedTuple):
    """The result of `Host.sweep`: how many kernel objects were removed."""

    removed: int  # number of objects removed


class Host(ApiPart):
    """The Python API of niso on this machine.

    Use a `Host` only in the thread and process that called `connect`.
    """

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. The next call of another method opens it again."""
        self.session.close()

    @property
    def progress(self) -> Progress | None:
        """The callback that receives progress events, or None."""
        return self.session.progress

    @progress.setter
    def progress(self, callback: Progress | None) -> None:
        self.session.progress = callback

    @property
    def networks(self) -> Networks:
        """The API of networks and published ports."""
        from niso.api.host_networks import Networks

        return Networks(self.session)

    @property
    def services(self) -> Services:
        """The API of services."""
        from niso.api.host_services import Services

        return Services(self.session)

    @property
    def attachments(self) -> Attachments:
        """The API of attachments, which are network namespaces that other programs created."""
        from niso.api.host_attachments import Attachments

        return Attachments(self.session)

    @property
    def cluster(self) -> Clusters:
        """The API of this host's cluster."""
        from niso.api.host_cluster import Clusters

        return Clusters(self.session)

    @property
    def kubernetes(self) -> Kubernetes:
        """The API of the agent that applies Kubernetes' network policies."""
        from niso.api.host_kubernetes import Kubernetes

        return Kubernetes(self.session)

    @property
    def stacks(self) -> Stacks:
        """The API of stacks. A stack is a set of services declared in one stack.toml."""
        from niso.api.host_stacks import Stacks

        return Stacks(self.session)

    @property
    def volumes(self) -> Volumes:
        """The API of named volumes."""
        from niso.api.host_volumes import Volumes

        return Volumes(self.session)

    # --- packets ---------------------------------------------------------------------------------

    def explain(
        self, source: str, destination: str, *, family: int | None = None, prove: bool = False
    ) -> niso.Explanation:
        """Return whether a packet would be accepted, and which rule or policy decides.

        ``source`` is a service, an address or ``host``, optionally with a source port
        (``cli:40001``). ``destination`` can also have a port, as in ``db:5432``, ``db:53/udp`` or
        ``db/icmp``. ``family`` is 4 or 6, by default 4 if both ends have IPv4. ``prove`` also sends
        a test packet. Raises NotFound, UsageError, Error.
        """
        from niso.look import explain

        ends = text(source, "source"), text(destination, "destination")
        return explain.explain(self.session, *ends, family, prove)

    def ping(self, source: str, destination: str) -> niso.Pong:
        """Send an ICMP echo request from one service to another.

        Raises Error if no reply arrives within 1 s.
        """
        from niso.look import prove

        return prove.ping(self.session, text(source, "source"), text(destination, "destination"))

    def stats(self, *, instances: bool = False) -> tuple[niso.Stats, ...]:
        """Return the counters of each active service.

        With ``instances``, also returns the counters of each instance. Raises KernelError.
        """
        from niso.look import drops

        counters = drops.count(self.session.store().active_rows())
        return tuple(counters if instances else drops.by_service(counters))

    def metrics(self, *, flows: int = 200) -> tuple[niso.Metric, ...]:
        """Return metrics for Prometheus.

        At most ``flows`` of the time series describe flows. Raises UsageError, KernelError.
        """
        from niso.look import metrics

        return metrics.metrics(self.session, flows)

    def top(self, service: str | None = None) -> niso.Top:
        """Start measuring traffic and new flows of one service, or of all services if it is None.

        Each ``read()`` of the result returns a `niso.Load` with the rates since the last call. Use
        the result in a ``with`` block. Raises NotFound, KernelError.
        """
        from niso.look import top

        return top.Top(self.session, _name(service))

    def events(self, service: str | None = None, *, since: str | None = None) -> niso.Events:
        """Stream the events of all services and networks, or only those of one service.

        The result is an endless iterator of `niso.Happened`, to be used in a ``with`` block. If
        ``since`` is given, the result's method ``past()`` returns the recorded events since this
        time. ``since`` is an RFC 3339 time or a period such as ``2h``. Raises NotFound, UsageError,
        KernelError.
        """
        from niso.look import events

        return events.Events(self.session, _name(service), since_time(since))

    def map(self) -> niso.Map:
        """Start observing services, networks and flows, as the map of ``niso web`` does.

        Each ``read()`` of the result returns a `niso.MapState`. Close the result when you are done,
        or use it in a ``with`` block: until then, the kernel counts the bytes of all flows.
        """
        from niso.look.map import Map

        return Map(self.session)

    def drops(self, service: str | None = None) -> niso.Drops:
        """Stream the packets that policies drop, for one service or for all services.

        Only policies with ``log = true`` report their drops. The result is an endless iterator of
        `niso.Drop`, to be used in a ``with`` block.
        """
        from niso.look import drops

        return drops.Drops(self.session, _name(service))

    def flows(
        self,
        service: str | None = None,
        *,
        denied: bool = False,
        since: str | None = None,
        instances: bool = False,
    ) -> tuple[niso.Flow, ...]:
        """Return the flows of the last week, each with the policy entry that decides on it.

        Refused flows are included. ``service`` selects flows from and to one service. ``denied``
        selects refused flows, and flows that pass only because a policy is in audit mode.
        ``since``, an RFC 3339 time or a period such as ``2h``, selects flows that began later or
        are still open. With ``instances``, the instances of services with replicas are listed
        separately. Raises NotFound, UsageError, KernelError.
        """
        from niso.look import flows

        return flows.flows(self.session, _name(service), denied, since_time(since), instances)

    def forget_flows(self, service: str | None = None, *, denied: bool = False) -> None:
        """Delete the recorded flows of all services, or of one service.

        With ``denied``, deletes only flows that were refused, and flows that passed only because a
        policy is in audit mode. niso continues to record new flows. Raises NotFound, UsageError,
        KernelError.
        """
        from niso.look import flows

        flows.forget(self.session, _name(service), denied)

    def follow_flows(
        self, service: str | None = None, *, denied: bool = False, instances: bool = False
    ) -> niso.Flows:
        """Stream new flows of all services, or only those of ``service``.

        ``denied`` and ``instances`` have the same meaning as in `flows`. The result is an endless
        iterator of `niso.Flow`, to be used in a ``with`` block.
        """
        from niso.look import flows

        return flows.Flows(self.session, _name(service), denied, instances)

    def graph(
        self,
        format: str = "mermaid",
        *,
        stack: str | os.PathLike[str] | None = None,
        since: str | None = None,
        declared: bool = False,
    ) -> bytes:
        """Return a picture of services and their flows, in the format mermaid, dot, svg or png.

        ``stack``, the path of a stack.toml, limits the picture to the services of this stack. With
        ``declared``, the picture shows what policies allow instead of recorded traffic. With both
        arguments, niso reads only the stack's files. ``since`` selects flows as in `flows`. Raises
        UsageError, and Error if the program ``dot`` is needed and missing.
        """
        from niso.look import graph

        folder = None if stack is None else path(stack, "stack")
        return graph.graph(
            self.session, text(format, "format"), folder, declared, since_time(since)
        )

    def capture(
        self,
        service: str,
        *others: str,
        peer: str | None = None,
        filter: str | None = None,
        count: int | None = None,
        lines: bool = False,
        drops: bool = False,
    ) -> niso.Capture:
        """Capture the packets of services with tcpdump, in their network namespaces.

        ``peer`` is another service or an address, optionally with a port (``db:5432``). ``filter``
        is an expression of pcap-filter(7). The capture ends after ``count`` packets. With
        ``drops``, the capture also contains the headers of packets that nftables drops, each with
        the reason.

        Use the result in a ``with`` block. Its method ``read()`` returns the next bytes of a pcapng
        file, which also contains the services' names, and b"" at the end. With ``lines``,
        ``read()`` returns lines of text as bytes. The method ``stop()`` ends the capture. Raises
        UsageError, NotFound, Conflict, and Error if tcpdump is not installed.
        """
        from niso.look import capture

        whose = tuple(texts((service, *others), "service"))
        who = None if peer is None else text(peer, "peer")
        more = "" if filter is None else text(filter, "filter")
        return capture.capture(self.session, whose, who, more, count, lines, drops)

    def trace(
        self, source: str, destination: str, *, any_packet: bool = False, wait_s: float = 30.0
    ) -> niso.Traced | None:
        """Wait for a real packet and return its path through all netfilter hooks.

        Returns None if no packet came within ``wait_s`` seconds. ``source`` and ``destination`` are
        written as for `explain`. For TCP, only the first packet of a connection is traced, unless
        ``any_packet`` is true. Tables of other programs are included. Raises NotFound, UsageError,
        KernelError.
        """
        from niso.look import capture

        ends = text(source, "source"), text(destination, "destination")
        return capture.trace(self.session, *ends, any_packet, seconds(wait_s, "wait_s", 0.01))

    def learn(
        self, *services: str, since: str | None = None, egress: bool = False
    ) -> tuple[niso.LearnedPolicy, ...]:
        """Return policies that would allow the recorded flows of services.

        If no service is given, returns policies for all active services. ``since`` selects flows as
        in `flows`. With ``egress``, the policies also limit where the services connect. Raises
        NotFound, UsageError, KernelError.
        """
        from niso.look import learn

        return learn.learn(self.session, texts(services, "services"), since_time(since), egress)

    def learned_changes(
        self, learned: Iterable[niso.LearnedPolicy]
    ) -> tuple[niso.PolicyChange, ...]:
        """Return how each service's manifest would change with the learned policies. Write no file.

        Raises Error if a service has no manifest or tomlkit is missing. Raises Conflict if two
        services have the same manifest.
        """
        from niso.look import learn

        return learn.changes(self.session, learned)

    def write_policies(self, changes: Iterable[niso.PolicyChange]) -> None:
        """Write the changed manifests, each atomically.

        Raises Conflict if a manifest was edited after `learned_changes` read it.
        """
        from niso.look import learn

        learn.write(changes)

    def policy(self, service: str, *, unused: str | None = None) -> tuple[niso.PolicyEntry, ...]:
        """Return a service's policy entries, each with the number of flows that matched it.

        ``unused``, a period such as ``7d``, selects entries that matched no flow in that time.
        Raises NotFound, UsageError, KernelError.
        """
        from niso.look import policies

        period = None if unused is None else time.time() - moment(unused, "--unused")
        return policies.show(self.session, text(service, "service"), period)

    def policy_effects(
        self, *what: str | os.PathLike[str], since: str | None = None
    ) -> tuple[niso.PolicyEffect, ...]:
        """Return the recorded flows that an activation would cut or newly allow.

        ``what`` is a stack, or the manifests to activate. ``since`` selects flows as in `flows`.
        Raises the errors of `Services.activate`.
        """
        from niso.change import warnings

        return warnings.effects(
            self.session, [path(file, "what") for file in what], since_time(since)
        )

    def refresh_names(self, *, force: bool = False) -> tuple[niso.OutsideName, ...]:
        """Resolve DNS names in policies again if their last answers have expired.

        Returns all DNS names of policies. With ``force``, all names are resolved again. The
        nftables rules and the services' hosts files are updated together. Raises KernelError, and
        Error if dnspython is not installed.
        """
        from niso.change import outside_names_refresh

        return outside_names_refresh.refresh_names(self.session, force)

    def names_due(self) -> float:
        """Return the number of seconds to wait before the next `refresh_names`, at most 60."""
        from niso.look import services

        return services.next_due(self.session)

    # --- check and repair ------------------------------------------------------------------------

    def check(self, name: str | None = None) -> tuple[Finding, ...]:
        """Return the differences between this host's actual state and its configuration.

        ``name`` limits the check to one service or network. Raises NotFound, KernelError, Conflict.
        """
        from niso.look import check, other_firewalls

        name = None if name is None else text(name, "name")
        machine = self.session.machine()
        before = machine.kernel.neighbour_tables()
        findings = check.check(machine, name)
        for line in other_firewalls.unseen((4, 6)):
            machine.caution(line)
        for line, hint in check.warnings(machine, name, before):
            machine.caution(line, (hint,))
        if machine.store.cluster_id():
            findings += _of_cluster(machine, name)
        return tuple(findings)

    def repair(self, *, dry_run: bool = False, kernel: bool = False) -> Repaired:
        """Repair the differences that `check` reports. With ``dry_run``, only report the steps.

        Attachments whose namespace no longer exists are detached, and the files in
        /etc/niso/policies are applied to all attachments.

        With ``kernel``, no process is started or stopped, no attachment is removed, and no
        interrupted change is completed or rolled back. Raises ErrorGroup, Error.
        """
        from niso.change import repair, warnings

        machine = self.session.machine_for_change()
        if dry_run:
            repair.plan_repair(machine, kernel)
            return Repaired(0)
        if kernel:
            return Repaired(repair.repair_network(machine))
        steps = repair.repair_all(machine)
        steps += sum(one.changed for one in self.attachments.gc())
        steps += sum(one.changed for one in self.attachments.apply_policies())
        self.session.report(Finished())
        if steps:
            warnings.hand_over_started(machine, machine.store.active_services())
        return Repaired(steps)

    def guard_firewalls(self, on: bool = True) -> tuple[niso.Marked, ...]:
        """Make systemd repair niso's rules after each start or reload of another firewall.

        niso writes a drop-in for the systemd unit of each supported firewall. ``on=False`` removes
        these drop-ins. Raises Error without systemd, and Conflict if another program has written
        one of the drop-ins.
        """
        from niso.change import boot

        machine = self.session.machine_for_change(create=on)
        change = boot.enable_firewall if on else boot.disable_firewall
        return tuple(change(machine))

    def sweep(self, *, dry_run: bool = False) -> Swept:
        """Remove all objects that niso created in the kernel, even if niso's database is missing.

        With ``dry_run``, only report the steps. Raises ErrorGroup.
        """
        from niso.change import repair

        session = self.session
        session.report_waits()
        kernel, processes = session.kernel(), session.processes()
        removed, warning = repair.sweep(kernel, processes, session.report, dry_run)
        session.report(Finished())
        if warning is not None and not dry_run:
            session.caution(warning.message)
        return Swept(removed)


def _of_cluster(machine: Machine, name: str | None) -> list[Finding]:
    from niso.change import cluster_check
    from niso.cluster import config

    own = config.load()
    if own is None or not cluster_check.concerned(machine, name):
        return []
    machine.report(AskingCluster())
    findings, warnings = cluster_check.check(machine, own, name)
    for line, hint in warnings:
        machine.caution(line, (hint,))
    return findings


def _name(service: str | None) -> str | None:
    return None if service is None else text(service, "service")


# --- results as JSON ------------------------------------------------------------------------------


KEYS = {"from_": "from"} | {
    f"{way}_{what}": f"{way}-{what}"
    for way in ("in", "out")
    for what in ("packets", "bytes", "drops", "audits")
}
"""The JSON key of each field whose key differs from the field's name."""

JOINED = ("mapping", "process", "judged")
"""Fields whose value is itself a result. In JSON, the fields of both results form one object."""

PYTHON_ONLY = ("anywhere", "label", "idle", "is_host", "gone", "was_dropped", "defect")
"""Fields that are left out of JSON."""


def plain(value: object) -> Any:
    """Convert a result of the API to the types of JSON: dict, list, str, int, float, bool, None."""
    fields: tuple[str, ...] | None = getattr(value, "_fields", None)
    if fields is None:
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value
    left_out = value.left_out() if hasattr(value, "left_out") else ()
    described: dict[str, object] = {}
    for name in fields:
        member = getattr(value, name)
        if name in left_out or name in PYTHON_ONLY:
            continue
        if name in JOINED:
            described |= plain(member) or {}
        else:
            described[KEYS.get(name, name)] = plain(member)
    return described
