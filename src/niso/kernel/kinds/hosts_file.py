"""Define the kind of hosts files: one for all services with the same list of networks."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence

from niso.base import paths
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.hosts_line import HostsLine
from niso.kernel.kinds.kind import AnyStep, Difference, Kind, Step, Steps

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.reading import Space
    from niso.kernel.state import State
    from niso.kernel.writing import Writer


class HostsFile(NamedTuple):
    """A hosts file. ``folder`` names the list of networks (names.hosts_folder)."""

    folder: str

    def key(self) -> tuple[str, ...]:
        return (self.folder,)


class HostsEdit(NamedTuple):
    """Create or edit one hosts file, by renaming a new one over it."""

    folder: str
    create: bool
    remove: tuple[HostsLine, ...]
    add: tuple[HostsLine, ...]

    @property
    def kind(self) -> Kind[Any]:
        return KIND

    def things(self) -> tuple[Any, ...]:
        return (HostsFile(self.folder), *self.remove, *self.add)

    def describe(self) -> str:
        parts = [f"hosts file {self.folder}: {'create' if self.create else 'edit'}"]
        parts += [f"-{line.address} {line.names}" for line in self.remove]
        parts += [f"+{line.address} {line.names}" for line in self.add]
        return parts[0] if len(parts) > 4 else ", ".join(parts)


class _HostsFiles(Kind[HostsFile]):
    holds_others = True

    def place(self, thing: HostsFile) -> str:
        return f"hosts {thing.folder}"

    def describe(self, step: Step[HostsFile]) -> str:
        return f"hosts file {step.thing.folder}: {step.action}"

    def what(self, thing: HostsFile) -> str:
        return f"hosts file {os.path.join(path_of(thing.folder), 'hosts')}"

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        """Write each changed file once, with all its lines."""
        wanted, present = _lines_by_folder(want), _lines_by_folder(have)
        edits: list[AnyStep] = []
        for file in sorted(want[HostsFile]):
            create = file not in have[HostsFile]
            lines = wanted.get(file.folder, set())
            existing = set() if create else present.get(file.folder, set())
            if create or lines != existing:
                remove, add = tuple(sorted(existing - lines)), tuple(sorted(lines - existing))
                edits.append(HostsEdit(file.folder, create, remove, add))
        keys = {file.key() for file in want[HostsFile]}
        gone = sorted(file for file in have[HostsFile] if file.key() not in keys)
        return Steps(made=edits, gone=[Step("delete", file) for file in gone])

    def missing(self, thing: HostsFile) -> Difference:
        if os.path.lexists(os.path.join(path_of(thing.folder), "hosts")):
            return Difference("different", self.what(thing), "not written by niso")
        return super().missing(thing)

    def by_space(self, things: Iterable[HostsFile]) -> dict[str, Collection[HostsFile]]:
        return {"": frozenset(things)}

    def read(self, space: Space, things: Collection[HostsFile]) -> Iterable[HostsFile]:
        """Read hosts files.

        When everything is read, only well-formed, world-readable files count.
        """
        if space.name:
            return
        everything = space.reading.everything
        for folder in folders() if everything else {file.folder for file in things}:
            text = _text(folder)
            if text is not None and not (everything and not _is_sound(folder, text)):
                space.reading.hosts_texts[folder] = text
                yield HostsFile(folder)

    def write(self, writer: Writer, steps: Sequence[HostsEdit | Step[HostsFile]]) -> None:
        (step,) = steps
        if isinstance(step, HostsEdit):
            _edit(step)
        else:
            remove(step.thing.folder)


def path_of(folder: str) -> str:
    return os.path.join(paths.hosts_root(), folder)


def _lines_by_folder(state: State) -> dict[str, set[HostsLine]]:
    lines: dict[str, set[HostsLine]] = {}
    for line in state[HostsLine]:
        lines.setdefault(line.folder, set()).add(line)
    return lines


def folders() -> list[str]:
    """Return the names of all folders of hosts files."""
    try:
        return os.listdir(paths.hosts_root())
    except FileNotFoundError:
        return []


def _text(folder: str) -> str | None:
    """Return a hosts file's text.

    None unless it is world-readable and starts with niso's header.
    """
    from niso.base import files
    from niso.kernel import hosts_text

    try:
        text = (files.read(os.path.join(path_of(folder), "hosts"), 0o444) or b"").decode()
    except (OSError, ValueError):
        return None
    return text if text.startswith(hosts_text.HEADER) and text.endswith("\n") else None


def _is_sound(folder: str, text: str) -> bool:
    from niso.kernel import hosts_text

    try:
        is_open = os.lstat(path_of(folder)).st_mode & 0o555 == 0o555
    except OSError:
        return False
    return is_open and hosts_text.lines(text) is not None


def _edit(step: HostsEdit) -> None:
    import errno

    from niso.base import failpoint, files
    from niso.base.errors import KernelError
    from niso.kernel import hosts_text

    folder = path_of(step.folder)
    path = os.path.join(folder, "hosts")
    text = hosts_text.HEADER
    if step.create:
        _make_folder(folder)
    else:
        text = (files.read(path) or b"").decode()
    text = hosts_text.edit(
        text,
        {hosts_text.line(line.address, line.names) for line in step.remove},
        {hosts_text.line(line.address, line.names) for line in step.add},
    )
    # readers see the old or the new file; services mount the folder, because a mounted file would
    # not follow the rename
    temporary = f"{path}.new"
    try:
        fd = files.make(temporary, 0o644)
        try:
            os.fchmod(fd, 0o644)
            files.write(fd, text.encode())
        finally:
            os.close(fd)
        failpoint.hit(f"rename {path}")
        files.rename(temporary, path)
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
    """Create a world-readable folder, replacing any other file at its path."""
    try:
        os.makedirs(folder, mode=0o755)
    except FileExistsError:
        if os.path.isdir(folder) and not os.path.islink(folder):
            os.chmod(folder, 0o755)
        else:
            os.unlink(folder)
            os.makedirs(folder, mode=0o755)


def remove(folder: str) -> None:
    """Delete a hosts file or its leftovers, with its folder; no-op if there is none.

    Raises OSError.
    """
    import errno

    from niso.base import files

    path = path_of(folder)
    for name in ("hosts", "hosts.new"):
        try:
            files.remove(os.path.join(path, name))
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


KIND = _HostsFiles(HostsFile)
