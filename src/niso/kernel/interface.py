"""The interface of a kernel, so that others can stand in: `niso.kernel.fake` needs no root."""

from __future__ import annotations

from collections.abc import Container, Iterable

from niso.base.errors import Conflict, NisoError
from niso.base.lite_typing import TYPE_CHECKING

Foreign = dict[str, Conflict]
"""Maps the name of a link or namespace that should be niso's, and is not, to the error."""

if TYPE_CHECKING:
    from typing import Protocol, Self

    from niso.kernel.flows import Tracked
    from niso.kernel.kinds.kind import AnyStep
    from niso.kernel.state import State
else:
    Protocol = object


class Kernel(Protocol):
    """A network stack with niso's objects.

    Within its ``with`` block sockets stay open between calls.
    """

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def read(
        self,
        candidates: State,
        alias: str,
        foreign: Foreign | None = None,
        strays: bool = False,
        taken: bool = False,
    ) -> State:
        """Return those of ``candidates`` that exist, with their actual fields.

        All addresses and routes of their links are returned too. The cost depends on
        ``candidates`` alone. ``alias`` marks what is niso's. With ``strays`` foreign changes to the
        candidates' links are read as well. With ``taken`` tables and elements are not read and
        returned as the candidates have them.

        Raises KernelError, and Conflict if an object with a candidate's name is not niso's. With
        ``foreign`` that error is recorded there instead, and the object is left out.
        """

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        """Return everything that is niso's, wanted or not.

        ``want`` says which sysctls matter. Raises as `read`.
        """

    def write(
        self,
        steps: Iterable[AnyStep],
        ending: list[str] | None = None,
        known: Container[tuple[str, str]] = (),
    ) -> None:
        """Execute all steps in order; the first failure ends it.

        With ``ending`` veth pairs whose namespace is deleted too are only detached, and their names
        added to it: the caller has to `end_links` after releasing the lock. New addresses are
        announced, except those in ``known`` as (namespace, address). Raises KernelError with the
        step's words.
        """

    def write_what_can_be(
        self, steps: Iterable[AnyStep], ending: list[str] | None = None
    ) -> list[NisoError]:
        """Execute all steps, continuing after failures; return the errors.

        After a failure no rule is deleted.
        """

    def end_links(self, names: list[str]) -> None:
        """Delete detached links; no-op for missing ones. Raises KernelError."""

    def sysctl(self, name: str) -> str | None:
        """Return the value of a host sysctl; None if this kernel or interface does not have it."""

    def flows(self) -> list[Tracked]:
        """Return the flows known to connection tracking. Raises KernelError."""

    def end_flows(self, flows: list[Tracked]) -> int:
        """End these flows and return how many there were. Raises KernelError."""

    def host_addresses(self) -> list[str]:
        """Return every address of the host, without prefix length. Raises KernelError."""
