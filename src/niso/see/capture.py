"""Capture packets of services, or dropped packets, as text or as a pcapng file."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.see import pcapng
from niso.see.tcpdump import Tcpdump

if TYPE_CHECKING:
    from typing import Self

    from niso.kernel.nft_drops import Dropped, Drops

_MOST_REASONS = 4096


class Format(NamedTuple):
    """The output of a capture: lines of text, or a pcapng file.

    ``names`` maps addresses to names. ``filter`` is an expression (pcap-filter(7)), ``most`` the
    number of packets after which the capture ends.
    """

    names: Mapping[str, str]
    filter: str = ""
    most: int | None = None
    text: bool = True


def expression(addresses: Iterable[str], port: int | None, more: str) -> str:
    """Build a filter (pcap-filter(7)): one of these addresses, this port, and ``more``."""
    parts = []
    hosts = " or ".join(f"host {address}" for address in addresses)
    if hosts:
        parts.append(f"({hosts})")
    if port is not None:
        parts.append(f"port {port}")
    if more:
        parts.append(f"({more})")
    return " and ".join(parts)


class _Source:
    """A running tcpdump of a capture."""

    def __init__(self, name: str, tcpdump: Tcpdump, converter: pcapng.Converter) -> None:
        self.name, self.tcpdump, self.converter = name, tcpdump, converter
        self.incomplete = b""  # the end of the output, if it is a part of a line


class Capture:
    """Running captures of several services, merged. A context manager.

    ``namespaces`` maps service names to network namespaces. Raises Error if tcpdump is not
    installed, KernelError and ProcessError.
    """

    def __init__(self, namespaces: Mapping[str, str], form: Format) -> None:
        self._form = form
        self._file = pcapng.File(form.names, self._reason, form.most)
        self._left = form.most
        self._epoll = select.epoll()
        self._sources: list[_Source] = []
        self._wide = 0
        try:
            for name, namespace in namespaces.items():
                self._start(name, ["-i", "any"], namespace)
        except BaseException:
            self.close()
            raise
        if len(namespaces) > 1:
            self._wide = max(map(len, namespaces)) + 2

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def read(self) -> bytes:
        """Wait for packets; return b"" when all captures have ended.

        Raises ProcessError if one failed.
        """
        while (shown := self.read_ready(None)) is None:
            pass
        return shown

    def read_ready(self, seconds: float | None = 0.0) -> bytes | None:
        """Do the same as `read`, but return None if there is nothing to show yet.

        Waits at most ``seconds`` for an event; None waits for ever. ``fileno`` is readable when an
        event is pending.
        """
        if not self._sources:
            return b""
        for fd, _ in self._epoll.poll(seconds):
            if shown := self._take(fd):
                return shown
        return None if self._sources else b""

    def stop(self) -> None:
        """Stop the captures; `read` still returns what was captured before."""
        for source in self._sources:
            source.tcpdump.stop()

    def close(self) -> None:
        """Stop all captures and close their descriptors."""
        for source in self._sources:
            source.tcpdump.close()
        self._sources = []
        self._epoll.close()

    def _start(
        self, name: str, words: Sequence[str], namespace: str = "", stdin: int | None = None
    ) -> None:
        form = self._form
        argv = [*words, *(["-l"] if form.text else ["-U", "-w", "-"])]
        argv += [] if form.most is None else ["-c", str(form.most)]
        tcpdump = Tcpdump(argv, form.filter, form.names, namespace, stdin)
        self._sources.append(_Source(name, tcpdump, pcapng.Converter(self._file, name)))
        for fd in (tcpdump.out, tcpdump.err):
            self._epoll.register(fd, select.EPOLLIN)

    def _take(self, fd: int) -> bytes:
        """Read from a ready descriptor; return the output to show."""
        for source in self._sources:
            if fd == source.tcpdump.err:
                if not source.tcpdump.hear():
                    self._epoll.unregister(fd)
                return b""
            if fd == source.tcpdump.out:
                data = source.tcpdump.read()
                if not data:
                    self._sources.remove(source)
                    source.tcpdump.close()
                shown = (
                    self._lines(source, data) if self._form.text else source.converter.feed(data)
                )
                if self._file.is_full or self._left == 0:
                    self.stop()
                return shown
        return b""

    def _lines(self, source: _Source, data: bytes) -> bytes:
        """Return the complete lines, up to the requested number of packets."""
        *lines, source.incomplete = (source.incomplete + data).split(b"\n")
        shown = []
        for line in filter(None, lines):  # tcpdump ends with an empty line
            # an indented line continues the packet before
            if not line[:1].isspace() and self._left is not None:
                if self._left == 0:
                    break
                self._left -= 1
            shown.append(
                f"{source.name:<{self._wide}}".encode() * (self._wide > 0) + self._line(line)
            )
        return b"".join(line + b"\n" for line in shown)

    def _line(self, line: bytes) -> bytes:
        return line

    def _reason(self, _: int) -> str:
        return ""


class DropCapture(Capture):
    """A capture of packets that rules drop, each with the reason.

    ``words`` returns the reason. The kernel reports headers only; tcpdump prints and filters them.
    """

    def __init__(self, drops: Drops, words: Callable[[Dropped], str], form: Format) -> None:
        self._drops, self._words = drops, words
        self._reasons: dict[int, str] = {}
        self._last = 0
        self._pipe = -1
        super().__init__({}, form)
        try:
            end, self._pipe = os.pipe2(os.O_CLOEXEC)
            try:
                words_ = ["-r", "-", *(["-tt"] if form.text else [])]
                self._start("dropped", words_, stdin=end)
            finally:
                os.close(end)
            os.set_blocking(self._pipe, False)
            os.write(self._pipe, pcapng.pcap_header())
            self._epoll.register(drops, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._drops.close()
        self._hang_up()
        super().close()

    def stop(self) -> None:
        self._hang_up()  # tcpdump exits at the end of its input

    def _hang_up(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _take(self, fd: int) -> bytes:
        if fd != self._drops.fileno():
            return super()._take(fd)
        for dropped in self._drops.dropped():
            self._last = max(self._last + 1, time.time_ns() // 1000)
            self._reasons[self._last] = self._words(dropped)
            if len(self._reasons) > _MOST_REASONS:
                del self._reasons[next(iter(self._reasons))]
            packet = pcapng.pcap_packet(self._last, dropped.headers, dropped.length)
            # the pipe is full because tcpdump cannot keep up, or tcpdump has just exited: drop the
            # packet
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                if self._pipe >= 0:
                    os.write(self._pipe, packet)
        return b""

    def _line(self, line: bytes) -> bytes:
        seconds, dot, others = line.partition(b".")
        micros, _, what = others.partition(b" ")
        if not (dot and seconds.isdigit() and micros.isdigit()):
            return line
        clock = time.strftime("%H:%M:%S", time.localtime(int(seconds)))
        reason = self._reason(int(seconds) * 1_000_000 + int(micros))
        return f"{clock}.{micros.decode()} ".encode() + what + f"  ({reason})".encode()

    def _reason(self, at: int) -> str:
        return self._reasons.get(at, "")
