"""Copies of packages: what a service shows at /app is a copy made at activation, so later edits do not reach it.

A copy lies in a folder named after the fingerprint of its source (names, modes, sizes and times of all files but the
manifest), is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from niso.base import failpoint, paths
from niso.base.digest import sha256
from niso.base.errors import InvalidInput, NisoError
from niso.base.lite_typing import NamedTuple

MAX_DEPTH = 64


def fingerprint(folder: str, rootfs: str | None, manifest: str | None = None) -> str:
    """What identifies the content of a package folder (64 hex digits); the rootfs below it is not part of the package.

    Nor is the file ``manifest``: what changes in it is applied key by key, and most keys need no restart.

    Raises InvalidInput where something in it cannot be copied (device, socket, fifo), NisoError where it cannot be read.
    """
    digest = sha256()
    for each in _walk(folder, rootfs):
        info = each.info
        if os.path.join(folder, each.path) == manifest:
            continue
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        times = 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
        digest.update(
            f"{each.path}\0{info.st_mode}\0{size}\0{times}\0{each.target}\0".encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()


def copy(
    service: str, folder: str, rootfs: str | None, digest: str, manifest: str | None = None
) -> str:
    """Copy a package folder to the state folder, unless that very copy is there; gives the copy's path.

    Owners become root, and all is readable and nothing writable for others. Raises InvalidInput where the package changes meanwhile, NisoError.
    """
    target = os.path.join(paths.package_dir(service), digest)
    if os.path.isdir(target):
        return target
    temporary = f"{target}.{os.getpid()}.new"
    failpoint.hit(f"copy package to {target}")
    try:
        os.makedirs(temporary, mode=0o755, exist_ok=True)
        for each in _walk(folder, rootfs):
            _copy_one(each, os.path.join(folder, each.path), os.path.join(temporary, each.path))
        if fingerprint(folder, rootfs, manifest) != digest:
            raise InvalidInput(
                f"{folder}: changed while it was copied", "activate it again when it is whole"
            )
        failpoint.hit(f"name package copy {target}")
        os.rename(temporary, target)
    except OSError as error:
        _delete_copy(temporary)
        raise NisoError(
            f"cannot copy {folder}: {error.filename or target}: {error.strerror}"
        ) from error
    except BaseException:
        _delete_copy(temporary)
        raise
    return target


def is_copied(service: str, digest: str) -> bool:
    """Whether that very copy is there."""
    return os.path.isdir(os.path.join(paths.package_dir(service), digest))


def keep_only(service: str, copies: set[str]) -> None:
    """Delete all copies of a service's package but those whose paths are in ``copies``; one that cannot go stays."""
    folder = paths.package_dir(service)
    try:
        found = [os.path.join(folder, name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return
    for path in found:
        if path not in copies:
            try:
                failpoint.hit(f"delete package copy {path}")
            except OSError:
                continue
            delete_tree(path)
    if not copies:
        delete_tree(folder)


def _delete_copy(path: str) -> None:
    """Delete a copy that did not come to be, and the service's folder if it is the only one."""
    delete_tree(path)
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass


def delete_tree(folder: str) -> None:
    """Delete a folder of niso's own and all below it; a missing one is fine. Follows no symlink."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


class _Entry(NamedTuple):
    """Something in a package, as it was found: nothing that is swapped afterwards is taken for it."""

    path: str  # below the package's folder
    info: os.stat_result
    target: str  # of a symlink
    fd: int  # O_PATH, valid until the next entry is asked for


def _walk(folder: str, rootfs: str | None) -> Iterator[_Entry]:
    """Everything in the package, parents first, sorted.

    Each folder is opened from the top, name by name and never through a symlink: who may write to the package must not have
    niso, which may read everything, leave it by a folder that becomes a link meanwhile.
    """
    skipped = _identity(rootfs)
    pending = [("", 0)]
    while pending:
        base, depth = pending.pop()
        try:
            inside = _open_folder(folder, base)
        except OSError as error:
            raise _unreadable(folder, base, error) from error
        try:
            try:
                names = sorted(os.listdir(inside))
            except OSError as error:
                raise _unreadable(folder, base, error) from error
            for name in names:
                relative = os.path.join(base, name)
                path = os.path.join(folder, relative)
                fd = _hold(inside, name, path)
                try:
                    info = os.fstat(fd)
                    if skipped is not None and _leads_to(inside, name, info) == skipped:
                        continue
                    kind = stat.S_IFMT(info.st_mode)
                    if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                        raise InvalidInput(
                            f"{path!r}: a package has files, folders and symlinks only",
                            "move it out of the package",
                        )
                    yield _Entry(
                        relative,
                        info,
                        os.readlink("", dir_fd=fd) if kind == stat.S_IFLNK else "",
                        fd,
                    )
                finally:
                    os.close(fd)
                if kind == stat.S_IFDIR:
                    if depth >= MAX_DEPTH:
                        raise InvalidInput(
                            f"{path!r}: folders are nested more than {MAX_DEPTH} deep"
                        )
                    pending.append((relative, depth + 1))
        finally:
            os.close(inside)


def _open_folder(folder: str, base: str) -> int:
    """A descriptor of the folder ``base`` of the package, by which it can be listed. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in filter(None, base.split("/")):
        try:
            following = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = following
    return fd


def _hold(inside: int, name: str, path: str) -> int:
    """A descriptor (O_PATH) of a name of an open folder, of a symlink itself; ``path`` is for errors. Raises NisoError."""
    try:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    except OSError as error:
        raise NisoError(f"cannot read {path}: {error.strerror}") from error


def _identity(path: str | None) -> tuple[int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def _leads_to(inside: int, name: str, info: os.stat_result) -> tuple[int, int] | None:
    """Which folder a name is, or is a symlink to."""
    if stat.S_ISLNK(info.st_mode):
        try:
            info = os.stat(name, dir_fd=inside)
        except OSError:
            return None
    return info.st_dev, info.st_ino


def _unreadable(folder: str, base: str, error: OSError) -> NisoError:
    return NisoError(f"cannot read package folder {os.path.join(folder, base)}: {error.strerror}")


def _copy_one(each: _Entry, source: str, target: str) -> None:
    """Copy an entry to ``target``; ``source`` is its path for errors. Raises OSError."""
    info = each.info
    if stat.S_ISLNK(info.st_mode):
        os.symlink(each.target, target)
        return
    if stat.S_ISDIR(info.st_mode):
        os.mkdir(target)
        os.chmod(target, 0o755)
        return
    try:
        reader = os.open(
            f"/proc/self/fd/{each.fd}", os.O_RDONLY | os.O_CLOEXEC
        )  # this very file, whatever its name is now
    except OSError as error:
        raise OSError(error.errno, error.strerror, source) from error
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = info.st_size  # a file that grows without end is not followed
            while left > 0 and (sent := os.sendfile(writer, reader, None, min(left, 1 << 30))):
                left -= sent
            # the service's user is not the owner: what the owner may read and run, it may
            os.fchmod(writer, 0o755 if info.st_mode & 0o111 else 0o644)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
