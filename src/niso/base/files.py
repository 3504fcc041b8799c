"""Read and write niso's own files safely, even if another program replaced them.

Only a regular file counts as present. No function here follows a symbolic link or blocks on a FIFO.
"""

from __future__ import annotations

import errno
import os
import stat

_NONE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)  # ELOOP: a symbolic link; ENXIO: a socket


def read(path: str, mode: int = 0) -> bytes | None:
    """Return the content of the regular file ``path``.

    Returns None if no regular file exists there, or if its permissions lack any bit of ``mode``.
    Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & mode != mode:
            return None
        parts, size = [], status.st_size + 1
        while part := os.read(fd, size):
            parts.append(part)
            if len(part) < size:  # a short read means end of file; this saves one more read(2)
                break
        return b"".join(parts)
    finally:
        os.close(fd)


def of_process(pid: int | None, name: str) -> bytes:
    """Read a file of a process in /proc (proc(5)). Returns b"" if the process has ended.

    Raises OSError.
    """
    content = b""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while part := os.read(fd, 1 << 16):
                content += part
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    return content


def make(path: str, mode: int) -> int:
    """Create the file ``path`` and return a descriptor for writing.

    An existing file or empty folder at ``path`` is removed first. Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        remove(path)
        return os.open(path, flags, mode)


def write(fd: int, content: bytes) -> None:
    """Write all of ``content``. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def replace(path: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Replace the file ``path`` atomically: a reader sees the old or the new file.

    This also holds after a power cut. ``owner`` is (uid, gid) of the new file, None for this
    process's. Raises OSError.
    """
    draft = f"{path}.new"
    fd = make(draft, mode)
    try:
        write(fd, content)
        if owner is not None:
            os.fchown(fd, *owner)
        os.fsync(fd)
    finally:
        os.close(fd)
    rename(draft, path)


def require_plain(path: str) -> None:
    """Raise OSError if ``path`` is a folder, a symbolic link or a device such as /dev/null.

    Such a path must not be passed to `rename`, which would replace the link or device.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "it is not a regular file")


def sync(path: str) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(draft: str, path: str) -> None:
    """Rename ``draft`` to ``path``, also over an empty folder. Raises OSError."""
    try:
        os.rename(draft, path)
    except IsADirectoryError:
        os.rmdir(path)
        os.rename(draft, path)


def remove(path: str) -> None:
    """Remove a file or an empty folder. Raises OSError."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        os.rmdir(path)


def is_own_folder(info: os.stat_result) -> bool:
    """Return whether a file is a folder that only root and this process's user can modify.

    ``info`` is its os.stat_result.
    """
    own = info.st_uid in (0, os.geteuid()) and not info.st_mode & 0o022
    return stat.S_ISDIR(info.st_mode) and own
