"""Report events of services and networks as they happen, for `Host.events`.

No daemon is needed: the kernel wakes the caller. The caller reads the events that other niso
processes have recorded (`niso.runtime.event_log`), and records all other changes itself. All
changes by one command are one event, because a service is compared only after the command.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import owner
from niso.base.text import exact_time_text
from niso.kernel.netlink import OWN_THREAD
from niso.kernel.watches import TableChange, Watches
from niso.look.services import fate, interrupted
from niso.look.session import ResultStream, Session, guarded
from niso.runtime import event_log
from niso.runtime.event_log import Happened, happened, joined

if TYPE_CHECKING:
    from collections.abc import Iterable


_QUIET_S = 0.1  # changes that follow each other within this time in seconds are combined
_LONGEST_S = 1.0  # events are returned after this time in seconds, even if more changes follow
_SHARE = 4
"""The pause after a snapshot is this many times as long as the time that the snapshot took.

The more services there are, the longer a snapshot takes.
"""


class Events(ResultStream):
    """An endless iterator of events (`Happened`) for a ``with`` block, usable with poll(2)."""

    def __init__(self, session: Session, name: str | None, since: float | None) -> None:
        self.session = session
        self._name = None if name is None else session.store().resolve(name)
        # opened before the first read, so that no change is missed
        self._watches: Watches = Watches()
        try:
            self._catch_up()
        except BaseException:
            self.close()
            raise
        self._free_at = time.monotonic()
        known = event_log.since(0)
        self._number = known[-1][0] if known else 0
        first = None if since is None else exact_time_text(since)
        self._past = [one for _, one in known if first is not None and one.time >= first]

    def __iter__(self) -> Iterator[Happened]:
        while True:
            yield from self.read()

    def fileno(self) -> int:
        """Return a descriptor that is readable when a change has been noticed."""
        return self._watches.fileno()

    def past(self) -> tuple[Happened, ...]:
        """Return the recorded events since the start time that the caller requested, if any."""
        return self._chosen(sorted(self._past, key=lambda one: one.time))

    @guarded
    def read(self) -> tuple[Happened, ...]:
        """Wait for a change and return its events, if any.

        Changes in quick succession are returned together, 0.1 s after the last change or about 1 s
        after the first. Taking a snapshot can delay the result further.
        """
        self._watches.wait(None)
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        changed, tables = self._folded()
        if not changed:
            return ()
        now, began = time.time(), time.monotonic()
        self._catch_up()
        new = event_log.since(self._number)
        self._number = new[-1][0] if new else self._number
        self._free_at = time.monotonic() + _SHARE * (time.monotonic() - began)
        changes = sorted((one for _, one in new), key=lambda one: one.time)
        return self._chosen([*changes, *_foreign(tables, now)])

    def _catch_up(self) -> None:
        store = self.session.store()
        names = {row.name for row in store.services()} | event_log.recorded()
        state = lambda row: fate(self.session, store, row)  # noqa: E731
        event_log.record(store, sorted(names), interrupted(store).keys(), state)

    def close(self) -> None:
        self._watches.close()

    def _folded(self) -> tuple[bool, list[TableChange] | None]:
        """Collect changes until none arrives for a short time. Returns (whether anything changed,
        the changes of nftables). The second is None if the kernel skipped some.
        """
        changed, every = self._watches.read()
        end = time.monotonic() + _LONGEST_S
        while time.monotonic() < end and self._watches.wait(_QUIET_S):
            again, more = self._watches.read()
            changed = changed or again
            every = None if every is None or more is None else [*every, *more]
        return changed, every

    def _chosen(self, events: Iterable[Happened]) -> tuple[Happened, ...]:
        if self._name is None or owner(self._name) == self._name:
            events = joined(events)
        return tuple(
            event
            for event in events
            # another program's changes of niso's tables concern every service
            if self._name in (None, event.service) or not (event.service or event.network)
        )


def _foreign(tables: list[TableChange] | None, now: float) -> list[Happened]:
    if tables is None:
        words = "changes came faster than they were read, and some of others are not shown"
        return [happened(now, None, "lost", f"{words}: niso net check")]
    # combine several transactions of a process into one event
    lines: dict[tuple[str, int], list[str]] = {}
    for changed, process, pid in tables:
        if not process.startswith(OWN_THREAD):  # no program that uses niso
            lines.setdefault((process, pid), []).extend(changed)
    result = []
    for (process, pid), names in lines.items():
        tables_ = " and ".join(dict.fromkeys(names))
        detail = f"{tables_} changed by {process} (pid {pid}): niso net check"
        result.append(happened(now, None, "foreign", detail, program=process, pid=pid))
    return result
