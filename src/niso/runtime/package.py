"""Copy packages to the state folder, where they are the folder /app of services.

Each activation makes a copy, so later edits of the package have no effect. The folder of a copy is
named after the fingerprint of its source: the names, the contents and the execute permission of all
files except the manifest. A copy is made under a temporary name, and renamed when it is complete
and flushed to the disk. Without the flush, the record of an activation could survive a power
failure, while the files of its copy would be empty.

niso writes a manifest.toml into each copy. The file has the values that are active, including those
from a stack.toml and from variables. If the store is lost, the copy can therefore be activated with
the same policies.

Digests of unchanged files are cached. A file counts as unchanged while its device, inode, size,
mtime and ctime are the same. The ctime is a reliable sign of a change, because no process can set
it (utimensat(2)). Two changes within one tick of the clock have the same ctime, so the digest of a
file that changed in the last seconds is not cached.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from niso.base import files, signals
from niso.base.errors import Error, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import lazy, sha256
from niso.base.paths import contents_file, package_dir, packages_dir, shown, state_dir
from niso.plan.specs import MountedVolume, ServiceSpec
from niso.runtime.root import syncfs
from niso.store import service_rows

if TYPE_CHECKING:
    from niso.manifest import toml
else:
    toml = lazy("niso.manifest.toml")

# --- copies of packages ---------------------------------------------------------------------------


MAX_DEPTH = 64
Excluded = str | tuple[str, ...] | None
"""Paths that are excluded from a package: its rootfs, and files that the service writes."""
MANIFEST = "manifest.toml"
HISTORY = frozenset((".git", ".hg", ".svn"))
"""Names of version control data, which is not part of a package, at any depth.

Each clone and fetch changes these files, and their settings can contain passwords.
"""
_FEW = 32
"""Maximum number of files and folders that are flushed to the disk one by one. If there are more,
syncfs(2) flushes the file system.
"""


def fingerprint(folder: str, excluded: Excluded, contents: Contents, manifest: str | None) -> str:
    """Return the fingerprint of a package folder, 64 hexadecimal digits.

    The paths in ``excluded`` are left out. The manifest is left out too: its changes are applied
    key by key, and most keys need no restart. Raises InvalidInput if an entry cannot be copied
    (device, socket, FIFO), and Error if an entry cannot be read.
    """
    digest = sha256()
    for entry in _walk(folder, excluded):
        info = entry.info
        if os.path.join(folder, entry.path) == manifest:
            continue
        content, executable = entry.target, False
        if stat.S_ISREG(info.st_mode):
            try:
                content = contents.digest(entry.path, info, entry.fd)
            except OSError as error:
                raise _cannot_read(os.path.join(folder, entry.path), error) from error
            executable = bool(info.st_mode & 0o111)
        line = f"{entry.path}\0{stat.S_IFMT(info.st_mode)}\0{executable}\0{content}\0"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def copy(
    service: str,
    folder: str,
    excluded: Excluded,
    digest: str,
    contents: Contents,
    manifest: str | None,
    spec: ServiceSpec | None,
) -> str:
    """Copy a package folder to the state folder, and return the path of the copy.

    ``digest`` is the fingerprint of the package. If a complete copy exists (`is_copied`), nothing
    is copied. A damaged copy is replaced. Root owns the copy, which other users may read but not
    write. ``spec`` is written as the copy's manifest. Raises InvalidInput if the package changes
    during the copy. Raises Error.
    """
    target = os.path.join(package_dir(service), digest)
    if is_copied(service, digest, folder, excluded, manifest):
        return target
    temporary = f"{target}.{os.getpid()}.new"
    signals.hit(f"copy package to {target}")
    delete_tree(temporary)  # of an interrupted process with the same pid
    try:
        os.makedirs(temporary, mode=0o755)
        _require_room(folder, excluded, temporary)
        for entry in _walk(folder, excluded):
            _copy_one(entry, os.path.join(folder, entry.path), os.path.join(temporary, entry.path))
        if fingerprint(folder, excluded, contents, manifest) != digest:
            hint = "activate it again when it is complete"
            raise InvalidInput(f"{folder}: changed while it was copied", hint)
        if spec is not None:
            _write_manifest(temporary, spec)
        _write_to_disk(temporary)
        signals.hit(f"name package copy {target}")
        if os.path.islink(target):
            os.unlink(target)
        elif os.path.isdir(target):
            os.rename(target, f"{temporary}.damaged")
        os.rename(temporary, target)
        for above in (package_dir(service), packages_dir(), state_dir()):
            files.sync(above)
        delete_tree(f"{temporary}.damaged")
    except OSError as error:
        _delete_copy(temporary)
        where = shown(os.fsdecode(error.filename or target))
        raise Error(f"cannot copy {folder}: {where}: {error.strerror}") from error
    except BaseException:
        _delete_copy(temporary)
        raise
    return target


def _require_room(folder: str, excluded: Excluded, target: str) -> None:
    disk = os.statvfs(target)
    free = disk.f_bavail * disk.f_frsize
    # st_blocks counts 512 bytes, and no holes (stat(2))
    needs = sum(entry.info.st_blocks * 512 for entry in _walk(folder, excluded))
    if needs > free and disk.f_blocks:  # a tmpfs without a limit reports 0
        takes = f"it takes {max(needs >> 20, 1)} MB, and {state_dir()} has {free >> 20} MB free"
        hint = "make room there, or move what the service does not need out of the package"
        raise Error(f"cannot copy {folder}: {takes}", hint)


def _write_to_disk(copy: str) -> None:
    paths = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(copy)
        for name in (*names, "")
        if not os.path.islink(os.path.join(folder, name))
    ]
    if len(paths) <= _FEW:
        for path in paths:
            files.sync(path)
        return

    fd = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def is_copied(
    service: str, digest: str, folder: str, excluded: Excluded, manifest: str | None
) -> bool:
    """Return whether a copy with this fingerprint exists, with files of the expected sizes. The
    manifest is not compared, because it may have changed.
    """
    copy = os.path.join(package_dir(service), digest)
    try:
        if not files.is_own_folder(os.lstat(copy)):
            return False
    except OSError:
        return False
    return all(
        _is_same(entry, os.path.join(copy, entry.path))
        for entry in _walk(folder, excluded)
        if os.path.join(folder, entry.path) != manifest and entry.path != MANIFEST
    )


def keep_manifest(copy: str, spec: ServiceSpec, internal: Iterable[str]) -> None:
    """Write the active manifest into a package copy, unless the copy already has it.

    ``internal`` are the service's internal networks. A comment in the manifest lists them, because
    a network that an activation creates is not internal. Raises Error.
    """
    path = os.path.join(copy, MANIFEST)
    try:
        mark = _mark(spec, internal)
        if (files.read(path) or b"").startswith(mark):
            return
        signals.hit(f"write {path}")
        content = mark + text(spec)
        if os.path.isdir(path):  # of a package whose manifest has another name
            return
        files.replace(path, content, _mode(spec))
        files.sync(copy)
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror}", service=spec.name) from error


def drop_manifest(copy: str) -> None:
    """Delete the manifest in an earlier package copy, which only a rollback would use.

    If the copy is activated again, `keep_manifest` writes the manifest of that activation into it.
    Raises Error.
    """
    path = os.path.join(copy, MANIFEST)
    if os.path.isfile(path):
        signals.hit(f"delete {path}")
        try:
            files.remove(path)
        except OSError as error:
            raise Error(f"cannot delete {path}: {error.strerror}") from error


def internal_networks(manifest: str) -> list[str]:
    """Return the internal networks in the comment that `keep_manifest` wrote into a manifest."""
    try:
        first, second, *_ = (files.read(manifest) or b"").split(b"\n", 2)
    except (OSError, ValueError):
        return []
    is_copy = first.startswith(_MARK) and second.startswith(_INTERNAL)
    return second.removeprefix(_INTERNAL).decode("utf-8", "replace").split() if is_copy else []


def _write_manifest(copy: str, spec: ServiceSpec) -> None:
    path = os.path.join(copy, MANIFEST)
    if os.path.isdir(path) and not os.path.islink(path):
        return
    with open(files.make(path, _mode(spec)), "wb") as file:
        file.write(_mark(spec) + text(spec))
        os.fchmod(file.fileno(), _mode(spec))


def _mode(spec: ServiceSpec) -> int:
    """Return a manifest's file mode, which is 0600 if variables may contain secrets from files."""
    return 0o600 if spec.program.apart else 0o644


_MARK = b"# niso: the manifest as it was activated, "
_INTERNAL = b"# niso: internal networks: "


def _mark(spec: ServiceSpec, internal: Iterable[str] = ()) -> bytes:
    names = " ".join(sorted(internal)).encode()
    digest = sha256(service_rows.encode_service(spec).encode() + names).hexdigest()
    return _MARK + f"{digest}\n".encode() + (_INTERNAL + names + b"\n" if names else b"")


def text(spec: ServiceSpec) -> bytes:
    """Return the active manifest of a service as TOML."""
    from niso.manifest import load  # a check and a stop write no manifest

    data = load.written(spec)
    lines = [line for name, table in data.items() if table for line in toml.table(name, table, 0)]
    return "\n".join(lines).encode()


def _is_same(entry: _PackageEntry, path: str) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    alike = stat.S_IFMT(info.st_mode) == stat.S_IFMT(entry.info.st_mode)
    return alike and (stat.S_ISDIR(info.st_mode) or info.st_size == entry.info.st_size)


def is_emptied(copy: str) -> bool:
    """Return whether all files of a package copy are empty, as after a power failure. Earlier
    versions of niso did not flush copies to the disk.
    """
    sizes = (
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(copy)
        for name in names
        if folder != copy or name != MANIFEST  # niso's own
    )
    try:
        first = next(sizes, None)
        return first == 0 and not any(sizes)
    except FileNotFoundError:  # the folder is being removed
        return False


def keep_only(service: str, copies: set[str]) -> None:
    """Delete all copies of a service's package except those with the given paths."""
    folder = package_dir(service)
    if not copies:
        forget(service)
    try:
        existing = [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:  # a later change deletes them
        return
    for path in existing:
        if path not in copies:
            with suppress(OSError):
                signals.hit(f"delete package copy {path}")
                delete_tree(path)
    if not copies:
        delete_tree(folder)


def _delete_copy(path: str) -> None:
    delete_tree(path)
    with suppress(OSError):
        os.rmdir(os.path.dirname(path))


def delete_tree(folder: str) -> OSError | None:
    """Delete one of niso's folders with its content. Return the error if this fails."""
    try:
        files.remove_tree(folder)
    except OSError as error:
        return error
    return None


class _PackageEntry(NamedTuple):
    """A file, folder or symbolic link of a package. The entry is read through its descriptor, so
    that another file at the same path is never read.
    """

    path: str
    """path relative to the package's folder"""
    info: os.stat_result
    target: str
    """target of a symbolic link; "" for others"""
    fd: int
    """descriptor with O_PATH, valid until the next entry is yielded"""


def _walk(folder: str, excluded: Excluded) -> Iterator[_PackageEntry]:
    """Yield all entries of a package except the paths in ``excluded`` and version control data
    (`HISTORY`), each folder before its content.

    If ``folder`` is "", the service has no package, and nothing is yielded. Each folder is opened
    component by component from the top, and never through a symbolic link. A user who can write to
    the package therefore cannot make niso read files elsewhere.
    """
    skipped = _identities(excluded)
    pending = [("", 0)] if folder else []
    while pending:
        base, depth = pending.pop()
        for entry in _entries(folder, base, skipped):
            is_folder = stat.S_ISDIR(entry.info.st_mode)
            yield entry
            if is_folder and depth >= MAX_DEPTH:
                path = shown(os.path.join(folder, entry.path))
                raise InvalidInput(f"{path!r}: folders are nested more than {MAX_DEPTH} deep")
            if is_folder:
                pending.append((entry.path, depth + 1))


def _entries(
    folder: str, base: str, skipped: set[tuple[int, int] | None]
) -> Iterator[_PackageEntry]:
    """Yield the entries of ``base``, a folder of a package, sorted by name.

    ``skipped`` are the device and inode numbers of files to leave out. Version control data
    (`HISTORY`) is left out too.
    """
    inside = -1
    try:
        try:
            inside = _open_folder(folder, base)
            names = sorted(os.listdir(inside))
        except OSError as error:
            where = shown(os.path.join(folder, base))
            raise Error(f"cannot read package folder {where}: {error.strerror}") from error
        for name in names:
            if name in HISTORY:
                continue
            relative = os.path.join(base, name)
            path = os.path.join(folder, relative)
            try:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
            except OSError as error:
                raise _cannot_read(path, error) from error
            try:
                info = os.fstat(fd)
                if skipped and _leads_to(inside, name, info) in skipped:
                    continue
                kind = stat.S_IFMT(info.st_mode)
                if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                    what = "a package may contain only files, folders and symlinks"
                    raise InvalidInput(f"{shown(path)!r}: {what}", "move it out of the package")
                target = os.readlink("", dir_fd=fd) if kind == stat.S_IFLNK else ""
                yield _PackageEntry(relative, info, target, fd)
            finally:
                os.close(fd)
    finally:
        if inside >= 0:
            os.close(inside)


def _open_folder(folder: str, base: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in filter(None, base.split("/")):
        try:
            following = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = following
    return fd


def _identities(excluded: Excluded) -> set[tuple[int, int] | None]:
    identities: set[tuple[int, int] | None] = set()
    for path in (excluded,) if isinstance(excluded, str) else excluded or ():
        with suppress(OSError):
            info = os.stat(path)
            identities.add((info.st_dev, info.st_ino))
    return identities


def _leads_to(inside: int, name: str, info: os.stat_result) -> tuple[int, int] | None:
    if stat.S_ISLNK(info.st_mode):
        try:
            info = os.stat(name, dir_fd=inside)
        except OSError:
            return None
    return info.st_dev, info.st_ino


def _cannot_read(path: str, error: OSError) -> Error:
    return Error(f"cannot read {shown(path)}: {error.strerror}")


def _copy_one(entry: _PackageEntry, source: str, target: str) -> None:
    info = entry.info
    if stat.S_ISLNK(info.st_mode):
        os.symlink(entry.target, target)
        return
    if stat.S_ISDIR(info.st_mode):
        os.mkdir(target)
        os.chmod(target, 0o755)
        return
    try:
        # Through the descriptor, because the name may now be another file.
        reader = os.open(f"/proc/self/fd/{entry.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, source) from error
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for start, end in _data(reader, info):
                _send(writer, reader, start, end)
            os.ftruncate(writer, info.st_size)
            # The service's user is not the owner, but may read and execute what the owner may.
            os.fchmod(writer, 0o755 if info.st_mode & 0o111 else 0o644)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _send(writer: int, reader: int, start: int, end: int) -> None:
    os.lseek(writer, start, os.SEEK_SET)
    while start < end and (sent := os.sendfile(writer, reader, start, min(end - start, 1 << 30))):
        start += sent


def _data(reader: int, info: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield the ranges (start, end) of an open file that are not holes (lseek(2), SEEK_DATA)."""
    size = info.st_size
    if info.st_blocks * 512 >= size:
        yield 0, size
        return
    start = end = 0
    while end < size:
        try:
            start = os.lseek(reader, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end of the file
                return
            raise
        end = min(os.lseek(reader, start, os.SEEK_HOLE), size)
        yield start, end


# --- digests of files -----------------------------------------------------------------------------


_TICK_S = 2
"""Seconds between two time stamps in the coarsest file system that can have packages (FAT)."""
_CHUNK = 1 << 17
_ZEROS = bytes(_CHUNK)
_LARGE = 1 << 20
"""Size in bytes from which loading OpenSSL, 3 ms, is worth its faster hashes."""
_DIGEST = 64


class PackageFiles(NamedTuple):
    """Package, rootfs and volumes of a service to activate, as read before any lock is taken."""

    folder: str  # the package to copy, or the existing copy if the service is activated by its name
    rootfs: str | None
    fingerprint: str | None  # None if ``folder`` is already the copy
    excluded: tuple[str, ...]  # paths that are not part of the package
    volumes: tuple[MountedVolume, ...]
    contents: Contents | None = None  # the digests behind the fingerprint, if there is one

    def copy_path(self, service: str) -> str:
        if self.fingerprint is None:
            return self.folder
        return os.path.join(package_dir(service), self.fingerprint)

    def must_be_copied(self, service: str, manifest: str) -> bool:
        return self.fingerprint is not None and not is_copied(
            service, self.fingerprint, self.folder, self.excluded, manifest
        )

    def copy(self, spec: ServiceSpec, manifest: str) -> None:
        digest, contents = self.fingerprint, self.contents
        if digest is not None and contents is not None:
            copy(spec.name, self.folder, self.excluded, digest, contents, manifest, spec)


class Contents:
    """The cached digests of a service's package files. `save` requires the service's lock."""

    def __init__(self, service: str) -> None:
        self._path = contents_file(service)
        try:
            kept = (files.read(self._path) or b"").decode("utf-8", "surrogateescape").split("\0")
        except OSError:  # the digests are only a cache
            kept = []
        self._kept = {line[_DIGEST:]: line[:_DIGEST] for line in kept if line}
        self._seen: dict[str, str] = {}
        self._recent: set[str] = set()

    def digest(self, path: str, info: os.stat_result, fd: int) -> str:
        """Return the digest of a regular file (`_read`) in hexadecimal, from the cache if possible.
        ``path`` is relative to the package, and ``fd`` is open with O_PATH.
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
        now = {stamp: value for stamp, value in self._seen.items() if stamp not in self._recent}
        if now == self._kept:
            return
        text = "\0".join(value + stamp for stamp, value in now.items())
        draft = f"{self._path}.new"
        try:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            with open(files.make(draft, 0o600), "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
            files.rename(draft, self._path)
        except OSError:
            with suppress(OSError):
                files.remove(draft)


def forget(service: str) -> None:
    for path in (contents_file(service), f"{contents_file(service)}.new"):
        with suppress(OSError):
            files.remove(path)


def _read(fd: int, size: int) -> str:
    """Return the SHA-256 digest of an open file's size and of its chunks that are not all zeros. A
    hole therefore has the same digest as zeros, and need not be read (lseek(2)).
    """
    new = sha256
    if size > _LARGE:
        from hashlib import sha256 as new  # OpenSSL's is four times as fast

    digest = new(f"{size}".encode())
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
