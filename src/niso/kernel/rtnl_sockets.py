"""rtnetlink sockets that are kept for the length of one piece of work: what is opened in a namespace acts there from anywhere."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import netns
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from typing import Self

_MOST = 64
"""Sockets that are open at once, of as many namespaces; a command may be about more services than it may have files open."""


class Sockets:
    """A context manager. Its sockets are its own to close."""

    def __init__(self) -> None:
        self._here: Rtnl | None = None
        self._inside: dict[str, tuple[Rtnl, tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for rtnl in (self._here, *(rtnl for rtnl, _ in self._inside.values())):
            if rtnl is not None:
                rtnl.close()

    def here(self) -> Rtnl:
        """One in the namespace that the caller was in when it asked first. Raises KernelError."""
        if self._here is None:
            self._here = Rtnl()
        return self._here

    def at(self, name: str) -> Rtnl:
        """One in the namespace that is called ``name`` now; of "" as `here`. Raises KernelError where there is none."""
        if not name:
            return self.here()
        known = self._inside.get(name)
        if known is not None and known[1] == netns.identity(name):
            return known[0]
        with netns.inside(name):
            return self.keep(name, Rtnl())

    def keep(self, name: str, rtnl: Rtnl) -> Rtnl:
        """Take one that was opened in the namespace ``name``; it is given back."""
        gone = self._inside.pop(name, None)
        if gone is None and len(self._inside) >= _MOST:
            gone = self._inside.pop(next(iter(self._inside)))
        if gone is not None:
            gone[0].close()
        self._inside[name] = (rtnl, netns.identity(name))
        return rtnl
