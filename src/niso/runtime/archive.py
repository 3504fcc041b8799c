"""Write and read the archives of `niso save`: tar files, compressed by zstd or gzip.

The first entry describes the content (`DESCRIPTION`). The last entry, SHA256SUMS, has the digest of
each file, as sha256sum(1) prints it, and one digest of the names, owners and modes of all entries.
An archive is read as untrusted data. No entry can be created outside the target folder, because
folders are opened without following links. No existing file is replaced. Links are only allowed
inside packages, root file systems and volumes. A hard link must lead to a regular file in the same
package, root file system or volume.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from types import SimpleNamespace

from niso.base.errors import Error, InvalidInput
from niso.base.files import FOLDER
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.text import escaped
from niso.runtime import volumes

if TYPE_CHECKING:
    from typing import IO, Any

DESCRIPTION = "niso-save.json"
_SUMS = "SHA256SUMS"
_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
_CHUNK = 1 << 20
_MOST_DESCRIPTION = 16 << 20
_MOST_HEADER = 16 << 20
"""Bytes of a tar header: a path of 5,000 nested folders is longer than one megabyte."""
_LEAST_FREE = 1 << 30
"""Bytes that must stay free on the disk, or a twentieth of the disk if this is less."""
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
"""The types of files that an archive can have. Sockets and devices are left out."""
_ATTRIBUTE = "SCHILY.xattr."
"""Prefix of extended attributes in PAX headers, as star(1) and GNU tar write them."""
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Sums:
    """The digests of an archive's entries, from which the last entry, SHA256SUMS, is written."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._entries = sha256()

    def add(self, member: tarfile.TarInfo, digest: str | None) -> None:
        """Add an archive entry. ``digest`` is of a regular file's content, otherwise None."""
        head: tuple[object, ...] = (member.type, member.mode, member.uid, member.gid)
        head = (*head, member.linkname, member.name, *_attributes(member))
        self._entries.update(f"{head}\n".encode("utf-8", "surrogateescape"))
        if digest is not None:
            name = member.name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
            mark = "\\" if name != member.name else ""  # as sha256sum(1) escapes names
            self._lines.append(f"{mark}{digest}  {name}\n")

    def listing(self) -> bytes:
        head = f"# names, owners and modes: {self._entries.hexdigest()}\n"
        return "".join([head, *self._lines]).encode("utf-8", "surrogateescape")


def _forget_members(tar: tarfile.TarFile) -> None:
    """Empty tarfile's list of entries in memory, because volumes can have millions of entries."""
    vars(tar)["members"].clear()


def _is_kept(attribute: str) -> bool:
    return attribute in _ACLS or (attribute.startswith("user.") and "=" not in attribute)


def _read_attributes(path: str) -> dict[str, str]:
    """Return the extended attributes and access control lists of a file, as PAX headers."""
    try:
        names = [*filter(_is_kept, os.listxattr(path, follow_symlinks=False))]
        values = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA):  # ENODATA: one was just removed
            return {}
        raise
    text = {name: value.decode("utf-8", "surrogateescape") for name, value in values.items()}
    return {f"{_ATTRIBUTE}{name}": value for name, value in text.items()}


def _attributes(member: tarfile.TarInfo) -> list[tuple[str, str]]:
    headers = member.pax_headers.items()
    found = [(key, value) for key, value in headers if key.startswith(_ATTRIBUTE)]
    return sorted((key.removeprefix(_ATTRIBUTE), str(value)) for key, value in found)


def _remove_inherited(fd: int, acl: str) -> None:
    """Remove the access control list that a new file has inherited from its folder. ``acl`` is the
    name of the extended attribute, for access or default. A missing attribute is not an error.
    """
    try:
        os.removexattr(fd, acl)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise


def _write_attributes(member: tarfile.TarInfo, fd: int) -> None:
    for name, value in _attributes(member):
        if not _is_kept(name):
            raise _damaged(f"has the attribute {escaped(name)}: {escaped(member.name)}")
        try:
            os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))
        except OSError as error:
            reason = f"cannot set {escaped(name)} of {escaped(member.name)}: {error.strerror}"
            raise Error(reason) from error


# --- write ----------------------------------------------------------------------------------------


class _Content:
    """A reader of exactly ``size`` bytes of a file, which also computes their digest. A running
    service may shorten the file during the read. The missing bytes are read as zeros.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._left = fd, size
        self.digest = sha256()

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        data = os.read(self._fd, wanted) if wanted else b""
        if len(data) < wanted and not data:
            data = bytes(wanted)
        while len(data) < wanted:
            more = os.read(self._fd, wanted - len(data))
            data += more or bytes(wanted - len(data))
        self._left -= len(data)
        self.digest.update(data)
        return data


class ArchiveWriter:
    """An archive that is being written to an open file."""

    def __init__(self, out: IO[bytes], description: object) -> None:
        # the mode "w|" would write to the file again when an exception has closed it
        pipe: Any = SimpleNamespace(write=out.write, tell=lambda: 0)  # a pipe has no position
        format = tarfile.PAX_FORMAT
        self._tar = tarfile.TarFile(fileobj=pipe, mode="w", format=format, encoding="utf-8")
        self._sums = _Sums()
        self._linked: dict[tuple[int, int], str] = {}
        """The files with several names in the folder that is being added, by device and inode."""
        text = json.dumps(description, indent=1, ensure_ascii=False)
        self.add_bytes(DESCRIPTION, text.encode("utf-8", "surrogateescape"))

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a regular file with this content that only root can read."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o600
        self._tar.addfile(member, io.BytesIO(content))
        _forget_members(self._tar)
        self._sums.add(member, sha256(content).hexdigest())

    def add_folder(self, name: str) -> None:
        """Add an empty folder that root owns and only root may enter."""
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, 0o700
        self._tar.addfile(member)
        self._sums.add(member, None)

    def add_tree(self, name: str, top: str, but: str = "") -> None:
        """Add a folder and its content, except the file at the path ``but``. Raises OSError."""
        self._linked.clear()
        self._add(name, os.lstat(top), -1, top)
        for path, folder, info in volumes.walk(top):
            if path != but:
                with suppress(FileNotFoundError):  # it was deleted since the folder was read
                    self._add(f"{name}/{path}", info, folder, os.path.basename(path))

    def _add(self, name: str, info: os.stat_result, folder: int, file: str) -> None:
        kind = _KINDS.get(stat.S_IFMT(info.st_mode))
        if kind is None:
            return
        inode = (info.st_dev, info.st_ino)
        if kind == tarfile.REGTYPE and (first := self._linked.get(inode)) is not None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, first
            self._tar.addfile(member)
            _forget_members(self._tar)
            self._sums.add(member, None)
            return
        where = folder if folder >= 0 else None
        member = tarfile.TarInfo(name)
        member.type, member.mode = kind, stat.S_IMODE(info.st_mode)
        member.uid, member.gid, member.mtime = info.st_uid, info.st_gid, int(info.st_mtime)
        if kind == tarfile.SYMTYPE:
            member.linkname = os.readlink(file, dir_fd=where)
        elif kind != tarfile.FIFOTYPE:
            path = f"/proc/self/fd/{folder}/{file}" if folder >= 0 else file
            member.pax_headers = _read_attributes(path)
        if kind != tarfile.REGTYPE:
            self._tar.addfile(member)
            _forget_members(self._tar)
            self._sums.add(member, None)
            return
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(file, flags, dir_fd=where)
        try:
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode):
                raise OSError(errno.ESTALE, "was replaced by something else", name)
            member.size = now.st_size
            content = _Content(fd, now.st_size)
            if now.st_nlink > 1:
                self._linked[now.st_dev, now.st_ino] = name
            self._tar.addfile(member, content)  # type: ignore[arg-type]  # only read() is called
            _forget_members(self._tar)
        finally:
            os.close(fd)
        self._sums.add(member, content.digest.hexdigest())

    def close(self) -> None:
        """Write the last entry, SHA256SUMS, and finish the archive."""
        text = self._sums.listing()
        self.add_bytes(_SUMS, text)
        self._tar.close()


@contextmanager
def compressed(out: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield a writable file. The data written to it is compressed and written to ``out``. Uses the
    program zstd, or gzip if zstd is not installed. Raises Error.
    """
    program = shutil.which("zstd")
    if program is None:
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, filename="") as file:
            yield file  # type: ignore[misc]  # a GzipFile can be written to
        return
    words, pipe = [program, "-q", "-c"], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=out, stderr=pipe) as process:
        assert process.stdin is not None and process.stderr is not None
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError:
            process.stdin = None  # what is left in its buffer cannot be written
        except BaseException:
            process.kill()
            raise
        said = process.stderr.read().decode("utf-8", "replace").strip()
        if process.wait() != 0:
            said = said or f"zstd ended with status {process.returncode}"
            raise Error(f"cannot write the archive: {said}")


# --- read -----------------------------------------------------------------------------------------


@contextmanager
def decompressed(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield the decompressed content of an archive file. Raises Error and InvalidInput."""
    head = os.pread(file.fileno(), 4, 0)  # zstd reads from the start, so nothing is buffered here
    if head.startswith(_GZIP):
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            yield unpacked  # type: ignore[misc]  # a GzipFile can be read from
        return
    if not head.startswith(_ZSTD):
        raise InvalidInput("is not an archive of niso save", "niso save NAME writes one")
    program = shutil.which("zstd")
    if program is None:
        raise Error("the archive needs the program zstd", "apt install zstd")
    words = [program, "-q", "-d", "-c"]
    with subprocess.Popen(
        words, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


def extract(stream: IO[bytes], folder: str) -> object:
    """Extract an archive into an empty folder. Return the archive's description, not yet checked.

    Raises InvalidInput if the archive is damaged, or if an entry would leave the folder. Raises
    Error if the disk has too little space.
    """
    sums, first, end = _Sums(), b"", None
    place = _Place(folder)
    try:
        with tarfile.open(
            fileobj=stream,
            mode="r|",
            encoding="utf-8",
            errors="surrogateescape",
            tarinfo=_Header,
        ) as tar:
            for member in tar:
                _forget_members(tar)
                if end is not None:
                    raise _damaged("has entries after its checksums")
                if member.name == _SUMS:
                    end = _content(tar, member, len(sums.listing()))
                elif not first:
                    if member.name != DESCRIPTION:
                        raise _damaged("is not an archive of niso save")
                    first = _content(tar, member, _MOST_DESCRIPTION)
                    sums.add(member, sha256(first).hexdigest())
                else:
                    sums.add(member, _extract_one(tar, member, place))
    except OverflowError:
        raise _damaged("has an owner or a time out of range") from None
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise _damaged(f"is damaged: {error}") from error
    finally:
        place.close()
    if end is None:
        raise _damaged("is incomplete")
    if end != sums.listing():
        raise _damaged("is damaged: its content does not match its checksums")
    try:
        description: object = json.loads(first)
    except (ValueError, RecursionError):
        raise _damaged("has no valid description of its content") from None
    return description


def _damaged(reason: str) -> InvalidInput:
    return InvalidInput(reason, "save it again, and compare the two copies with sha256sum")


class _Header(tarfile.TarInfo):
    """A header of an archive entry. Headers that are too large for memory are refused."""

    def _proc_member(self, reader: tarfile.TarFile) -> tarfile.TarInfo:
        """Read the blocks that belong to a header, such as a long name. Overrides tarfile's method.
        Raises InvalidInput if they are too long.
        """
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _damaged("has a sparse entry")
        if self.type in _LONG_HEADERS and self.size > _MOST_HEADER:
            raise _damaged("has a header that is too long")
        entry: tarfile.TarInfo = super()._proc_member(reader)  # type: ignore[misc]
        return entry

    def _proc_gnusparse_10(self, *_: object) -> None:
        """Refuse a sparse file, because tarfile would read all of its list of holes into memory."""
        raise _damaged("has a sparse entry")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None or member.size > most:
        if member.name == _SUMS:
            raise _damaged("is damaged: its content does not match its checksums")
        raise _damaged("is not an archive of niso save")
    return file.read()


def _check_layout(parts: list[str], member: tarfile.TarInfo) -> None:
    """Raise InvalidInput unless `niso save` writes entries of this type at this path.

    The folders above packages, root file systems and volumes must be real folders: a link in their
    place would lead to the host's files.
    """
    match parts:
        case (
            ["services"]
            | ["services", _]
            | ["services", _, "package" | "rootfs" | "secrets" | "volumes"]
            | ["services", _, "volumes", _]
        ):
            is_expected = member.isdir()
        case ["services", _, "manifest.toml"] | ["services", _, "secrets", _]:
            is_expected = member.isreg()
        case ["services", _, "package" | "rootfs" | "volumes", *_]:
            is_expected = True
        case _:
            is_expected = False
    if not is_expected:
        raise _damaged(f"has an entry that no archive of niso save has: {escaped(member.name)}")


def _extract_one(tar: tarfile.TarFile, member: tarfile.TarInfo, place: _Place) -> str | None:
    """Create one entry below the top folder of ``place``. Return the digest of a file, or None."""
    parts = member.name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in member.name + member.linkname:
        raise _damaged(f"has an entry that leaves its folder: {escaped(member.name)}")
    is_odd = member.issparse() or member.size < 0 or (member.issym() and not member.linkname)
    if member.type not in (*_KINDS.values(), tarfile.LNKTYPE) or is_odd:
        raise _damaged(f"has an entry of a type that is not allowed: {escaped(member.name)}")
    _check_layout(parts, member)
    if member.islnk():
        _link(parts, member, place)
        return None
    place.take_file()
    digest = None
    parent = place.go(parts[:-1], member.name)
    name, mode = parts[-1], stat.S_IMODE(member.mode)
    owner = member.uid, member.gid
    try:
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
            return None
        if member.isdir():
            os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, FOLDER, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=parent)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            if member.isreg():
                digest = _write(tar, member, fd, place)
            os.fchown(fd, *owner)
            for acl in _ACLS if member.isdir() else _ACLS[:1]:
                _remove_inherited(fd, acl)
            os.fchmod(fd, mode)  # after chown, which clears setuid
            if not member.isfifo():
                _write_attributes(member, fd)
            if member.isreg():
                os.utime(fd, (member.mtime, member.mtime))
        finally:
            os.close(fd)
    except FileExistsError:
        raise _damaged(f"has an entry twice: {escaped(member.name)}") from None
    return digest


def _link(parts: list[str], member: tarfile.TarInfo, place: _Place) -> None:
    other = member.linkname.split("/")
    depth = 4 if parts[2] == "volumes" else 3
    reason = f"has an entry that links to a file outside its folder: {escaped(member.name)}"
    is_below = len(other) > depth and other[:depth] == parts[:depth]
    if not is_below or any(part in ("", ".", "..") for part in other):
        raise _damaged(reason)
    folder = place.go(other[:-1], member.name)
    try:
        fd = os.open(other[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise _damaged(reason) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _damaged(reason)
        place.take_file()
        parent = place.go(parts[:-1], member.name)
        os.link(f"/proc/self/fd/{fd}", parts[-1], dst_dir_fd=parent, follow_symlinks=True)
    except FileExistsError:
        raise _damaged(f"has an entry twice: {escaped(member.name)}") from None
    finally:
        os.close(fd)


class _Place:
    """A cursor over the folders in which entries are created. It moves from entry to entry.

    A service can nest thousands of folders, with paths longer than PATH_MAX. Therefore only one
    folder is open at a time, and the next one is reached from it. No other process may change the
    folders.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self._fd = os.open(top, FOLDER)
        self._at: list[str] = []
        disk = os.fstatvfs(self._fd)
        self._reserve = min(_LEAST_FREE, disk.f_blocks * disk.f_frsize // 20)
        self._left = disk.f_bavail * disk.f_frsize - self._reserve
        self._files = disk.f_favail if disk.f_files else sys.maxsize  # Btrfs has no limit

    def take_file(self) -> None:
        """Count a new file as written. Raises Error if the disk has too little free space."""
        self._files -= 1
        self.take(512)

    def take(self, size: int) -> None:
        """Count ``size`` bytes as written. Raises Error if the disk has too little free space."""
        self._left -= size
        if self._left < 0 or self._files < 0:
            reason = f"needs more space than {self._top} has"
            hint = f"{self._reserve >> 20} MB of the disk must stay free"
            raise Error(reason, hint)

    def go(self, parts: list[str], name: str) -> int:
        """Open a folder below the top folder without following links, and return its descriptor.
        ``name`` is the entry, for messages. Raises InvalidInput if the folder does not exist.
        """
        same = 0
        for have, want in zip(self._at, parts, strict=False):
            if have != want:
                break
            same += 1
        while len(self._at) > same:
            self._to("..")
            self._at.pop()
        for part in parts[same:]:
            try:
                self._to(part)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                reason = f"has an entry whose folder is not in it, or is a link: {escaped(name)}"
                raise _damaged(reason) from None
            self._at.append(part)
        return self._fd

    def _to(self, part: str) -> None:
        fd = os.open(part, FOLDER, dir_fd=self._fd)
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, fd: int, place: _Place) -> str:
    """Write an entry's content to a file. Return its digest. Blocks of zeros become holes."""
    digest = sha256()
    file: Any = tar.extractfile(member)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        if not chunk.strip(b"\0"):
            os.lseek(fd, len(chunk), os.SEEK_CUR)
            continue
        place.take(len(chunk))
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
    os.ftruncate(fd, member.size)
    return digest.hexdigest()
