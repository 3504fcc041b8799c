"""Compute digests of files in packages, and cache the digests of unchanged files.

A file counts as unchanged while its device, inode, size, mtime and ctime are the same. No process
can set the ctime of a file (utimensat(2)). But two changes within one tick of the clock have the
same ctime, so the digest of a file that changed in the last seconds is not cached.
"""

from __future__ import annotations

import errno
import os
import time
from hashlib import sha256

from niso.base import files, paths

_TICK_S = 2
"""The coarsest timestamps of a file system that can hold niso's packages (FAT), in seconds."""
_CHUNK = 1 << 17
_MANY_BYTES = 1 << 23
_ZEROS = bytes(_CHUNK)
_DIGEST = 64


class Contents:
    """The cached digests of a service's package, from `paths.contents_file`.

    To save them, the caller must hold the service's lock.
    """

    def __init__(self, service: str) -> None:
        self._path = paths.contents_file(service)
        try:
            kept = (files.read(self._path) or b"").decode("utf-8", "surrogateescape").split("\0")
        except OSError:  # the digests are only a cache
            kept = []
        self._kept = {line[_DIGEST:]: line[:_DIGEST] for line in kept if line}
        self._seen: dict[str, str] = {}
        self._recent: set[str] = set()

    def digest(self, path: str, info: os.stat_result, fd: int) -> str:
        """Return the digest of a regular file, 64 hex digits; ``fd`` is open with O_PATH.

        Reads the file unless its digest is cached. Raises OSError.
        """
        times = f"{info.st_mtime_ns} {info.st_ctime_ns}"
        stamp = f"{info.st_dev} {info.st_ino} {info.st_size} {times} {path}"
        known = self._seen.get(stamp) or self._kept.get(stamp)
        if known is None:
            if info.st_ctime_ns > time.time_ns() - _TICK_S * 10**9:
                self._recent.add(stamp)
            known = _read(fd, info.st_size)
        self._seen[stamp] = known
        return known

    def save(self) -> None:
        """Save the digests that were requested; ignore errors."""
        now = {stamp: value for stamp, value in self._seen.items() if stamp not in self._recent}
        if now == self._kept:
            return
        text = "\0".join(value + stamp for stamp, value in now.items())
        draft = _draft(self._path)
        try:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            fd = files.make(draft, 0o600)
            try:
                files.write(fd, text.encode("utf-8", "surrogateescape"))
            finally:
                os.close(fd)
            files.rename(draft, self._path)
        except OSError:
            _remove(draft)


def forget(service: str) -> None:
    """Delete the cached digests of a service; ignore errors."""
    path = paths.contents_file(service)
    _remove(path)
    _remove(_draft(path))


def _draft(path: str) -> str:
    return f"{path}.new"


def _remove(path: str) -> None:
    try:
        files.remove(path)
    except OSError:
        pass


def _read(fd: int, size: int) -> str:
    """Return the digest of an open file: of its size, and of each chunk that is not all zeros.

    A hole therefore equals zeros, and is not read (lseek(2)). Raises OSError.
    """
    if size > _MANY_BYTES:
        # OpenSSL's implementation is faster, but takes 3 ms to load
        from hashlib import sha256 as make
    else:
        make = sha256
    digest = make(f"{size}".encode())
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        while at < size:
            try:
                at = os.lseek(reader, at, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # a hole up to the end of the file
            chunk = os.pread(reader, _CHUNK, at)
            if not chunk:
                break  # the file has become shorter
            if chunk != _ZEROS[: len(chunk)]:
                digest.update(b"%d:" % at)
                digest.update(chunk)
            at += _CHUNK
    finally:
        os.close(reader)
    return digest.hexdigest()
