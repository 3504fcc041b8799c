"""Create and read WireGuard links with wg(8), served by the kernel or by wireguard-go."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import threading
import time

from niso.base import files, paths
from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import netlink, sysctl
from niso.kernel.kinds.wireguard import KERNEL, USERSPACE, FarEnd, WireGuard
from niso.kernel.netlink import Message, text, u32
from niso.kernel.rtnetlink import NEWLINK, Rtnl, ifinfo, no_link_local
from niso.kernel.rtnl_records import IFLA_IFNAME, IFLA_MTU, alias_data, of_kind

if TYPE_CHECKING:
    from collections.abc import Mapping

_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_SOCKETS = "/var/run/wireguard"
"""The folder where wireguard-go listens for wg(8); it exits when its socket is deleted."""
_SYSTEMD = "/run/systemd/system"
_UNIT = "niso-wireguard"
_ALIVE_S = 180
"""A session without a new handshake ends after this many seconds (WireGuard, 6.1)."""
_HELLO_S = 60
_TIMEOUT_S, _PAUSE_S = 10.0, 0.02


class Shown(NamedTuple):
    """What wg(8) shows of a link; empty if wg(8) cannot query the link."""

    public: str = ""
    port: int = 0
    others: tuple[FarEnd, ...] = ()


def lacks(form: str) -> str | None:
    """Return why this host cannot have a WireGuard link of a form; None if it can."""
    if shutil.which("wg") is None:
        return "wg is missing: apt-get install wireguard-tools"
    if form == USERSPACE:
        if shutil.which("wireguard-go") is None:
            return "wireguard-go is missing: apt-get install wireguard-go"
        return None if os.path.exists(_TUN) else f"{_TUN} is missing"
    errors: list[KernelError] = []
    thread = threading.Thread(target=_probe, args=(errors,))
    thread.start()
    thread.join()
    return f"the kernel has no WireGuard ({errors[0].message})" if errors else None


def _probe(errors: list[KernelError]) -> None:
    """Create a link in a network namespace that ends with this thread; add the error to a list."""
    what = "create a WireGuard link"
    body = ifinfo() + text(IFLA_IFNAME, "probe")
    body += of_kind(KERNEL)
    try:
        os.unshare(os.CLONE_NEWNET)
        with Rtnl() as rtnl:
            rtnl.transact(Message(what, NEWLINK, netlink.CREATE | netlink.EXCL, body))
    except KernelError as error:
        errors.append(error)
    except OSError as error:
        errors.append(netlink.refused(what, error.errno or 0))


def public_key(private: str) -> str:
    """Derive the public key of a private key. Raises KernelError."""
    return _run(["wg", "pubkey"], private).strip()


def new_key() -> str:
    """Generate a private key. Raises KernelError."""
    return _run(["wg", "genkey"]).strip()


def answers(name: str, form: str) -> bool:
    """Return whether a link exists and is served, by the kernel or by wireguard-go."""
    try:
        socket.if_nametoindex(name)
        if form == USERSPACE:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(os.path.join(_SOCKETS, f"{name}.sock"))
    except OSError:
        return False
    return True


def shown(name: str, known: Mapping[str, FarEnd]) -> Shown:
    """Return the settings of a link. ``known`` are the other hosts as desired, by public key.

    A live host may send from another of its addresses, to which WireGuard then replies. Its
    endpoint is therefore not reported as a difference.
    """
    try:
        lines = _run(["wg", "show", name, "dump"]).splitlines()
        _, public, port, _ = lines[0].split("\t")
        others = []
        for line in lines[1:]:
            key, _, endpoint, inside, handshake, *_ = line.split("\t")
            if key in known and time.time() - int(handshake) < _ALIVE_S:
                endpoint = known[key].endpoint
            others.append(FarEnd(key, endpoint, inside.removesuffix("/128")))
    except (KernelError, ValueError, IndexError):
        return Shown()
    return Shown(public.replace("(none)", ""), int(port), tuple(sorted(others)))


def make(rtnl: Rtnl, link: WireGuard) -> None:
    """Create a link, or change an existing one, as desired. Raises KernelError."""
    fresh = rtnl.link(link.name) is None
    if fresh:
        _create(rtnl, link)
    if link.form == USERSPACE and not answers(link.name, link.form):
        fresh = True
        _serve(link.name)
    _configure(link)
    # the process that serves it has set its own MTU
    rtnl.set_link(link.name, mtu=link.mtu, alias=link.alias)
    if sysctl.read(f"net/ipv6/conf/{link.name}/disable_ipv6") == "1":
        sysctl.write(f"net/ipv6/conf/{link.name}/disable_ipv6", "0")
    index = rtnl.index(link.name)
    for assigned in rtnl.addresses(index):
        if assigned.address != link.address:
            rtnl.delete_address(index, assigned.address)
    rtnl.add_address(index, link.address)
    rtnl.set_link(link.name, up=True)
    rtnl.add_connected_route(index, link.address)
    if fresh:  # other hosts may have sessions with the previous link, for up to 15 s (6.5)
        for seconds in (_HELLO_S, 0):  # the first keepalive is sent at once
            _configure(link, seconds)


def remove(rtnl: Rtnl, name: str) -> None:
    """Delete a link and stop the process that serves it; no-op if it is missing.

    Raises KernelError.
    """
    path = os.path.join(_SOCKETS, f"{name}.sock")
    if os.path.lexists(path):
        files.remove(path)
    rtnl.delete_link(name)


def _create(rtnl: Rtnl, link: WireGuard) -> None:
    """Create a link, down, with niso's mark. Raises KernelError."""
    what = f"create WireGuard link '{link.name}'"
    if link.form == KERNEL:
        index = rtnl.free_index()
        rtnl.create(
            index,
            what,
            text(IFLA_IFNAME, link.name) + u32(IFLA_MTU, link.mtu) + of_kind(link.form),
            alias_data(link.alias),
        )
        return
    try:
        with open(_TUN, "r+b", buffering=0) as device:
            flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", link.name.encode(), flags))
            rtnl.set_link(link.name, alias=link.alias)
            rtnl.transact(no_link_local(what, rtnl.index(link.name)))
            # only now is the device persistent: without its mark it disappears with this process
            fcntl.ioctl(device, _TUNSETPERSIST, 1)
    except OSError as error:
        raise netlink.refused(what, error.errno or errno.EIO) from error


def _serve(name: str) -> None:
    """Start wireguard-go for a device. It keeps running after this process. Raises KernelError."""
    words = ["wireguard-go", name]
    if os.path.isdir(_SYSTEMD):  # not in the cgroup of the agent or of a login session
        subprocess.run(["systemctl", "reset-failed", _UNIT], capture_output=True, check=False)
        options = ("--quiet", "--collect", f"--unit={_UNIT}", "--service-type=forking")
        words = ["systemd-run", *options, shutil.which(words[0]) or words[0], name]
    _run(words)
    until = time.monotonic() + _TIMEOUT_S
    while not answers(name, USERSPACE):
        if time.monotonic() >= until:
            raise KernelError(
                f"wireguard-go does not serve '{name}'", f"LOG_LEVEL=debug wireguard-go -f {name}"
            )
        time.sleep(_PAUSE_S)


def _configure(link: WireGuard, keepalive_s: int = 0) -> None:
    """Set keys, port and peers of a link. Raises KernelError."""
    _run(["wg", "syncconf", link.name, "/dev/stdin"], _configuration(link, keepalive_s))


def _configuration(link: WireGuard, keepalive_s: int) -> str:
    """Return the configuration text for wg(8).

    Raises KernelError if the private key cannot be read.
    """
    path = paths.wireguard_key()
    try:
        with open(path, encoding="ascii") as file:
            private = file.read().strip()
    except OSError as error:
        raise KernelError(f"{path} cannot be read: {error.strerror}") from None
    lines = ["[Interface]", f"PrivateKey = {private}", f"ListenPort = {link.port}"]
    for far in link.others:
        lines += ["[Peer]", f"PublicKey = {far.public}", f"Endpoint = {far.endpoint}"]
        lines += [f"AllowedIPs = {far.address}/128", f"PersistentKeepalive = {keepalive_s}"]
    return "\n".join((*lines, ""))


def _run(words: list[str], text: str = "") -> str:
    """Run a program with ``text`` as its input; return its output. Raises KernelError."""
    try:
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            start_new_session=True,
        )
    except FileNotFoundError:
        package = "wireguard-tools" if words[0] == "wg" else words[0]
        raise KernelError(f"{words[0]} is missing", f"apt-get install {package}") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{' '.join(words[:2])} does not end") from None
    if done.returncode:
        said = (done.stderr.strip() or str(done.returncode)).splitlines()[-1]
        raise KernelError(f"{' '.join(words[:2])}: {said}")
    return done.stdout
