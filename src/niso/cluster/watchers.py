"""Watch prefixes of the engine's keys, each in a thread, and update caches from the events."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster.engine import Compacted

if TYPE_CHECKING:
    from niso.cluster.engine import Engine
    from niso.cluster.kept import Kept

SILENCE_S = 12.0
_AGAIN_S = 1.0
_BACK_OFF_S = (0.2, 5.0)


class Watches:
    """The watching threads. ``connect`` returns a connection for each.

    ``notice`` is called after a change; its argument is false if processing it can wait.
    """

    def __init__(
        self,
        connect: Callable[[], Engine],
        notice: Callable[[bool], None],
        over: threading.Event,
    ) -> None:
        self._connect = connect
        self._notice = notice
        self._over = over
        self._followed: set[str] = set()

    def follow(self, prefix: str, kept: Kept, hurry: bool) -> None:
        """Watch a prefix, update a cache and report changes; no-op if it is watched already.

        The cache may cover only a part of the prefix.
        """
        if prefix not in self._followed:
            self._followed.add(prefix)
            threading.Thread(target=self._run, args=(prefix, kept, hurry), daemon=True).start()

    def _run(self, prefix: str, kept: Kept, hurry: bool) -> None:
        wait = _BACK_OFF_S[0]
        engine = connected(self._connect, self._over)
        while engine is not None and not self._over.is_set():
            try:
                start = kept.begin(engine, time.monotonic())
                self._notice(True)  # for changes from before the watch
                try:
                    for batch in engine.watch(prefix, start, SILENCE_S):
                        wait = _BACK_OFF_S[0]
                        if not kept.hear(batch, time.monotonic()):
                            break
                        if batch.events:
                            self._notice(hurry)
                        if self._over.is_set():
                            return
                finally:
                    kept.lose()
            except Compacted:
                continue
            except Error:
                self._over.wait(about(wait))
                wait = min(2 * wait, _BACK_OFF_S[1])


def connected(connect: Callable[[], Engine], over: threading.Event) -> Engine | None:
    """Open a connection as soon as the files for it exist; return None once ``over`` is set.

    A command replaces the files, and deletes them when the host leaves the cluster.
    """
    while not over.is_set():
        try:
            return connect()
        except (Error, OSError):
            over.wait(about(_AGAIN_S))
    return None


def about(seconds: float) -> float:
    """Return half to one and a half of ``seconds``, at random, to spread the hosts' requests."""
    return seconds * (0.5 + os.urandom(1)[0] / 255)
