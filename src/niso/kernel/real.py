"""Define `Kernel`, niso's interface to the kernel's network, and execute steps.

Only this module executes steps. How an object is written is defined by its kind (kernel/kinds).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Sequence

import niso.kernel.kinds.nft  # noqa: F401  # all kinds but those of tunnels are registered
from niso.base import paths, signals
from niso.base.errors import Error, KernelError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import is_marked
from niso.base.native import lazy
from niso.kernel import neighbour_tables, netns, proc_sys, rtnetlink
from niso.kernel.kinds import hosts_files
from niso.kernel.kinds.addresses import RoutingRule
from niso.kernel.kinds.kind import KINDS, TOGETHER, AnyStep, Foreign, Reading, State, Step
from niso.kernel.kinds.links import delete_links
from niso.kernel.kinds.namespaces import Netns, NetnsName
from niso.kernel.kinds.sysctls import Sysctl, _link
from niso.kernel.neighbour_tables import Table
from niso.kernel.netns import Sockets, inside
from niso.kernel.nft_elements import Element, Nfnetlink
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any, Self

    from niso.kernel import conntrack, flow_memory, host_facts, sockets
    from niso.kernel.foreign_chains import ForeignChains
    from niso.kernel.kinds import tunnels
    from niso.kernel.netlink import Message
    from niso.kernel.sockets import Connection, Listener, Measured
else:  # an attach needs none of them
    conntrack, flow_memory = lazy("niso.kernel.conntrack"), lazy("niso.kernel.flow_memory")
    host_facts = lazy("niso.kernel.host_facts")
    sockets, tunnels = lazy("niso.kernel.sockets"), lazy("niso.kernel.kinds.tunnels")


# Errors of requests for which the kernel lacks a module. libnftables does not report the number.
_LACKING = (0, errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)

# --- the host's kernel ----------------------------------------------------------------------------


class Kernel:
    """niso's interface to the kernel's network, in the caller's network namespace. Not thread-safe.

    Inside a ``with`` block, the sockets of this object stay open between calls. The parameter
    ``alias`` is a string with the id of a state folder. niso sets this alias on its network
    interfaces, and uses it to recognise them. All methods raise KernelError. Functions of other
    modules that are assigned to names in this class have their docstrings there.

    For tests, `fakes.kernel.Fake` has the same methods, in memory. Contract tests compare both.
    """

    def __init__(self) -> None:
        self._sockets = Sockets()
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._sockets.__exit__()
            self._sockets = Sockets()

    def read(
        self,
        candidates: State,
        alias: str,
        foreign: Foreign | None = None,
        with_strays: bool = False,
        skip_transactional: bool = False,
    ) -> State:
        """Return those of the objects ``candidates`` that exist, with the kernel's values.

        All addresses and routes of the candidates' interfaces are returned too. The cost depends
        only on the number of candidates. With ``with_strays``, objects that other programs have
        added to the candidates' interfaces are also returned. With ``skip_transactional``, nftables
        tables and elements are not read, but assumed to be as in ``candidates``.

        If an object with a candidate's name belongs to another program or state folder, raises
        Conflict. If ``foreign`` is given, adds the Conflict to it instead, and leaves the object
        out.
        """
        with self:
            reading = Reading(alias, self._sockets, foreign, with_strays, everything=False)
            return reading.run(candidates, skip_transactional)

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        """Return all kernel objects of the state folder with this ``alias``, whether or not they
        are in the desired state ``want``. ``want`` selects the sysctls to read. Conflicts are added
        to ``foreign``.
        """
        import niso.kernel.kinds.tunnels  # noqa: F401  # its kinds are registered

        with self:
            reading = Reading(alias, self._sockets, foreign, with_strays=True, everything=True)
            reading.candidates = want
            claimed = (obj for kind in KINDS for obj in kind.claimed(reading))
            return reading.run(want | State(claimed))

    def write(self, steps: Iterable[AnyStep], detached: list[str] | None = None) -> None:
        """Execute all steps in order, and stop at the first failure. The KernelError names the
        failed step. If the list ``detached`` is given, a veth pair whose namespace is also deleted
        is only detached from its bridge, and its name is added to the list. The caller must pass
        the list to `delete_detached` after releasing niso's lock, because the deletion takes 20 ms.
        """
        with self:
            Writer(steps, self._sockets, detached).run()

    def write_best_effort(
        self, steps: Iterable[AnyStep], detached: list[str] | None
    ) -> list[Error]:
        """Execute all steps as `write` does, but continue after a failure. Returns the errors.
        After a failure no nftables rule or element is deleted, because it may restrict an object
        that still exists.
        """
        with self:
            return Writer(steps, self._sockets, detached).run_best_effort()

    def delete_detached(self, names: list[str]) -> None:
        """Delete the network interfaces that `write` has detached. Missing ones are ignored."""
        if not names:
            return
        what = f"delete links {', '.join(names)}"
        try:
            signals.hit(what)
        except OSError as error:
            raise KernelError(f"{what}: {error.strerror}", errno=error.errno or 0) from error
        with Rtnl() as rtnl:
            delete_links(rtnl, names)

    def list_elements(self, table: str, container: str) -> list[Element] | None:
        """Return the elements of one of niso's nftables sets or maps, or None if missing."""
        with Nfnetlink() as netlink:
            return netlink.all_of(table, container)

    # --- objects with niso's mark ---

    def marked_links(self) -> dict[str, str]:
        """Return {name: alias} of niso's interfaces, for all state folders. Bridges come last."""
        with self:
            links = sorted(self._sockets.here().links(), key=lambda link: link.kind == "bridge")
        return {link.name: link.alias for link in links if is_marked(link.alias)}

    def marked_rules(self) -> list[RoutingRule]:
        """Return the host's routing rules that niso created, for all state folders."""
        with self:
            here = self._sockets.here()
            return [
                RoutingRule(name, family, drift)
                for family in (4, 6)
                for name, drift, _ in rtnetlink.of_niso(here, family)
            ]

    def marked_netns(self) -> dict[str, str]:
        """Return the namespaces that niso created for any state folder: {name: alias of ``lo``}."""
        marked = {}
        for name in netns.own_names():
            with inside(name), Rtnl() as rtnl:
                lo = rtnl.link("lo")
            if lo is not None and is_marked(lo.alias):
                marked[name] = lo.alias
        return marked

    def marked_names(self) -> list[str]:
        """Return niso's symbolic links in /run/netns that a sweep deletes (`netns.dead_names`)."""
        with self:
            links = self._sockets.here().links()
        marked = {(link.peer_index, link.index) for link in links if is_marked(link.alias)}
        return netns.dead_names(marked)

    def clear_hosts(self) -> None:
        """Remove all hosts files of services, and niso's blocks in the host's own hosts file."""
        import shutil

        shutil.rmtree(paths.hosts_root(), ignore_errors=True)
        with contextlib.suppress(KernelError):
            hosts_files.clear()

    host_names = staticmethod(hosts_files.host_lines)
    write_host_names = staticmethod(hosts_files.write)

    sysctl = staticmethod(proc_sys.read)
    set_sysctl = staticmethod(proc_sys.write)

    # --- namespaces of services ---

    has_netns = staticmethod(netns.exists)
    cookie_at = staticmethod(netns.cookie_at)
    foreign_netns = staticmethod(netns.look)
    clear_unfinished = staticmethod(netns.clear_unfinished)
    alias_at = staticmethod(netns.marked)
    name_netns = staticmethod(netns.attach)
    namespaces_ahead = staticmethod(netns.ahead)

    def addresses_in(self, name: str, link: str) -> list[str]:
        """Return the addresses, with prefix lengths, of an interface in a namespace, or []."""
        if not netns.exists(name):
            return []
        with inside(name), Rtnl() as rtnl:
            there = rtnl.link(link)
            return [assigned.address for assigned in rtnl.addresses(there.index)] if there else []

    def connections_in(self, name: str) -> list[Connection]:
        """Return the established TCP connections in a namespace, or [] if it does not exist."""
        if not netns.exists(name):
            return []
        with inside(name):
            return sockets.connections()

    def listeners_in(self, name: str, proto: str) -> list[Listener] | None:
        """Return the `sockets.listeners` in a namespace, or None if it does not exist."""
        if not netns.exists(name):
            return None
        with inside(name):
            return sockets.listeners(proto)

    def destroy_connections(self, name: str) -> int:
        if not netns.exists(name):
            return 0
        with inside(name):
            return sockets.destroy()

    def measured_in(self, name: str) -> list[Measured]:
        """Return a namespace's TCP connections (`sockets.measured`), or [] if it does not exist."""
        if not netns.exists(name):
            return []
        with inside(name):
            return sockets.measured()

    # --- flows ---

    flows = staticmethod(conntrack.tracked)
    flows_of = staticmethod(conntrack.of)
    end_flows = staticmethod(conntrack.end)
    add_flows = staticmethod(conntrack.introduce)
    forget_flows = staticmethod(flow_memory.forget)

    def flush_addresses(self, addresses: Iterable[str]) -> None:
        """Delete the tracked flows from and to these addresses (`conntrack.flush_addresses`)."""
        conntrack.flush_addresses(addresses)

    def flush_ports(self, claims: Iterable[tuple[str, int, int]], answered: bool) -> None:
        """Delete the tracked flows to the host's ports ``claims``, each (protocol, first port, last
        port). TCP flows that have had a reply are deleted only with ``answered``
        (`conntrack.flush_ports`).
        """

        def own() -> list[str]:
            plain = {address.partition("/")[0] for address in self.host_addresses()}
            return [*sorted(plain), "127.0.0.0/8"]

        conntrack.flush_ports(claims, own, answered)

    # --- the host ---

    def host_addresses(self) -> list[str]:
        """Return all addresses of the host with their prefix lengths, such as "192.0.2.1/24"."""
        with self:
            return [assigned.address for assigned in self._sockets.here().addresses()]

    used_prefixes = staticmethod(host_facts.used_prefixes)
    local_prefixes = staticmethod(host_facts.local_prefixes)
    engine_prefixes = staticmethod(host_facts.engine_prefixes)
    default_mtu = staticmethod(host_facts.default_mtu)
    mtu_of = staticmethod(host_facts.mtu_of)
    why_no_ipv6 = staticmethod(host_facts.why_no_ipv6)
    why_no_wireguard = staticmethod(tunnels.lacks)

    def wireguard_keys(self, private: str) -> tuple[str, str]:
        """Return (private key, public key). If ``private`` is "", a private key is generated."""
        private = private or tunnels.new_key()
        return private, tunnels.public_key(private)

    wireguard_answers = staticmethod(tunnels.answers)
    receiving6 = staticmethod(host_facts.receiving6)
    routed_links = staticmethod(host_facts.routed_links)
    not_forwarding = staticmethod(host_facts.not_forwarding)

    mtu_outwards = staticmethod(host_facts.mtu_outwards)
    mute_name_servers = staticmethod(host_facts.mute_name_servers)

    def neighbour_tables(self) -> list[Table]:
        """Return how full the kernel's neighbour tables are, for IPv4 and IPv6."""
        with self:
            return neighbour_tables.tables(self._sockets.here())

    listeners = staticmethod(sockets.listeners)
    socket_holder = staticmethod(sockets.holder)
    socket_holders = staticmethod(sockets.holders)

    def foreign_nat(self) -> dict[str, int]:
        """Return {IPv4 SNAT chain of another program: number of rules} (`ForeignChains.nat4`)."""
        with self.foreign_chains() as source:
            return source.nat4()

    def foreign_chains(self) -> ForeignChains:
        """Open a reader of other programs' nftables chains."""
        from niso.kernel.foreign_chains import ForeignChains  # only warnings and checks read them

        return ForeignChains()


# --- writing steps --------------------------------------------------------------------------------


class Writer:
    """An executor of a list of steps. If the list ``detached`` is given, a veth pair whose
    namespace is also deleted is only detached from its bridge, and its name is added to the list.
    """

    def __init__(
        self, steps: Iterable[AnyStep], sockets: Sockets, detached: list[str] | None
    ) -> None:
        self.steps = list(steps)
        self.sockets = sockets
        self.detached = detached if detached is not None else []
        self._sysctls: dict[str, list[Sysctl]] = {}  # by namespace
        # those that were set before their interface was set up, and need not be set again
        self.written: set[Sysctl] = set()
        for step in self.steps:
            if isinstance(step, Step) and isinstance(step.obj, Sysctl):
                self._sysctls.setdefault(step.kind.space(step.obj), []).append(step.obj)
        self.deleted_netns = {
            step.obj.name
            for step in self.steps
            if detached is not None
            and isinstance(step, Step)
            and step.action == "delete"
            and isinstance(step.obj, Netns | NetnsName)
        }

    def write_sysctls(self, netns: str, link: str) -> None:
        """Set the sysctls that the steps contain for a new interface. Callers do this before they
        set the interface up, since the kernel would otherwise give it an IPv6 address and send from
        it.
        """
        sysctls = [s for s in self._sysctls.get(netns, ()) if _link(s) == link]
        if sysctls:
            with inside(netns):
                proc_sys.write_all((sysctl.name, sysctl.value) for sysctl in sysctls)
            self.written.update(sysctls)

    def rtnl(self, netns: str) -> Rtnl:
        return self.sockets.at(netns)

    def link(self, netns: str, name: str) -> tuple[Rtnl, int | None]:
        """Return an rtnetlink socket in a namespace, and the index of an interface there. The index
        is None if the interface does not exist.
        """
        rtnl = self.rtnl(netns)
        try:
            return rtnl, rtnl.index(name)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            return rtnl, None

    def send(self, steps: Sequence[Step[Any]]) -> None:
        """Execute steps in one namespace by sending their rtnetlink messages (`Kind.messages`)."""
        indexes: dict[str, int | None] = {}
        messages: list[Message] = []
        netns = steps[0].kind.space(steps[0].obj)
        for step in steps:
            link = step.obj.link
            if link not in indexes:
                indexes[link] = self.link(netns, link)[1]
            messages += step.kind.messages(step, indexes[link])
        self.rtnl(netns).transact_each(messages)

    def run(self) -> None:
        for batch in self._batches():
            self._do(batch)

    def run_best_effort(self) -> list[Error]:
        errors: list[Error] = []
        for batch in self._batches():
            if errors and batch[0].kind.is_transactional:
                continue
            try:
                self._do(batch)
            except Error as error:
                errors.append(error)
                for step in batch[1:]:
                    try:
                        self._do([step])
                    except Error as other:
                        errors.append(other)
        return errors

    def _batches(self) -> list[list[AnyStep]]:
        batches: list[list[AnyStep]] = []
        last: Hashable = None
        together: dict[str, list[AnyStep]] = {}  # by namespace
        for step in self.steps:
            common = step.kind.batch(step, self) if isinstance(step, Step) else None
            if isinstance(step, Step) and common is TOGETHER:
                space = step.kind.space(step.obj)
                if space not in together:
                    together[space] = []
                    batches.append(together[space])
                together[space].append(step)
                last = None
                continue
            together = {}  # later steps may need this one
            key = None if common is None else (step.kind, common)
            if key is None or key != last:
                batches.append([])
            batches[-1].append(step)
            last = key
        return batches

    def _do(self, batch: list[AnyStep]) -> None:
        step = batch[0]
        try:
            try:
                if signals.are_counted():
                    for step in batch:
                        signals.hit(step.describe())
                batch[0].kind.write(self, batch)
            except OSError as error:
                raise KernelError(
                    f"{step.describe().splitlines()[0]}: {error.strerror}", errno=error.errno or 0
                ) from error
        except KernelError as error:
            if error.errno == errno.EEXIST and len(batch) > 1:
                for step in batch:  # to find the object, and accept an object that is equal
                    self._do([step])
                return
            if error.hint is None and error.errno in _LACKING:
                error.hint = proc_sys.missing_modules()
            first = batch[0]
            if isinstance(first, Step):
                error.space = first.kind.space(first.obj)
                error.obj = first.obj if len(batch) == 1 else None
            raise
