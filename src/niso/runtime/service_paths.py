"""Open files as a service sees them, without entering its root: links never lead out of it."""

from __future__ import annotations

import errno
import os
import stat

MAX_DATABASE_BYTES = 4 << 20
_MAX_LINKS = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_inside(mounts: dict[str, str], path: str) -> tuple[int, str]:
    """Open ``path`` as a service sees it, without side effects (O_PATH).

    ``mounts`` says which folder of the host shows where (``{"": rootfs, "/app": package}``); "" is the root.
    Out: the descriptor, which the caller closes, and the path inside the service with all links followed.
    Raises OSError (ENOENT, ENOTDIR, ELOOP ...).
    """
    todo = _parts(path)
    done: list[str] = []
    links = 0
    fd = _open_real(mounts, done)
    try:
        while todo:
            part = todo.pop()
            if part == "..":
                # '..' of a mounted folder lies on the host, so go down again from the top.
                done = done[:-1]
                following = _open_real(mounts, done)
            else:
                target = mounts.get("/" + "/".join([*done, part]))
                following = (
                    os.open(target, _FOLDER) if target else os.open(part, _NOFOLLOW, dir_fd=fd)
                )
                if not stat.S_ISLNK(os.fstat(following).st_mode):
                    done.append(part)
                else:
                    links += 1
                    link = os.readlink("", dir_fd=following)
                    os.close(following)
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    todo.extend(_parts(link))
                    if not link.startswith("/"):
                        continue
                    done = []
                    following = _open_real(mounts, done)
            fd, above = following, fd
            os.close(above)  # which nobody closes once more where an interrupt comes now
        if path.endswith("/") and not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    except BaseException:
        os.close(fd)
        raise
    return fd, "/" + "/".join(done)


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _open_real(mounts: dict[str, str], parts: list[str]) -> int:
    """Open a folder whose path inside the service has no links left in it."""
    fd = os.open(mounts[""], _FOLDER)
    for i, part in enumerate(parts):
        target = mounts.get("/" + "/".join(parts[: i + 1]))
        try:
            following = os.open(target, _FOLDER) if target else os.open(part, _NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = following
    return fd


def read_inside(mounts: dict[str, str], path: str) -> bytes:
    """The content of a small regular file as the service sees it. Raises OSError (EFBIG over 4 MiB, EINVAL if no file)."""
    fd, _ = open_inside(mounts, path)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if found.st_size > MAX_DATABASE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(MAX_DATABASE_BYTES)
    finally:
        os.close(fd)
