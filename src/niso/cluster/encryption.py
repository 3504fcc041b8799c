"""Create the WireGuard keys of a host, and derive the tunnel that encrypts VXLAN between hosts.

Each host has a key pair. The private key is in a file of the cluster folder, and the public key in
etcd. Only hosts of encrypted clusters load this module.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable

from niso.base import files, paths
from niso.base.errors import Error
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import alias, bracketed
from niso.kernel.kinds import tunnels
from niso.kernel.kinds.kind import State, diff
from niso.kernel.kinds.tunnels import WireGuard
from niso.kernel.ruleset import TUNNEL
from niso.plan.records import Tunnel
from niso.reconcile.change import change, desired_now
from niso.store.snapshots import Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.cluster.key_values import HostEntry
    from niso.kernel.real import Kernel

KERNEL, BY_PROCESS = "kernel", "userspace"
"""How a host may encrypt: with the kernel's WireGuard, or without it with wireguard-go."""
FORMS = {KERNEL: tunnels.KERNEL, BY_PROCESS: tunnels.USERSPACE}
HEADERS = {4: 60, 6: 80}
"""The bytes that WireGuard adds to a packet, by the IP version of the hosts' addresses."""
LEAST_MTU = 1280
"""The minimum MTU of a network interface with IPv6 (RFC 8200, 5)."""
_LENGTH = 64


def chosen(kernel: Kernel, asked: str) -> str:
    """Return "kernel" if this host's kernel has WireGuard, or else "userspace" (wireguard-go).

    Raises Error if this host cannot encrypt, or only with wireguard-go and ``asked`` is not
    "userspace".
    """
    why = kernel.why_no_ipv6()  # addresses inside the tunnel are IPv6
    if why is not None:
        raise Error(f"this host cannot encrypt: {why}")
    why = kernel.why_no_wireguard(tunnels.KERNEL)
    if why is None:
        return KERNEL
    if asked == BY_PROCESS:
        why = kernel.why_no_wireguard(tunnels.USERSPACE)
        if why is None:
            return BY_PROCESS
    hint = "--encrypt=userspace has the process wireguard-go do it, at a tenth of the speed"
    raise Error(f"this host cannot encrypt: {why}", None if asked == BY_PROCESS else hint)


def address(cluster: str, host: str) -> str:
    """Derive a host's IPv6 address inside the tunnel (RFC 4193) from a hash of cluster and host."""
    prefix = b"\xfd" + hashlib.sha256(cluster.encode()).digest()[:5] + bytes(2)
    own = hashlib.sha256(f"{cluster}/{host}".encode()).digest()[:8]
    return str(ipaddress.IPv6Address(prefix + own))


def mtu(between: str, link: int) -> int:
    """Return a tunnel's MTU over an interface with address ``between`` and MTU ``link``."""
    return link - HEADERS[6 if ":" in between else 4]


def require_mtu(between: str, link: int) -> None:
    """Raise Error if ``link``, the MTU of the interface, is too small for a tunnel over it."""
    least = LEAST_MTU + link - mtu(between, link)
    if link < least:
        raise Error(
            f"the link of {between} has an MTU of {link}, and encryption needs {least}",
            "raise the MTU of that link",
        )


def prepare(kernel: Kernel) -> str:
    """Return this host's public key. Creates the key pair if missing. Raises KernelError."""
    path = paths.wireguard_key()
    held = files.read(path)
    private, public = kernel.wireguard_keys(held.decode("ascii", "replace").strip() if held else "")
    if not held:
        files.replace(path, f"{private}\n".encode(), 0o600)
    return public


def tunnel(
    cluster: str, port: int, how: str, own: HostEntry, hosts: Iterable[HostEntry] = ()
) -> Tunnel:
    """Build the WireGuard tunnel from ``own`` to ``hosts``. Its UDP port is ``port`` + 1."""
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


def follow(store: Store, kernel: Kernel, hosts: Iterable[HostEntry], own: str) -> None:
    """Make WireGuard's peers match the cluster's hosts. The caller must not have niso's lock."""
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
    _record(store, kernel, wanted)


def _record(store: Store, kernel: Kernel, wanted: Tunnel) -> bool:
    """Record a tunnel and create it in the kernel. Return False if this host has left."""
    with Lock():
        if store.across.tunnel() is None:
            return False
        with change(kernel, store, Scope((), ())):
            store.across.set_tunnel(wanted)
    return True


def renew(store: Store, kernel: Kernel) -> str:
    """Replace this host's key pair. Return the new public key, which the caller must publish. The
    caller must not have niso's lock.
    """
    private, _ = kernel.wireguard_keys("")
    files.replace(paths.wireguard_key(), f"{private}\n".encode(), 0o600)
    return _adopt(store, kernel)


def _adopt(store: Store, kernel: Kernel) -> str:
    """Make the store and WireGuard use the private key in the key's file. Returns the public key,
    or "" if this host has left the cluster.
    """
    present, private = store.across.tunnel(), files.read(paths.wireguard_key())
    if present is None:  # a command left the cluster in the meantime
        return ""
    if not private:
        return present.public
    public = kernel.wireguard_keys(private.decode("ascii", "replace").strip())[1]
    wanted = present._replace(public=public)
    return public if wanted == present or _record(store, kernel, wanted) else ""


def mend(store: Store, kernel: Kernel) -> None:
    """Make the WireGuard interface match its record in the store.

    This is called periodically, because the kernel sends no event for some changes of the
    interface. The caller must not have niso's lock.
    """
    if store.across.tunnel() is None:
        return
    _adopt(store, kernel)

    with Lock(), kernel:
        want = State(desired_now(kernel, store, Scope((), ()))[WireGuard])
        if not want:
            return
        have = kernel.read(want, alias(store.state_id()), with_strays=True)
        kernel.write(diff(want, State(have[WireGuard])))


def serves(store: Store, kernel: Kernel) -> bool:
    """Return whether the WireGuard interface works. Returns True if this host needs none."""
    present = store.across.tunnel()
    spans = any(network.span is not None for network in store.networks())
    return present is None or not spans or kernel.wireguard_answers(TUNNEL, present.form)
