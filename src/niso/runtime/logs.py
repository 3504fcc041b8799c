"""Rotate and read the logs of services, which conmon writes in its format ``k8s-file``.

conmon writes ``service.log``. If the log exceeds 16 MiB when niso reads the service's status, niso
renames ``service.log.1`` to ``.2`` and ``service.log`` to ``.1``, and makes conmon open a new file.

Between two reads of its status, a service may write much more than 16 MiB. To limit the disk space,
conmon itself replaces the file when it reaches `niso.runtime.launch.LOG_SIZE_MAX` bytes. The old
file survives as ``service.log.kept``, a hard link that niso has created. At least the last 10 MB of
the output therefore remain, if the service writes less than twice this size between two reads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from heapq import merge

from niso.base import paths, signals
from niso.base.locks import open_lock
from niso.base.named_tuples import NamedTuple
from niso.runtime.crun import read_state

# --- the log of a service -------------------------------------------------------------------------


ROTATE_BYTES = 16 << 20
_BLOCK = 1 << 16
_LONGEST_LINE = 1 << 20
_POLL_S = 0.05
_REOPEN_S = 1.0


class Record(NamedTuple):
    """A line of the log file: a complete line that the service wrote, or a part of it. With
    ``partial``, the next record of the same stream continues the line.
    """

    stamp: bytes
    """the time in the format of RFC 3339"""
    stream: bytes
    """stdout or stderr"""
    partial: bool
    """whether the next record of the stream continues the line"""
    text: bytes


def rotate_if_large(service: str) -> None:
    """Start a new log file if the present one exceeds 16 MiB, unless another process does so."""
    path = f"{paths.log_dir(service)}/{paths.LOG_NAME}"
    try:
        large = os.stat(path).st_size > ROTATE_BYTES
    except FileNotFoundError:
        return
    if not large and _same(path, f"{path}.kept"):
        return
    lock = open_lock(f"{service}.log")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _link_kept(path)
        if large:
            signals.hit(f"rotate the log of {service}")
            _rotate(service, path)
            _link_kept(path)
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(lock)


def read(
    service: str,
    last: int | None = None,
    follow: bool = False,
    timestamps: bool = False,
    since: float | None = None,
) -> Iterator[bytes]:
    """Yield the lines that a service wrote to stdout and stderr, in the order of their arrival.

    Each line ends with its newline, except an incomplete last line. ``last`` limits the output to
    this number of lines at the end. With ``follow``, new lines are yielded too, until the log
    folder is removed. With ``timestamps``, each line starts with its time (RFC 3339) and a space.
    ``since`` is a Unix time in seconds: lines before the first line from that time on are left out.
    """
    for record in records(service, last, follow, since):
        if record is not None:
            yield shown(record, timestamps)


def records(
    service: str, last: int | None, follow: bool, since: float | None
) -> Iterator[Record | None]:
    """Yield the log records for `read`. With ``follow``, None separates old and new records."""
    files = _open_files(f"{paths.log_dir(service)}/{paths.LOG_NAME}")
    try:
        start, offset = (0, 0) if last is None else _tail(files, last)
        # Switch to following at this offset, so that a concurrently written line is shown once.
        end = _end_of_last_line(files[-1]) if files and follow else None
        past = _joined(
            line
            for i, fd in enumerate(files[start:])
            for line in _lines(fd, 0 if i else offset, end if fd == files[-1] else None)
        )
        if since is not None:
            past = _from(past, since)
        if last is None and not follow:
            yield from past
            return
        if last is not None:
            past = iter(deque(past, maxlen=last))
        unfinished: list[Record] = []
        for record in past:
            if record.partial and follow:
                unfinished.append(record)
            else:
                yield record
        if follow:
            yield None
            newest = files.pop() if files else -1
            yield from _joined(_follow(service, newest, end or 0), unfinished)
    finally:
        for fd in files:
            os.close(fd)


def _from(records: Iterator[Record], since: float) -> Iterator[Record]:
    for record in records:
        try:
            late = datetime.fromisoformat(record.stamp.decode()).timestamp() >= since
        except ValueError:  # a damaged line
            late = False
        if late:
            yield record
            break
    yield from records


def shown(record: Record, timestamps: bool) -> bytes:
    end = b"" if record.partial else b"\n"
    return record.stamp + b" " + record.text + end if timestamps else record.text + end


def _joined(lines: Iterator[bytes], begun: list[Record] | None = None) -> Iterator[Record]:
    """Parse lines of log files into records, and join the parts of a line that conmon has split.

    Records of stderr can separate the parts of a line of stdout, and vice versa. ``begun`` has
    incomplete records that the first lines continue.
    """
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


def _lines(fd: int, offset: int, end: int | None) -> Iterator[bytes]:
    partial = b""
    while block := os.pread(fd, _BLOCK if end is None else min(_BLOCK, end - offset), offset):
        offset += len(block)
        *whole, partial = (partial + block).split(b"\n")
        yield from whole


def _follow(service: str, fd: int, offset: int) -> Iterator[bytes]:
    """Yield the new lines of a log, even across rotations, until the log folder is removed.

    ``fd`` is the newest file, which this function closes, or -1 without a file. ``offset`` is the
    position up to which this file has been read.
    """
    path = f"{paths.log_dir(service)}/{paths.LOG_NAME}"
    partial = b""
    try:
        while True:
            # Stat before the read: if another file has the name, this one is complete when read to
            # its end.
            present = _identity(path)
            while fd >= 0 and (block := os.pread(fd, _BLOCK, offset)):
                offset += len(block)
                *whole, partial = (partial + block).split(b"\n")
                yield from whole
            if present is not None and (fd < 0 or present != _identity(fd)):
                if fd >= 0:
                    os.close(fd)
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    fd = -1
                offset, partial = 0, b""
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
        newline = os.pread(fd, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _tail(files: list[int], last: int) -> tuple[int, int]:
    """Return a position as (index of a file, offset) after which a log has at least ``last`` lines.
    The files are read from their end.
    """
    ended = 0
    for i in reversed(range(len(files))):
        end = os.fstat(files[i]).st_size
        partial = b""
        while end > 0:
            begin = max(0, end - _BLOCK)
            head, *whole = (os.pread(files[i], end - begin, begin) + partial).split(b"\n")
            if begin == 0:
                whole.insert(0, head)
                head = b""
            # The first record of a line can precede the end of the previous line: read one line
            # more.
            ended += sum(1 for line in whole if line.split(b" ", 3)[2:3] == [b"F"])
            if ended > last:
                return i, begin + len(head) + (1 if begin else 0)
            partial = head
            end = begin
    return 0, 0


def _open_files(path: str) -> list[int]:
    """Open the files of a log, the oldest first and each once. Return their descriptors."""
    files: list[int] = []
    seen: set[tuple[int, int]] = set()
    # Newest first: a rotation in between then shows a file twice, but never hides one.
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
        name = f"{paths.service_dir(service)}/run-{record['run']}/ctl"
        ctl = os.open(name, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        # Without a conmon: the next conmon creates the file.
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise
    _shift(path, path)
    if ctl < 0:
        return
    try:
        os.write(ctl, b"2 0 0\n")  # REOPEN_LOGS_EVENT (conmon, src/ctrl.c)
    except BrokenPipeError:  # conmon has ended in the meantime
        return
    finally:
        os.close(ctl)
    deadline = time.monotonic() + _REOPEN_S
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)


def _link_kept(path: str) -> None:
    """Create the hard link ``.kept`` to the log, so that conmon's own rotation does not delete it.
    If ``.kept`` still links to an earlier log that conmon has replaced, it is renamed to ``.1``.
    """
    kept = f"{path}.kept"
    if _identity(kept) is not None and not _same(path, kept):
        if _same(kept, f"{path}.1"):
            os.unlink(kept)
        else:
            _shift(path, kept)
    if _identity(path) is not None and _identity(kept) is None:
        os.link(path, kept)


def _shift(path: str, newest: str) -> None:
    if os.path.exists(f"{path}.1"):
        os.rename(f"{path}.1", f"{path}.2")
    os.rename(newest, f"{path}.1")


def _same(first: str, second: str) -> bool:
    one = _identity(first)
    return one is not None and one == _identity(second)


def _identity(file: str | int) -> tuple[int, int] | None:
    try:
        info = os.stat(file)
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


# --- the logs of several services in one stream ---------------------------------------------------


def read_joint(
    services: list[str],
    last: int | None,
    follow: bool,
    timestamps: bool,
    since: float | None,
) -> Iterator[tuple[str, bytes]]:
    """Yield pairs (service, line) from the logs of several services, sorted by time.

    The parameters have the same meaning as in `read`; ``last`` applies to each service. With
    ``follow``, new lines are yielded as they arrive, until all log folders are removed.
    """
    if follow:
        lines = _followed(services, last, since)
    else:
        logs = (
            [(one, record) for record in records(one, last, False, since) if record]
            for one in services
        )
        lines = merge(*logs, key=_time)
    for service, record in lines:
        yield service, shown(record, timestamps)


def _followed(
    services: list[str], last: int | None, since: float | None
) -> Iterator[tuple[str, Record]]:
    from queue import SimpleQueue  # `ps` needs it only for following

    queue: SimpleQueue[tuple[str, Record | None] | None] = SimpleQueue()

    def collect(service: str) -> None:
        caught_up = False
        try:
            for record in records(service, last, True, since):
                queue.put((service, record))
                caught_up = caught_up or record is None
        finally:
            if not caught_up:
                queue.put((service, None))
            queue.put(None)

    for service in services:
        start_new_thread(collect, (service,))
    past: list[tuple[str, Record]] = []
    behind = alive = len(services)
    while alive:
        item = queue.get()
        if item is None:
            alive -= 1
            continue
        service, record = item
        if record is None:
            behind -= 1
            if not behind:
                yield from sorted(past, key=_time)
        elif behind:
            past.append((service, record))
        else:
            yield service, record


def _time(line: tuple[str, Record]) -> bytes:
    # conmon writes all times with the same offset and number of digits
    return line[1].stamp
