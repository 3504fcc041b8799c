"""Encrypt what services of different hosts send to each other: VXLAN through WireGuard.

Each host has a key pair: the private key is in its cluster folder, the public one in its key of the
cluster. Only encrypted clusters load this module.
"""

from __future__ import annotations

import hashlib
import ipaddress

from niso.base import files, paths
from niso.base.addresses import bracketed
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.locks import Lock
from niso.kernel.kinds import wireguard as kinds
from niso.kernel.nft_wire import TUNNEL
from niso.plan.records import Tunnel
from niso.reconcile.converge import converge, desired_now
from niso.store.store import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.cluster.host_values import Host
    from niso.kernel.interface import Kernel
    from niso.store.store import Store

KERNEL, BY_PROCESS = "kernel", "userspace"
"""How a host encrypts, or may: with WireGuard of the kernel alone, or else with wireguard-go."""
FORMS = {KERNEL: kinds.KERNEL, BY_PROCESS: kinds.USERSPACE}
HEADERS = {4: 60, 6: 80}
"""Bytes that WireGuard adds to a packet, by the family of the addresses between the hosts."""
LEAST_MTU = 1280
"""Of a link with IPv6 (RFC 8200, 5)."""
_LENGTH = 64


def chosen(kernel: Kernel, asked: str) -> str:
    """Return how this host is to encrypt: the kernel does it where it can.

    Raises Error with the reason if it cannot be done as asked.
    """
    why = kernel.lacks_ipv6()  # of the addresses inside
    if why is not None:
        raise Error(f"this host cannot encrypt: {why}")
    why = kernel.lacks_wireguard(kinds.KERNEL)
    if why is None:
        return KERNEL
    if asked == BY_PROCESS:
        why = kernel.lacks_wireguard(kinds.USERSPACE)
        if why is None:
            return BY_PROCESS
    hint = (
        ""
        if asked == BY_PROCESS
        else ("--encrypt=userspace has the process wireguard-go do it, at a tenth of the speed")
    )
    raise Error(f"this host cannot encrypt: {why}", hint or None)


def address(cluster: str, host: str) -> str:
    """Return the address of a host inside the tunnel, of the cluster's own prefix (RFC 4193).

    It follows from the host's name, so that no host can take another one's.
    """
    prefix = b"\xfd" + hashlib.sha256(cluster.encode()).digest()[:5] + bytes(2)
    own = hashlib.sha256(f"{cluster}/{host}".encode()).digest()[:8]
    return str(ipaddress.IPv6Address(prefix + own))


def mtu(between: str, link: int) -> int:
    """Return the MTU of the tunnel between hosts with such addresses, over links of an MTU."""
    return link - HEADERS[6 if ":" in between else 4]


def require_mtu(between: str, link: int) -> None:
    """Raise Error if the MTU of the link with the address ``between`` is too small."""
    least = LEAST_MTU + link - mtu(between, link)
    if link < least:
        raise Error(
            f"the link of {between} has an MTU of {link}, and encryption needs {least}",
            "raise the MTU of that link",
        )


def prepare(kernel: Kernel) -> str:
    """Make this host's key pair and return the public key; the one that it has if there is one.

    Raises KernelError, OSError.
    """
    path = paths.wireguard_key()
    held = files.read(path)
    private, public = kernel.wireguard_keys(held.decode("ascii", "replace").strip() if held else "")
    if not held:
        files.replace(path, f"{private}\n".encode(), 0o600)
    return public


def tunnel(cluster: str, port: int, how: str, own: Host, hosts: Iterable[Host] = ()) -> Tunnel:
    """Return the link of a host of a cluster whose VXLAN has a UDP port; WireGuard has the next."""
    others = {
        host.public: (
            host.public,
            f"{bracketed(host.address)}:{port + 1}",
            address(cluster, host.name),
        )
        for host in hosts
        if host.name != own.name and host.public not in ("", own.public)
    }
    inside = f"{address(cluster, own.name)}/{_LENGTH}"
    return Tunnel(
        FORMS[how],
        inside,
        port + 1,
        mtu(own.address, own.mtu),
        own.public,
        tuple(sorted(others.values())),
    )


def follow(store: Store, kernel: Kernel, hosts: Iterable[Host], own: str) -> None:
    """Have the link know the hosts that the cluster has; no-op without encryption.

    The caller does not hold niso's lock. Raises KernelError: nothing is recorded then.
    """
    hosts = list(hosts)
    present = store.across.tunnel()
    me = next((host for host in hosts if host.name == own), None)
    if present is None or me is None:
        return
    how = next(how for how, form in FORMS.items() if form == present.form)
    wanted = tunnel(store.cluster_id(), present.port - 1, how, me, hosts)
    wanted = wanted._replace(public=present.public)
    if wanted == present:
        return
    scope = Scope((), ())
    with Lock(), store.transaction():
        if store.across.tunnel() is None:  # a command left the cluster during the look
            return
        before = desired_now(kernel, store, scope)
        store.across.set_tunnel(wanted)
        converge(kernel, store, scope, before)


def renew(store: Store, kernel: Kernel) -> str:
    """Give this host a new key pair and return the public key, which the cluster is to be told.

    The caller does not hold niso's lock. Raises KernelError, OSError.
    """
    private, _ = kernel.wireguard_keys("")
    files.replace(paths.wireguard_key(), f"{private}\n".encode(), 0o600)
    return _adopt(store, kernel)


def _adopt(store: Store, kernel: Kernel) -> str:
    """Have the record and the link follow from the private key; return the public one.

    A command that renewed it may have been killed before.
    """
    present, private = store.across.tunnel(), files.read(paths.wireguard_key())
    if present is None:  # a command left the cluster during the look
        return ""
    if not private:
        return present.public
    public = kernel.wireguard_keys(private.decode("ascii", "replace").strip())[1]
    if public != present.public:
        scope = Scope((), ())
        with Lock(), store.transaction():
            if store.across.tunnel() is None:
                return ""
            before = desired_now(kernel, store, scope)
            store.across.set_tunnel(present._replace(public=public))
            converge(kernel, store, scope, before)
    return public


def mend(store: Store, kernel: Kernel) -> None:
    """Have the link be as on record, whatever it is: nothing else may tell that it has changed.

    The caller does not hold niso's lock. Raises KernelError and Conflict.
    """
    if store.across.tunnel() is None:
        return
    _adopt(store, kernel)
    from niso.base.names import alias
    from niso.kernel.diff import diff
    from niso.kernel.kinds.wireguard import WireGuard
    from niso.kernel.state import State

    with Lock(), kernel:
        want = State(desired_now(kernel, store, Scope((), ()))[WireGuard])
        if not want:
            return
        have = kernel.read(want, alias(store.state_id()), strays=True)
        kernel.write(diff(want, State(have[WireGuard])))


def serves(store: Store, kernel: Kernel) -> bool:
    """Return whether the link is there and something serves it, if this host needs one."""
    present = store.across.tunnel()
    spans = any(network.span is not None for network in store.networks())
    return present is None or not spans or kernel.wireguard_answers(TUNNEL, present.form)
