"""Derive policies from recorded flows, and write them into manifests."""

from __future__ import annotations

import os
import time

from niso.base.errors import Conflict, Error, InvalidInput, UsageError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from niso.api.session import Session
    from niso.manifest.toml_edit import Item
    from niso.see.learner import Line
    from niso.store.service_rows import ServiceRow
    from niso.store.store import Store


class LearnedEntry(NamedTuple):
    """An entry of a learned allow list."""

    text: str
    """the entry"""
    allowed: bool
    """false: only a comment, such as for a peer that was denied"""
    note: str
    """why, or an empty string"""
    new: int
    """new flows, or attempts that were dropped"""
    last: str | None
    """time of the last new one, to the millisecond"""
    ago: float | None
    """seconds since then"""
    open: int
    """flows that are open now"""


class LearnedPolicy(NamedTuple):
    """The policy of a service that allows its recorded flows."""

    service: str
    """name of the service"""
    file: str | None
    """manifest or stack.toml that has the service's policy; null if there is none"""
    table: str
    """table of the file for it"""
    watched: float | None
    """seconds for which flows of the service are known, at most a week; null if it is inactive"""
    allow_from: tuple[LearnedEntry, ...]
    """who connected to it"""
    egress: tuple[LearnedEntry, ...] | None
    """where it connected; null without --egress"""


class PolicyChange(NamedTuple):
    """A changed file, before it is written."""

    file: str
    """absolute path"""
    services: tuple[str, ...]
    """services whose policies are in it"""
    before: str
    """its present text"""
    after: str
    """its new text"""
    apply: str
    """the command that activates it"""

    @property
    def diff(self) -> str:
        """Return the difference in the format of diff -u; file names with a newline are quoted."""
        import difflib
        import json

        old, new = (text.splitlines(keepends=True) for text in (self.before, self.after))
        name = self.file if self.file.isprintable() else json.dumps(self.file)
        lines = difflib.unified_diff(old, new, name, name)
        unended = "\n\\ No newline at end of file\n"
        return "".join(line if line.endswith("\n") else line + unended for line in lines)


def learn(
    session: Session, services: Sequence[str], since: float | None, egress: bool
) -> tuple[LearnedPolicy, ...]:
    """Derive policies: `Host.learn`. ``since`` is in seconds since 1970."""
    from niso.api.written_names import WrittenNames
    from niso.reconcile.world import read_world
    from niso.see import learner
    from niso.see import seen as seer

    store, kernel = session.store(), session.kernel()
    world = read_world(kernel, store)
    memory = seer.remembered(kernel, world)
    if memory.missed:
        session.caution(
            f"{memory.missed} new flows are missing: there are more than the kernel remembers",
            ["a policy from these would deny some of them; docs/design/seeing.md has the limits"],
        )
    oldest = None if since is None else time.time() - since
    seen = [
        flow
        for flow in seer.joined(world, memory)
        if oldest is None or flow.open or (flow.ago is not None and flow.ago <= oldest)
    ]
    rows = {row.name: row for row in store.services()}
    wanted = [store.home(store.resolve(name)) for name in services]
    wanted = wanted or [name for name, row in rows.items() if row.active and _has_network(row)]
    learned = []
    for name in dict.fromkeys(wanted):
        if name not in world.services or not world.services[name].endpoints:
            mode = rows[name].mode
            raise UsageError(
                f"{name!r} has no network of its own (mode {mode}), so it has no policy",
                "niso ps lists the networks of services",
                "SERVICE",
            )
        blind = [n for n in store.networks_of(name) if not world.networks[n].observe]
        if blind:
            session.caution(
                f"network {', '.join(blind)} of {name!r} is not observed: its flows are missing", []
            )
        names = WrittenNames(store, name)
        policy = learner.learn(world, seen, name, names.service, egress, names.network)
        place = _place(store, rows[name])
        out = policy.egress
        learned.append(
            LearnedPolicy(
                name,
                place.file or None,
                ".".join(str(key) for key in place.path if isinstance(key, str)),
                watched_s(rows[name], since),
                tuple(map(_entry, policy.ingress)),
                None if out is None else tuple(map(_entry, out)),
            )
        )
    return tuple(learned)


def changes(session: Session, learned: Iterable[LearnedPolicy]) -> tuple[PolicyChange, ...]:
    """Return the files that would change: `Host.learned_changes`."""
    from niso.manifest import toml_edit
    from niso.plan.records import Policy

    store = session.store()
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    writers: dict[tuple[object, ...], str] = {}
    rows: dict[str, list[ServiceRow]] = {}
    for policy in learned:
        row = store.service(policy.service)
        if row is None:
            raise Conflict(f"{policy.service!r} was removed meanwhile", "learn again")
        stack = store.stack_of(row.name)
        for file in store.stack_files(stack) if stack else ():
            if os.path.isfile(file):
                _read(file)  # raises if the file is invalid, because its content is then unknown
        place = _place(store, row)
        if not place.file:
            hint = "niso net learn without --write prints it"
            raise Error(f"{policy.service!r} has no manifest that could have its policy", hint)
        _require_own(store, row, place, writers)
        if place.file not in after:
            before[place.file] = after[place.file] = _read(place.file)
        rows.setdefault(place.file, []).append(row)
        active = store.policy(policy.service) or Policy()
        lists = [(place.path, "allow_from", policy.allow_from, active.allow_from)]
        if policy.egress is not None:
            path = (*place.path, "egress")
            lists.append((path, "allow", policy.egress, active.egress_allow))
        for path, key, entries, applied in lists:
            old = after[place.file]
            try:
                new = after[place.file] = toml_edit.with_list(old, path, key, _items(entries))
            except InvalidInput as error:
                error.file, error.service = place.file, policy.service
                raise
            written = toml_edit.list_at(old, path, key)
            if new != old and written not in (None, [entry.text for entry in applied or ()]):
                where = ".".join(str(part) for part in (*path, key) if isinstance(part, str))
                session.caution(
                    f"{place.file}: {where} is not active yet, and what is learned replaces it",
                    [f"{_apply(store, place.file, [row])} first, and niso net learn narrows it"],
                )
    return tuple(
        PolicyChange(
            file,
            tuple(row.name for row in rows[file]),
            before[file],
            text,
            _apply(store, file, rows[file]),
        )
        for file, text in after.items()
        if text != before[file]
    )


def write(changes: Iterable[PolicyChange]) -> None:
    """Write files: `Host.write_policies`.

    All drafts are on the disk before any file is replaced.
    """
    drafts: dict[str, str] = {}
    path = ""
    try:
        for change in changes:
            path = os.path.realpath(change.file)
            if _read(path) != change.before:
                raise Conflict("it was changed meanwhile", "learn again", file=path)
            _draft(path, change.after, drafts)
        for path in list(drafts):
            os.rename(drafts[path], path)
            del drafts[path]
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        hint = "niso net learn without --write prints the policy"
        raise Error(f"cannot be written: {reason}", hint, file=path) from error
    finally:
        for draft in drafts.values():
            os.unlink(draft)


def _draft(path: str, text: str, drafts: dict[str, str]) -> None:
    """Write the new text of a file next to it, and add it to the drafts. Raises OSError."""
    import tempfile

    status = os.stat(path)
    fd, drafts[path] = tempfile.mkstemp(prefix=".niso-policy-", dir=os.path.dirname(path))
    with open(fd, "w", encoding="utf-8", newline="") as file:
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, status.st_mode & 0o7777)
        file.write(text)
        file.flush()
        os.fsync(fd)


# --- places --------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """The place of a service's policy in a file. ``file`` is "" if there is none."""

    file: str
    path: tuple[str | int, ...]


_OWN = ("network", "policy")


def _place(store: Store, row: ServiceRow) -> _Place:
    """Return where the policy of a service is written, or would be.

    The policy of a [[service]] of a stack is in its package's manifest, unless the stack overrides
    keys of it, or uses the package twice.
    """
    from niso.manifest import toml

    stack = store.stack_of(row.name)
    for file in store.stack_files(stack) if stack else ():
        try:
            data = toml.load(file, "stack.toml")
        except Error:
            continue
        names = (row.name, row.name.removeprefix(f"{stack}-"))
        tables, items = data.get("services"), data.get("service")
        for name in names if isinstance(tables, dict) else ():
            if isinstance(tables, dict) and name in tables:
                return _Place(file, ("services", name, *_OWN))
        entries = items if isinstance(items, list) else []
        entries = [item if isinstance(item, dict) else {} for item in entries]
        packages = [item.get("package") for item in entries]
        for number, item in enumerate(entries):
            shared = packages.count(item.get("package")) > 1
            if item.get("name") in names and ("policy" in item or shared):
                return _Place(file, ("service", number, "policy"))
    return _Place(row.manifest_path if os.path.isfile(row.manifest_path) else "", _OWN)


def _require_own(
    store: Store, row: ServiceRow, place: _Place, writers: dict[tuple[object, ...], str]
) -> None:
    """Raise Conflict if another service's policy has the same place."""
    other = writers.setdefault(place, row.name)
    if place.path == _OWN and other == row.name:
        real = os.path.realpath(place.file)
        sharers = (r for r in store.services() if os.path.realpath(r.manifest_path) == real)
        other = next((r.name for r in sharers if r.name != row.name), other)
    if other != row.name:
        raise Conflict(
            f"{row.name!r} and {other!r} have one manifest, {place.file}, and so one policy",
            "write the policies into their stack.toml: niso net learn prints them",
        )


def _read(path: str) -> str:
    """Read a TOML file of the user. Raises Error; InvalidInput if it is invalid."""
    from niso.api.guard import callers
    from niso.manifest import toml

    try:
        content = toml.content(path, os.path.basename(path), callers())
        toml.parse(content)
        return content.decode()
    except Error as error:
        error.file = path
        raise


def _apply(store: Store, file: str, rows: Sequence[ServiceRow]) -> str:
    import shlex

    stack, folder = store.stack_of(rows[0].name), shlex.quote(os.path.dirname(file))
    if stack and file in store.stack_files(stack):
        return f"niso stack up {folder}"
    return f"niso activate {folder}"


# --- results -------------------------------------------------------------------------------------


def _has_network(row: ServiceRow) -> bool:
    return row.mode in ("bridge", "attached")


def watched_s(row: ServiceRow, since: float | None = None) -> float | None:
    """Return for how many seconds flows of a service are known; None if it is inactive."""
    from niso.kernel.nft_sensor import KEPT_S

    if not row.active or row.activated_at is None:
        return None
    return max(0.0, min(KEPT_S, time.time() - max(row.activated_at, since or 0.0)))


def _entry(line: Line) -> LearnedEntry:
    from niso.api.time_texts import exact_time_text
    from niso.see.seen import moment

    last = None if line.ago is None else exact_time_text(moment(line.ago))
    ago = None if line.ago is None else round(line.ago, 3)
    return LearnedEntry(line.text, line.allowed, line.note, line.new, last, ago, line.open)


def _items(entries: Iterable[LearnedEntry]) -> Iterator[Item]:
    from niso.manifest.toml_edit import Item

    return (Item(entry.text, entry.allowed, entry.note) for entry in entries)
