"""Failpoints: ``NISO_FAILPOINT=N[:ACTION]`` makes the N-th step of a command die or fail (after etcd's gofail).

Every place that changes something outside this process calls `hit` just before it does. ACTION is ``kill`` (so too where there is
none), the name of an errno, or one of `LATER`, which does not fail that step but what comes after it. Honoured in a lab only.
``NISO_FAILPOINT=0`` never fires; with ``NISO_FAILPOINT_LOG=FILE`` each point passed is appended to FILE, and each place that asks
for one of `LATER` as ``- ACTION``.
"""

from __future__ import annotations

import os

from niso.base import paths

OVERRUN = "overrun"
BUSY = "sqlite-busy"
FULL = "sqlite-full"
LATER = {
    OVERRUN: "the next answer of netlink is lost: the socket's buffer was full (netlink(7), ENOBUFS)",
    BUSY: "no change of the store can begin any more: somebody else is in the middle of one",
    FULL: "no change of the store can be committed any more: its disk is full",
    "crun": "crun fails from then on, without a word",
    "conmon": "conmon ends at once from then on",
}

_count = 0
_spec: tuple[int, str] | None = None
_log: str | None = None
_broken = ""


def _load() -> tuple[int, str]:
    global _log
    if not paths.in_lab():
        return (-1, "")
    number, _, action = os.environ.get("NISO_FAILPOINT", "").partition(":")
    _log = os.environ.get("NISO_FAILPOINT_LOG")
    return (int(number) if number.isdigit() else -1, action or "kill")


def _note(line: str) -> None:
    if _log:
        with open(_log, "a", encoding="utf-8") as log:
            log.write(f"{line}\n")


def hit(name: str) -> None:
    """Pass the point ``name`` (words of the step about to run).

    Dies by SIGKILL, or raises OSError with the errno asked for, where this is the point that was asked for.
    """
    global _count, _spec, _broken
    if _spec is None:
        _spec = _load()
    if _spec[0] < 0:
        return
    _count += 1
    _note(f"{_count} {name}")
    if _count != _spec[0]:
        return
    if _spec[1] == "kill":
        os.kill(os.getpid(), 9)
    if _spec[1] in LATER:
        _broken = _spec[1]
        return
    import errno

    number = getattr(errno, _spec[1], errno.EIO)
    raise OSError(number, f"{os.strerror(number)} (failpoint {_count})", name)


def broken(what: str) -> bool:
    """Whether ``what``, one of `LATER`, fails since the point that was asked for; an overrun does so once."""
    global _broken
    if _spec is None or _spec[0] < 0:
        return False
    _note(f"- {what}")
    found = _broken == what
    if found and what == OVERRUN:
        _broken = ""
    return found
