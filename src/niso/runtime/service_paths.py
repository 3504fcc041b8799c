"""Open files as a service sees them, without entering its root.

Paths are walked component by component, so no symlink leads out of the root.
"""

from __future__ import annotations

import errno
import os
import stat

MAX_FILE_BYTES = 4 << 20
"""The largest file that `read_inside` reads."""
_MAX_LINKS = 40
"""As the kernel's limit (MAXSYMLINKS, path_resolution(7))."""
TOP_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_OF_THE_HOST = frozenset(("usr", "etc", *TOP_LINKS))
"""The parts of the host's root that a service without a rootfs has (`niso.runtime.skeleton`)."""
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_inside(mounts: dict[str, str], path: str) -> tuple[int, str]:
    """Open ``path`` as a service sees it, without side effects (O_PATH).

    ``mounts`` maps mount points to folders of the host: ``{"": rootfs, "/app": package}``; "" is
    the root. If the root is the host's own, only the parts that such a service has are visible:
    /home and /opt are not, even if a path through them leads back into /usr. Returns the
    descriptor, which the caller closes, and the path inside the service with all links resolved.
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
                # '..' of a mounted folder lies on the host: walk down again from the root.
                done = done[:-1]
                following = _open_real(mounts, done)
            else:
                target = mounts.get("/" + "/".join([*done, part]))
                if not (target or done or mounts[""] != "/" or part in _OF_THE_HOST):
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
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
            os.close(above)  # after the swap: an interrupt here must not close fd twice
        if path.endswith("/") and not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    except BaseException:
        os.close(fd)
        raise
    return fd, "/" + "/".join(done)


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _open_real(mounts: dict[str, str], parts: list[str]) -> int:
    """Open a folder by a path inside the service that contains no links."""
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
    """Read a small regular file as the service sees it.

    Raises OSError: EFBIG over `MAX_FILE_BYTES`, EINVAL if it is not a regular file.
    """
    fd, _ = open_inside(mounts, path)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if info.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(MAX_FILE_BYTES)
    finally:
        os.close(fd)
