"""What the rest of niso asks of a kernel, so that another one can be handed in: `niso.kernel.fake` needs no root."""

from __future__ import annotations

from collections.abc import Container, Iterable

from niso.base.errors import Conflict, NisoError
from niso.base.lite_typing import TYPE_CHECKING

Foreign = dict[str, Conflict]
"""Name of a link or namespace that should be niso's and is not -> what is wrong with it."""

if TYPE_CHECKING:
    from typing import Protocol, Self

    from niso.kernel.flows import Tracked
    from niso.kernel.kinds.kind import AnyStep
    from niso.kernel.state import State
else:
    Protocol = object


class Kernel(Protocol):
    """A network stack that has niso's objects. Within a ``with`` block of it sockets stay open from call to call."""

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
        """Return which of ``candidates`` there are, with their fields as they are, and all addresses and routes of their links.

        Its cost depends on ``candidates`` alone. ``alias`` marks what is niso's. With ``strays`` also what others have done to
        the links of the candidates. With ``taken`` tables and elements are not looked at and returned as the candidates have
        them. Raises KernelError, and Conflict where something of a candidate's name is somebody else's; with ``foreign`` that
        is noted there and the thing left out.
        """

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        """Return everything that is niso's, wanted or not; ``want`` says which sysctls matter. Raises as `read`."""

    def write(
        self,
        steps: Iterable[AnyStep],
        ending: list[str] | None = None,
        known: Container[tuple[str, str]] = (),
    ) -> None:
        """Do all steps in their order; the first failure ends it. Raises KernelError with the step's words.

        With ``ending`` veth pairs whose namespace goes too are only detached, and their names added there: the caller has to
        `end_links` when it has released the lock. New addresses are announced, but those ``known`` as (namespace, address).
        """

    def write_what_can_be(
        self, steps: Iterable[AnyStep], ending: list[str] | None = None
    ) -> list[NisoError]:
        """Do all steps, going on after a failure; return the errors. After a failure no rule goes."""

    def end_links(self, names: list[str]) -> None:
        """Delete detached links; no-op for those that are gone. Raises KernelError."""

    def sysctl(self, name: str) -> str | None:
        """Return the value of a sysctl of the host; None where this kernel, or this interface, does not have it."""

    def flows(self) -> list[Tracked]:
        """Return the flows that connection tracking knows. Raises KernelError."""

    def end_flows(self, flows: list[Tracked]) -> int:
        """End these flows; return how many there were. Raises KernelError."""

    def host_addresses(self) -> list[str]:
        """Return every address of the host, without its length. Raises KernelError."""
