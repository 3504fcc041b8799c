"""Netlink: messages in one sendmsg, acknowledgements with the kernel's own words, dumps (netlink(7), linux/netlink.h).

The only place where an errno becomes a `KernelError`: see `refused`. Only what the kernel itself sends counts: in a service's
network namespace one with NET_ADMIN could send to our socket too. What is cut off or has lengths that cannot be is an error,
never half an answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

from niso.base import failpoint
from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

ROUTE = 0  # NETLINK_ROUTE
SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
NETFILTER = 12  # NETLINK_NETFILTER

REQUEST = 0x1
ACK = 0x4
DUMP = 0x300
REPLACE = 0x100
EXCL = 0x200
CREATE = 0x400

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_DUMP_INTR = 0x10
_CAPPED = 0x100
_ACK_TLVS = 0x200
_SOL_NETLINK = 270
_CAP_ACK = 10
_EXT_ACK = 11
_GET_STRICT_CHK = 12
_NESTED = 0x8000
_KIND_MASK = 0x3FFF

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_BUFFER = 1 << 17  # bytes; the kernel packs dumps into at most 32 KiB
_DUMP_TRIES = 10
_TRUNCATED = int(socket.MSG_TRUNC)  # as an enum it costs 5 µs for each message
_MOST_ERRNO = 4095  # MAX_ERRNO, linux/err.h
_OWN = "/proc/thread-self/ns/net"

MALFORMED = (struct.error, LookupError, ValueError, OverflowError)
"""What reading an answer raises that is not as the kernel makes it."""

_header = struct.Struct("=IHHII")  # struct nlmsghdr
_attribute = struct.Struct("=HH")  # struct nlattr


class Message(NamedTuple):
    """One request that changes something. ``what`` is the step in words; errnos in ``fine`` count as done."""

    what: str
    kind: int
    flags: int
    body: bytes
    fine: tuple[int, ...] = ()


class _Reply(NamedTuple):
    kind: int
    flags: int
    sequence: int
    body: bytes


def refused(what: str, number: int, words: str = "") -> KernelError:
    """The error for the step ``what`` that failed with errno ``number``; ``words`` are the kernel's own, if it had any."""
    reason = os.strerror(number) if number else ""
    reason = reason[:1].lower() + reason[1:]
    if words:
        reason = f"{reason} ({words})" if reason else words
    hint = "run it as root (sudo niso ...)" if number in (errno.EPERM, errno.EACCES) else None
    return KernelError(f"cannot {what}: {reason}", hint, number)


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _attribute.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def text(kind: int, value: str) -> bytes:
    """A string attribute with its final NUL."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from ``offset`` to the end of ``data``: payload by kind (the last one of a kind wins).

    Raises ValueError (of `MALFORMED`) where a length cannot be.
    """
    found = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _attribute.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise ValueError("an attribute's length")
        found[kind & _KIND_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def several(data: bytes, kind: int) -> Iterator[bytes]:
    """The payloads of all attributes of one kind in ``data``. Raises ValueError where a length cannot be."""
    offset = 0
    while offset + 4 <= len(data):
        length, found = _attribute.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            raise ValueError("an attribute's length")
        if found & _KIND_MASK == kind:
            yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def understood[T](what: str, parse: Callable[[bytes], T], answer: bytes) -> T:
    """What ``parse`` makes of an answer to the step ``what``. Raises KernelError where that is not as the kernel makes it."""
    try:
        return parse(answer)
    except MALFORMED as error:
        raise refused(what, errno.EBADMSG) from error


def string(payload: bytes) -> str:
    """The text of a NUL-terminated attribute."""
    return payload.split(b"\0", 1)[0].decode("utf-8", "replace")


class Netlink:
    """A socket to one netlink family. It belongs to the network namespace in which it was opened, for all its life."""

    def __init__(self, protocol: int) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
        except OSError as error:
            raise refused(
                f"open a netlink socket (protocol {protocol})", error.errno or 0
            ) from error
        self._sequence = 0
        for option in (_EXT_ACK, _CAP_ACK, *((_GET_STRICT_CHK,) if protocol == ROUTE else ())):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def transact(self, *messages: Message) -> None:
        """Send ``messages`` in one sendmsg, which the kernel works through before it returns: a kill cannot part them.

        It does not stop at an error, so the later ones must be harmless where an earlier one failed. Raises KernelError
        for the first that failed and is not ``fine``.
        """
        first, last = self._sequence + 1, self._sequence + len(messages)
        # what fails is answered in any case, and before the last one, of which alone success is asked for
        packet = b"".join(
            self._pack(message.kind, message.flags | (ACK if sequence == last else 0), message.body)
            for sequence, message in enumerate(messages, first)
        )
        results: dict[int, tuple[int, str]] = {}
        try:
            failpoint.hit(messages[0].what)
            self._socket.sendto(packet, (0, 0))
            while last not in results:
                for reply in self._receive():
                    if reply.kind == _NLMSG_ERROR and first <= reply.sequence <= last:
                        results[reply.sequence] = _result(reply, 20)
        except OSError as error:
            raise refused(messages[0].what, error.errno or 0) from error
        for sequence, message in enumerate(messages, first):
            number, words = results.get(sequence, (0, ""))
            if number and number not in message.fine:
                raise refused(message.what, number, words)

    def transact_batch(
        self,
        what: str,
        begin: Message,
        messages: list[Message],
        end: Message,
        clashes: tuple[int, ...],
    ) -> None:
        """Send a batch (nfnetlink_rcv_batch), which the kernel takes whole or not at all. Raises KernelError.

        An errno in ``clashes`` is told as EEXIST.
        """
        start = self._sequence + 1
        packets = [self._pack(begin.kind, begin.flags, begin.body)]
        for i, message in enumerate(messages):
            # the last is acknowledged when all have been taken in; errors of others come before
            flags = message.flags | (ACK if i == len(messages) - 1 else 0)
            packets.append(self._pack(message.kind, flags, message.body))
        last = self._sequence
        packets.append(self._pack(end.kind, end.flags, end.body))
        packet = b"".join(packets)
        try:
            failpoint.hit(what)
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(
                    socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(packet) + _BUFFER
                )
            self._socket.sendto(packet, (0, 0))
            while True:
                for reply in self._receive():
                    if reply.kind != _NLMSG_ERROR or reply.sequence < start:
                        continue
                    number, words = _result(reply, 20)
                    if number:
                        raise refused(what, errno.EEXIST if number in clashes else number, words)
                    if reply.sequence == last:
                        return
        except OSError as error:
            raise refused(what, error.errno or 0) from error

    def get_one(self, what: str, kind: int, body: bytes, absent: tuple[int, ...]) -> bytes | None:
        """The body of the one answer to a request; None where the kernel answers with an errno in ``absent``."""
        return self.get_all(what, kind, [body], absent)[0]

    def get_all(
        self, what: str, kind: int, bodies: list[bytes], absent: tuple[int, ...]
    ) -> list[bytes | None]:
        """As `get_one` for each of ``bodies``, in one sendmsg. Their answers must fit the socket's buffer together."""
        first = self._sequence + 1
        packet = b"".join(self._pack(kind, 0, body) for body in bodies)
        asked = range(first, self._sequence + 1)
        answers: dict[int, bytes | None] = {}
        try:
            self._socket.sendto(packet, (0, 0))
            while len(answers) < len(bodies):
                for reply in self._receive():
                    if reply.sequence not in asked:
                        continue
                    answers[reply.sequence] = reply.body
                    if reply.kind == _NLMSG_ERROR:
                        number, words = _result(reply, 20)
                        if number not in absent:
                            raise refused(what, number, words)
                        answers[reply.sequence] = None
        except OSError as error:
            raise refused(what, error.errno or 0) from error
        return [answers[sequence] for sequence in asked]

    def dump[T](
        self,
        what: str,
        kind: int,
        body: bytes,
        parse: Callable[[bytes], T | None],
        absent: tuple[int, ...] = (),
    ) -> list[T]:
        """All that ``parse`` makes of the bodies of a dump, without None; empty where it ends with an errno in ``absent``.

        A dump that something else's changes interrupted, or that overran the socket, is asked for again.
        """
        for _ in range(_DUMP_TRIES):
            try:
                found = self._dump_once(what, kind, body, parse, absent)
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EBUSY):
                    raise refused(what, error.errno or 0) from error
                self._drain()
                continue
            if found is not None:
                return found
        raise refused(what, errno.EBUSY, f"it changed each of the {_DUMP_TRIES} times it was read")

    def _dump_once[T](
        self,
        what: str,
        kind: int,
        body: bytes,
        parse: Callable[[bytes], T | None],
        absent: tuple[int, ...],
    ) -> list[T] | None:
        self._socket.sendto(self._pack(kind, DUMP, body), (0, 0))
        found: list[T] = []
        whole = True
        while True:
            for reply in self._receive():
                if reply.sequence != self._sequence:
                    continue
                whole = whole and not reply.flags & _DUMP_INTR
                if reply.kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    number, words = _result(reply, 4 if reply.kind == _NLMSG_DONE else 20)
                    if number and number not in absent:
                        raise refused(what, number, words)
                    return found if whole else None
                thing = understood(what, parse, reply.body)
                if thing is not None:
                    found.append(thing)

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return (
            _header.pack(16 + len(body), kind, flags | REQUEST, self._sequence, 0)
            + body
            + b"\0" * (-len(body) % 4)
        )

    def _receive(self) -> list[_Reply]:
        """The messages of one datagram of the kernel, whose port is 0 (netlink(7)). Raises OSError."""
        data, _, truncated, (sender, _) = self._socket.recvmsg(_BUFFER)
        if failpoint.broken(failpoint.OVERRUN):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        if sender:
            return []
        replies = []
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _header.unpack_from(data, offset)
            if length < 16 or offset + length > len(data) or truncated & _TRUNCATED:
                raise _bad()
            replies.append(_Reply(kind, flags, sequence, data[offset + 16 : offset + length]))
            offset += (length + 3) & ~3
        return replies

    def _drain(self) -> None:
        """Drop what an abandoned dump left in the socket; more of it is told by its sequence number."""
        try:
            while self._socket.recv(_BUFFER, socket.MSG_DONTWAIT):
                pass
        except OSError:
            return


class Netfilter(Netlink):
    """A socket to netfilter (nf_tables, connection tracking). One that is given back in good order is used again by the next.

    To close any of them waits, some 11 ms, until the kernel has freed what the last transaction of nf_tables took away
    (nft_rcv_nl_event, net/netfilter/nf_tables_api.c): an activation or end of a service opens five.
    """

    def __init__(self) -> None:
        # not another process's, nor one of another namespace
        self._home = (os.getpid(), os.stat(_OWN).st_ino)
        known = [each for each in _spare if each[0] == self._home]
        if known:
            _spare.remove(known[0])
            _, self._socket, self._sequence = known[0]
        else:
            super().__init__(NETFILTER)

    def __exit__(self, kind: object = None, *_: object) -> None:
        if kind is not None or len(_spare) >= _MOST_SPARE:
            self.close()  # it may hold answers that nobody has read
        else:
            _spare.append((self._home, self._socket, self._sequence))


_spare: list[tuple[tuple[int, int], socket.socket, int]] = []
_MOST_SPARE = 4


def _bad() -> OSError:
    return OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))


def _result(reply: _Reply, offset: int) -> tuple[int, str]:
    """errno (0 for success) and the extended acknowledgement's text, which starts at ``offset`` (struct nlmsgerr).

    Raises OSError.
    """
    try:
        # the end of a dump may be without a number
        number = (
            -struct.unpack_from("=i", reply.body)[0]
            if reply.body or reply.kind == _NLMSG_ERROR
            else 0
        )
        words = ""
        if reply.flags & _ACK_TLVS:
            if reply.kind == _NLMSG_ERROR and not reply.flags & _CAPPED:
                offset = 4 + (int(struct.unpack_from("=I", reply.body, 4)[0]) + 3 & ~3)
            words = string(attributes(reply.body, offset).get(1, b""))  # NLMSGERR_ATTR_MSG
    except MALFORMED as error:
        raise _bad() from error
    if not 0 <= number <= _MOST_ERRNO:
        raise _bad()
    return number, words
