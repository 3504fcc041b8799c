"""Find problems outside niso that affect services: a small MTU, name servers, replaced files."""

from __future__ import annotations

import os
from contextlib import suppress

from niso.base import files, paths
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import ip_address, owner
from niso.plan.records import MIN_MTUS, NetworkRecord
from niso.runtime import sources
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.kernel.real import Kernel

_ANSWER_S = 1.0  # the most that all name servers together may take
_MODES = ("bridge", "share")  # of services that may send a query through niso's networks


def small_mtus(kernel: Kernel, networks: Iterable[NetworkRecord]) -> list[tuple[str, str]]:
    """Return (warning, next step) for each network whose MTU is larger than the uplink's.

    The uplink is the interface of the host's default route. Each IP version of the network is
    checked. Internal networks are left out.
    """
    outer = [network for network in networks if not network.internal]
    families = {subnet.family for network in outer for subnet in network.subnets}
    found = {family: kernel.mtu_outwards(family) for family in sorted(families)}
    result = []
    for network in outer:
        mtus = [own for subnet in network.subnets if (own := found[subnet.family]) is not None]
        least = min(mtus, default=(network.mtu, ""))
        if least[0] < network.mtu:
            what = f"network {network.name} has an MTU of {network.mtu} bytes, and the default"
            text = f"{what} route, from {least[1]}, has {least[0]}: large packets may be lost"
            lowest = MIN_MTUS[6 if 6 in {subnet.family for subnet in network.subnets} else 4]
            new = f"use a network made with --mtu {least[0]}"
            result.append((text, new if least[0] >= lowest else "raise the MTU of the link"))
    return result


def mute_name_servers(
    kernel: Kernel, store: Store, services: Iterable[str], once: bool = False
) -> list[tuple[str, str]]:
    """Return (warning, next step) for services if none of their name servers answers.

    The host sends each name server one query. All queries together take at most a second. With
    ``once``, name servers that were already queried with ``once`` since the last boot are left out.
    """
    asked = _asked() if once else set[str]()
    found = {
        servers: some
        for servers, some in _name_servers(store, services).items()
        if not set(servers) <= asked
    }
    result = []
    for servers in kernel.mute_name_servers(found, _ANSWER_S):
        some = found[servers]
        shown = ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")
        text = f"no name server of {shown} answers the host ({', '.join(servers)})"
        hint = "correct /etc/resolv.conf or network.dns; a service reads it at its next start"
        result.append((f"{text}: names of other machines do not resolve", hint))
    new = {server for servers in found for server in servers}
    if once and new:
        with suppress(OSError):  # they are then asked once more
            files.replace(_path(), "\n".join(sorted(asked | new)).encode(), 0o600)
    return result


def replaced_files(store: Store, services: Iterable[str]) -> list[tuple[str, str]]:
    """Return (warning, next step) for each replaced file that a running service mounts.

    A file counts as replaced if another file is now at the path of a volume on the host, or if
    symbolic links of the path lead elsewhere. A warning about an instance names its service.
    """
    result: dict[tuple[str, str], None] = {}
    for service in services:
        row = store.service(service)
        process = row.process if row is not None and row.active and row.has_process else None
        if row is None or process is None or not any(map(sources.is_shared, process.volumes)):
            continue
        program = row.require_service().process
        written = {one.name: one.host for one in program.volumes} if program is not None else {}
        replaced = {volume.name for volume in sources.replaced_files(process)}
        for volume in filter(sources.is_shared, process.volumes):
            key, host = f"{owner(service)}: volumes.{volume.name}.host", written.get(volume.name)
            real = os.path.realpath(host) if host else volume.source
            if real != volume.source and os.path.exists(str(real)):
                text = f"{key}: {host} leads to {real} now; the service still has {volume.source}"
                result[text, f"{row.activation_command}, if it may be used"] = None
            elif volume.name in replaced:
                text = f"{key}: {volume.source} was replaced by another file"
                hint = "the next start shows the new file; a mounted folder shows replaced files"
                result[f"{text}; the service still sees the former one", f"{hint} at once"] = None
    return list(result)


def _path() -> str:
    return os.path.join(paths.run_dir(), "name-servers-asked")


def _asked() -> set[str]:
    return set((files.read(_path()) or b"").decode("ascii", "replace").split())


def _name_servers(store: Store, services: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Return {name servers: active services that use this list of name servers}. Services that can
    reach no other machine are left out. Lists with a loopback address are left out too, because a
    service's own loopback answers on such an address.
    """
    internal = {network.name for network in store.networks() if network.internal}
    result: dict[tuple[str, ...], dict[str, None]] = {}
    for service in services:
        row = store.service(service)
        if row is None or not row.active or row.mode not in _MODES or row.process is None:
            continue
        if all(network in internal for network, _ in store.addresses(store.home(service))):
            continue
        lines = [line.split() for line in row.process.resolv_conf.splitlines()]
        servers = [line[1] for line in lines if len(line) > 1 and line[0] == "nameserver"]
        with suppress(ValueError):  # not an address
            if servers and not any(ip_address(one).is_loopback for one in servers):
                result.setdefault(tuple(servers), {})[owner(service)] = None
    return {servers: list(names) for servers, names in result.items()}
