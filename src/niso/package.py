"""Copies of packages: what a service shows at /app is a copy made at activation, so later edits do not reach it.

A copy lies in a folder named after the fingerprint of its source (names, modes, sizes and times of all files but the
manifest), is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

from niso import failpoint, paths
from niso.errors import InvalidInput, NisoError

MAX_DEPTH = 64


def fingerprint(folder: str, rootfs: str | None, manifest: str | None = None) -> str:
    """What identifies the content of a package folder (64 hex digits); the rootfs below it is not part of the package.

    Nor is the file ``manifest``: what changes in it is applied key by key, and most keys need no restart.

    Raises InvalidInput where something in it cannot be copied (device, socket, fifo), NisoError where it cannot be read.
    """
    digest = hashlib.sha256()
    for path, relative, info in _walk(folder, rootfs):
        if path == manifest:
            continue
        target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        times = 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
        digest.update(f"{relative}\0{info.st_mode}\0{size}\0{times}\0{target}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def copy(service: str, folder: str, rootfs: str | None, digest: str, manifest: str | None = None) -> str:
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
        for path, relative, info in _walk(folder, rootfs):
            _copy_one(path, os.path.join(temporary, relative), info)
        if fingerprint(folder, rootfs, manifest) != digest:
            raise InvalidInput(f"{folder}: changed while it was copied", "activate it again when it is whole")
        failpoint.hit(f"name package copy {target}")
        os.rename(temporary, target)
    except OSError as error:
        _delete_copy(temporary)
        raise NisoError(f"cannot copy {folder}: {error.filename or target}: {error.strerror}") from error
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


def _walk(folder: str, rootfs: str | None) -> Iterator[tuple[str, str, os.stat_result]]:
    """(path, path below the folder, lstat) of everything in the package, parents first, sorted."""
    pending = [("", 0)]
    while pending:
        base, depth = pending.pop()
        try:
            names = sorted(os.listdir(os.path.join(folder, base)))
        except OSError as error:
            raise NisoError(f"cannot read package folder {error.filename}: {error.strerror}") from error
        for name in names:
            relative = os.path.join(base, name)
            path = os.path.join(folder, relative)
            if rootfs is not None and os.path.realpath(path) == rootfs:
                continue
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise InvalidInput(
                    f"{path!r}: a package has files, folders and symlinks only", "move it out of the package"
                )
            yield path, relative, info
            if kind == stat.S_IFDIR:
                if depth >= MAX_DEPTH:
                    raise InvalidInput(f"{path!r}: folders are nested more than {MAX_DEPTH} deep")
                pending.append((relative, depth + 1))


def _copy_one(source: str, target: str, info: os.stat_result) -> None:
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(source), target)
        return
    if stat.S_ISDIR(info.st_mode):
        os.mkdir(target)
        os.chmod(target, 0o755)
        return
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while os.sendfile(writer, reader, None, 1 << 30):
                pass
            # the service's user is not the owner: what the owner may read and run, it may
            os.fchmod(writer, 0o755 if info.st_mode & 0o111 else 0o644)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
