"""Merge the logs of several services."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from queue import SimpleQueue
from threading import Thread

from niso.runtime.logs import Record, records, shown


def read(
    services: list[str],
    last: int | None = None,
    follow: bool = False,
    timestamps: bool = False,
    since: float | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yield (service, line) of several services, in order of time.

    The arguments are those of `niso.runtime.logs.read`; ``last`` counts for each service. With
    ``follow``, new lines come as they arrive, until all log folders are removed.
    """
    lines = _followed(services, last, since) if follow else _past(services, last, since)
    for service, record in lines:
        yield service, shown(record, timestamps)


def _past(
    services: list[str], last: int | None, since: float | None
) -> Iterator[tuple[str, Record]]:
    every = (
        [(one, record) for record in records(one, last, False, since) if record] for one in services
    )
    yield from merge(*every, key=_time)


def _followed(
    services: list[str], last: int | None, since: float | None
) -> Iterator[tuple[str, Record]]:
    """Yield past lines of the services, sorted, then new lines, read by one thread per service."""
    queue: SimpleQueue[tuple[str, Record | None] | None] = SimpleQueue()

    def collect(service: str) -> None:
        caught_up = False
        try:
            for record in records(service, last, True, since):
                queue.put((service, record))
                caught_up = caught_up or record is None
        finally:
            if not caught_up:
                queue.put((service, None))
            queue.put(None)

    for service in services:
        Thread(target=collect, args=(service,), daemon=True).start()
    past: list[tuple[str, Record]] = []
    behind = alive = len(services)
    while alive:
        item = queue.get()
        if item is None:
            alive -= 1
            continue
        service, record = item
        if record is None:
            behind -= 1
            if not behind:
                yield from sorted(past, key=_time)
        elif behind:
            past.append((service, record))
        else:
            yield service, record


def _time(line: tuple[str, Record]) -> bytes:
    # conmon writes all times with the same offset and number of digits
    return line[1].stamp
