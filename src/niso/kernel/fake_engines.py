"""Model the network namespaces of engines for an in-memory kernel; see `niso.kernel.fake`."""

from __future__ import annotations

import errno

from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.fake_tables import refuse_unless
from niso.kernel.foreign_netns import ForeignNetns
from niso.kernel.kinds.named import Named

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Step
    from niso.kernel.kinds.namespace import Netns
    from niso.kernel.kinds.veth import Veth


class FakeEngines:
    """Foreign namespaces by the path of their file, and the names that niso gives them."""

    netns: dict[str, Netns]
    veths: dict[str, Veth]

    def __init__(self) -> None:
        self.engines: dict[str, ForeignNetns] = {}
        self.named: dict[str, Named] = {}
        self._cookies = 1000

    def lose_veth(self, name: str) -> None:
        """Delete a veth pair with everything on its other end."""
        raise NotImplementedError

    def begin_engine(self, path: str, *links: str, routed: tuple[int, ...] = ()) -> int:
        """Simulate another program that creates a namespace at ``path``. Return its cookie."""
        self._cookies += 1
        all_links = frozenset(("lo", *links))
        self.engines[path] = ForeignNetns(self._cookies, "", all_links, frozenset(routed))
        return self._cookies

    def end_engine(self, path: str) -> None:
        """Delete the namespace at ``path`` with the links in it."""
        gone = self.engines.pop(path)
        names = {name for name, named in self.named.items() if named.cookie == gone.cookie}
        for veth in [veth for veth in self.veths.values() if veth.netns in names]:
            self.lose_veth(veth.name)

    def cookie_at(self, path: str) -> int | None:
        foreign = self.engines.get(path)
        return foreign.cookie if foreign is not None else None

    def look_at(self, path: str) -> ForeignNetns | None:
        return self.engines.get(path)

    def marked_names(self) -> list[str]:
        return sorted(self.named)

    def present_names(self) -> list[Named]:
        """Return the existing names; the cookie is 0 where the namespace has ended."""
        return [
            named._replace(cookie=self.cookie_at(named.target) or 0)
            for named in self.named.values()
        ]

    def is_space(self, name: str) -> bool:
        """Return whether a namespace has this name, made by niso or by another program."""
        named = self.named.get(name)
        return name in self.netns or (
            named is not None and self.cookie_at(named.target) == named.cookie
        )

    def _name(self, step: Step[Named], named: Named) -> None:
        if step.action == "delete":
            self.named.pop(named.name, None)
            return
        refuse_unless(self.cookie_at(named.target) == named.cookie, errno.ESTALE, named)
        self.named[named.name] = named
