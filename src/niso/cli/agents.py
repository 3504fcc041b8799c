"""Run an agent in the foreground until a signal ends it."""

from __future__ import annotations

import signal

from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Agent(Protocol):
        """The interface of an agent: ``run`` returns after ``stop``."""

        @property
        def run(self) -> Callable[[], None]: ...

        @property
        def stop(self) -> Callable[[], None]: ...


def follow(start: Callable[[Callable[[str], None]], Agent]) -> int:
    """Run an agent with its log on stdout; return the exit status.

    ``start`` gets a function that logs a line, and returns the agent.
    """
    following = start(lambda line: print(output.escaped(line), flush=True))
    ended = []

    def end(number: int, _: object) -> None:
        ended.append(number)
        following.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    following.run()
    return 130 if signal.SIGINT in ended else 0
