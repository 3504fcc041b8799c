"""Capture packets of services with tcpdump(8), and trace the path of packets, with names.

`Host.capture` returns packets of services, or dropped packets, as text or as a pcapng file with
service names (draft-ietf-opsawg-pcapng). `Host.trace` returns the path of a packet through all
netfilter hooks.

tcpdump runs in a separate mount namespace, whose /etc/hosts contains the services and in which DNS
is not used. The mounts of services are not changed.

If the caller is killed, a watcher process kills tcpdump, which would not notice until it writes the
next packet. A signal of the kernel at the parent's death (PR_SET_PDEATHSIG) does not work, because
the kernel clears this setting when tcpdump changes its user (prctl(2)).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import select
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from niso.base import paths
from niso.base.errors import Conflict, Error, ProcessError, UsageError
from niso.base.named_tuples import NamedTuple
from niso.base.names import bracketed, bridge, family_of, netns, unpacked, veth
from niso.base.report import WaitingForPacket
from niso.base.signals import heed_signals, keep_only, signals_blocked
from niso.kernel.netns import at
from niso.kernel.packet_events import (
    Dropped,
    Trace,
    TraceStep,
    drop_rules,
    trace_rules,
)
from niso.kernel.ruleset import BRIDGE, INET, TEMPORARY
from niso.look import packet_path
from niso.look.drops import fresh_context
from niso.look.drops import words as why
from niso.look.flows import FlowReader
from niso.look.session import ResultStream, Session
from niso.plan.records import PORTED
from niso.plan.verdict import KnownService, PolicyContext, addresses_of, evaluate
from niso.reconcile.live_world import read_world
from niso.runtime import root

_MOST_REASONS = 4096


def expression(addresses: Iterable[str], port: int | None, more: str) -> str:
    """Combine hosts, a port and an expression into one pcap-filter(7) expression."""
    parts = []
    hosts = " or ".join(f"host {address}" for address in addresses)
    if hosts:
        parts.append(f"({hosts})")
    if port is not None:
        parts.append(f"port {port}")
    if more:
        parts.append(f"({more})")
    return " and ".join(parts)


class Capture(ResultStream):
    """A capture of packets of several services, merged into one stream. A context manager.

    ``namespaces`` maps service names to network namespaces, and ``names`` maps addresses to names.
    ``filter`` is an expression of pcap-filter(7). The capture ends after ``most`` packets. The
    stream is a pcapng file, or lines of text if ``text`` is true. If ``drops`` is given, only
    dropped packets are captured. The function ``reason`` returns why a packet was dropped. The
    kernel reports only the headers of such packets, which tcpdump filters and prints. Raises Error
    if tcpdump is not installed, KernelError and ProcessError.
    """

    def __init__(
        self,
        namespaces: Mapping[str, str],
        names: Mapping[str, str],
        filter: str,
        most: int | None,
        text: bool,
        drops: Trace | None = None,
        reason: Callable[[Dropped], str] = lambda _: "",
    ) -> None:
        self._names, self._filter, self._most, self._text = names, filter, most, text
        self._drops, self._reason = drops, reason
        self._reasons: dict[int, str] = {}  # by time in microseconds since 1970
        self._file = CaptureFile(names, lambda time: self._reasons.get(time, ""), most)
        self._left = most
        self._epoll = select.epoll()
        self._sources: list[Tcpdump] = []  # one for each service
        self._wide = max(map(len, namespaces)) + 2 if len(namespaces) > 1 else 0
        self._last, self._pipe = 0, -1
        try:
            for name, namespace in namespaces.items():
                self._start(name, ["-i", "any"], namespace)
            if drops is not None:
                self._start_with_drops(drops)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def packets(self) -> int:
        """The number of packets in the pcapng file so far."""
        return self._file.packets

    def read(self) -> bytes:
        """Wait for packets and return them. Return b"" at the end. Raises ProcessError."""
        while (shown := self.read_ready(None)) is None:
            pass
        return shown

    def read_ready(self, seconds: float | None = 0.0) -> bytes | None:
        """Return packets as `read` does, or None if no packet arrives within ``seconds``.

        If ``seconds`` is None, the wait has no limit.
        """
        if not self._sources:
            return b""
        for fd, _ in self._epoll.poll(seconds):
            if shown := self._take(fd):
                return shown
        return None if self._sources else b""

    def stop(self) -> None:
        """Stop capturing. `read` still returns the packets that were captured before."""
        self._hang_up()  # in a capture of dropped packets, tcpdump exits at the end of its input
        for source in self._sources if self._drops is None else ():
            source.stop()

    def close(self) -> None:
        """Stop all captures and close their descriptors."""
        if self._drops is not None:
            self._drops.close()
        self._hang_up()
        for source in self._sources:
            source.close()
        self._sources = []
        self._epoll.close()

    def _hang_up(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _start(
        self, name: str, words: Sequence[str], namespace: str = "", stdin: int | None = None
    ) -> None:
        argv = [*words, *(["-l"] if self._text else ["-U", "-w", "-"])]
        argv += [] if self._most is None else ["-c", str(self._most)]
        convert = self._file.converter(name)
        tcpdump = Tcpdump(name, convert, argv, self._filter, self._names, namespace, stdin)
        self._sources.append(tcpdump)
        for fd in (tcpdump.out, tcpdump.err):
            self._epoll.register(fd, select.EPOLLIN)

    def _start_with_drops(self, drops: Trace) -> None:
        end, self._pipe = os.pipe2(os.O_CLOEXEC)
        try:
            words = ["-r", "-", *(["-tt"] if self._text else [])]
            self._start("dropped", words, stdin=end)
        finally:
            os.close(end)
        os.set_blocking(self._pipe, False)
        os.write(self._pipe, _HEADER.pack(_MAGIC, 2, 4, 0, 0, _MOST, _RAW))
        self._epoll.register(drops, select.EPOLLIN)

    def _pass_on(self, drops: Trace) -> None:
        for dropped in drops.dropped():
            self._last = max(self._last + 1, time.time_ns() // 1000)
            self._reasons[self._last] = self._reason(dropped)
            if len(self._reasons) > _MOST_REASONS:
                del self._reasons[next(iter(self._reasons))]
            size = len(dropped.headers)
            times = divmod(self._last, 1_000_000)  # seconds, microseconds
            packet = _RECORD.pack(*times, size, max(dropped.length, size)) + dropped.headers
            # if the pipe is full or tcpdump has just exited, the packet is left out
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                if self._pipe >= 0:
                    os.write(self._pipe, packet)

    def _take(self, fd: int) -> bytes:
        if self._drops is not None and fd == self._drops.fileno():
            self._pass_on(self._drops)
            return b""
        for source in self._sources:
            if fd == source.err:
                if not source.hear():
                    self._epoll.unregister(fd)
                return b""
            if fd == source.out:
                data = source.read()
                if not data:
                    self._sources.remove(source)
                    source.close()
                shown = self._lines(source, data) if self._text else source.convert(data)
                if self._file.is_full or self._left == 0:
                    self.stop()
                return shown
        return b""

    def _lines(self, source: Tcpdump, data: bytes) -> bytes:
        """Return complete lines of tcpdump's output, for at most the requested packets."""
        *lines, source.incomplete = (source.incomplete + data).split(b"\n")
        shown = []
        for line in filter(None, lines):  # tcpdump ends with an empty line
            # an indented line continues the previous packet's text
            if not line[:1].isspace() and self._left is not None:
                if self._left == 0:
                    break
                self._left -= 1
            head = f"{source.name:<{self._wide}}" if self._wide else ""
            shown.append(head.encode() + self._line(line))
        return b"".join(line + b"\n" for line in shown)

    def _line(self, line: bytes) -> bytes:
        seconds, dot, others = line.partition(b".")
        micros, _, what = others.partition(b" ")
        if self._drops is None or not (dot and seconds.isdigit() and micros.isdigit()):
            return line
        clock = time.strftime("%H:%M:%S", time.localtime(int(seconds)))
        reason = self._reasons.get(int(seconds) * 1_000_000 + int(micros), "")
        return f"{clock}.{micros.decode()} ".encode() + what + f"  ({reason})".encode()


# --- tcpdump in a service's namespace -------------------------------------------------------------

_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_CHUNK = 1 << 16
_SAID = 4096  # bytes of tcpdump's error output to keep
_NSSWITCH = "hosts: files\nservices: files\nprotocols: files\n"


class Tcpdump:
    """A running tcpdump with the given arguments and filter.

    tcpdump captures in the network namespace ``namespace``, or in the caller's if this is "".
    ``stdin`` is an open descriptor. Raises Error if tcpdump is not installed, KernelError and
    ProcessError.
    """

    def __init__(
        self,
        name: str,
        convert: Callable[[bytes], bytes],
        arguments: Sequence[str],
        filter_: str,
        names: Mapping[str, str],
        namespace: str,
        stdin: int | None,
    ) -> None:
        program = shutil.which("tcpdump")
        if program is None:
            raise Error("the program tcpdump is not installed", "apt install tcpdump")
        argv = [program, *arguments, "--", *([filter_] if filter_ else [])]
        self.name, self.convert = name, convert
        self.incomplete = b""  # the end of the output, if it is a part of a line
        self._filters = bool(filter_)
        self._said = b""
        self._pid = self._watcher = 0
        self.out, out = os.pipe2(os.O_CLOEXEC)
        self.err, err = os.pipe2(os.O_CLOEXEC)
        try:
            with signals_blocked():
                with at(namespace):
                    self._pid = os.fork()
                    if not self._pid:
                        heed_signals()
                        _become(argv, names, stdin, out, err)
                self._watcher = _watch(self._pid)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(out)
            os.close(err)

    def read(self) -> bytes:
        """Return tcpdump's output, or b"" after its exit. Raises ProcessError if tcpdump failed."""
        data = os.read(self.out, _CHUNK)
        if not data:
            self._end()
        return data

    def hear(self) -> bool:
        """Read tcpdump's error output for a later error message. Return False when it has ended."""
        data = os.read(self.err, _CHUNK)
        self._said = (self._said + data)[-_SAID:]
        return bool(data)

    def stop(self) -> None:
        """Request tcpdump to stop. `read` still returns the packets that were captured."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)

    def close(self) -> None:
        """Kill tcpdump if it is still running, and close its descriptors."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)
            self._pid = 0
        if self._watcher:  # the watcher ends with tcpdump
            os.waitpid(self._watcher, 0)
            self._watcher = 0
        for fd in (self.out, self.err):
            if fd >= 0:
                os.close(fd)
        self.out = self.err = -1

    def _end(self) -> None:
        while self.hear():
            pass
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGINT, -signal.SIGTERM):
            lines = self._said.decode("utf-8", "replace").strip().splitlines() or ["it failed"]
            raise ProcessError(
                f"tcpdump: {lines[-1].removeprefix('tcpdump: ')}",
                "pcap-filter(7) describes expressions" if self._filters else None,
            )


def _watch(pid: int) -> int:
    """Fork a watcher that kills process ``pid`` if this process dies. Return the watcher's pid."""
    own, child = os.pidfd_open(os.getpid()), os.pidfd_open(pid)
    try:
        watcher = os.fork()
        if watcher:
            return watcher
        try:
            keep_only((own, child))
            poll = select.poll()
            poll.register(own, select.POLLIN)
            poll.register(child, select.POLLIN)
            if child not in dict(poll.poll()):
                signal.pidfd_send_signal(child, signal.SIGTERM)
        finally:
            os._exit(0)
    finally:
        os.close(own)
        os.close(child)


def _become(
    argv: list[str], names: Mapping[str, str], stdin: int | None, out: int, err: int
) -> None:
    try:
        os.dup2(err, 2)
        os.dup2(out, 1)
        os.dup2(os.open("/dev/null", os.O_RDONLY) if stdin is None else stdin, 0)
        _hide_hosts(names)
        os.execv(argv[0], argv)
    except BaseException as error:
        os.write(2, f"cannot start it: {error}\n".encode())
    finally:
        os._exit(127)


def _hide_hosts(names: Mapping[str, str]) -> None:
    """Enter a mount namespace in which only ``names`` (address to name) resolve, without DNS."""
    os.unshare(os.CLONE_NEWNS)
    root.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    folder = paths.run_dir()
    root.mount("none", folder, "tmpfs", 0, "mode=0755")
    hosts = "".join(f"{address} {name}\n" for address, name in names.items())
    for path, text in (("/etc/hosts", hosts), ("/etc/nsswitch.conf", _NSSWITCH)):
        own = os.path.join(folder, os.path.basename(path))
        with open(own, "w", encoding="utf-8") as file:
            file.write(text)
        if os.path.exists(path):
            root.mount(own, path, None, _MS_BIND)


# --- packets as pcapng (pure) ---------------------------------------------------------------------

_MAGIC = 0xA1B2C3D4  # of a pcap file with microseconds (draft-ietf-opsawg-pcap)
_HEADER = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")
_SECTION, _INTERFACE, _NAMES, _PACKET = 0x0A0D0D0A, 1, 4, 6
_NAME4, _NAME6 = 1, 2
_PCAP_COMMENT, _IF_NAME = 1, 2  # options
_RAW = 101  # LINKTYPE_RAW: begins with an IP header
_MOST = 262_144  # snapshot length: bytes of a packet


class CaptureFile:
    """A builder of a pcapng file that merges several captures. Methods return bytes to append.

    ``comment`` returns the comment for a packet by its time (microseconds since 1970), or "" for no
    comment. The file is full after ``most`` packets.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        comment: Callable[[int], str],
        most: int | None,
    ) -> None:
        self._names, self._comment, self._left = names, comment, most
        self._interfaces = 0
        self.packets = 0

    @property
    def is_full(self) -> bool:
        """True if the file has the maximum number of packets."""
        return self._left is not None and self._left <= 0

    def interface(self, name: str, link: int, most: int) -> tuple[int, bytes]:
        """Add an interface. Return its number and the bytes to append.

        ``link`` is the link type (LINKTYPE_*), and ``most`` the maximum length of captured packets.
        """
        head = b""
        if not self._interfaces:
            head = _block(_SECTION, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))
            head += _block_of_names(self._names)
        number, self._interfaces = self._interfaces, self._interfaces + 1
        body = struct.pack("=HHI", link & 0xFFFF, 0, most) + _option(_IF_NAME, name)
        return number, head + _block(_INTERFACE, body)

    def packet(self, interface: int, time: int, data: bytes, length: int) -> bytes:
        """Return the bytes to append for a packet, or b"" if the file is full.

        ``time`` is in microseconds since 1970. ``length`` is the original length, before
        truncation.
        """
        if self.is_full:
            return b""
        if self._left is not None:
            self._left -= 1
        self.packets += 1
        halves = time >> 32, time & 0xFFFFFFFF
        body = struct.pack("=IIIII", interface, *halves, len(data), length) + _padded(data)
        if comment := self._comment(time):
            body += _option(_PCAP_COMMENT, comment)
        return _block(_PACKET, body)

    def converter(self, name: str) -> Callable[[bytes], bytes]:
        """Return a function that converts pcap data to pcapng blocks for a new interface ``name``.

        The function raises ValueError if the data are not pcap.
        """
        rest = b""
        interface: int | None = None

        def convert(data: bytes) -> bytes:
            nonlocal rest, interface
            rest += data
            blocks = []
            if interface is None:
                if len(rest) < _HEADER.size:
                    return b""
                magic, _, _, _, _, most, link = _HEADER.unpack_from(rest)
                if magic != _MAGIC:
                    raise ValueError("not a pcap file")
                rest = rest[_HEADER.size :]
                interface, head = self.interface(name, link, most)
                blocks.append(head)
            while len(rest) >= _RECORD.size:
                seconds, micros, kept, length = _RECORD.unpack_from(rest)
                end = _RECORD.size + kept
                if len(rest) < end:
                    break
                data, rest = rest[_RECORD.size : end], rest[end:]
                blocks.append(self.packet(interface, seconds * 1_000_000 + micros, data, length))
            return b"".join(blocks)

        return convert


def _block_of_names(names: Mapping[str, str]) -> bytes:
    records = []
    for address, name in names.items():
        packed = ipaddress.ip_address(address).packed
        value = packed + name.encode() + b"\0"
        kind = _NAME4 if len(packed) == 4 else _NAME6
        records.append(struct.pack("=HH", kind, len(value)) + _padded(value))
    return _block(_NAMES, b"".join(records) + struct.pack("=HH", 0, 0))


def _option(code: int, text: str) -> bytes:
    value = text.encode()
    return struct.pack("=HH", code, len(value)) + _padded(value) + struct.pack("=HH", 0, 0)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


# --- Host.capture, Host.trace ---------------------------------------------------------------------


class Stage(NamedTuple):
    """What happened to a packet in one chain."""

    table: str  # family and name of the table: inet niso
    chain: str  # the chain
    verdict: str  # pass, drop, dnat, snat, or an arrow and the next chain
    words: str  # the reason, or the text of another program's rule
    records: bool  # whether the chain only marks or records packets; shown with -v


class Traced(NamedTuple):
    """The path of one real packet."""

    verdict: str
    """pass or drop; in JSON ``none`` if no packet came, and then only ``reason`` follows"""
    reason: str  # why the packet passed or was dropped
    source_name: str | None  # the sender: a service or host; null for other machines
    destination_name: str | None  # the receiver after DNAT: a service or host; null otherwise
    source: str  # the sender's address
    source_port: int | None  # port of the sender; null for icmp
    destination: str  # the address that the packet was sent to
    port: int | None  # the port that the packet was sent to; null for icmp
    proto: str  # tcp, udp, sctp or icmp
    passes: bool  # whether no chain dropped the packet
    others: bool  # whether chains of other programs processed the packet
    stages: tuple[Stage, ...]  # the chains that decided something, in order


def capture(
    session: Session,
    services: Iterable[str],
    peer: str | None,
    filter: str,
    most: int | None,
    text: bool,
    drops: bool,
) -> Capture:
    """Start a capture, as described in `Host.capture`. ``most`` and ``text`` are as in `Capture`.

    If ``drops`` is true, only packets that nftables rules drop are captured.
    """
    if most is not None and most < 1:
        hint = "niso net capture db -c 10"
        raise UsageError("must be 1 or more", hint, "-c", value=str(most))
    store = session.store()
    context = read_world(session.kernel(), store)
    known: dict[str, KnownService] = {}
    for service in services:
        if packet_path.parse_target(service)[1] is not None:
            hint = f"niso net capture SERVICE {service}"
            raise UsageError(f"{service!r} is not a service, but a port of one", hint, "NAME")
        row = store.service(service)
        if row is not None and row.mode == "host":
            words = f"{service} has mode host: its packets are among those of the host"
            raise Conflict(words, "tcpdump -i any")
        end = packet_path.resolve(store, service)
        if end.service not in context.services:
            raise UsageError(f"{service!r} is not a service", "niso ps lists the services", "NAME")
        for name in store.instances.running(end.service):
            known[name] = context.services[name]
    for captured in known.values():
        if captured.host:
            raise Conflict(
                f"{captured.name} runs on host {captured.host}", "niso net capture there"
            )
        if not captured.active:
            raise Conflict(f"{captured.name} is not active", f"niso activate {captured.name}")
    addresses: tuple[str, ...] = ()
    port = None
    gateways = [s.gateway for n in context.networks.values() for s in n.subnets]
    if peer is not None:
        who, port, _ = packet_path.parse_target(peer)
        other = packet_path.resolve(store, who, next(iter(known)))
        if other.service:
            addresses = addresses_of(context.services[other.service])
            for name in store.instances.running(other.service):
                addresses += addresses_of(context.services[name])
        elif other.address:
            addresses = (other.address,)
        else:  # the host, with the address that services see
            addresses = (*sorted(gateways), *sorted(context.host))
    named = {
        address: holder.name
        for holder in context.services.values()
        for address in addresses_of(holder)
    }
    named |= dict.fromkeys(gateways, "host")
    filter = expression(dict.fromkeys(addresses), port, filter)
    if not drops:
        return Capture({name: netns(name) for name in known}, named, filter, most, text)
    ends = [
        veth(row.name, network, row.generation)
        for row in store.services()
        if row.name in known
        for network in row.networks
    ]
    own = [address for service in known.values() for address in addresses_of(service)]
    dropped = Trace(drop_rules(own, ends, [bridge(row.name) for row in store.networks()]))
    present = fresh_context(session.kernel(), store)
    return Capture({}, named, filter, most, text, dropped, lambda one: why(present(), one))


def trace(
    session: Session, source: str, destination: str, any_: bool, seconds: float
) -> Traced | None:
    """Wait for a packet and trace its path, as described in `Host.trace`."""
    store = session.store()
    who, port, proto = packet_path.parse_target(destination)
    from_ = packet_path.resolve(store, source)
    to = packet_path.resolve(store, who, from_.service or None)
    context = read_world(session.kernel(), store)
    # a program chooses if a name has addresses of both families
    pairs = packet_path.ends_by_family(context, from_, to)
    by_port = _by_port(context, from_, to, pairs, port, proto)
    with Trace(trace_rules(pairs.values(), port, proto, not any_, by_port)) as tracing:
        session.report(WaitingForPacket(destination, "real"))
        steps = tracing.first(seconds)
    seen = [ends for step in steps if (ends := _ends(step, proto))]
    if not seen:
        return None
    sent, after = seen[0], seen[-1]
    reader = FlowReader(context)
    path = stages(context, reader, steps, proto)
    dropped = next((stage for stage in path if stage.verdict == "drop"), None)
    others = any(stage.table not in (INET, BRIDGE) for stage in path)
    reason = _passes_by(context, sent, after, proto)
    if dropped is not None:
        is_own = dropped.table in (INET, BRIDGE)
        reason = dropped.words if is_own else f"{dropped.table} {dropped.chain}: {dropped.words}"
    by, reached = (reader.end(address) for address in (sent[0], after[2]))
    return Traced(
        "pass" if dropped is None else "drop",
        reason,
        by.name if by.is_known else None,
        reached.name if reached.is_known else None,
        *sent,
        proto,
        dropped is None,
        others,
        tuple(path),
    )


_Ends = tuple[str, int | None, str, int | None]
"""The source, its port, the destination and its port of a packet."""


def _by_port(
    context: PolicyContext,
    from_: packet_path.PacketEnd,
    to: packet_path.PacketEnd,
    pairs: Mapping[int, tuple[str, str]],
    port: int | None,
    proto: str,
) -> set[tuple[int, str, int]]:
    """Return (IP version, source, host port) for packets to published ports of the service ``to``:
    the argument ``published`` of `trace_rules`. ``port`` is the host port or the service's port.
    """
    known = context.services.get(to.service or "")
    found: set[tuple[int, str, int]] = set()
    if known is None or port is None or proto not in PORTED:
        return found
    for mapping in known.ports:
        inside = mapping.host_port + port - mapping.container_port
        hosts = [p for p in (port, inside) if mapping.host_port <= p <= mapping.last]
        for family in mapping.families if mapping.proto == proto else ():
            sources = [pairs[family][0]] if family in pairs else []
            if from_.service:
                own = addresses_of(context.services[from_.service])
                sources = [address for address in own if family_of(address) == family]
            elif not from_.address:
                sources = [""]
            found |= {(family, source, host) for source in sources for host in hosts}
    return found


def _ends(step: TraceStep, proto: str) -> _Ends | None:
    """Return (source, source port, destination, destination port) of a traced packet.

    Returns None if the trace has no IP header. The ports are None for a protocol without ports.
    """
    if not step.network:
        return None
    size = 16 if step.version == 6 else 4
    at = 8 if step.version == 6 else 12
    if len(step.network) < at + 2 * size:
        return None
    source, to = (unpacked(step.network[i : i + size]) for i in (at, at + size))
    ports = step.transport[:4]
    own, port = (
        (int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big"))
        if len(ports) == 4 and proto in PORTED
        else (None, None)
    )
    return source, own, to, port


# --- the path of one traced packet ----------------------------------------------------------------

_COMMENT = re.compile(r'comment "([^"]*)"')
_LEADS = ("jump ", "goto ")


def stages(
    context: PolicyContext, reader: FlowReader, steps: list[TraceStep], proto: str
) -> list[Stage]:
    """Return what the chains on a traced packet's path did to the packet, one `Stage` per chain.

    For a chain that evaluates policies, the stage names the entry that decides. If NAT changed an
    address or a port, one more stage shows the new value.
    """
    result: list[Stage] = []
    now: _Ends | None = None
    headers = b""
    for step in steps:
        seen = _ends(step, proto)
        if seen is not None and now is not None:
            changed = (("snat", now[:2], seen[:2]), ("dnat", now[2:], seen[2:]))
            for verdict, before, after in changed:
                if before != after and result:
                    words = f"{_shown(reader, *before)} becomes {_shown(reader, *after)}"
                    result.append(Stage(*result[-1][:2], verdict, words, False))
        if seen is not None:
            now, headers = seen, step.network + step.transport
        if step.table.partition(" ")[2].startswith(TEMPORARY) or step.kind == "return":
            continue
        if step.kind == "rule" and step.verdict == "continue":
            continue
        word = _word(step)
        words = _words(context, step, now, headers, proto)
        result.append(Stage(step.table, step.chain, word, words, _is_record_only(step, word)))
    return result


def _shown(reader: FlowReader, address: str, port: int | None) -> str:
    end = reader.end(address)
    text = f"{end.name} ({address})" if end.is_known else bracketed(address)
    return text if port is None else f"{text}:{port}"


def _is_record_only(step: TraceStep, word: str) -> bool:
    """Return whether a step in a chain of niso only records a packet, without deciding about it."""
    if step.table not in (INET, BRIDGE) or word == "drop":
        return False
    if step.chain.startswith(("check_", "classed_")):
        return word != "pass" and not step.verdict.endswith(_REFUSING)
    return word != "pass" or not (step.chain in ("forward", "enter") and "comment" in step.rule)


_REFUSING = (
    "refuse",
    "log_in",
    "log_out",
    "audit_in",
    "audit_out",
    "audit_log_in",
    "audit_log_out",
)


def _word(step: TraceStep) -> str:
    for lead in _LEADS:
        if step.verdict.startswith(lead):
            return f"→ {step.verdict.removeprefix(lead)}"
    return {"accept": "pass", "return": "pass"}.get(step.verdict, step.verdict)


def _words(
    context: PolicyContext, step: TraceStep, now: _Ends | None, headers: bytes, proto: str
) -> str:
    if step.kind != "rule":
        return "the chain's policy"
    if step.table not in (INET, BRIDGE):
        return step.rule
    if step.verdict == "drop" and headers:
        return why(context, Dropped(step.table, step.chain, step.rule, headers, len(headers)))
    if step.chain.startswith(("check_", "classed_")) and now is not None:
        source, _, to, port = now
        both = evaluate(context, source, to, port, proto)
        return both[step.chain.partition("_")[2].startswith("in")].message
    comment = _COMMENT.search(step.rule)
    return comment[1] if comment else step.rule


def _passes_by(context: PolicyContext, sent: _Ends, after: _Ends, proto: str) -> str:
    """Return a phrase that says why a traced packet passed.

    It names the published port that the packet used, and the policy entries that allow the packet.
    If there are none, it is "no rule drops it".
    """
    # policies match after DNAT and before masquerading
    both = evaluate(context, sent[0], after[2], after[3], proto)
    allowed = [reason.message for reason in both if reason.key]
    if sent[2:] != after[2:]:
        allowed.insert(0, f"{bracketed(sent[2])}:{sent[3]} is published")
    return "; ".join(allowed) or "no rule drops it"
