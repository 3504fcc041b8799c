"""Define the kinds for VXLAN devices and for the WireGuard interface of a cluster's hosts.

Each network that spans hosts has a VXLAN device on each of these hosts. The device is a port of the
network's bridge (linux/if_link.h, RFC 7348).

In an encrypted cluster, each host has one WireGuard interface, which is implemented by the kernel
or by wireguard-go, and configured with wg(8). VXLAN packets are sent through this interface,
between addresses that only WireGuard interfaces have. WireGuard accepts a packet of another host
only if the packet's source is the address of that host (cryptokey routing).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Collection, Iterable, Sequence

from niso.base import files, paths
from niso.base.errors import Conflict, KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import TUNNEL_GROUP, family_of
from niso.base.native import socket
from niso.kernel import link_records, netlink, proc_sys
from niso.kernel.kinds.kind import Kind, Reading, Space, State, Step
from niso.kernel.link_records import (
    IFLA_GRO_IPV4_MAX_SIZE,
    IFLA_GRO_MAX_SIZE,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_MTU,
    alias_data,
    of_kind,
)
from niso.kernel.netlink import Message, attribute, attributes, text, u32
from niso.kernel.nft_elements import Element
from niso.kernel.rtnetlink import NEWLINK, Rtnl, ifinfo, join, no_link_local, raise_up
from niso.kernel.ruleset import BRIDGE, INET, TUNNEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from niso.kernel.real import Writer


_ID, _GROUP, _LINK, _LOCAL, _TTL, _LEARNING = 1, 2, 3, 4, 5, 7  # IFLA_VXLAN_*
_PORT, _GROUP6, _LOCAL6 = 15, 16, 17
_OFF = {_LEARNING: "learning", 11: "proxy", 12: "rsc", 13: "l2miss", 14: "l3miss"}
_OFF |= {25: "external", 30: "vnifilter"}
_TTL_HOPS = 64


def parse(data: bytes) -> tuple[int, str, int, str]:
    """Parse the IFLA_INFO_DATA of a VXLAN device into (VNI, this host's address, UDP port, drift).
    The drift names the settings that differ from the values set by `add`.
    """
    have = attributes(data)
    local = ""
    if _LOCAL in have:
        local = socket.inet_ntop(socket.AF_INET, have[_LOCAL])
    elif _LOCAL6 in have:
        local = socket.inet_ntop(socket.AF_INET6, have[_LOCAL6])
    parts = [name for kind, name in _OFF.items() if any(have.get(kind, b""))]
    if any(have.get(_GROUP, b"")) or any(have.get(_GROUP6, b"")):
        parts.append("remote")  # the remote to which the device would send MACs without an entry
    if any(have.get(_LINK, b"")):
        parts.append("dev")
    if have.get(_TTL, bytes([_TTL_HOPS])) != bytes([_TTL_HOPS]):
        parts.append(f"ttl {have[_TTL][0]}")
    vni = struct.unpack("=I", have[_ID])[0] if _ID in have else 0
    port = struct.unpack("!H", have[_PORT])[0] if _PORT in have else 0
    return vni, local, port, ", ".join(parts)


def add(rtnl: Rtnl, vxlan: Vxlan) -> None:
    """Create a VXLAN device as a port of its bridge, and set it up. The device does not learn MACs,
    does not flood, and does not join packets (`_ONE_BY_ONE`). Raises KernelError, and Conflict if
    another device has the VNI or port.
    """
    name = vxlan.name
    master = rtnl.index(vxlan.bridge)
    index = rtnl.free_index()
    what = f"create VXLAN device '{name}'"
    is_six = family_of(vxlan.local) == 6
    local = socket.inet_pton(socket.AF_INET6 if is_six else socket.AF_INET, vxlan.local)
    settings = (
        u32(_ID, vxlan.vni),
        attribute(_LOCAL6 if is_six else _LOCAL, local),
        attribute(_TTL, bytes([_TTL_HOPS])),
        attribute(_LEARNING, b"\0"),
        attribute(_PORT, struct.pack("!H", vxlan.port)),
    )
    try:
        rtnl.create(
            index,
            what,
            text(IFLA_IFNAME, name)
            # in the creation: the default without an underlying link is 1500 bytes
            + u32(IFLA_MTU, vxlan.mtu)
            + u32(IFLA_GROUP, TUNNEL_GROUP)
            + of_kind("vxlan", *settings),
            alias_data(vxlan.alias),
            join(name, index, vxlan.bridge, master),
            *_port_settings(name, index, what),
        )
    except KernelError as error:
        if error.errno == errno.EEXIST and rtnl.link(name) is None:
            reason = f"another VXLAN device has VNI {vxlan.vni} and UDP port {vxlan.port}"
            raise Conflict(reason, "ip -d link show type vxlan") from error
        if error.errno == errno.EADDRINUSE:
            reason = f"UDP port {vxlan.port} is in use: VXLAN device {name!r} needs it"
            hint = f"ss -ulnp 'sport = :{vxlan.port}' and ip -d link show type vxlan show by what"
            raise Conflict(reason, hint) from error
        raise


_ONE_BY_ONE = u32(IFLA_GRO_MAX_SIZE, 1) + u32(IFLA_GRO_IPV4_MAX_SIZE, 1)
"""The setting with which the device never joins frames of one inner flow (GRO).

Otherwise the kernel would join frames of different hosts before the bridge table sees them, and the
bridge table would check only the host of the first frame.
"""


def _port_settings(name: str, index: int, what: str) -> list[Message]:
    settings = link_records.usual(", ".join(link_records.TUNNEL_PORT), tunnel=True)
    settings.append(_ONE_BY_ONE)
    messages = [Message(what, NEWLINK, 0, ifinfo(index) + setting) for setting in settings]
    return [*messages, raise_up(name, index)]


class Vxlan(NamedTuple):
    """The VXLAN device of a network that spans hosts. The device does not learn MACs and does not
    flood: static entries determine to which host frames are sent (kinds/addresses.py). ``device``
    names settings of the device that differ from niso's. ``drift`` names settings of the bridge
    port that differ (kernel/link_records.py).
    """

    name: str
    vni: int
    local: str  # this host's underlay address, of either family
    port: int  # the UDP port, the same on all hosts
    mtu: int  # bytes
    bridge: str
    alias: str
    device: str = ""
    up: bool = True
    drift: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def fixed(self) -> tuple[object, ...]:
        """Return the fields that cannot be changed while the device exists."""
        return (self.vni, self.local, self.port, self.device)


class _Vxlans(Kind[Vxlan], of=Vxlan):
    noun_format = "VXLAN device {0.name}"
    field_texts = tuple((field, "non-default settings: {}") for field in ("drift", "device"))
    parent_name_format = "link //{0.name}"

    def dependencies(self, obj: Vxlan) -> tuple[str, ...]:
        # a foreign link may have its name
        return (f"link //{obj.bridge}", f"link //{obj.name}")

    def guards(self, obj: Vxlan) -> Iterable[Element]:
        sets = ((INET, "ports"), (BRIDGE, "ports"), (INET, "vxlans"))
        return (*(Element(*s, (obj.name,)) for s in sets), Element(INET, "wire", (obj.port,)))

    def describe(self, step: Step[Vxlan]) -> str:
        vxlan = step.obj
        if step.action == "delete":
            return f"ip link delete {vxlan.name}"
        if step.action == "change":
            return super().describe(step)
        flags = "learning off flood off mcast_flood off bcast_flood off neigh_suppress on"
        return (
            f"ip link add {vxlan.name} type vxlan id {vxlan.vni} local {vxlan.local}"
            f" dstport {vxlan.port} nolearning ttl 64"
            f" && ip link set {vxlan.name} master {vxlan.bridge} alias {vxlan.alias}"
            f" mtu {vxlan.mtu} group {TUNNEL_GROUP} gro_max_size 1 gro_ipv4_max_size 1"
            f" && bridge link set dev {vxlan.name} {flags} && ip link set {vxlan.name} up"
        )

    def blocking(self, want: State, have: State) -> frozenset[Vxlan]:
        """Return the VXLAN devices to delete first. A device must be deleted if it differs from the
        desired device in a field that cannot be changed, or if a desired device with another name
        has the same VNI and UDP port.
        """
        wanted = {vxlan.name: vxlan for vxlan in want[Vxlan]}
        numbers = {(vxlan.vni, vxlan.port) for vxlan in want[Vxlan]}
        return frozenset(
            vxlan
            for vxlan in have[Vxlan]
            if (
                wanted[vxlan.name].fixed != vxlan.fixed
                if vxlan.name in wanted
                else (vxlan.vni, vxlan.port) in numbers
            )
        )

    def conditions(self, obj: Vxlan, actual: Vxlan) -> Iterable[str]:
        if not actual.up:
            yield f"{self.parent_name(actual)} down"
        if actual.bridge != obj.bridge:
            yield f"{self.parent_name(actual)} off its bridge"
        if actual.fixed != obj.fixed:
            yield f"{self.parent_name(actual)} another"

    def is_field_explained(
        self, obj: Vxlan, field: str, present: object, known: Collection[str]
    ) -> bool:
        return field in ("bridge", "drift") and f"link //{obj.bridge}" in known

    def claimed(self, reading: Reading) -> Iterable[Vxlan]:
        own = reading.host.own_links("vxlan")
        return (Vxlan(link.name, 0, "", 0, 0, "", link.alias) for link in own)

    def read(self, space: Space, objects: Collection[Vxlan]) -> Iterable[Vxlan]:
        for name in {obj.name for obj in objects}:
            link = space.own_link(name)
            if link is not None:
                bridge = space.rtnl.name(link.master) if link.master else ""
                vni, local, port, drift = parse(link.data)
                own = (link.mtu, bridge, link.alias, drift, link.up, link.drift)
                yield Vxlan(link.name, vni, local, port, *own)

    def write(self, writer: Writer, steps: Sequence[Step[Vxlan]]) -> None:
        (step,) = steps
        rtnl, obj = writer.rtnl(""), step.obj
        if step.action == "delete":
            rtnl.delete_link(obj.name)
        elif step.action == "add":
            add(rtnl, obj)
        else:
            rtnl.set_link(obj.name, mtu=obj.mtu, master=obj.bridge)
            rtnl.set_group(obj.name, TUNNEL_GROUP)
            what = f"reset port '{obj.name}'"
            rtnl.transact(*_port_settings(obj.name, rtnl.index(obj.name), what))


_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_SOCKETS = "/var/run/wireguard"
"""The sockets on which wireguard-go serves wg(8); it exits when its socket is deleted."""
_SYSTEMD = "/run/systemd/system"
_UNIT = "niso-wireguard"
_ALIVE_S = 180
"""The seconds after which a session ends without a new handshake (WireGuard, 6.1)."""
_HELLO_S = 60
_TIMEOUT_S, _PAUSE_S = 10.0, 0.02


def lacks(form: str) -> str | None:
    """Return why this host cannot have a WireGuard interface of a form, or None if it can. ``form``
    is `KERNEL` (implemented by the kernel) or `USERSPACE` (by wireguard-go).
    """
    import shutil

    if shutil.which("wg") is None:
        return "wg is missing: apt-get install wireguard-tools"
    if form == USERSPACE:
        if shutil.which("wireguard-go") is None:
            return "wireguard-go is missing: apt-get install wireguard-go"
        return None if os.path.exists(_TUN) else f"{_TUN} is missing"
    errors: list[KernelError] = []
    ended = allocate_lock()
    ended.acquire()
    start_new_thread(_probe, (errors, ended))
    ended.acquire()
    return f"the kernel has no WireGuard ({errors[0].message})" if errors else None


def _probe(errors: list[KernelError], ended: LockType) -> None:
    """Test whether the kernel can create a WireGuard interface, as the function of a thread.

    The thread enters a new network namespace, which is deleted when the thread ends. If the test
    fails, its error is appended to ``errors``. The lock ``ended`` is released in any case.
    """
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
    finally:
        ended.release()


def public_key(private: str) -> str:
    """Derive the public key from a private key. Raises KernelError."""
    return _run(["wg", "pubkey"], private).strip()


def new_key() -> str:
    """Generate a private key. Raises KernelError."""
    return _run(["wg", "genkey"]).strip()


def answers(name: str, form: str) -> bool:
    """Return whether the WireGuard interface ``name`` exists. If its form is `USERSPACE`, the
    wireguard-go process that implements it must also accept connections.
    """
    try:
        socket.if_nametoindex(name)
        if form == USERSPACE:
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
                probe.connect(os.path.join(_SOCKETS, f"{name}.sock"))
    except OSError:
        return False
    return True


def shown(
    name: str, endpoints: Mapping[str, str]
) -> tuple[str, int, tuple[tuple[str, str, str], ...]]:
    """Return (public key, UDP port, peers) of a WireGuard interface, or ("", 0, ()) if wg(8) fails.
    A peer is (public key, endpoint, address inside the tunnel).

    ``endpoints`` maps the public keys of other hosts to their desired endpoints. WireGuard itself
    replaces a host's endpoint by the address from which the host last sent, which is not an error.
    For a host with an established session, the desired endpoint is therefore returned.
    """
    try:
        lines = _run(["wg", "show", name, "dump"]).splitlines()
        _, public, port, _ = lines[0].split("\t")
        others = []
        for line in lines[1:]:
            key, _, endpoint, inside, handshake, *_ = line.split("\t")
            if key in endpoints and time.time() - int(handshake) < _ALIVE_S:
                endpoint = endpoints[key]
            others.append((key, endpoint, inside.removesuffix("/128")))
        return public.replace("(none)", ""), int(port), tuple(sorted(others))
    except (KernelError, ValueError, IndexError):
        return "", 0, ()


def make(rtnl: Rtnl, link: WireGuard) -> None:
    """Create a WireGuard interface or change it to the settings ``link``. Raises KernelError."""
    fresh = rtnl.link(link.name) is None
    if fresh:
        _create(rtnl, link)
    if link.form == USERSPACE and not answers(link.name, link.form):
        fresh = True
        _serve(link.name)
    _configure(link)
    # the process that serves it has set its own MTU
    rtnl.set_link(link.name, mtu=link.mtu, alias=link.alias)
    if proc_sys.read(f"net/ipv6/conf/{link.name}/disable_ipv6") == "1":
        proc_sys.write(f"net/ipv6/conf/{link.name}/disable_ipv6", "0")
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
    """Delete a WireGuard interface, and stop its wireguard-go process. Raises KernelError."""
    path = os.path.join(_SOCKETS, f"{name}.sock")
    if os.path.lexists(path):
        files.remove(path)
    rtnl.delete_link(name)


def _create(rtnl: Rtnl, link: WireGuard) -> None:
    """Create a WireGuard interface that is down, and set its alias. Raises KernelError."""
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
    """Start wireguard-go for an interface. The process outlives the caller. Raises KernelError."""
    words = ["wireguard-go", name]
    if os.path.isdir(_SYSTEMD):  # not in the cgroup of the agent or of a login session
        import shutil
        import subprocess

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
    """Set the keys, port and peers of a WireGuard interface. If ``keepalive_s`` is not 0, the
    interface sends a packet to each peer at this interval in seconds. Raises KernelError.
    """
    _run(["wg", "syncconf", link.name, "/dev/stdin"], _configuration(link, keepalive_s))


def _configuration(link: WireGuard, keepalive_s: int) -> str:
    path = paths.wireguard_key()
    try:
        with open(path, encoding="ascii") as file:
            private = file.read().strip()
    except OSError as error:
        raise KernelError(f"{path} cannot be read: {error.strerror}") from None
    lines = ["[Interface]", f"PrivateKey = {private}", f"ListenPort = {link.port}"]
    for key, endpoint, address in link.others:
        lines += ["[Peer]", f"PublicKey = {key}", f"Endpoint = {endpoint}"]
        lines += [f"AllowedIPs = {address}/128", f"PersistentKeepalive = {keepalive_s}"]
    return "\n".join((*lines, ""))


def _run(words: list[str], text: str = "") -> str:
    import subprocess

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


KERNEL, USERSPACE = "wireguard", "tun"
"""The forms of WireGuard interfaces: one of the kernel, and one that wireguard-go serves.

If the process of wireguard-go ends, its interface stays and drops all packets.
"""


class WireGuard(NamedTuple):
    """This host's WireGuard interface. Its private key is in the file `paths.wireguard_key`."""

    name: str
    form: str  # KERNEL or USERSPACE
    address: str  # address inside the tunnel, with the length of the prefix that contains all hosts
    port: int  # UDP port to which other hosts send
    mtu: int  # bytes
    public: str
    alias: str
    # other hosts, sorted: public key as wg(8) writes it, endpoint ("198.51.100.1:4800",
    # "[2001:db8::1]:4800"), IPv6 address inside the tunnel, the source of all packets of the host
    others: tuple[tuple[str, str, str], ...] = ()
    up: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _WireGuards(Kind[WireGuard], of=WireGuard):
    noun_format = "WireGuard {0.name}"
    field_texts = (("others", "its keys, endpoints or addresses of other hosts differ"),)
    parent_name_format = "link //{0.name}"

    def guards(self, obj: WireGuard) -> Iterable[Element]:
        return (Element(INET, "ports", (obj.name,)),)

    def describe(self, step: Step[WireGuard]) -> str:
        link = step.obj
        if step.action == "delete":
            return f"ip link delete {link.name}"
        made = (
            f"ip link add {link.name} type wireguard"
            if link.form == KERNEL
            else f"ip tuntap add {link.name} mode tun; wireguard-go {link.name}"
        )
        others = "".join(
            f" peer {key} endpoint {endpoint} allowed-ips {address}/128"
            for key, endpoint, address in link.others
        )
        start = f"{made}; " if step.action == "add" else ""
        return (
            f"{start}wg set {link.name} private-key {paths.wireguard_key()} listen-port"
            f" {link.port}{others} && ip address replace {link.address} dev {link.name} &&"
            f" ip link set {link.name} alias {link.alias} mtu {link.mtu} up"
        )

    def blocking(self, want: State, have: State) -> frozenset[WireGuard]:
        """Return the existing interfaces whose form, `KERNEL` or `USERSPACE` (wireguard-go), is not
        the desired one. The desired form changes if the kernel has gained or lost WireGuard.
        """
        forms = {link.name: link.form for link in want[WireGuard]}
        return frozenset(
            link for link in have[WireGuard] if forms.get(link.name, link.form) != link.form
        )

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "public" and not present:
            return "it has no key: wireguard-go does not run, or wg(8) is missing"
        return super().describe_field(field, wanted, present)

    def is_field_explained(
        self, obj: WireGuard, field: str, present: object, known: Collection[str]
    ) -> bool:
        return field in ("others", "port") and f"{self.parent_name(obj)} without key" in known

    def conditions(self, obj: WireGuard, actual: WireGuard) -> Iterable[str]:
        if not actual.public:
            yield f"{self.parent_name(actual)} without key"

    def claimed(self, reading: Reading) -> Iterable[WireGuard]:
        link = reading.host.link(TUNNEL)
        if link is not None and link.alias == reading.alias:
            yield WireGuard(TUNNEL, "", "", 0, 0, "", link.alias)

    def read(self, space: Space, objects: Collection[WireGuard]) -> Iterable[WireGuard]:
        """Read WireGuard interfaces. Some settings can be read only by wg(8). These are read if the
        change concerns them, or if changes of other programs are read too. Otherwise the desired
        values are returned.
        """
        reading = space.reading
        for name in {obj.name for obj in objects}:
            link = space.own_link(name)
            if link is None:
                continue
            same = [obj for obj in objects if obj.name == name]
            read = same[0]._replace(form=link.kind, mtu=link.mtu, alias=link.alias, up=link.up)
            if reading.with_strays or reading.everything or len(same) > 1:
                inside = [assigned.address for assigned in space.addresses(link)]
                endpoints = {key: endpoint for obj in same for key, endpoint, _ in obj.others}
                public, port, others = shown(name, endpoints)
                own = ", ".join(sorted(inside))
                read = read._replace(address=own, port=port, public=public, others=others)
            yield read

    def write(self, writer: Writer, steps: Sequence[Step[WireGuard]]) -> None:
        (step,) = steps
        if step.action == "delete":
            remove(writer.rtnl(""), step.obj.name)
        else:
            make(writer.rtnl(""), step.obj)
