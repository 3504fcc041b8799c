"""Collect metrics of services, traffic, policies and flows for Prometheus: `Host.metrics`."""

from __future__ import annotations

import time
from itertools import groupby

from niso.base import names
from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import span
from niso.kernel import flow_memory, link_records, proc_sys, ruleset
from niso.kernel.nft_elements import HEADERS, Nfnetlink
from niso.kernel.ruleset import INET
from niso.look import check, drops, flows, services
from niso.look.host_ports import rows
from niso.look.session import Session
from niso.plan.verdict import parsed
from niso.reconcile import live_world
from niso.reconcile.live_world import read_world
from niso.runtime import status
from niso.store.service_rows import STATES, ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


COUNTER, GAUGE = "counter", "gauge"


class Sample(NamedTuple):
    """One value of a metric."""

    labels: dict[str, str]  # the name and value of each label
    value: float  # the value; times are in seconds since 1970


class Metric(NamedTuple):
    """A metric with its samples, possibly none."""

    name: str  # name, as in Prometheus
    type: str  # counter or gauge
    help: str  # what the metric counts
    samples: tuple[Sample, ...]  # one value for each set of labels


def metrics(session: Session, flows: int) -> tuple[Metric, ...]:
    """Collect all metrics (see `Host.metrics`), with at most ``flows`` time series about flows."""
    if flows < 0:
        raise UsageError("must be 0 or more", "--flows 200", "--flows", value=str(flows))
    store = session.store()
    return (
        *_of_services(session, store),
        *_of_traffic(store),
        *_of_policies(store),
        *_of_flows(session, store, flows),
        *_of_ports(store),
        *_of_tracking(),
        _metric(
            GAUGE,
            "check_problems",
            "Differences between the kernel and the configuration: niso net check names them.",
            (
                Sample({"problem": problem}, count)
                for problem, count in (check.problems(session.machine()) or {}).items()
            ),
        ),
    )


def _metric(type_: str, name: str, help_: str, samples: Iterable[Sample]) -> Metric:
    return Metric(f"niso_{name}", type_, help_, tuple(samples))


def _by_service(
    type_: str, name: str, help_: str, values: Iterable[tuple[str, float | None]]
) -> Metric:
    samples = (Sample({"service": service}, v) for service, v in values if v is not None)
    return _metric(type_, name, help_, samples)


def _of_services(session: Session, store: Store) -> tuple[Metric, ...]:
    lines = {line.service: line for line in services.service_lines(session, store)}
    now = time.time()
    rows = [row for row in store.services() if row.name in lines]
    states = {row.name: status.read(row.name) for row in rows if row.has_process and row.active}
    statuses = {row.name: lines[row.name].status for row in rows}
    instances = {
        front: list(ones)
        for front, ones in groupby(store.instances.active(*STATES), lambda one: one.front)
    }
    for front, ones in instances.items():
        runs = [status.read(one.service) for one in ones]
        if any(run.state == "running" for run in runs):
            statuses[front] = "running"
        states[front] = status.NONE._replace(restarts=sum(run.restarts for run in runs))
    return (
        _by_service(
            GAUGE,
            "service_up",
            "1 if the service's process runs, or its namespace is attached.",
            ((name, int(state in ("running", "attached"))) for name, state in statuses.items()),
        ),
        _metric(
            GAUGE,
            "service_instances",
            "Instances of a service with replicas in each state; only serving ones get"
            " connections.",
            (
                Sample({"service": front, "state": state}, sum(one.state == state for one in ones))
                for front, ones in instances.items()
                for state in STATES
            ),
        ),
        _by_service(
            GAUGE,
            "service_active",
            "1 if the service is activated.",
            ((row.name, int(row.active)) for row in rows),
        ),
        _by_service(
            GAUGE,
            "service_completed",
            "1 if the job has exited with status 0; absent for services.",
            ((row.name, int(statuses[row.name] == "completed")) for row in rows if row.is_job),
        ),
        _by_service(
            GAUGE,
            "service_enabled",
            "1 if the service starts at boot.",
            ((row.name, int(row.enabled)) for row in rows),
        ),
        _by_service(
            GAUGE,
            "service_healthy",
            "1 if the last probe succeeded; absent without a healthcheck or a process.",
            ((name, int(x.health == "healthy")) for name, x in lines.items() if x.health),
        ),
        _by_service(
            GAUGE,
            "service_health_probe_time_seconds",
            "Time of the last probe, in seconds since 1970; absent if the process was not probed.",
            (
                (name, round(now - x.health_age, 3) if x.health_age is not None else None)
                for name, x in lines.items()
            ),
        ),
        _metric(
            GAUGE,
            "service_info",
            "Mode and networks of the service; always 1.",
            (
                Sample({"service": row.name, "mode": row.mode, "network": network}, 1)
                for row in rows
                for network in (row.networks or ("",))
            ),
        ),
        _by_service(
            COUNTER,
            "service_restarts_total",
            "Restarts by the restart policy since the activation.",
            ((name, x.restarts) for name, x in states.items()),
        ),
        *_of_cgroups(store, rows),
        _by_service(
            GAUGE,
            "service_start_time_seconds",
            "Start of the running process, in seconds since 1970.",
            ((name, x.started_at) for name, x in states.items() if x.state == "running"),
        ),
    )


def _of_cgroups(store: Store, rows: Iterable[ServiceRow]) -> Iterator[Metric]:
    usages = services.usages_of(store, (row.name for row in rows if row.active))
    specs = {row.name: spec for row in rows if row.active and (spec := row.process) is not None}
    for type_, name, help_, field in (
        (COUNTER, "cpu_seconds_total", "Processor time since the start.", "cpu_s"),
        (
            COUNTER,
            "cpu_throttled_seconds_total",
            "Time for which cpu_max stopped the service since the start.",
            "throttled_s",
        ),
        (GAUGE, "memory_bytes", "Memory, without the file cache.", "memory"),
        (
            GAUGE,
            "memory_limit_bytes",
            "Limit of the memory; absent without memory_max.",
            "memory_limit",
        ),
        (
            COUNTER,
            "oom_kills_total",
            "Processes that the memory limit has killed since the activation.",
            "oom_kills",
        ),
    ):
        values = ((service, getattr(usage, field)) for service, usage in usages.items())
        yield _by_service(type_, f"service_{name}", help_, values)
    yield _by_service(
        GAUGE,
        "service_cpu_limit",
        "Limit of the processor time, in processors; absent without cpu_max.",
        ((name, spec.cpu_max / 100) for name, spec in specs.items() if spec.cpu_max is not None),
    )


def _of_traffic(store: Store) -> tuple[Metric, ...]:
    active = store.active_rows()
    ends = {
        names.veth(row.name, network, row.generation): (row.name, network)
        for row in active
        for network in row.networks
    }
    there: dict[tuple[str, str], dict[str, int]] = {}
    for end, traffic in link_records.of_links(ends).items():
        service, network = ends[end]
        sums = there.setdefault((names.owner(service), network), {})
        for field, number in traffic.items():
            sums[field] = sums.get(field, 0) + number
    stats = drops.by_service(drops.count(active))

    def by_direction(suffix: str) -> Iterator[Sample]:
        for counts in stats:
            for direction, way in (("ingress", "in"), ("egress", "out")):
                if (number := getattr(counts, f"{way}_{suffix}")) is not None:
                    yield Sample({"service": counts.service, "direction": direction}, number)

    # the host's end of a veth pair receives what the service sends
    return (
        *(
            _metric(
                COUNTER,
                f"network_{direction}_{unit}_total",
                f"{unit.capitalize()} that the service {words} on a network.",
                (
                    Sample({"service": service, "network": network}, traffic[field])
                    for (service, network), traffic in there.items()
                ),
            )
            for direction, words, end in (("receive", "received", "tx"), ("transmit", "sent", "rx"))
            for unit in ("bytes", "packets")
            for field in (f"{end}_{unit}",)
        ),
        _metric(
            COUNTER,
            "policy_dropped_packets_total",
            "Packets that the service's policy dropped.",
            by_direction("drops"),
        ),
        _metric(
            COUNTER,
            "policy_audited_packets_total",
            "Packets that the service's policy would have dropped; absent unless it is in audit.",
            by_direction("audits"),
        ),
        _by_service(
            COUNTER,
            "foreign_frames_total",
            "Frames that the service sent with an address of others, all dropped.",
            ((counts.service, counts.foreign) for counts in stats),
        ),
    )


def _of_policies(store: Store) -> tuple[Metric, ...]:
    active = {row.name for row in store.services() if row.active}
    packets: dict[tuple[str, str], int] = {}
    agos: dict[tuple[str, str], float] = {}
    with Nfnetlink() as kernel:
        for container in sorted(ruleset.COUNTED):
            for element, number, ago in kernel.counts(HEADERS[INET, container]):
                service, entry = names.owner(element.owner), element.entry
                if service not in active or not entry.startswith("network.policy."):
                    continue
                rule = service, entry.removeprefix("network.policy.")
                packets[rule] = packets.get(rule, 0) + number
                if ago is not None:
                    agos[rule] = min(agos.get(rule, ago), ago)
    now = time.time()
    terms = live_world.terms(store)

    def labels(rule: tuple[str, str]) -> dict[str, str]:
        return {"service": rule[0], "rule": rule[1]}

    return (
        _by_service(
            GAUGE,
            "policy_audit",
            "1 if the service's policy is in audit and denies nothing; absent without a policy.",
            (
                (name, int(name in terms and terms[name][1]))
                for name in store.policied()
                if name in active and name == names.owner(name)
            ),
        ),
        _metric(
            COUNTER,
            "policy_rule_packets_total",
            "First packets of flows that an entry of the policy decided on.",
            (Sample(labels(rule), packets[rule]) for rule in sorted(packets)),
        ),
        _metric(
            GAUGE,
            "policy_rule_last_match_seconds",
            "Time of the last of them, in seconds since 1970; absent if there was none.",
            (Sample(labels(rule), round(now - agos[rule], 3)) for rule in sorted(agos)),
        ),
    )


_FLOW_LABELS = ("source", "destination", "port", "protocol", "verdict")


def _of_flows(session: Session, store: Store, limit: int) -> tuple[Metric, ...]:
    kernel = session.kernel()
    context = read_world(kernel, store)
    memory = flows.remembered(kernel, context, with_open=False)
    totals, left_out = flows.totals(context, memory, limit)
    missed = flow_memory.missed()
    return (
        _metric(
            GAUGE,
            "flow_connections",
            "New flows that the kernel remembers, for a week, or attempts that were dropped.",
            (
                Sample(dict(zip(_FLOW_LABELS, map(str, total), strict=True)), number)
                for total, number in totals
            ),
        ),
        _metric(
            GAUGE,
            "flow_series_left_out",
            "Series of niso_flow_connections beyond the most frequent ones.",
            [Sample({}, left_out)],
        ),
        _metric(
            COUNTER,
            "seen_full_total",
            "New flows that are not remembered because a set was full.",
            (Sample({"set": name}, full) for name, (full, _) in missed.items()),
        ),
        _metric(
            COUNTER,
            "seen_beyond_share_total",
            "Flows and attempts that are not remembered because their source used up its share.",
            (Sample({"set": name}, beyond) for name, (_, beyond) in missed.items()),
        ),
        _metric(
            GAUGE,
            "seen_set_full",
            "1 if a set of flows has no room, so that new flows are not remembered.",
            (Sample({"set": name}, int(name in memory.full)) for name in missed),
        ),
    )


def _of_ports(store: Store) -> tuple[Metric, ...]:
    samples = []
    for service, port in store.active_ports():
        for row in rows([port], store.port_families(service)):
            labels = {
                "service": service,
                "host_ip": row.host_ip,
                "host_port": span(row.host_port, row.range),
                "container_port": span(row.container_port, row.range),
                "protocol": row.proto,
                "scope": "host" if parsed(row.host_ip).is_loopback else "machines",
            }
            samples.append(Sample(labels, 1))
    return (_metric(GAUGE, "published_port_info", "A published port; always 1.", samples),)


def _of_tracking() -> tuple[Metric, ...]:
    figures = (
        ("conntrack_entries", "nf_conntrack_count", "Flows in the connection tracking table."),
        ("conntrack_entries_limit", "nf_conntrack_max", "How many it can hold."),
    )
    result = []
    for name, file, words in figures:
        # absent while the kernel's module is not loaded
        value = proc_sys.read(f"net/netfilter/{file}")
        samples = () if value is None else (Sample({}, int(value)),)
        result.append(_metric(GAUGE, name, words, samples))
    return tuple(result)
