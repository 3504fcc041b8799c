"""INT, TERM and HUP end a command as Ctrl-C does."""

from __future__ import annotations

# what `signal` is made of: that makes enums of its numbers, and to import enum is 1.5 ms of a short command
import _signal  # type: ignore[import-not-found]
import sys

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


class state:
    """What INT, TERM and HUP do to a command."""

    last = 0.0
    """When one of them did something, in seconds of the monotonic clock."""
    over = False
    """The command has ended: what is left is to say how, which nothing shall keep it from."""
    lost = False
    """One came where Python throws away what is raised, and will come again."""


BURST_S = 1.0
"""timeout(1) and some shells send a signal to a process and then to its group: so long these count as one."""
_AGAIN_S = 0.001


def interrupt(*_: object) -> None:
    """End a command: what it has begun is undone. Another one, later, ends the undoing too; the first does not, where the command
    has failed and is undoing already: `_failed` tells of both."""
    import time

    now = time.monotonic()
    if state.over or now - state.last < BURST_S:
        return
    is_first, state.last = state.last <= 0, now
    recovery = sys.modules.get("niso.services.undo")  # which may be in the middle of its import
    if not (is_first and getattr(recovery, "undoing", False)):
        raise KeyboardInterrupt


def _unraisable(lost: UnraisableHookArgs) -> None:
    """Have an interrupt come again that came where nothing can be raised: importlib has such a place after each import, the
    callback of a weak reference, and a command that lost its interrupt there would go on to its end."""
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    # from a timer's handler, since what would be raised in here is thrown away as well
    state.lost = True
    _signal.setitimer(_signal.ITIMER_REAL, _AGAIN_S)
    state.lost = False


def _again(*_: object) -> None:
    if state.lost:
        _signal.setitimer(_signal.ITIMER_REAL, _AGAIN_S)
        return
    state.last = -BURST_S
    _signal.raise_signal(_signal.SIGTERM)  # which waits where signals are held


def end_on_signals() -> None:
    """TERM and HUP end a command as Ctrl-C does: see `interrupt`."""
    state.last, state.over = -BURST_S, False
    _signal.signal(_signal.SIGTERM, interrupt)
    _signal.signal(_signal.SIGALRM, _again)
    sys.unraisablehook = _unraisable
    _signal.signal(
        _signal.SIGCHLD, _signal.SIG_DFL
    )  # ignored, as some parents leave it, children end without a status
    for number in (_signal.SIGINT, _signal.SIGHUP):
        if _signal.getsignal(number) != _signal.SIG_IGN:  # in the background of a script, by nohup
            _signal.signal(number, interrupt)
