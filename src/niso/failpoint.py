"""Failpoints: ``NISO_FAILPOINT=N[:kill|ERRNO]`` makes the N-th step of a command die or fail (after etcd's gofail).

Every place that changes something outside this process calls `hit` just before it does. Honoured in a lab only.
``NISO_FAILPOINT=0`` never fires; with ``NISO_FAILPOINT_LOG=FILE`` each point passed is appended to FILE.
"""

from __future__ import annotations

import os

from niso import paths

_count = 0
_spec: tuple[int, str] | None = None
_log: str | None = None


def _load() -> tuple[int, str]:
    global _log
    if not paths.in_lab():
        return (-1, "")
    number, _, action = os.environ.get("NISO_FAILPOINT", "").partition(":")
    _log = os.environ.get("NISO_FAILPOINT_LOG")
    return (int(number) if number.isdigit() else -1, action or "kill")


def hit(name: str) -> None:
    """Pass the point ``name`` (words of the step about to run).

    Dies by SIGKILL, or raises OSError with the errno asked for, where this is the point that was asked for.
    """
    global _count, _spec
    if _spec is None:
        _spec = _load()
    if _spec[0] < 0:
        return
    _count += 1
    if _log:
        with open(_log, "a", encoding="utf-8") as log:
            log.write(f"{_count} {name}\n")
    if _count != _spec[0]:
        return
    if _spec[1] == "kill":
        os.kill(os.getpid(), 9)
    import errno

    number = getattr(errno, _spec[1], errno.EIO)
    raise OSError(number, f"{os.strerror(number)} (failpoint {_count})", name)
