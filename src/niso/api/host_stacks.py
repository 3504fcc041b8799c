"""Manage stacks: the services of one stack.toml."""

from __future__ import annotations

from niso.api.host_services import Services
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.report import Finished
from niso.change import stacks, warnings
from niso.look import stack_members
from niso.look.services import of_stack
from niso.look.session import (
    LEAST_TIMEOUT_S,
    ApiPart,
    callers,
    line_count,
    path,
    seconds,
    since_time,
)
from niso.runtime import logs
from niso.runtime.logs import rotate_if_large

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import niso


class Stacks(ApiPart):
    """The API of stacks: ``host.stacks``. The argument ``stack`` is a stack.toml or its folder."""

    def up(
        self,
        stack: str | os.PathLike[str],
        *,
        timeout: float = 60.0,
        dry_run: bool = False,
        replace: bool = False,
        trust_owner: bool = True,
    ) -> niso.StackUp:
        """Apply a stack.toml: activate its services. If one service fails, roll back everything.

        With ``replace``, the stack and its services may replace a stack and services of the same
        names from other folders. ``timeout`` is the number of seconds for each service to start or
        become healthy. Without ``trust_owner``, files that users other than root and the caller can
        change are refused. Raises InvalidInput, Conflict, NotFound, KernelError, ProcessError,
        ErrorGroup.
        """
        self.session.require()
        timeout_s = seconds(timeout, "timeout", LEAST_TIMEOUT_S)
        loaded = stack_members.load(path(stack, "stack"), None if trust_owner else callers())
        machine = self.session.machine_for_change(create=not dry_run)
        named = stack_members.named(machine.store, loaded)
        self.session.expect(member.name for member in named.members if member.has_healthcheck)
        done = stacks.up(machine, loaded, timeout_s, dry_run, replace)
        self.session.report(Finished())
        if not dry_run:
            warnings.activated(machine, done.services)
        return done

    def down(
        self, stack: str | os.PathLike[str], *, volumes: bool = False, dry_run: bool = False
    ) -> niso.StackDown:
        """Deactivate a stack's services. Each service is stopped before its dependencies.

        Addresses stay reserved, and networks stay. ``volumes`` deletes the named volumes. Raises
        Error.
        """
        machine = self.session.machine_for_change()
        where = path(stack, "stack")
        return stacks.down(machine, where, dry_run, volumes)

    def status(self, stack: str | os.PathLike[str]) -> tuple[niso.ServiceLine, ...]:
        """Return the services of a stack with their status.

        Raises Conflict if the stack came from another file.
        """
        self.session.require()
        store = self.session.store()
        outline = stack_members.own(store, path(stack, "stack"))
        return of_stack(self.session, store, outline.after, outline.name)

    def restart(self, stack: str | os.PathLike[str]) -> tuple[niso.Done, ...]:
        """Restart a stack's active services, each after the services that it depends on.

        Raises NotFound, ProcessError, and Conflict if the stack came from another file.
        """
        self.session.require()
        loaded = stack_members.load(path(stack, "stack"))
        names, after = stacks.active_members(self.session.store(), loaded)
        return Services(self.session).restart_in_order(names, after) if names else ()

    def logs(
        self,
        stack: str | os.PathLike[str],
        *,
        lines: int | None = None,
        follow: bool = False,
        timestamps: bool = False,
        since: str | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Return the output of a stack's services as pairs (service, line), ordered by time.

        The arguments are those of ``host.services.logs``. ``lines`` applies to each service. Raises
        NotFound, UsageError, and Conflict if the stack came from another file.
        """
        self.session.require()
        store = self.session.store()
        outline = stack_members.own(store, path(stack, "stack"))
        members = store.stack_members(outline.name)
        names = [one for name in members for one in store.instances.names(name) or [name]]
        for name in names:
            rotate_if_large(name)
        return logs.read_joint(names, line_count(lines), follow, timestamps, since_time(since))
