"""Resolve the DNS names in policies, update rules and hosts files, and install a timer for this.

dnspython queries the name servers in the host's resolv.conf. These servers may be on the host's
loopback interface, where services could not reach them. The host's hosts file is not used, because
its lines have no TTL. Search domains are not used either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress

from niso.base.errors import Error, missing_library
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import lazy
from niso.base.report import Finished
from niso.change.scope import concerned
from niso.plan.records import FORMER, NOW, Forbids, Outside
from niso.reconcile.change import change, repair
from niso.runtime import units as systemd
from niso.runtime.machine import Machine
from niso.runtime.units import UNITS, command, environment
from niso.store.store import Store

if TYPE_CHECKING:
    from typing import Any

    from niso.change.scope import Target
    from niso.look.services import OutsideName
    from niso.look.session import Session
    from niso.plan import dns_answers
    from niso.plan.dns_answers import DnsAnswer
else:
    dns_answers = lazy("niso.plan.dns_answers")  # few policies name hosts


KEPT_S = 3600.0
"""Seconds for which the answer for a DNS name in no policy is stored. An activation that will
record such a policy may be in progress.
"""


def prepare(machine: Machine, targets: Iterable[Target]) -> None:
    """Resolve the DNS names in policies of services that are about to be activated.

    A name without an address only causes a warning. So a machine can boot even if its name servers
    start after niso. Raises Error if dnspython is not installed.
    """
    names = _names(targets)
    if not names:
        return
    require()
    refresh(machine, names)
    unknown: dict[str, list[str]] = {}
    for name in names:
        answer = machine.store.outside.answer(name)
        if not answer.in_state(NOW):
            unknown.setdefault(answer.problem, []).append(name)
        elif answer.problem:
            machine.caution(f"{name}: {answer.problem}")
    for problem, some in unknown.items():
        machine.caution(f"{', '.join(some)}: {problem}", ("niso net refresh asks again",))


def bar(machine: Machine, targets: Iterable[Target]) -> None:
    """Remove addresses from recorded DNS answers if they are in networks that the command has
    created.

    Otherwise a policy's DNS name could allow connections to a service on such a network. Each
    removal causes a warning. The caller must be in the transaction that has recorded the networks.
    Raises KernelError.
    """
    if not (names := _names(targets)):
        return
    rows, forbids, now = machine.store.outside, _forbids(machine), time.time()
    for before in map(rows.answer, names):
        answer = dns_answers.barred(before, forbids, now)
        if answer != before:
            rows.put([answer])
            machine.caution(f"{answer.name}: {answer.problem}")


def look(machine: Machine, targets: Iterable[Target]) -> list[Outside]:
    """Resolve those DNS names in the targets' policies whose last answers have expired.

    Returns the DNS answers that `refresh` would record. Nothing is recorded.
    """
    names = _names(targets)
    if not names:
        return []
    now, rows, forbids = time.time(), machine.store.outside, _forbids(machine)
    heard = ask([name for name in names if rows.answer(name).is_due(forbids, now)])
    return [
        dns_answers.after(rows.answer(name), answers, forbids, now)
        for name, answers in heard.items()
    ]


def _names(targets: Iterable[Target]) -> list[str]:
    return sorted({name for one in targets for name in one.spec.network.policy.outside_names()})


def refresh(machine: Machine, names: Iterable[str] | None = None, force: bool = False) -> list[str]:
    """Resolve the DNS names whose TTL is over, apply the answers, and return the changed names.

    ``names`` are the names to consider. If ``names`` is None, all names in policies are considered.
    With ``force``, names are resolved even if their TTL is not over. Open connections stay open
    even if an address is removed. Raises KernelError, and Error if dnspython is not installed.
    """
    rows = machine.store.outside
    now = time.time()
    known = [rows.answer(name) for name in (rows.named() if names is None else names)]
    forbids = _forbids(machine)
    due = [answer.name for answer in known if force or answer.is_due(forbids, now)]
    unsettled = [answer.name for answer in known if not answer.settled]
    if not (due or unsettled):
        return []
    heard = ask(due) if due else {}
    with Lock():
        return _apply(machine, heard, unsettled, now)


def _apply(
    machine: Machine, heard: dict[str, tuple[DnsAnswer, ...]], unsettled: Iterable[str], now: float
) -> list[str]:
    """Record DNS answers and update the kernel. Return the names whose addresses changed. ``heard``
    maps names to their answers. The caller must have niso's lock. The rows are committed before the
    kernel changes, with ``settled`` false. If niso is killed, the next refresh passes these names
    as ``unsettled``, and removes the set elements of the earlier answers.
    """
    store, kernel = machine.store, machine.kernel
    rows = store.outside
    before = {name: rows.answer(name) for name in {*heard, *unsettled}}
    services = rows.naming(before)
    scope = concerned(store, services)
    # if no service's policy has these names, only rows change
    made = change(kernel, store, scope, machine.report, rows_first=True) if services else None
    with made or store.transaction():
        if made is not None and not all(answer.settled for answer in before.values()):
            rows.put(_all_in_use(answer) for answer in before.values() if not answer.settled)
            made.doubt()
        forbids = _forbids(machine)
        reached = [
            dns_answers.after(before[name], heard[name], forbids, now)
            if name in heard
            else before[name]
            for name in sorted(before)
        ]
        rows.put(answer._replace(settled=False) for answer in reached)
        rows.forget_others(now - KEPT_S)
    if services and any(not answer.settled for answer in before.values()):
        # a line of a hosts file has all names of an address, and some may be missing there.
        # Other failed repairs do not concern the names, and `net check` reports them
        with suppress(Error):
            repair(kernel, store, machine.report)
    with store.transaction():
        rows.put(answer._replace(settled=True) for answer in reached)
    return [answer.name for answer in reached if _used(answer) != _used(before[answer.name])]


def _used(answer: Outside) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return answer.in_state(NOW), answer.in_state(FORMER)


def _all_in_use(answer: Outside) -> Outside:
    """Return an answer with all addresses marked as in use, because the kernel may have them."""
    return answer._replace(addresses=tuple(known._replace(state=NOW) for known in answer.addresses))


def _forbids(machine: Machine) -> Forbids:
    from niso.plan.subnets import DEFAULT_POOL, unique_local

    store: Store = machine.store
    pools = (os.environ.get("NISO_POOL") or DEFAULT_POOL, str(unique_local(store.state_id())))
    subnets = (subnet.cidr for network in store.networks() for subnet in network.subnets)
    bridges = [(str(prefix), link) for prefix, link in machine.kernel.engine_prefixes()]
    local = map(str, machine.kernel.local_prefixes())
    return dns_answers.forbidden_addresses(
        machine.kernel.host_addresses(), (*pools, *subnets), bridges, local
    )


# --- queries to name servers ----------------------------------------------------------------------

RESOLV_CONF = "/etc/resolv.conf"
_SERVER_S, _QUESTION_S, _ALL_S = 1.5, 4.0, 15.0
"""Timeouts in seconds: of one name server, of one question, and of all questions together."""
_AT_ONCE = 16
_TYPES = {4: "A", 6: "AAAA"}


def require() -> Any:
    """Import and return the module `dns`. Raises Error if dnspython is not installed."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        raise missing_library("dnspython", "resolves outside names", "dnspython") from None
    return dns


def ask(names: Iterable[str]) -> dict[str, tuple[DnsAnswer, ...]]:
    """Resolve DNS names. Return {name: DNS answers}, with one answer for each address family.

    If a name cannot be resolved, its answers have a ``problem``. No query is sent after 15 seconds.
    """
    import random  # dnspython loads it anyway

    dns = require()
    order = list(names)
    random.shuffle(order)  # slow names must not use up the time of the same other names each time
    questions = [(name, family) for name in order for family in _TYPES]
    try:
        resolver = dns.resolver.Resolver(filename=RESOLV_CONF)
    # ValueError: a name server's address is invalid
    except (dns.exception.DNSException, ValueError):
        reason = f"{RESOLV_CONF} has no usable name server"
        heard = [
            dns_answers.DnsAnswer(family, problem=reason, silent=True) for _, family in questions
        ]
    else:
        from concurrent.futures import ThreadPoolExecutor

        resolver.timeout = _SERVER_S
        end = time.monotonic() + _ALL_S
        timed = [(name, family, end) for name, family in questions]
        # a slow name must not use up the time of the others
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            heard = list(pool.map(lambda asked: _one(dns, resolver, *asked), timed))
    answers: dict[str, tuple[DnsAnswer, ...]] = {}
    for (name, _), one in zip(questions, heard, strict=True):
        answers[name] = (*answers.get(name, ()), one)
    return answers


def _one(dns: Any, resolver: Any, name: str, family: int, end: float) -> DnsAnswer:
    """Resolve a DNS name to addresses of a ``family`` (4 or 6) until the monotonic time ``end``."""
    left = end - time.monotonic()
    if left <= 0:
        return dns_answers.DnsAnswer(family, problem="there was no time to ask", silent=True)
    try:
        answer = resolver.resolve(
            f"{name}.",
            _TYPES[family],
            raise_on_no_answer=False,
            search=False,
            lifetime=min(_QUESTION_S, left),
        )
    except dns.resolver.NXDOMAIN:
        return dns_answers.DnsAnswer(family, problem="DNS has no such name")
    except dns.exception.Timeout:
        return dns_answers.DnsAnswer(family, problem="no name server answered", silent=True)
    except dns.resolver.NoNameservers:
        return dns_answers.DnsAnswer(family, problem="no name server could answer", silent=True)
    except (dns.exception.DNSException, OSError, ValueError) as error:
        reason = f"the answer is unusable ({type(error).__name__})"
        return dns_answers.DnsAnswer(family, problem=reason, silent=True)
    if answer.rrset is None:
        return dns_answers.DnsAnswer(family, problem=f"DNS has no IPv{family} address for it")
    # the minimum over the chain of CNAMEs
    ttl_s = float(answer.chaining_result.minimum_ttl)
    return dns_answers.DnsAnswer(family, tuple(record.address for record in answer.rrset), ttl_s)


# --- the systemd timer ----------------------------------------------------------------------------

EVERY_S = 60
"""Seconds between calls of `niso net refresh`, which resolve only names whose TTL is over."""
TIMER = "niso_refresh.timer"
"""Name of the timer's unit. No unit of a service has this name: they begin with "niso-"."""
_SERVICE = "niso_refresh.service"
_DROP_IN = f"timers.target.d/{TIMER}.conf"
_MARK = "# written by niso enable for outside names; state folder "


def supervise(machine: Machine) -> None:
    """Install the timer that resolves DNS names, or remove it if no enabled service needs it."""
    store, units = machine.store, machine.processes.units
    if not units.booted():
        return
    mine = systemd.ours(units, [_path(TIMER)], _MARK + store.state_id())
    if not (mine or store.names_outside()):
        return
    wanted = any(on and store.names_outside(name) for name, _, on in store.service_names())
    files = {_path(name): text for name, text in texts(store.state_id()).items()}
    if mine and not wanted:
        units.stop_unit(TIMER)
        systemd.drop(units, [*reversed(files)], machine.report)
    elif wanted and not mine and units.read(_path(TIMER)) is not None:
        text = f"{_path(TIMER)} was not made for this state folder, so nothing resolves the"
        hint = "call niso net refresh from cron"
        machine.caution(f"{text} outside names of its services", (hint,))
    elif wanted and systemd.put(units, files, machine.report):
        units.stop_unit(TIMER)
        units.start_unit(TIMER)


def texts(state_id: str) -> dict[str, str]:
    """Return {file name: content} of the timer's unit files (systemd.timer(5))."""
    head = (_MARK + state_id, "[Unit]")
    about = (*head, "Description=niso: resolve outside names of policies", "")
    service = (
        *about,
        "[Service]",
        "Type=oneshot",
        *environment(),
        f"ExecStart={command('net', 'refresh')}",
        "# a name without an address is not a failure of the unit",
        "SuccessExitStatus=3",
        "# the journal has errors alone",
        "StandardOutput=null",
        "TimeoutStartSec=120",
        "",
    )
    intervals = ("OnActiveSec=5s", f"OnUnitActiveSec={EVERY_S}s", "AccuracySec=5s")
    timer = (*about, "[Timer]", *intervals, "")
    drop_in = (*head, f"Wants={TIMER}", "")
    files = {_SERVICE: service, _DROP_IN: drop_in, TIMER: timer}
    return {name: "\n".join(lines) for name, lines in files.items()}


def _path(name: str) -> str:
    return os.path.join(UNITS, name)


def refresh_names(session: Session, force: bool) -> tuple[OutsideName, ...]:
    """Implement `Host.refresh_names`: resolve DNS names, and return all DNS names in policies."""
    from niso.look.services import described

    machine = session.machine_for_change()
    if machine.store.names_outside():
        refresh(machine, force=force)
    session.report(Finished())
    return described(machine.store)
