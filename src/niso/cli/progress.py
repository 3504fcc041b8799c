"""Report slow steps of a command on stderr.

A thread prints the current step after a second, so that the main thread need not wake up for it.
"""

from __future__ import annotations

import _thread
import os
import select
import time
from contextlib import suppress

from niso.base.report import (
    AskingCluster,
    Caution,
    Event,
    Expects,
    Finished,
    NotStarted,
    Recovered,
    Report,
    Unfinished,
    WaitingForLock,
    silent,
)
from niso.base.service_events import (
    CopyingPackage,
    Healthy,
    RemovingVolumes,
    Starting,
    Stopping,
    Undoing,
    WaitingForHealth,
    WaitingForPacket,
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
    AskingCluster,
)
"""Events that can take long; most others are kernel steps, which are many and fast."""


class Progress:
    """Show events as -v and --dry-run request: ``with Progress(args) as host.progress:``.

    Without these options it shows steps that take over a second. Warnings are always shown. The
    thread starts with the first event that can be slow, and sleeps until a step has taken a second.
    """

    def __init__(self, args: Args) -> None:
        self._verbose = bool(getattr(args, "verbose", False))
        self._quiet = bool(getattr(args, "json", False))  # stderr carries JSON too
        self._dry_run = bool(getattr(args, "dry_run", False))
        self._waits: frozenset[str] = frozenset()
        self._began = time.monotonic()
        self._planned = False
        self._running = False
        self._over, self._printing = _thread.allocate_lock(), _thread.allocate_lock()
        self._step, self._since, self._reported = "", 0.0, 0.0
        self._unhealthy: dict[str, None] = {}

    def __enter__(self) -> Report:
        self._notify = _note if self._verbose else silent if self._quiet else self._report
        self._show = self._plan if self._dry_run else self._notify
        return self._receive

    def _plan(self, event: Event) -> None:
        """Print a step that --dry-run only plans."""
        self._planned = True
        step(event.describe())

    def _receive(self, event: Event) -> None:
        if isinstance(event, Expects):
            self._waits = frozenset(event.services)
        elif isinstance(event, Finished):
            self._stop()
        elif isinstance(event, Caution):
            warn(event.text, event.hints)
        elif isinstance(event, Recovered | Unfinished | NotStarted):
            warn(event.describe())
        elif isinstance(event, WaitingForLock | AskingCluster):  # also with --dry-run
            self._notify(event)
        else:
            self._show(event)

    def _report(self, event: Event) -> None:
        """Record the step that begins now, and start the thread if it may be slow."""
        now = time.monotonic()
        if not self._running and not isinstance(event, SLOW) and now < self._began + SOON_S:
            return
        self._follow(event)
        self._step, self._since, self._reported = event.describe().split("\n", 1)[0], now, 0.0
        if not self._running:
            # block signals in the thread: the main thread handles them
            with signals_held(), suppress(RuntimeError):
                self._over.acquire()
                self._running = True
                _thread.start_new_thread(self._print_slow_steps, ())

    def __exit__(self, kind: object = None, *_: object) -> None:
        self._stop()
        if self._dry_run and not self._planned and kind is None:
            step("nothing to do")

    def _stop(self) -> None:
        """End the thread."""
        if self._running:
            self._over.release()
            with self._printing:  # let a line in progress come before the command's output
                self._running = False

    def _print_slow_steps(self) -> None:
        """Print a step after one second and again every ten seconds, until `_stop`."""
        while True:
            due = self._since + (self._reported + AGAIN_S if self._reported else AT_ONCE_S)
            if self._over.acquire(timeout=max(0.0, due - time.monotonic())):
                return
            with self._printing:
                since = self._since
                if not self._running:
                    return
                if time.monotonic() < since + (
                    self._reported + AGAIN_S if self._reported else AT_ONCE_S
                ):
                    continue  # another step has begun
                elapsed = round(time.monotonic() - since)
                step = self._step
                if self._unhealthy:
                    step = f"waiting for {', '.join(self._unhealthy)} to become healthy"
                line = f"niso: {escaped(step)} ({elapsed}s)\n".encode()[: select.PIPE_BUF]
                try:
                    if select.select([], [2], [], 0)[1]:  # never block on a full pipe
                        os.write(2, line)
                except OSError:
                    return
                if since == self._since:
                    self._reported = elapsed

    def _follow(self, event: Event) -> None:
        """Track which services are expected to become healthy."""
        if isinstance(event, Starting) and event.service in self._waits:
            self._unhealthy[event.service] = None
        elif isinstance(event, Healthy):
            self._unhealthy.pop(event.service, None)
        elif isinstance(event, Undoing | Stopping):
            self._unhealthy.clear()


def _note(event: Event) -> None:
    note(event.describe())
