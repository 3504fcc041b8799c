"""What a service wrote: conmon's log files (its format ``k8s-file``), read across rotation.

conmon writes ``service.log``. Whenever niso looks at a service whose log is over 16 MiB it renames it to ``service.log.1`` (and that to
``.2``) and has conmon open a new one. conmon's own limit (`niso.runtime.launch.LOG_SIZE_MAX`) bounds the disk for who writes more than that
between two looks: conmon then puts a new file over the name, and the one before lives on as ``service.log.kept``, a hard link that
niso made. So the last 10 MB are there for every service that writes less than twice that limit between two looks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections import deque
from collections.abc import Iterator

from niso.base import failpoint, paths
from niso.base.lite_typing import NamedTuple
from niso.base.locks import open_lock
from niso.runtime.launch import LOG_NAME
from niso.runtime.spec import read_state

ROTATE_BYTES = 16 << 20
_BLOCK = 1 << 16
_LONGEST_LINE = 1 << 20
_POLL_S = 0.05
_REOPEN_S = 1.0


class Record(NamedTuple):
    """One line of the log file: when (RFC 3339), stdout or stderr, whether the line goes on in the next record, the bytes."""

    stamp: bytes
    stream: bytes
    partial: bool
    text: bytes


def rotate_if_large(service: str) -> None:
    """Begin a new log file where the present one is large; two stat(2) otherwise. Who rotates it already is left to it."""
    path = os.path.join(paths.log_dir(service), LOG_NAME)
    try:
        large = os.stat(path).st_size > ROTATE_BYTES
    except FileNotFoundError:
        return
    if not large and _same(path, f"{path}.kept"):
        return
    lock = open_lock(f"{service}.log")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _keep(path)
        if large:
            failpoint.hit(f"rotate the log of {service}")
            _rotate(service, path)
            _keep(path)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(lock)


def read(
    service: str, last: int | None = None, follow: bool = False, timestamps: bool = False
) -> Iterator[bytes]:
    """The lines that a service wrote, each with its newline; both streams in the order of their arrival.

    ``last``: only so many from the end. ``follow``: go on with what comes, until the service's log folder is gone. ``timestamps``: each
    line begins with its time (RFC 3339) and a space. A line that the service has not ended has no newline and comes last.
    """
    files = _open(os.path.join(paths.log_dir(service), LOG_NAME))
    try:
        start, offset = (0, 0) if last is None else _tail(files, last)
        past = _joined(
            (
                line
                for i, fd in enumerate(files)
                if i >= start
                for line in _lines(fd, offset if i == start else 0)
            )
        )
        if last is None and not follow:
            yield from (_shown(record, timestamps) for record in past)
            return
        if last is not None:
            past = iter(deque(past, maxlen=last))
        unfinished: list[Record] = []
        for record in past:
            if record.partial and follow:
                unfinished.append(record)
            else:
                yield _shown(record, timestamps)
        if follow:
            newest = files.pop() if files else -1
            yield from (
                _shown(record, timestamps)
                for record in _joined(_coming(service, newest), unfinished)
            )
    finally:
        for fd in files:
            os.close(fd)


def _shown(record: Record, timestamps: bool) -> bytes:
    end = b"" if record.partial else b"\n"
    return record.stamp + b" " + record.text + end if timestamps else record.text + end


def _joined(lines: Iterator[bytes], begun: list[Record] | None = None) -> Iterator[Record]:
    """Whole lines of the log's records. Records of the other stream in between do not break a line."""
    open_lines = {record.stream: record for record in begun or ()}
    for line in lines:
        parts = line.split(b" ", 3)
        if len(parts) != 4:
            continue
        record = Record(parts[0], parts[1], parts[2] == b"P", parts[3])
        before = open_lines.pop(record.stream, None)
        if before is not None:
            record = Record(before.stamp, record.stream, record.partial, before.text + record.text)
        if record.partial and len(record.text) < _LONGEST_LINE:
            open_lines[record.stream] = record
        else:
            yield record
    yield from open_lines.values()


def _lines(fd: int, offset: int) -> Iterator[bytes]:
    """The whole lines of a file from ``offset`` (the start of one) on, without their newlines."""
    rest = b""
    while block := os.pread(fd, _BLOCK, offset):
        offset += len(block)
        *whole, rest = (rest + block).split(b"\n")
        yield from whole


def _coming(service: str, fd: int) -> Iterator[bytes]:
    """What is written from now on, across rotation, until the log folder is gone. ``fd`` was read to its end; it is closed here."""
    path = os.path.join(paths.log_dir(service), LOG_NAME)
    offset = _end_of_last_line(fd) if fd >= 0 else 0
    rest = b""
    try:
        while True:
            # Looked at before the read: what is read to its end after another file has the name is complete.
            present = _identity(path)
            while fd >= 0 and (block := os.pread(fd, _BLOCK, offset)):
                offset += len(block)
                *whole, rest = (rest + block).split(b"\n")
                yield from whole
            if present is not None and (fd < 0 or present != _identity(fd)):
                if fd >= 0:
                    os.close(fd)
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    fd = -1
                offset, rest = 0, b""
                continue
            if present is None and not os.path.isdir(os.path.dirname(path)):
                return
            time.sleep(_POLL_S)
    finally:
        if fd >= 0:
            os.close(fd)


def _end_of_last_line(fd: int) -> int:
    end = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - _BLOCK)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _tail(files: list[int], last: int) -> tuple[int, int]:
    """Which file, and which line start in it, has at least the ``last`` lines (and their first parts) after it; read from the end."""
    ended = 0
    for i in reversed(range(len(files))):
        end = os.fstat(files[i]).st_size
        rest = b""
        while end > 0:
            begin = max(0, end - _BLOCK)
            head, *whole = (os.pread(files[i], end - begin, begin) + rest).split(b"\n")
            if begin == 0:
                whole.insert(0, head)
                head = b""
            # The first record of a line may lie before the end of the line above it, so one more line is read.
            ended += sum(1 for line in whole if line.split(b" ", 3)[2:3] == [b"F"])
            if ended > last:
                return i, begin + len(head) + (1 if begin else 0)
            rest = head
            end = begin
    return 0, 0


def _open(path: str) -> list[int]:
    """The files of a log, the oldest first, each once."""
    files: list[int] = []
    seen: set[tuple[int, int]] = set()
    # The newest first: a rotation meanwhile then shows a file twice, never not at all.
    for name in (path, f"{path}.kept", f"{path}.1", f"{path}.2"):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        identity = _identity(fd)
        if identity is None or identity in seen or not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            continue
        seen.add(identity)
        files.insert(0, fd)
    return files


def _rotate(service: str, path: str) -> None:
    record = read_state(service) or {"run": 0}
    ctl = -1
    try:
        ctl = os.open(
            os.path.join(paths.service_dir(service), f"run-{record['run']}", "ctl"),
            os.O_WRONLY | os.O_NONBLOCK,
        )
    except OSError as error:
        # No conmon: the next one makes the file.
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise
    _shift(path, path)
    if ctl < 0:
        return
    try:
        # "Open the log file anew" (conmon, src/ctrl.c: REOPEN_LOGS_EVENT).
        os.write(ctl, b"2 0 0\n")
    finally:
        os.close(ctl)
    deadline = time.monotonic() + _REOPEN_S
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)


def _keep(path: str) -> None:
    """Give the present file a second name, so that it outlives conmon's own rotation; move on the one that did."""
    kept = f"{path}.kept"
    if _identity(kept) is not None and not _same(path, kept):
        if _same(kept, f"{path}.1"):
            os.unlink(kept)
        else:
            _shift(path, kept)
    if _identity(path) is not None and _identity(kept) is None:
        os.link(path, kept)


def _shift(path: str, newest: str) -> None:
    """``newest`` becomes ``.1``, what that was becomes ``.2``."""
    if os.path.exists(f"{path}.1"):
        os.rename(f"{path}.1", f"{path}.2")
    os.rename(newest, f"{path}.1")


def _same(first: str, second: str) -> bool:
    one = _identity(first)
    return one is not None and one == _identity(second)


def _identity(file: str | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
