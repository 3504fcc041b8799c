"""Send netlink requests, read the answers, and convert errors of the kernel to `KernelError`.

See netlink(7) and linux/netlink.h. Only this module converts an error number to an error
(`refused`). Messages that are not from the kernel are ignored, since a process with NET_ADMIN in a
service's network namespace could send messages to niso's socket too. A truncated message or an
impossible length raises an error, so that a partial answer is never returned.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator

from niso.base import signals
from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import socket

if TYPE_CHECKING:
    from typing import Self

ROUTE = 0  # NETLINK_ROUTE
SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
NETFILTER = 12  # NETLINK_NETFILTER

REQUEST, ACK, ECHO, DUMP = 0x1, 0x4, 0x8, 0x300  # NLM_F_*
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
_DUMP_INTR, _CAPPED, _ACK_TLVS = 0x10, 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 1, 10, 11, 12
_NESTED, _KIND_MASK = 0x8000, 0x3FFF

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
# bytes; the kernel packs dumps into at most 32 KiB. malloc(3) would map 128 KiB for each answer.
_BUFFER = 1 << 16
_DUMP_TRIES = 10
_AT_ONCE = 64  # messages whose answers fit the socket's buffer together
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_*
_TRUNCATED = socket.MSG_TRUNC
_MOST_ERRNO = 4095  # MAX_ERRNO, linux/err.h
_OWN = "/proc/thread-self/ns/net"

OWN_THREAD = "niso"  # what the names of niso's programs begin with: niso, niso-cni

_THREAD_NAME = "/proc/thread-self/comm"

# exceptions of the parsers for an answer that the kernel would not send
MALFORMED = (struct.error, LookupError, ValueError, OverflowError)

_header = struct.Struct("=IHHII")  # struct nlmsghdr
_attribute = struct.Struct("=HH")  # struct nlattr
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by the lowest two bits of the length


class Message(NamedTuple):
    """A request to the kernel to change an object. ``what`` is its name in error messages."""

    what: str
    kind: int
    flags: int
    body: bytes
    fine: tuple[int, ...] = ()  # error numbers that count as success


Reply = tuple[int, int, int, bytes]  # kind, flags, sequence number and body of an answer


def refused(what: str, number: int, message: str = "") -> KernelError:
    """Return the error for a failed request ``what``, from its errno and the kernel's message."""
    reason = os.strerror(number) if number else ""
    reason = reason[:1].lower() + reason[1:]
    if message:
        reason = f"{reason} ({message})" if reason else message
    hint = None
    if number in (errno.EPERM, errno.EACCES):
        hint = "run it as root (sudo niso ...)"
        if os.geteuid() == 0:
            hint = "root lacks capabilities here; if this is a container, run it with --privileged"
    elif number == errno.EMSGSIZE:  # SO_SNDBUFFORCE needs the machine's root
        hint = "in a user namespace, a change has at most 2 net.core.wmem_max bytes"
        hint += ": as the machine's root, sysctl net.core.wmem_max=16777216"
    elif number == errno.ENOENT and what.endswith(" sockets"):  # "list tcp sockets"
        hint = f"load the kernel module {what.split()[1]}_diag"
    return KernelError(f"cannot {what}: {reason}", hint, number)


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Convert an OSError of the ``with`` block to a KernelError. ``what`` names the request."""
    try:
        yield
    except OSError as error:
        raise refused(what, error.errno or 0) from error


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Rename the calling thread to "niso" for the duration of a ``with`` block. The kernel reports
    the name of the thread that commits an nftables transaction (NFTA_GEN_PROC_NAME). `niso events`
    uses this name to recognise transactions of Python programs that use niso as a library.
    """
    own = OWN_THREAD.encode()
    try:
        fd = os.open(_THREAD_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # without /proc the thread is not renamed
        yield
        return
    try:
        before = os.read(fd, 64).rstrip(b"\n")
        os.write(fd, before if before.startswith(own) else own)
        try:
            yield
        finally:
            os.write(fd, before)
    finally:
        os.close(fd)


def address_family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def attribute(kind: int, payload: bytes) -> bytes:
    size = len(payload)
    return _attribute.pack(4 + size, kind) + payload + _PADDING[size & 3]


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Parse netlink attributes from ``offset`` on, and return {attribute type: payload}. If an
    attribute type occurs several times, the last payload is returned. Raises ValueError if they are
    malformed.
    """
    payloads = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _attribute.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise ValueError("impossible length of an attribute")
        payloads[kind & _KIND_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return payloads


def several(data: bytes, kind: int | None = None) -> Iterator[bytes]:
    """Yield the payloads of all netlink attributes in ``data``, or of those with the type ``kind``.
    Raises ValueError if the attributes are malformed.
    """
    offset = 0
    while offset + 4 <= len(data):
        length, own_kind = _attribute.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            raise ValueError("impossible length of an attribute")
        if kind in (None, own_kind & _KIND_MASK):
            yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse_reply[T](what: str, parse: Callable[[bytes], T], answer: bytes) -> T:
    """Parse an answer to the request ``what``. Raises KernelError if the answer is malformed."""
    try:
        return parse(answer)
    except MALFORMED as error:
        raise refused(what, errno.EBADMSG) from error


def string(payload: bytes) -> str:
    return payload.split(b"\0", 1)[0].decode("utf-8", "replace")


class Netlink:
    """A socket for one netlink protocol, in the network namespace that opened it."""

    def __init__(self, protocol: int) -> None:
        with refusing(f"open a netlink socket (protocol {protocol})"):
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
        self._sequence = 0
        for option in (_EXT_ACK, _CAP_ACK, *((_GET_STRICT_CHK,) if protocol == ROUTE else ())):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_blocking(self, blocking: bool) -> None:
        self._socket.setblocking(blocking)

    def listen(self, group: int) -> None:
        """Receive the messages that the kernel sends to a multicast group. Raises OSError."""
        self._socket.bind((0, 0))  # the kernel sends nothing to port 0, its own
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def notices(self, what: str) -> list[Reply] | None:
        """Wait for a datagram of a multicast group, and return its messages. Returns None if
        messages were lost because the socket's buffer was full. Raises KernelError. If the socket
        is non-blocking and no datagram has arrived, raises BlockingIOError.
        """
        try:
            return self.receive()
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise refused(what, error.errno or 0) from error

    def enlarge_buffer(self, size: int) -> None:
        """Set the size of the receive buffer in bytes. Without CAP_NET_ADMIN, nothing changes."""
        with contextlib.suppress(PermissionError):  # in a user namespace
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)

    def transact(self, *messages: Message) -> None:
        """Send all messages in one system call: the kernel gets all even if niso is killed.

        The kernel handles all messages before the call returns, and does not stop at an error.
        Therefore later messages must be harmless if an earlier message fails. If several messages
        fail, KernelError is raised for the first. A failure with an error number in the message's
        field ``fine`` is ignored.
        """
        first, last = self._sequence + 1, self._sequence + len(messages)
        # errors are always answered, and arrive before the ACK that only the last message requests
        packet = b"".join(
            self._pack(message.kind, message.flags | (ACK if sequence == last else 0), message.body)
            for sequence, message in enumerate(messages, first)
        )
        results: dict[int, tuple[int, str]] = {}
        with refusing(messages[0].what):
            signals.hit(messages[0].what)
            self._socket.sendto(packet, (0, 0))
            while last not in results:
                for sequence, number, text in self._results():
                    if first <= sequence <= last:
                        results[sequence] = number, text
        for sequence, message in enumerate(messages, first):
            number, text = results.get(sequence, (0, ""))
            if number and number not in message.fine:
                raise refused(message.what, number, text)

    def transact_each(self, messages: Iterable[Message]) -> None:
        """Send any number of messages with `transact`, in groups whose answers fit the buffer."""
        for group in itertools.batched(messages, _AT_ONCE):
            self.transact(*group)

    def transact_batch(
        self, what: str, subsystem: int, messages: list[Message], clashes: tuple[int, ...] = ()
    ) -> None:
        """Send a batch of netfilter messages, which the kernel applies completely or not at all.
        ``subsystem`` is NFNL_SUBSYS_*. Error numbers in ``clashes`` are reported as EEXIST. Raises
        KernelError. See nfnetlink_rcv_batch in net/netfilter/nfnetlink.c.
        """
        start = self._sequence + 1
        limit = struct.pack("!BBH", 0, 0, subsystem)  # struct nfgenmsg
        packets = [self._pack(_BATCH_BEGIN, 0, limit)]
        for i, message in enumerate(messages):
            # the last message is acknowledged after the commit; errors of earlier ones come before
            # that
            flags = message.flags | (ACK if i == len(messages) - 1 else 0)
            packets.append(self._pack(message.kind, flags, message.body))
        last = self._sequence
        packet = b"".join((*packets, self._pack(_BATCH_END, 0, limit)))
        with refusing(what):
            signals.hit(what)
            with contextlib.suppress(PermissionError):
                size = 2 * len(packet) + _BUFFER
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
            with named():
                self._socket.sendto(packet, (0, 0))
            while True:
                for sequence, number, text in self._results():
                    if number and sequence >= start:
                        raise refused(what, errno.EEXIST if number in clashes else number, text)
                    if sequence == last:
                        return

    def get_one(
        self, what: str, kind: int, body: bytes, absent: tuple[int, ...], flags: int = 0
    ) -> bytes | None:
        """Request one object, and return the body of the answer. Returns None if the kernel answers
        with an error number in ``absent``. Raises KernelError for other errors.
        """
        return self.get_all(what, kind, [body], absent, flags)[0]

    def get_all(
        self, what: str, kind: int, bodies: list[bytes], absent: tuple[int, ...], flags: int = 0
    ) -> list[bytes | None]:
        """Send several requests in one system call. Returns the answers in the order of the
        requests, each as `get_one` returns it. All answers together must fit into the socket's
        buffer. With ACK in ``flags``, the answer is None for a request that the kernel only
        acknowledges.
        """
        first = self._sequence + 1
        packet = b"".join(self._pack(kind, flags, body) for body in bodies)
        asked = range(first, self._sequence + 1)
        answers: dict[int, bytes | None] = {}
        ended: set[int] = set()
        with refusing(what):
            self._socket.sendto(packet, (0, 0))
            while len(ended) < len(bodies):
                for reply in self.receive():
                    reply_kind, _, sequence, answer = reply
                    if sequence not in asked:
                        continue
                    if reply_kind != _NLMSG_ERROR:
                        answers[sequence] = answer
                        if not flags & ACK:
                            ended.add(sequence)
                        continue
                    number, text = _result(reply)
                    if number and number not in absent:
                        raise refused(what, number, text)
                    answers.setdefault(sequence, None)
                    ended.add(sequence)
        return [answers[sequence] for sequence in asked]

    def dump[T](
        self,
        what: str,
        kind: int,
        body: bytes,
        parse: Callable[[bytes], T | None],
        absent: tuple[int, ...] = (),
    ) -> list[T]:
        """Request the list of all objects of a kind, and parse each of them with ``parse``. Returns
        the results that are not None. The list is empty if the kernel answers with an error number
        in ``absent``. The request is repeated if an object changed while the kernel sent the list,
        or if the socket's buffer was too small. Raises KernelError.
        """
        for _ in range(_DUMP_TRIES):
            try:
                entries = self._dump_once(what, kind, body, parse, absent)
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EBUSY):
                    raise refused(what, error.errno or 0) from error
                self._drain()
                continue
            if entries is not None:
                return entries
        raise refused(what, errno.EBUSY, f"it changed during each of {_DUMP_TRIES} dumps")

    def _dump_once[T](
        self,
        what: str,
        kind: int,
        body: bytes,
        parse: Callable[[bytes], T | None],
        absent: tuple[int, ...],
    ) -> list[T] | None:
        self._socket.sendto(self._pack(kind, DUMP, body), (0, 0))
        entries: list[T] = []
        is_complete = True
        while True:
            for reply in self.receive():
                reply_kind, flags, sequence, answer = reply
                if sequence != self._sequence:
                    continue
                is_complete = is_complete and not flags & _DUMP_INTR
                if reply_kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    number, text = _result(reply)
                    if number and number not in absent:
                        raise refused(what, number, text)
                    return entries if is_complete else None
                entry = parse_reply(what, parse, answer)
                if entry is not None:
                    entries.append(entry)

    def _results(self) -> Iterator[tuple[int, int, str]]:
        for reply in self.receive():
            if reply[0] == _NLMSG_ERROR:
                yield reply[2], *_result(reply)

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return (
            _header.pack(16 + len(body), kind, flags | REQUEST, self._sequence, 0)
            + body
            + _PADDING[len(body) & 3]
        )

    def receive(self) -> list[Reply]:
        """Receive one datagram and return its messages. For a datagram of another process, the list
        is empty: only the kernel has the port 0 (netlink(7)). Raises OSError.
        """
        data, _, truncated, (sender, _) = self._socket.recvmsg(_BUFFER)
        if signals.broken(signals.OVERRUN):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        if sender:
            return []
        replies = []
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _header.unpack_from(data, offset)
            if length < 16 or offset + length > len(data) or truncated & _TRUNCATED:
                raise _bad()
            replies.append((kind, flags, sequence, data[offset + 16 : offset + length]))
            offset += (length + 3) & ~3
        return replies

    def _drain(self) -> None:
        """Discard the unread rest of a list, as far as the rest has arrived."""
        with contextlib.suppress(OSError):
            while self._socket.recv(_BUFFER, socket.MSG_DONTWAIT):
                pass


class Netfilter(Netlink):
    """A netlink socket for netfilter (nf_tables, conntrack). After use the open socket is cached
    and used again, unless its last use failed. Closing such a socket takes about 11 ms, until the
    kernel has freed the objects that the last nf_tables transaction removed (nft_rcv_nl_event,
    net/netfilter/nf_tables_api.c). Without the cache, an activation would close five sockets.
    """

    def __init__(self) -> None:
        # a message of another process or namespace is skipped
        self._home = (os.getpid(), os.stat(_OWN).st_ino)
        known = [spare for spare in _spare if spare[0] == self._home]
        if known:
            _spare.remove(known[0])
            _, self._socket, self._sequence = known[0]
        else:
            super().__init__(NETFILTER)

    def __exit__(self, kind: object = None, *_: object) -> None:
        if kind is not None or len(_spare) >= _MOST_SPARE:
            self.close()  # the socket may hold unread answers
        else:
            _spare.append((self._home, self._socket, self._sequence))


_spare: list[tuple[tuple[int, int], socket.socket, int]] = []
_MOST_SPARE = 4


def _bad() -> OSError:
    return OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))


def _result(reply: Reply) -> tuple[int, str]:
    """Return (error number or 0, text) of an answer (struct nlmsgerr). Raises OSError."""
    kind, flags, _, body = reply
    offset = 4 if kind == _NLMSG_DONE else 20  # of the reply's attributes
    try:
        # the message that ends a dump may lack an error number
        has_number = bool(body) or kind == _NLMSG_ERROR
        number = -struct.unpack_from("=i", body)[0] if has_number else 0
        text = ""
        if flags & _ACK_TLVS:
            if kind == _NLMSG_ERROR and not flags & _CAPPED:
                offset = 4 + (int(struct.unpack_from("=I", body, 4)[0]) + 3 & ~3)
            text = string(attributes(body, offset).get(1, b""))  # NLMSGERR_ATTR_MSG
    except MALFORMED as error:
        raise _bad() from error
    if not 0 <= number <= _MOST_ERRNO:
        raise _bad()
    return number, text
