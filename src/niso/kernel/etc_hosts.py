"""Edit niso's block in the host's own hosts file (hosts(5)), atomically.

The rest of the file belongs to the administrator and other programs, and stays byte for byte.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from niso.base import failpoint, files
from niso.base.errors import KernelError

PATH = "/etc/hosts"
_TRIES = 3
_WHY = {
    errno.EBUSY: ("is a mount point, as in a container", "change it outside"),
    errno.EPERM: ("or its folder is immutable", "lsattr -d /etc /etc/hosts"),
    errno.EROFS: ("is on a read-only file system", "remount it, or do without"),
}


def lines(mark: str) -> tuple[str, ...]:
    """Return the lines of the block with this mark; none if there is no such block.

    Raises KernelError if the file is unusable.
    """
    _, block, _ = _parts(_read()[0], mark)
    return tuple(line.decode(errors="replace") for line in block.splitlines())


def write(mark: str, wanted: Iterable[str], always: bool = False) -> bool:
    """Replace the block with this mark; without ``wanted`` lines, remove it.

    Returns whether the file changed. With ``always`` the file is replaced even if nothing changes,
    to test whether it can be. Mode, owner and extended attributes (SELinux) are preserved. Raises
    KernelError; then the file is unchanged.
    """
    inside = "".join(f"{line}\n" for line in wanted).encode()
    for _ in range(_TRIES):
        text, status = _read()
        before, block, after = _parts(text, mark)
        if block == inside and not always:
            return False
        begin, end = _marks(mark)
        if before and not before.endswith(b"\n"):
            before += b"\n"
        new = before + (begin + inside + end if inside else b"") + after
        if _replace(new, status):
            return block != inside
    raise _unusable("changes all the time", "try again")


def _marks(mark: str) -> tuple[bytes, bytes]:
    begin = f"# niso {mark}: names of services; niso net names --host off removes them\n"
    return begin.encode(), f"# niso {mark}: end\n".encode()


def _parts(text: bytes, mark: str) -> tuple[bytes, bytes, bytes]:
    """Split the text into the parts before, in and after the block. Raises KernelError."""
    begin, end = _marks(mark)
    if text.count(begin) == text.count(end) == 0:
        return text, b"", b""
    before, _, tail = text.partition(begin)
    block, _, after = tail.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        number = text[: text.find(begin if begin in text else end)].count(b"\n") + 1
        reason = f"has a damaged block of niso at line {number}"
        raise _unusable(reason, f"remove the lines that begin with '# niso {mark}:'")
    return before, block, after


def _read() -> tuple[bytes, os.stat_result]:
    try:
        status = os.lstat(PATH)
        if stat.S_ISLNK(status.st_mode):
            raise _unusable(f"is a symbolic link to {os.readlink(PATH)}", "niso leaves it alone")
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise _unusable("is not a regular file with one name", "niso leaves it alone")
        return files.read(PATH) or b"", status
    except OSError as error:
        reason = f"cannot be read: {str(error.strerror).lower()}"
        raise _unusable(reason, "niso changes only a file that exists") from error


def _replace(text: bytes, status: os.stat_result) -> bool:
    """Rename a new file over the old one, unless that has changed since.

    Returns whether the file was replaced.
    """
    draft = f"{PATH}.niso-new"
    try:
        fd = files.make(draft, 0o600)
        try:
            files.write(fd, text)
            os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            for name in os.listxattr(PATH):
                os.setxattr(fd, name, os.getxattr(PATH, name))
            os.fsync(fd)
        finally:
            os.close(fd)
        now = os.lstat(PATH)
        if (now.st_ino, now.st_mtime_ns, now.st_size) != (
            status.st_ino,
            status.st_mtime_ns,
            status.st_size,
        ):
            os.unlink(draft)
            return False
        failpoint.hit(f"rename {PATH}")
        os.rename(draft, PATH)
        files.sync(os.path.dirname(PATH))
    except OSError as error:
        with suppress(OSError):
            os.unlink(draft)
        reason, hint = _WHY.get(error.errno or 0, (f"cannot be written: {error.strerror}", ""))
        raise _unusable(reason, hint, error.errno or 0) from error
    return True


def _unusable(reason: str, hint: str, number: int = 0) -> KernelError:
    return KernelError(f"{PATH} {reason}", hint or None, number)


def clear() -> None:
    """Remove the blocks of all state folders. Raises KernelError."""
    text, _ = _read()
    for line in text.splitlines():
        words = line.split()
        if words[:2] == [b"#", b"niso"] and len(words) == 4 and words[3] == b"end":
            write(words[2].decode(errors="replace").rstrip(":"), ())
