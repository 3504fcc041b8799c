"""The kernel that niso runs on."""

from __future__ import annotations

from collections.abc import Container, Iterable

from niso.base.errors import NisoError
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import reading, sysctl, writing
from niso.kernel.interface import Foreign
from niso.kernel.rtnl_sockets import Sockets
from niso.kernel.state import State

if TYPE_CHECKING:
    from typing import Self

    from niso.kernel.flows import Tracked
    from niso.kernel.kinds.kind import AnyStep


class Real:
    """The kernel of the caller's network namespace. Not for several threads at once."""

    def __init__(self) -> None:
        self._sockets = Sockets()
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._sockets.__exit__()
            self._sockets = Sockets()

    def read(
        self,
        candidates: State,
        alias: str,
        foreign: Foreign | None = None,
        strays: bool = False,
        taken: bool = False,
    ) -> State:
        with self:
            return reading.read(candidates, alias, self._sockets, foreign, strays, taken)

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        with self:
            return reading.read_all(want, alias, self._sockets, foreign)

    def write(
        self,
        steps: Iterable[AnyStep],
        ending: list[str] | None = None,
        known: Container[tuple[str, str]] = (),
    ) -> None:
        with self:
            writing.Writer(steps, self._sockets, ending, known).run()

    def write_what_can_be(
        self, steps: Iterable[AnyStep], ending: list[str] | None = None
    ) -> list[NisoError]:
        with self:
            return writing.Writer(steps, self._sockets, ending).run_what_can_be()

    def end_links(self, names: list[str]) -> None:
        writing.end_links(names)

    def sysctl(self, name: str) -> str | None:
        return sysctl.read(name)

    def flows(self) -> list[Tracked]:
        from niso.kernel import flows

        return flows.tracked()

    def end_flows(self, flows: list[Tracked]) -> int:
        from niso.kernel.flows import end

        return end(flows)

    def host_addresses(self) -> list[str]:
        with self:
            return [a.address.partition("/")[0] for a in self._sockets.here().addresses()]
