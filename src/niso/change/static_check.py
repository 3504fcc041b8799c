"""Find errors in manifests and stacks that do not depend on the host (`niso validate`).

This module records services as an activation does, but in an in-memory store, for a host without
services, networks or interfaces. Rules that depend on the real host are not checked, such as which
ports are free or whether the package contains the program.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

from niso.base import names
from niso.base.errors import Conflict, Error, ErrorGroup, InvalidInput, flatten, raise_all
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.text import shown
from niso.change import admit, networks, targets
from niso.change.admit import NO_STACK, StackMembership, record_all
from niso.change.scope import Target
from niso.manifest.load import Loaded
from niso.plan import subnets
from niso.plan.records import NetworkRecord, Policy, SubnetRecord
from niso.plan.specs import ServiceSpec
from niso.runtime.machine import Machine
from niso.store.store import Store

if TYPE_CHECKING:
    from typing import Any


_SPACE = 1 << 12
"""Number of addresses reserved for each network whose subnet is unknown."""
_BARE_HOST = {
    "sysctl": "0",
    "default_mtu": 1500,
    "mtu_of": None,
    "why_no_ipv6": None,
    "host_addresses": [],
    "used_prefixes": [],
    "receiving6": [],
    "listeners": [],
    "foreign_nat": {},
    "routed_links": [],
}
"""What the methods of a `niso.kernel.real.Kernel` return on a host without configuration."""


def _constant(value: object) -> Callable[..., object]:
    return lambda *_: value


def refuse(loaded: Iterable[Loaded], stack: StackMembership = NO_STACK) -> None:
    """Raise the errors in these manifests that do not depend on the host.

    ``stack`` is the stack of the services, or None. Nothing of this machine is read or changed.
    Raises Conflict, InvalidInput, or an ErrorGroup of several errors.
    """
    manifests = list(loaded)
    wanted = [Target(one.spec, one.path, files=None) for one in manifests]
    pairs = zip(manifests, wanted, strict=True)
    errors: list[Error] = [error for one in manifests for error in _missing_files(one)]
    errors += [error for pair in pairs for error in _misplaced(*pair)]
    store = Store.empty()
    kernel: Any = SimpleNamespace(**{name: _constant(it) for name, it in _BARE_HOST.items()})
    processes: Any = None
    host = Machine(store, kernel, processes)
    try:
        with store.transaction() as transaction:
            transaction.cancel()
            if stack.stack:
                requests = tuple(one._replace(span=False) for one in stack.networks)
                known = tuple(one for one in requests if len(one.nets) == len(one.families))
                stack = stack._replace(networks=requests)
                admit.prepare(host, stack._replace(networks=known), ())
            every = [*wanted, *_providers(wanted)]
            _make_unknown(host, every, stack)
            # the placeholders of the other networks need not match their requests
            if stack.stack:
                stack = stack._replace(networks=known)
            record_all(host, every, {target.name: "" for target in every}, [], stack)
    except (Conflict, InvalidInput, ErrorGroup) as error:
        errors += flatten(error)
    finally:
        store.close()
    raise_all(errors)


def missing_rootfs(loaded: Loaded) -> str | None:
    """Return the path of a service's rootfs if this folder does not exist, otherwise None."""
    written = loaded.spec.program.rootfs
    path = os.path.join(os.path.dirname(loaded.path), written or "")
    return path if written is not None and not os.path.isdir(path) else None


def _missing_files(loaded: Loaded) -> Iterator[InvalidInput]:
    program, below = loaded.spec.program, f"{os.path.dirname(loaded.path)}/"
    paths = {f"secrets.{name}.file": file for name, file in program.secrets.items()}
    paths |= {
        f"volumes.{volume.name}.host": volume.host
        for volume in program.volumes
        if volume.host is not None
    }
    for key, path in paths.items():
        if path.startswith(below) and not os.path.exists(path):
            hint = "make it, or correct the path; an absolute path is not checked here"
            where, name = loaded.path, loaded.spec.name
            yield InvalidInput(
                "does not exist", hint, key, value=shown(path), file=where, service=name
            )


def _misplaced(loaded: Loaded, target: Target) -> list[InvalidInput]:
    if missing_rootfs(loaded) is not None:
        return []
    rootfs = targets.rootfs(loaded)
    own = rootfs is not None
    placed = [volume for volume in targets.volumes(target.spec) if own or not _is_etc(volume.mount)]
    try:
        # checked like a tmpfs, because only the host knows whether its paths exist
        return targets.misplaced(
            target, rootfs, [volume._replace(source=None) for volume in placed]
        )
    except OSError:  # a folder of the rootfs that only root can read
        return []


def _is_etc(mount: str) -> bool:
    return mount == "/etc" or mount.startswith("/etc/")


def _providers(wanted: Iterable[Target]) -> list[Target]:
    specs = [target.spec for target in wanted]
    known = {name for spec in specs for name in spec.names}
    shares = ((spec.network.share, spec) for spec in specs)
    unknown = {share: spec for share, spec in shares if share is not None and share not in known}
    return [Target(_stand_in(name, spec), "", files=None) for name, spec in unknown.items()]


def _stand_in(name: str, sharer: ServiceSpec) -> ServiceSpec:
    network = sharer.network._replace(
        mode="bridge",
        share=None,
        networks=(f"that of {name}",),
        hostname=name,
        aliases=(),
        ports=(),
        policy=Policy(),
        extra_hosts={},
    )
    return sharer._replace(name=name, network=network)


def _make_unknown(host: Machine, wanted: Iterable[Target], stack: StackMembership) -> None:
    """Record placeholders for networks of services that exist only on the real host.

    A network whose subnet no file declares gets a subnet that contains all addresses, so that all
    static addresses are valid. Raises Conflict if a declared subnet overlaps another network.
    """
    store = host.store
    requests = {one.name: one for one in stack.networks}
    made: list[NetworkRecord] = []
    planned: list[tuple[subnets.Network, str]] = []
    for name in dict.fromkeys(name for target in wanted for name in target.spec.network.networks):
        if store.network(name) is not None:
            continue
        request = requests.get(name)
        known: tuple[SubnetRecord, ...] = ()
        if request is not None and request.nets:
            declared = request._replace(ipv6=False)
            try:
                known = networks.plan_network(host, declared, besides=planned).subnets
            except Error as error:
                raise admit.network_error(stack, name, error) from None
            planned += [(net, f"network {name!r}") for net in request.nets]
        families = {4, 6} if request is None else request.families
        missing = sorted(families - {subnet.family for subnet in known})
        every = sorted((*known, *(_anything(family, len(made)) for family in missing)))
        internal = request is not None and request.internal
        multicast = request is not None and request.multicast
        bridge = names.bridge(name)
        made.append(NetworkRecord(name, bridge, 0, tuple(every), internal, multicast=multicast))
    for network in made:
        store.add_network(network, implicit=True, now=0)


def _anything(family: int, position: int) -> SubnetRecord:
    """Return a placeholder subnet that contains all addresses of an IP version (4 or 6).

    Static addresses can then be checked although the real subnet is unknown. Services without a
    static address get an address from 0.0.0.0/8 or ::/104, which cannot contain static addresses.
    ``position`` selects another part of this range for each network.
    """
    start = ipaddress.ip_address(position * _SPACE)
    text = str(start if family == 4 else ipaddress.IPv6Address(int(start)))
    return SubnetRecord(family, f"{text}/0", text)
