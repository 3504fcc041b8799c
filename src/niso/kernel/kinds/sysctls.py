"""Define the kind for sysctls of the host and of services. A sysctl cannot be deleted."""

from __future__ import annotations

import errno
from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import proc_sys
from niso.kernel.kinds.addresses import Address
from niso.kernel.kinds.kind import AnyStep, Kind, Space, State, Step, Steps, by_key, in_netns
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.netns import at, unnamed

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.kernel.real import Writer


FORWARDING = "net/ipv4/ip_forward"
FORWARDING6 = "net/ipv6/conf/all/forwarding"
ON = {"ip_forward": "1", "forwarding": "1", "force_forwarding": "1", "accept_ra": "2"}
"""The values of host sysctls while a service is active, by the last part of the sysctl's name. The
store has the values from before.
"""


ALL_GROUPS = "0\t2147483647"
"""The value of ping_group_range that includes all groups."""
_NEIGH = "net/ipv4/neigh/lo/mcast_solicit"
"""A sysctl that network namespaces of a user namespace may lack (neigh_sysctl_register)."""
DEFAULT = ""
"""The value of a sysctl that gets the value that it has in a new network namespace."""
_LINK_SETTINGS = ("accept_ra", "addr_gen_mode", "disable_ipv6", "promote_secondaries")
"""Sysctls of interfaces that niso sets in services. They stay as they are if niso's plan no longer
contains them."""


class Sysctl(NamedTuple):
    netns: str
    name: str  # the path below /proc/sys: "net/ipv4/ip_forward"
    value: str

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.name)


class _Sysctls(Kind[Sysctl], of=Sysctl):
    def parents(self, obj: Sysctl) -> tuple[str, ...]:
        link = _link(obj)
        netns = f"netns {obj.netns}"
        return (netns, f"link /{obj.netns}/{link}") if link else (netns,)

    def describe(self, step: Step[Sysctl]) -> str:
        sysctl = step.obj
        prefix = f"ip netns exec {sysctl.netns} " if sysctl.netns else ""
        value = sysctl.value.replace("\t", " ")
        if sysctl.value == DEFAULT:
            return f"reset sysctl {sysctl.name}{in_netns(sysctl.netns)} to its default"
        return f"{prefix}sysctl -w '{sysctl.name}={value}'"

    def noun(self, obj: Sysctl) -> str:
        return f"sysctl {obj.name}={obj.value!r}{in_netns(obj.netns)}"

    def wanted(self, want: State, have: State) -> frozenset[Sysctl]:
        """Return the desired sysctls. If another program has disabled IPv6 in a service, or IPv4
        forwarding on a bridge, the result also has the sysctl that enables it.
        """
        inside = {obj.name for obj in want[Netns]}
        bridges = {obj.name for obj in want[Bridge]}
        known = {obj.key() for obj in want[Sysctl]}
        added = set()
        for obj in have[Sysctl]:
            family, link, name = _parts(obj)
            is_off = {
                ("ipv6", "disable_ipv6", "1"): obj.netns in inside,
                ("ipv4", "forwarding", "0"): not obj.netns and link in bridges,
            }
            if obj.key() not in known and is_off.get((family, name, obj.value)):
                added.add(obj._replace(value="0" if family == "ipv6" else "1"))
        return want[Sysctl] | added

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[Sysctl]:
        """Return the desired sysctls that can be set. Sysctls of IPv6 are left out if the kernel
        has no IPv6, sysctls of bridges if the change deletes the bridge, and sysctls of neighbours
        if this is a user namespace, such as a lab without root.
        """
        made = {bridge.name for bridge in want[Bridge]}
        going = {bridge.name for bridge in before[Bridge]} - made if before is not None else set()
        has_ipv6 = sysctl(FORWARDING6) is not None
        has_neigh = sysctl(_NEIGH) is not None

        def can_be(obj: Sysctl) -> bool:
            family, link, name = _parts(obj)
            if name == "mcast_solicit" and not has_neigh:
                return False
            if (family == "ipv6" and not has_ipv6) or (link in going and not obj.netns):
                return False
            if obj.netns or family != "ipv6" or name not in ON:
                return True
            return link in ("all", "default") or link in made or sysctl(obj.name) is not None

        known = want[Sysctl]
        all_groups = all_mapped_groups() if any(o.value == ALL_GROUPS for o in known) else ""
        return frozenset(
            obj._replace(value=all_groups) if obj.value == ALL_GROUPS else obj
            for obj in known
            if can_be(obj)
        )

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        """Return the steps that set the sysctls whose values differ.

        When the sysctl that enables forwarding on all interfaces is set, the kernel resets the
        forwarding sysctl of each interface. Therefore the sysctls of single interfaces are set
        again afterwards. accept_ra is set before forwarding: otherwise a host that starts to
        forward would delete the default routes that it has from router advertisements.
        """
        made: list[AnyStep] = []
        last: list[AnyStep] = []
        before, _ = by_key(want[Sysctl], have[Sysctl])
        wanted = {obj.key() for obj in want[Sysctl]}
        reset: set[str] = set()  # namespaces in which forwarding of all links is set
        for obj in sorted(want[Sysctl], key=_order):
            actual = before.get(obj.key())
            is_of_six = obj.name.startswith("net/ipv6/conf/") and obj.name.endswith("/forwarding")
            is_reset = is_of_six and obj.netns in reset
            if actual is None:
                # the sysctl of a service's link exists once its veth pair does
                is_late = obj.netns and _link(obj) not in ("", "all", "default")
                (last if is_late else made).append(Step("add", obj))
            elif actual != obj or is_reset:
                made.append(Step("change", obj, actual))
            if obj.name == FORWARDING6 and actual != obj:
                reset.add(obj.netns)
        last += [
            Step("change", obj._replace(value=DEFAULT), obj)
            for obj in sorted(have[Sysctl])
            if obj.key() not in wanted and _is_left(obj, want)
        ]
        return (), made, (), last

    def is_read_back(self, step: Step[Sysctl]) -> bool:
        """Return False for sysctls in services: no other program sets sysctls there."""
        return not step.obj.netns

    def causes(self, obj: Sysctl, actual: Sysctl | None) -> tuple[str, ...]:
        # it was reset by setting the sysctl of all links
        if obj.name.endswith("/default/disable_ipv6"):
            return (f"link /{obj.netns}/all without IPv6",)
        return ()

    def conditions(self, obj: Sysctl, actual: Sysctl) -> Iterable[str]:
        if actual.name.endswith("/disable_ipv6") and actual.value == "1":
            return (f"link /{actual.netns}/{actual.name.split('/')[3]} without IPv6",)
        return ()

    def read(self, space: Space, objects: Collection[Sysctl]) -> Iterable[Sysctl]:
        without = _links_without_ipv6(space) if space.name else []
        if not objects and not without:
            return ()
        with at(space.name):
            present = _present(objects)
            # on the interfaces without their IPv6 addresses, IPv6 may be disabled: on all at once,
            # or on each
            for links in (["all"], without) if without else ():
                names = [f"net/ipv6/conf/{link}/disable_ipv6" for link in links]
                off = _present(Sysctl(space.name, name, "0") for name in names)
                if disabled := {obj for obj in off if obj.value == "1"}:
                    present |= disabled
                    break
            if Sysctl("", FORWARDING, "1") in present and space.reading.with_strays:
                # a bridge has the value of ip_forward until its own sysctl is set
                bridges = (bridge.name for bridge in space.reading.so_far(Bridge))
                own = _present(Sysctl("", f"net/ipv4/conf/{b}/forwarding", "1") for b in bridges)
                present |= {obj for obj in own if obj.value == "0"}
        return present

    def batch(self, step: Step[Sysctl], writer: Writer) -> Hashable:
        """Return the sysctl's namespace, so that `write` enters each namespace only once."""
        return step.obj.netns

    def write(self, writer: Writer, steps: Sequence[Step[Sysctl]]) -> None:
        name = steps[0].obj.netns
        values = {step.obj.name: step.obj.value for step in steps if step.obj not in writer.written}
        if not values:
            return
        missing = {one: _default_name(one) for one, value in values.items() if value == DEFAULT}
        if missing:
            with unnamed():
                found = proc_sys.read_all(missing.values())
            values |= {one: value or DEFAULT for one, value in zip(missing, found, strict=True)}
        try:
            with at(name):
                proc_sys.write_all((one, value) for one, value in values.items() if value)
        except KernelError as error:
            if name and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
                error.hint = "some sysctls apply to the whole machine, and some need a module: "
                error.hint += "/proc/sys/net in a service has those that it can set"
            elif name and error.errno in (errno.EINVAL, errno.ERANGE):
                error.hint = "correct the value in [sysctls] of the service's manifest"
            raise


def all_mapped_groups() -> str:
    """Return the value of ping_group_range for all groups of this user namespace.

    The kernel refuses a group that is not mapped (/proc/self/gid_map), and compares the first and
    the last group by their ids outside the user namespace (ipv4_ping_group_range,
    net/ipv4/sysctl_net_ipv4.c). If group 0 has the highest id outside, the value does not include
    it.
    """
    with open("/proc/self/gid_map", encoding="ascii") as file:
        lines = [tuple(map(int, line.split())) for line in file]
    if any(first == 0 and count > 1 << 31 for first, _, count in lines):
        return ALL_GROUPS
    lines.sort(key=lambda line: line[1])
    if lines[-1][0] == 0 and len(lines) > 1:
        lines.pop()
    last, _, count = lines[-1]
    return f"{lines[0][0]}\t{last + count - 1}"


def _parts(obj: Sysctl) -> tuple[str, str, str]:
    """Split ``net/FAMILY/conf/LINK/NAME`` into (FAMILY, LINK, NAME). ``neigh`` may take the place
    of ``conf``. An absent part is "".
    """
    _, family, _, link, name = (*obj.name.split("/"), "", "", "")[:5]
    return family, link, name


def _link(obj: Sysctl) -> str:
    parts = obj.name.split("/")
    return parts[3] if parts[2:3] in (["conf"], ["neigh"]) else ""


def _is_left(obj: Sysctl, want: State) -> bool:
    """Return whether a sysctl that is no longer desired must be reset to its default. This is so if
    the sysctl is from the manifest's [sysctls], and neither its namespace nor its interface is
    deleted.
    """
    if not obj.netns or "/neigh/" in obj.name or obj.name.rpartition("/")[2] in _LINK_SETTINGS:
        return False
    links = {veth.peer for veth in want[Veth] if veth.netns == obj.netns}
    link_stays = _link(obj) in {"", "all", "default", *links}
    return link_stays and any(other.name == obj.netns for other in want[Netns])


def _default_name(name: str) -> str:
    """Return the sysctl from which a new interface gets the value of the sysctl ``name``."""
    link = _link(Sysctl("", name, ""))
    return name if link in ("", "all") else name.replace(f"/{link}/", "/default/", 1)


def _order(obj: Sysctl) -> tuple[bool, bool, Sysctl]:
    return obj.name.endswith("forwarding"), obj.name != FORWARDING6, obj


def _present(objects: Iterable[Sysctl]) -> set[Sysctl]:
    asked = list(objects)
    values = zip(asked, proc_sys.read_all(obj.name for obj in asked), strict=True)
    return {obj._replace(value=value) for obj, value in values if value is not None}


def _links_without_ipv6(space: Space) -> list[str]:
    asked: dict[str, set[str]] = {}
    for address in space.objects(Address):
        if ":" in address.address:
            asked.setdefault(address.link, set()).add(address.address)
    return [
        name
        for name, addresses in sorted(asked.items())
        if (link := space.link(name)) is not None
        and addresses - {present.address for present in space.addresses(link)}
    ]
