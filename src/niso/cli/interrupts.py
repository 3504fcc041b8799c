"""End a command on TERM and HUP as on INT (Ctrl-C)."""

from __future__ import annotations

import signal
import sys

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


class state:
    """State of the signal handlers."""

    last = 0.0
    """When a signal was last handled, in seconds of the monotonic clock; 0.0 if never."""
    over = False
    """Whether the command has ended: signals no longer interrupt it while it reports."""
    lost = False
    """Whether an interrupt was raised where Python discards exceptions; it is raised again."""


BURST_S = 1.0
"""Signals within this time count as one.

timeout(1) and some shells signal a process and then its group.
"""
_AGAIN_S = 0.001


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt in a command, which then rolls back its change.

    A second signal also ends the rollback. The first signal does not, if the command has failed and
    is already rolling back: `main._failed` then reports both.
    """
    import time

    now = time.monotonic()
    if state.over or now - state.last < BURST_S:
        return
    is_first, state.last = state.last <= 0, now
    recovery = sys.modules.get("niso.services.undo")  # may be partially imported
    if not (is_first and getattr(recovery, "undoing", False)):
        raise KeyboardInterrupt


def _unraisable(lost: UnraisableHookArgs) -> None:
    """Raise an interrupt again that Python has discarded.

    importlib runs a weak reference callback after each import. A KeyboardInterrupt raised there is
    discarded, and the command would run to its end.
    """
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    # raised from a timer, because exceptions raised in this hook are discarded too
    state.lost = True
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    state.lost = False


def _again(*_: object) -> None:
    if state.lost:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        return
    state.last = -BURST_S
    signal.raise_signal(signal.SIGTERM)  # stays pending while signals are blocked


def end_on_signals() -> None:
    """Install the handlers: INT, TERM and HUP call `interrupt`."""
    state.last, state.over = -BURST_S, False
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, _again)
    sys.unraisablehook = _unraisable
    # some parents leave it ignored, and then wait(2) returns no status
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        # leave it ignored, as in background jobs of scripts and by nohup(1)
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
