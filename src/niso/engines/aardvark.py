"""Resolve names of Podman's containers for each other, with aardvark-dns if it is installed.

aardvark-dns is the name server of Podman's own networks. It reads one file for each network: the
network's addresses, then a line ``ID IPV4S IPV6S NAMES`` for each container. It reads them again at
SIGHUP, and exits when there is none (github.com/containers/aardvark-dns). niso runs its own
instance, because netavark's does not know the networks of plugins.

It forwards other names to the host's name servers, except for addresses that only files of internal
networks have, whichever address of the host they ask. The names of such files end in ``%int``.
"""

from __future__ import annotations

import fcntl
import os
import signal

from niso.base import paths
from niso.base.addresses import family_of
from niso.base.prefixes import prefix
from niso.plan.records import Network
from niso.services.machine import Machine
from niso.store.store import Store

PROGRAMS = tuple(
    f"{folder}/podman/aardvark-dns"
    for folder in ("/usr/local/libexec", "/usr/local/lib", "/usr/libexec", "/usr/lib")
)
DOMAIN = "dns.podman"
_PID_FILE = "aardvark.pid"
_INTERNAL = "%int"
_SILENCED = 1022
"""Of an internal network: its first so many addresses, and all leased ones, are not forwarded for.

Services of niso's own are on it too, and aardvark-dns forwards for an address that no file has.
"""
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")


def servers(network: Network) -> list[str]:
    """Return the name server's addresses for a network; none if it is not installed."""
    return [subnet.gateway for subnet in network.subnets] if _program() else []


def update(machine: Machine, network: str, owner: str) -> None:
    """Write the names of the owner's attachments on a network, and make the server reload them.

    Raises OSError.
    """
    program = _program()
    if program is None:
        return
    folder = os.path.join(paths.run_dir(), "dns")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # under the lock, the last writer has also read the store last
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = _text(machine.store, network, owner)
        known = machine.store.network(network)
        ends = (_INTERNAL, "") if known is not None and known.internal else ("", _INTERNAL)
        path, other = (os.path.join(folder, f"{network}{end}") for end in ends)
        if os.path.exists(other):
            os.unlink(other)
        if text:
            draft = os.path.join(folder, ".new")
            with open(draft, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(draft, path)
        elif os.path.exists(path):
            os.unlink(path)
        _notify(program, folder, bool(text))
    finally:
        os.close(lock)


def _program() -> str | None:
    return next((path for path in PROGRAMS if os.access(path, os.X_OK)), None)


def _text(store: Store, network: str, owner: str) -> str:
    """Return the content of a network's file; "" if no container is on it."""
    known = store.network(network)
    lines = []
    for attached in store.attachments.all(owner):
        own = [address for on, address in store.addresses(attached.service) if on == network]
        names = {attached.given.lower(), *store.names(attached.service)}
        shown = ",".join(sorted(name for name in names if name and _NAME.issuperset(name)))
        if own and shown:
            families = (",".join(a for a in own if family_of(a) == n) for n in (4, 6))
            lines.append(f"{attached.service} {' '.join(families)} {shown}\n")
    if known is None or not lines:
        return ""
    if known.internal:
        families = (",".join(_silenced(store, known, family)) for family in (4, 6))
        lines.append(f"- {' '.join(families)} -\n")
    return "".join([",".join(subnet.gateway for subnet in known.subnets) + "\n", *lines])


def _silenced(store: Store, network: Network, family: int) -> list[str]:
    """Return the addresses of an internal network that are not forwarded for."""
    addresses = {address for address, _, _ in store.leases(network.name, family)}
    for subnet in network.subnets:
        if subnet.family == family:
            whole = prefix(subnet.cidr)
            count = min(_SILENCED, whole.num_addresses)
            addresses |= {whole.at(number) for number in range(count)} - {subnet.gateway}
    return sorted(addresses)


def _notify(program: str, folder: str, needed: bool) -> None:
    """Make the running server reload its files; start one if none runs and there are names."""
    try:
        with open(os.path.join(folder, _PID_FILE), encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            if file.read().strip() == "aardvark-dns":
                os.kill(pid, signal.SIGHUP)
                return
    except (OSError, ValueError):
        pass  # no server is running
    if not needed:
        return
    # in a scope of its own: the caller may be in the cgroup of a unit that ends
    scope = ("/usr/bin/systemd-run", "-q", "--scope")
    by_systemd = os.path.isdir("/run/systemd/system") and os.access(scope[0], os.X_OK)
    argv = [*(scope if by_systemd else ()), program, "--config", folder, "-p", "53", "run"]
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    # it daemonises: its parent exits when it listens
    os.waitpid(os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=null), 0)
