"""Keep rtnetlink sockets open for the duration of an operation.

A socket acts in the namespace that opened it, even after the caller has left it.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import netns
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from typing import Self

_MOST = 64
"""The most sockets open at once: a command may touch more services than its limit of open files."""


class Sockets:
    """The open sockets by namespace. A context manager that closes them."""

    def __init__(self) -> None:
        self._here: Rtnl | None = None
        self._inside: dict[str, tuple[Rtnl, tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for rtnl in (self._here, *(rtnl for rtnl, _ in self._inside.values())):
            if rtnl is not None:
                rtnl.close()
        netns.unpin()

    def here(self) -> Rtnl:
        """Return a socket in the namespace where `here` was first called. Raises KernelError."""
        if self._here is None:
            self._here = Rtnl()
        return self._here

    def at(self, name: str) -> Rtnl:
        """Return a socket in the namespace now named ``name``; for "", `here`.

        Raises KernelError if there is no such namespace.
        """
        if not name:
            return self.here()
        known = self._inside.get(name)
        if known is not None and known[1] == netns.identity(name):
            return known[0]
        with netns.inside(name):
            return self.keep(name, Rtnl())

    def keep(self, name: str, rtnl: Rtnl) -> Rtnl:
        """Keep a socket that was opened in the namespace ``name`` open, and return it."""
        gone = self._inside.pop(name, None)
        if gone is None and len(self._inside) >= _MOST:
            gone = self._inside.pop(next(iter(self._inside)))
        if gone is not None:
            gone[0].close()
        self._inside[name] = (rtnl, netns.identity(name))
        return rtnl
