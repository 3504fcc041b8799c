"""Define the kinds for services' hosts files and their lines; edit the host's own /etc/hosts.

Files are parsed and edited as glibc and busybox read them (hosts(5)): one line for each address.
All services with the same list of networks share one hosts file. An interrupted write leaves a
folder that is empty, or that contains a temporary file. A later write uses such a folder, or `niso
net repair` deletes it.

In the host's own file, niso replaces a block of lines atomically. All bytes outside of this block
stay the same, because they belong to the administrator and other programs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from niso.base import files as base_files
from niso.base import paths, signals
from niso.base.errors import KernelError
from niso.base.files import make, read, rename, sync
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import DOMAIN, family_of
from niso.base.native import socket
from niso.kernel.kinds.kind import (
    BY_TYPE,
    NO_STEPS,
    AnyStep,
    Finding,
    Kind,
    Space,
    State,
    Step,
    Steps,
)

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.real import Writer


HEADER = (
    "# written by niso; changes as services come and go\n"
    "127.0.0.1  localhost\n"
    "::1  localhost ip6-localhost ip6-loopback\n"
)

HOST = f"host.{DOMAIN}"
"""The name of the host in every hosts file of services."""


def line_names(names: tuple[str, ...]) -> str:
    """Return the names for one line of a hosts file, each with and without niso.local."""
    return " ".join(f"{name}.{DOMAIN} {name}" for name in names)


def hosts_line(address: str, names: str) -> str:
    return f"{address}  {names}\n"


def _order(text: str) -> tuple[int, bytes]:
    address = text.partition(" ")[0]
    family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
    return (family, socket.inet_pton(family, address))


def _rank(text: str) -> tuple[int, bytes]:
    try:
        return _order(text)
    except (OSError, ValueError):
        return (0, b"")


def edit(text: str, remove: set[str], add: set[str]) -> str:
    """Return the text of a hosts file after lines were removed and added, sorted by address.
    ``remove`` and ``add`` are sets of complete lines, with their newlines. Lines are found by
    bisection, because the time to parse all lines grows with the number of services.
    """
    changes: list[tuple[int, int, tuple[int, bytes], str]] = []  # start, end, sort key, replacement
    for line in remove - add:
        at = _find(text, line, _offset(text, line))
        if at < 0:  # another program has changed the order of the lines
            at = text.find(f"\n{line}") + 1
        if at > 0:
            changes.append((at, at + len(line), _order(line), ""))
    for line in add:
        offset = _offset(text, line)
        if _find(text, line, offset) < 0:
            changes.append((offset, offset, _order(line), line))
    pieces, done = [], 0
    for start, end, _, new in sorted(changes):  # the order of lines with one address
        pieces += [text[done:start], new]
        done = end
    return "".join((*pieces, text[done:]))


def _offset(text: str, line: str) -> int:
    """Return the offset at which to insert a line, so that lines are sorted by address."""
    order, low, high = _order(line), len(HEADER), len(text)
    while low < high:
        start = max(low, text.rfind("\n", low, (low + high) // 2) + 1)
        end = text.find("\n", start) + 1 or len(text)
        if _rank(text[start:end]) <= order:
            low = end
        else:
            high = start
    return low


def _find(text: str, line: str, offset: int) -> int:
    # ``offset`` is the end of all lines with the same address
    order = _order(line)
    while offset > len(HEADER):
        end, offset = offset, text.rfind("\n", 0, offset - 1) + 1
        if text[offset:end] == line:
            return offset
        if _rank(text[offset:end]) != order:
            break
    return -1


def lines(text: str) -> list[tuple[str, str]] | None:
    """Parse a hosts file of niso into a list of (address, names as one string). Returns None if
    ``text`` does not have the form of niso's hosts files.
    """
    if not text.startswith(HEADER) or not text.endswith("\n"):
        return None
    result = []
    for text_line in text[len(HEADER) : -1].split("\n") if len(text) > len(HEADER) else ():
        address, gap, names = text_line.partition("  ")
        try:
            _order(text_line)
        except OSError:
            return None
        if not gap or not names:
            return None
        result.append((address, names))
    return result


PATH = "/etc/hosts"
_TRIES = 3
_WHY = {
    errno.EBUSY: ("is a mount point, as in a container", "change it outside"),
    errno.EPERM: ("or its folder is immutable", "lsattr -d /etc /etc/hosts"),
    errno.EROFS: ("is on a read-only file system", "remount it, or do without"),
}


def host_lines(mark: str) -> tuple[str, ...]:
    """Return the lines in niso's block of the host's hosts file. Without a block, the result is
    empty. ``mark`` is the id of the state folder, which identifies the block. Raises KernelError if
    the file is unusable.
    """
    _, block, _ = _parts(_read()[0], mark)
    return tuple(line.decode(errors="replace") for line in block.splitlines())


def write(mark: str, wanted: Iterable[str], always: bool = False) -> bool:
    """Replace the lines in niso's block of the host's hosts file. If ``wanted`` is empty, remove
    the block. ``mark`` is the id of the state folder, which identifies the block.

    Returns whether the block changed. With ``always``, the file is replaced even if nothing
    changes, to test whether this is possible. Mode, owner and extended attributes (SELinux) are
    preserved. After KernelError, the file is unchanged.
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
    """Split the host's hosts file into the parts before, inside and after niso's block. Raises
    KernelError if the block is damaged.
    """
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
        return read(PATH) or b"", status
    except OSError as error:
        reason = f"cannot be read: {str(error.strerror).lower()}"
        raise _unusable(reason, "niso changes only a file that exists") from error


def _replace(text: bytes, status: os.stat_result) -> bool:
    """Replace the host's hosts file atomically. Return False if another program has changed it."""
    draft = f"{PATH}.niso-new"
    try:
        fd = make(draft, 0o600)
        try:
            base_files.write(fd, text)
            os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            for name in os.listxattr(PATH):
                os.setxattr(fd, name, os.getxattr(PATH, name))
            os.fsync(fd)
        finally:
            os.close(fd)
        now = os.lstat(PATH)
        changed = (now.st_ino - status.st_ino, now.st_mtime_ns - status.st_mtime_ns)
        if any(changed) or now.st_size != status.st_size:
            os.unlink(draft)
            return False
        signals.hit(f"rename {PATH}")
        os.rename(draft, PATH)
        sync(os.path.dirname(PATH))
    except OSError as error:
        with suppress(OSError):
            os.unlink(draft)
        reason, hint = _WHY.get(error.errno or 0, (f"cannot be written: {error.strerror}", ""))
        raise _unusable(reason, hint, error.errno or 0) from error
    return True


def _unusable(reason: str, hint: str, number: int = 0) -> KernelError:
    return KernelError(f"{PATH} {reason}", hint or None, number)


def clear() -> None:
    """Remove all blocks that niso has written to /etc/hosts. Raises KernelError."""
    text, _ = _read()
    for line in text.splitlines():
        words = line.split()
        if words[:2] == [b"#", b"niso"] and len(words) == 4 and words[3] == b"end":
            write(words[2].decode(errors="replace").rstrip(":"), ())


class HostsLine(NamedTuple):
    folder: str
    address: str
    names: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class _HostsLines(Kind[HostsLine], of=HostsLine):
    is_of_host = True
    parents_format = ("hosts {0.folder}",)
    noun_format = "line {0.address} {0.names} in hosts file of {0.folder}"

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        return NO_STEPS  # the steps of the hosts file change its lines

    def read(self, space: Space, objects: Collection[HostsLine]) -> Iterable[HostsLine]:
        """Return the requested lines that exist. Files are searched for these lines and not parsed,
        because the time to parse a file grows with the number of services. If all of niso's objects
        are read, files are parsed and all their lines are returned.
        """
        texts = space.reading.hosts_texts
        if space.reading.everything:
            return (
                HostsLine(folder, address, names)
                for folder, text in texts.items()
                for address, names in lines(text) or ()
            )
        return (
            line
            for line in objects
            if f"\n{hosts_line(line.address, line.names)}" in texts.get(line.folder, "")
        )


UNFINISHED, FOREIGN = "unfinished", "not written by niso"


class HostsFile(NamedTuple):
    """A hosts file that services share. Its folder is named after the services' networks.

    ``problem`` is UNFINISHED for a folder that an interrupted write left: it is empty, or has only
    a temporary file. For a file that niso did not write, or that is damaged, it is FOREIGN.
    """

    folder: str
    problem: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.folder,)


class HostsEdit(NamedTuple):
    """A step that creates or edits a hosts file. The new version is renamed over the old file."""

    folder: str
    create: bool
    remove: tuple[HostsLine, ...]
    add: tuple[HostsLine, ...]

    @property
    def kind(self) -> Kind[Any]:
        return BY_TYPE[HostsFile]

    def objects(self) -> tuple[Any, ...]:
        return ()  # the new version is complete before it is renamed

    def describe(self) -> str:
        parts = [f"hosts file {self.folder}: {'create' if self.create else 'edit'}"]
        parts += [f"-{line.address} {line.names}" for line in self.remove]
        parts += [f"+{line.address} {line.names}" for line in self.add]
        return parts[0] if len(parts) > 4 else ", ".join(parts)


class _HostsFiles(Kind[HostsFile], of=HostsFile):
    is_of_host = True
    parent_name_format = "hosts {0.folder}"

    def describe(self, step: Step[HostsFile]) -> str:
        return f"hosts file {step.obj.folder}: {step.action}"

    def noun(self, obj: HostsFile) -> str:
        return f"hosts file {file_of(obj.folder)}"

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        wanted, present = _lines_by_folder(want), _lines_by_folder(have)
        edits: list[AnyStep] = []
        for file in sorted(want[HostsFile]):
            create = file not in have[HostsFile]  # or it has a problem
            lines = wanted.get(file.folder, set())
            existing = set() if create else present.get(file.folder, set())
            if create or lines != existing:
                remove, add = tuple(sorted(existing - lines)), tuple(sorted(lines - existing))
                edits.append(HostsEdit(file.folder, create, remove, add))
        keys = {file.key() for file in want[HostsFile]}
        own = (file for file in have[HostsFile] if file.problem != FOREIGN)
        deleted = sorted(file for file in own if file.key() not in keys)
        return (), edits, [Step("delete", file) for file in deleted], ()

    def differences(
        self, obj: HostsFile, actual: HostsFile, known: Collection[str]
    ) -> list[Finding]:
        if actual.problem == UNFINISHED:
            return [Finding("missing", self.noun(obj))]
        return [Finding("different", self.noun(obj), actual.problem)]

    def conditions(self, obj: HostsFile, actual: HostsFile) -> Iterable[str]:
        return (self.parent_name(obj),)

    def read(self, space: Space, objects: Collection[HostsFile]) -> Iterable[HostsFile]:
        """Yield the hosts files that exist, and unfinished folders. Only if objects of other
        programs are read too, yield requested files that niso did not write. If all of niso's
        objects are read, a file also has a problem if it has a malformed line, or if not all users
        can read it.
        """
        reading = space.reading
        asked = {file.folder for file in objects}
        for folder in asked.union(folders() if reading.everything else ()):
            text = _text(folder)
            if text is not None and (not reading.everything or _is_sound(folder, text)):
                reading.hosts_texts[folder] = text
                yield HostsFile(folder)
            elif _is_unfinished(folder):
                yield HostsFile(folder, UNFINISHED)
            elif reading.with_strays and folder in asked and os.path.lexists(file_of(folder)):
                yield HostsFile(folder, FOREIGN)

    def write(self, writer: Writer, steps: Sequence[HostsEdit | Step[HostsFile]]) -> None:
        (step,) = steps
        if isinstance(step, HostsEdit):
            _edit(step)
        else:
            remove(step.obj.folder)


def path_of(folder: str) -> str:
    return os.path.join(paths.hosts_root(), folder)


def file_of(folder: str) -> str:
    return os.path.join(path_of(folder), "hosts")


def _lines_by_folder(state: State) -> dict[str, set[HostsLine]]:
    lines: dict[str, set[HostsLine]] = {}
    for line in state[HostsLine]:
        lines.setdefault(line.folder, set()).add(line)
    return lines


def folders() -> list[str]:
    """Return the names of the folders that contain hosts files, one file each."""
    try:
        return os.listdir(paths.hosts_root())
    except FileNotFoundError:
        return []


def _text(folder: str) -> str | None:
    """Return the text of a hosts file. Returns None if the file is missing, if not all users can
    read it, or if niso did not write it.
    """
    try:
        text = (read(file_of(folder), 0o444) or b"").decode()
    except (OSError, ValueError):
        return None
    return text if text.startswith(HEADER) and text.endswith("\n") else None


def _is_sound(folder: str, text: str) -> bool:
    try:
        return os.lstat(path_of(folder)).st_mode & 0o555 == 0o555 and lines(text) is not None
    except OSError:
        return False


def _is_unfinished(folder: str) -> bool:
    path = path_of(folder)
    try:
        return not os.path.islink(path) and set(os.listdir(path)) <= {"hosts.new"}
    except OSError:
        return False


def _edit(step: HostsEdit) -> None:
    folder, path = path_of(step.folder), file_of(step.folder)
    text = HEADER
    if step.create:
        _make_folder(folder)
    else:
        text = (read(path) or b"").decode()
    removed, added = (
        {hosts_line(line.address, line.names) for line in some} for some in (step.remove, step.add)
    )
    text = edit(text, removed, added)
    # readers see the old or the new file; services mount the folder, because a mounted file would
    # not follow the rename
    temporary = f"{path}.new"
    try:
        fd = make(temporary, 0o644)
        try:
            os.fchmod(fd, 0o644)
            base_files.write(fd, text.encode())
        finally:
            os.close(fd)
        signals.hit(f"rename {path}")
        rename(temporary, path)
    except BaseException as error:
        try:
            os.unlink(temporary)
        except FileNotFoundError:  # the folder could not be created
            pass
        if step.create and not os.path.exists(path):
            os.rmdir(folder)
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            raise KernelError(
                f"{path} is a folder and not empty", "move it away, then niso net repair"
            ) from error
        raise


def _make_folder(folder: str) -> None:
    """Create a folder that all users can read. A file or symbolic link at its path is replaced."""
    try:
        os.makedirs(folder, mode=0o755)
    except FileExistsError:
        if os.path.isdir(folder) and not os.path.islink(folder):
            os.chmod(folder, 0o755)
        else:
            os.unlink(folder)
            os.makedirs(folder, mode=0o755)


def remove(folder: str) -> None:
    """Delete a hosts file and its folder. A missing file is not an error. Raises OSError."""
    path = path_of(folder)
    for name in ("hosts", "hosts.new"):
        try:
            base_files.remove(os.path.join(path, name))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
                raise
    try:
        os.rmdir(path)
    except NotADirectoryError:
        os.unlink(path)
    except OSError as error:
        # anything else in the folder does not belong to niso
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
