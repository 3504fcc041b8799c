"""What a command is at, told on stderr when it takes more than a second: by a thread, so that nothing else must wake up for it."""

from __future__ import annotations

import _thread
import os
import select
import time
from contextlib import suppress

from niso.api.events import Caution, Expects, Finished
from niso.base.report import (
    CopyingPackage,
    Event,
    Healthy,
    RemovingVolumes,
    Report,
    Starting,
    Stopping,
    Undoing,
    WaitingForHealth,
    WaitingForLock,
    WaitingForPacket,
    silent,
)
from niso.base.signals import signals_held
from niso.cli.output import escaped, note, step, warn
from niso.cli.parse import Args

AT_ONCE_S = 1.0
AGAIN_S = 10.0
SOON_S = 0.5
SLOW = (
    Starting,
    Stopping,
    CopyingPackage,
    Undoing,
    RemovingVolumes,
    WaitingForLock,
    WaitingForHealth,
    WaitingForPacket,
)
"""What may take long: most others are steps of the kernel, of which it takes many."""


class Progress:
    """``with Progress(args) as host.progress:`` shows events as -v and --dry-run ask.

    Without them it shows what takes over a second. Warnings are always shown. The thread that tells
    begins with the first line that may be slow, and sleeps until a line has been the last one for a
    second.
    """

    def __init__(self, args: Args) -> None:
        self._verbose = bool(getattr(args, "verbose", False))
        self._quiet = bool(args.json)  # who reads JSON reads it on stderr too
        self._dry_run = bool(getattr(args, "dry_run", False))
        self._waits: frozenset[str] = frozenset()
        self._began = time.monotonic()
        self._tells = False
        self._over, self._telling = _thread.allocate_lock(), _thread.allocate_lock()
        self._doing, self._since, self._told = "", 0.0, 0.0
        self._unhealthy: dict[str, None] = {}

    def __enter__(self) -> Report:
        self._tell_of = _note if self._verbose else silent if self._quiet else self._report
        self._show = _step if self._dry_run else self._tell_of
        return self._receive

    def _receive(self, event: Event) -> None:
        if isinstance(event, Expects):
            self._waits = frozenset(event.services)
        elif isinstance(event, Finished):
            self._stop()
        elif isinstance(event, Caution):
            warn(event.text, event.hints)
        elif isinstance(event, WaitingForLock):  # with --dry-run too
            self._tell_of(event)
        else:
            self._show(event)

    def _report(self, event: Event) -> None:
        """What is being done from now on."""
        now = time.monotonic()
        if not self._tells and not isinstance(event, SLOW) and now < self._began + SOON_S:
            return
        self._follow(event)
        self._doing, self._since, self._told = event.describe().split("\n", 1)[0], now, 0.0
        if not self._tells:
            # held in the thread for ever: they are the main thread's to see
            with signals_held(), suppress(RuntimeError):
                self._over.acquire()
                self._tells = True
                _thread.start_new_thread(self._tell, ())

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        """Tell no more."""
        if self._tells:
            self._over.release()
            with self._telling:  # a line that is being told comes before what the command prints
                self._tells = False

    def _tell(self) -> None:
        """Print the line that is the last one for a second, and again every ten, until all is over."""
        while True:
            due = self._since + (self._told + AGAIN_S if self._told else AT_ONCE_S)
            if self._over.acquire(timeout=max(0.0, due - time.monotonic())):
                return
            with self._telling:
                since = self._since
                if not self._tells:
                    return
                if time.monotonic() < since + (self._told + AGAIN_S if self._told else AT_ONCE_S):
                    continue  # there was another line meanwhile
                told = round(time.monotonic() - since)
                words = (
                    f"wait until healthy: {', '.join(self._unhealthy)}"
                    if self._unhealthy
                    else self._doing
                )
                try:
                    if select.select([], [2], [], 0)[
                        1
                    ]:  # who does not read it must not keep the command from its end
                        os.write(
                            2, f"niso: {escaped(words)} ({told:.0f}s)\n".encode()[: select.PIPE_BUF]
                        )
                except OSError:
                    return
                if since == self._since:
                    self._told = told

    def _follow(self, event: Event) -> None:
        """Keep in mind which services are waited for until they are healthy."""
        if isinstance(event, Starting) and event.service in self._waits:
            self._unhealthy[event.service] = None
        elif isinstance(event, Healthy):
            self._unhealthy.pop(event.service, None)
        elif isinstance(event, Undoing | Stopping):
            self._unhealthy.clear()


def _note(event: Event) -> None:
    note(event.describe())


def _step(event: Event) -> None:
    step(event.describe())
