"""Execute steps: the only module that changes the kernel.

The code for each kind is in kernel/kinds.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from niso.base import failpoint
from niso.base.errors import Error, KernelError
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.kinds.kind import Step
from niso.kernel.kinds.named import Named
from niso.kernel.kinds.namespace import Netns
from niso.kernel.kinds.veth import delete_links
from niso.kernel.rtnetlink import Rtnl
from niso.kernel.rtnl_sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from typing import Any

    from niso.kernel.kinds.kind import AnyStep


class Writer:
    """Steps, and the sockets that their kinds need to execute them.

    With ``ending``, veth pairs whose namespace is deleted too are only detached, and their names
    added to ``ending``.
    """

    def __init__(
        self,
        steps: Iterable[AnyStep],
        sockets: Sockets,
        ending: list[str] | None = None,
    ) -> None:
        self.steps = list(steps)
        self.sockets = sockets
        self.ending = ending if ending is not None else []
        self._by_space: dict[str, list[Step[Any]]] = {}
        self.detached = {
            step.thing.name
            for step in self.steps
            if ending is not None
            and isinstance(step, Step)
            and step.action == "delete"
            and isinstance(step.thing, Netns | Named)
        }

    def steps_in(self, netns: str) -> Sequence[Step[Any]]:
        """Return the steps for objects in a namespace, in order."""
        if not self._by_space:
            for step in self.steps:
                if isinstance(step, Step):
                    self._by_space.setdefault(step.kind.space(step.thing), []).append(step)
        return self._by_space.get(netns, ())

    def rtnl(self, netns: str) -> Rtnl:
        """Return a socket of a namespace; "" is the host. Raises KernelError."""
        return self.sockets.at(netns)

    def link(self, netns: str, name: str) -> tuple[Rtnl, int | None]:
        """Return a socket of the namespace and the link's index; None if the link does not exist.

        If the link does not exist, no object on it exists either.
        """
        rtnl = self.rtnl(netns)
        try:
            return rtnl, rtnl.index(name)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            return rtnl, None

    @staticmethod
    def existing(index: int | None, link: str) -> int:
        """Return ``index`` if it is not None. Raises KernelError if the link does not exist."""
        if index is None:
            raise KernelError(
                f"link {link!r} does not exist", "niso net repair", errno=errno.ENODEV
            )
        return index

    def run(self) -> None:
        """Execute all steps in order, stopping at the first failure.

        Raises KernelError with the description of the failed step.
        """
        for batch in self._batches():
            self._do(batch)

    def run_what_can_be(self) -> list[Error]:
        """Execute all steps, continuing after failures; return the errors.

        After a failure no rule is deleted, since the rule may guard an object that could not be
        deleted.
        """
        errors: list[Error] = []
        for batch in self._batches():
            if errors and batch[0].kind.is_transactional:
                continue
            try:
                self._do(batch)
            except Error as error:
                errors.append(error)
                for step in batch[1:]:
                    try:
                        self._do([step])
                    except Error as other:
                        errors.append(other)
        return errors

    def _batches(self) -> list[list[AnyStep]]:
        """Return the steps in order, grouped into batches that their kind writes together."""
        batches: list[list[AnyStep]] = []
        last: Hashable = None
        for step in self.steps:
            common = step.kind.batch(step, self) if isinstance(step, Step) else None
            key = None if common is None else (step.kind, common)
            if key is not None and key == last:
                batches[-1].append(step)
            else:
                batches.append([step])
            last = key
        return batches

    def _do(self, batch: list[AnyStep]) -> None:
        """Execute the steps of one batch.

        Raises KernelError with the description of the step that failed.
        """
        description = ""
        try:
            try:
                for step in batch:
                    description = step.describe()
                    failpoint.hit(description)
                batch[0].kind.write(self, batch)
            except OSError as error:
                raise KernelError(
                    f"{description.splitlines()[0]}: {error.strerror}", errno=error.errno or 0
                ) from error
        except KernelError as error:
            first = batch[0]
            if isinstance(first, Step):
                error.space = first.kind.space(first.thing)
                error.thing = first.thing if len(batch) == 1 else None
            raise


def end_links(names: list[str]) -> None:
    """Delete the links that a `Writer` has detached.

    On return, they no longer exist. Raises KernelError.
    """
    if names:
        what = f"delete links {', '.join(names)}"
        try:
            failpoint.hit(what)
        except OSError as error:
            raise KernelError(f"{what}: {error.strerror}", errno=error.errno or 0) from error
        with Rtnl() as rtnl:
            delete_links(rtnl, names)
