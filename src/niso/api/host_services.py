"""Services: start, stop, look at and run commands in them."""

from __future__ import annotations

import sys

from niso.api.guard import LEAST_TIMEOUT_S, guarded, path, seconds, text, texts
from niso.api.published import Port, rows
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from niso.api.service_views import Service, ServiceLine
    from niso.api.session import Session
    from niso.base.errors import Error
    from niso.commands import activate as activation
    from niso.commands import boot
    from niso.plan import records
    from niso.store.store import Store


class Package(NamedTuple):
    """A service that is described by data: ``manifest`` is what a manifest.toml would be read as
    (tomllib), ``folder`` has the files that it names."""

    manifest: Mapping[str, Any]
    folder: str | os.PathLike[str]


class Outcome(NamedTuple):
    """Result of an activation, for one service."""

    service: str
    """the service's name"""
    changed: bool
    """false where it was active already, and is as it was"""
    address: str
    """its addresses, with a comma and a space between several; empty where it has none"""
    ports: tuple[Port, ...]
    """its published ports, a row for each family"""


class Done(NamedTuple):
    """Result of a command, for one service."""

    service: str
    """the service's name"""
    changed: bool
    """false where it was so already"""


class Marked(NamedTuple):
    """Result of `Services.enable` and `Services.disable`, for one service."""

    service: str
    """the service's name"""
    changed: bool
    """false where it was so already"""
    unit: str | None
    """the path of its systemd unit"""


class Restored(NamedTuple):
    """Result of `Services.restore`: one service's error does not keep the others from starting."""

    outcomes: tuple[Outcome, ...]
    errors: tuple[Error, ...]


class Taken(NamedTuple):
    """Ports that a service has lost."""

    service: str
    """the service's name"""
    ports: tuple[Port, ...]
    """its published ports, a row for each family"""


class Forwarded(NamedTuple):
    """Result of `Services.port_forward` and `Services.port_unforward`."""

    service: str
    """the service's name"""
    changed: bool
    """false where it was so already"""
    ports: tuple[Port, ...]
    """its published ports, a row for each family"""
    taken: tuple[Taken, ...]
    """who has lost ports by --replace"""


class Executed(NamedTuple):
    """What a command in a service came to; ``status`` is 128 + N where signal N ended it."""

    status: int
    stdout: bytes
    stderr: bytes


class Name(NamedTuple):
    """A known service."""

    service: str
    active: bool
    enabled: bool


class Services:
    """``host.services``. A service is named by its name, its hostname or an alias."""

    def __init__(self, session: Session) -> None:
        self.session = session

    # --- start and stop --------------------------------------------------------------------------

    @guarded
    def activate(
        self,
        *what: str | os.PathLike[str] | Package,
        timeout: float = 60.0,
        dry_run: bool = False,
    ) -> tuple[Outcome, ...]:
        """Make services active, all of them or none.

        Each is a folder with a manifest.toml, such a file, a known service or a `Package`.
        ``timeout`` is in seconds, for each to start or to be healthy. An active service whose
        manifest changed gets the difference. Raises InvalidInput, Conflict, NotFound, KernelError,
        ProcessError, ErrorGroup; then everything is as before.
        """
        from niso.api import handover
        from niso.api.events import Finished
        from niso.commands import activate
        from niso.services import targets

        self.session.require()
        timeout_s = seconds(timeout, "timeout", LEAST_TIMEOUT_S)
        wishes = [_wish(each) for each in what]
        machine = self.session.machine_for_change(create=not dry_run)
        store = machine.store
        wanted = targets.find_targets(store, wishes)
        self.session.expect(each.name for each in wanted if each.spec.healthcheck)
        outcomes = activate.activate(
            machine, wanted, timeout_s, self.session.report, dry_run, meanwhile=handover.prepare
        )
        self.session.report(Finished())
        if not dry_run:
            handover.activated(self.session, machine, outcomes)
        return described(store, outcomes)

    @guarded
    def deactivate(self, *names: str, dry_run: bool = False) -> tuple[Done, ...]:
        """Stop services and take down their networks; leases and volumes stay. Raises Error."""
        from niso.api import handover

        wanted = texts(names, "names")
        self.session.require()
        if handover.has_ended_by_itself(wanted):
            return ()
        machine = self.session.machine_for_change()
        store = machine.store
        outcomes = handover.deactivate(self.session, machine, _resolved(store, wanted), dry_run)
        return tuple(Done(*each) for each in outcomes)

    @guarded
    def deactivate_all(self, *, dry_run: bool = False) -> tuple[Done, ...]:
        """Stop all active services, as `deactivate` does."""
        from niso.api import handover
        from niso.services import journal

        machine = self.session.machine_for_change()
        store = machine.store
        if not dry_run:
            journal.recover(machine, self.session.report)  # which may bring services back
        outcomes = handover.deactivate(self.session, machine, store.active_services(), dry_run)
        return tuple(Done(*each) for each in outcomes)

    @guarded
    def restart(self, *names: str) -> tuple[Done, ...]:
        """Stop and start the processes of active services; addresses and ports stay.

        Raises Conflict where one is not active, NotFound, ProcessError.
        """
        from niso.api import handover
        from niso.api.events import Finished
        from niso.commands import restart

        machine = self.session.machine_for_change()
        store = machine.store
        wanted = _resolved(store, texts(names, "names"))
        self.session.expect(with_healthcheck(store, wanted))
        restart.restart(machine, wanted, self.session.report)
        self.session.report(Finished())
        handover.warn_of_limits(self.session, store, wanted)
        handover.warn_of_name_servers(self.session, wanted)
        handover.settle(self.session, machine, wanted)
        return tuple(Done(name, True) for name in wanted)

    @guarded
    def remove(self, *names: str, volumes: bool = False) -> tuple[Done, ...]:
        """Stop services and forget them, with ``volumes`` their named volumes too. Raises Error."""
        from niso.commands import deactivate
        from niso.runtime import unit

        machine = self.session.machine_for_change()
        store = machine.store
        wanted = [*dict.fromkeys(_known(store, each, volumes) for each in texts(names, "names"))]
        enabled = [each for each in wanted if (row := store.service(each)) and row.enabled]
        deactivate.remove(machine, wanted, self.session.report, volumes)
        if enabled and unit.booted():
            from niso.commands import boot

            boot.clear(enabled, self.session.report)
        return tuple(Done(name, True) for name in wanted)

    # --- at boot ---------------------------------------------------------------------------------

    @guarded
    def enable(self, *names: str) -> tuple[Marked, ...]:
        """Have services start at boot. Raises Conflict, Error."""
        from niso.commands import boot

        store = self.session.machine_for_change().store
        marked = boot.enable(store, _resolved(store, texts(names, "names")), self.session.report)
        return _marked(marked)

    @guarded
    def disable(self, *names: str) -> tuple[Marked, ...]:
        """Do not have services start at boot; active ones stay active. Raises Conflict, Error."""
        from niso.commands import boot

        store = self.session.machine_for_change().store
        marked = boot.disable(store, _resolved(store, texts(names, "names")), self.session.report)
        return _marked(marked)

    @guarded
    def restore(self, *, timeout: float = 60.0) -> Restored:
        """Make all bridges and activate every enabled service, as at boot without systemd."""
        from niso.api import handover
        from niso.api.events import Finished
        from niso.commands import boot

        self.session.require()
        timeout_s = seconds(timeout, "timeout", LEAST_TIMEOUT_S)
        machine = self.session.machine_for_change()
        store = machine.store
        enabled = [row.name for row in store.services() if row.enabled]
        self.session.expect(with_healthcheck(store, enabled))
        done = boot.restore(machine, timeout_s, self.session.report)
        self.session.report(Finished())
        handover.activated(self.session, machine, done.outcomes)
        return Restored(described(store, done.outcomes), tuple(done.errors))

    # --- look ------------------------------------------------------------------------------------

    @guarded
    def list(self) -> tuple[ServiceLine, ...]:
        """Return all known services and how they are, by name. Due health checks are run."""
        from niso.api import service_views

        return service_views.lines(self.session, self.session.store())

    @guarded
    def names(self) -> tuple[Name, ...]:
        """Return all known services by name, without looking at their processes."""
        return tuple(Name(*each) for each in self.session.store().service_names())

    @guarded
    def resolve(self, name: str) -> str:
        """Return the service that a name, hostname or alias means. Raises NotFound."""
        return self.session.store().resolve(text(name, "name"))

    @guarded
    def inspect(self, name: str) -> Service:
        """Return all that is known of one service. Raises NotFound, Error."""
        from niso.api import service_views

        store = self.session.store()
        return service_views.everything(self.session, store, store.resolve(text(name, "name")))

    @guarded
    def forwards(self, name: str) -> tuple[Port, ...]:
        """Return the ports that `port_forward` has published of a service."""
        store = self.session.store()
        service = store.resolve(text(name, "name"))
        return rows(store.forwards(service), store.port_families(service))

    @guarded
    def logs(
        self,
        name: str,
        *,
        lines: int | None = None,
        follow: bool = False,
        timestamps: bool = False,
    ) -> Iterator[bytes]:
        """Return the lines that a service wrote, stdout and stderr in the order of arrival.

        Each has its newline, but for a last one that the service has not ended. ``lines``: only so
        many from the end. ``follow``: go on with what comes, until the service is removed.
        ``timestamps``: each begins with its time (RFC 3339). Raises NotFound, UsageError.
        """
        from niso.base.errors import UsageError
        from niso.runtime import logs

        service = self.session.store().resolve(text(name, "name"))
        if lines is not None and (isinstance(lines, bool) or not isinstance(lines, int)):
            raise UsageError(f"lines: must be a whole number, not {type(lines).__name__}")
        if lines is not None and lines < 0:
            raise UsageError(f"-n {lines}: must be 0 or more", "niso logs NAME -n 20")
        logs.rotate_if_large(service)
        most = None if lines is None else min(lines, _MOST_LINES)
        return logs.read(service, most, follow, timestamps)

    # --- run in it -------------------------------------------------------------------------------

    @guarded
    def exec(self, name: str, command: Iterable[str]) -> int:
        """Run a command in an active service, with this process's stdin, stdout and stderr.

        Returns its exit status, 128 + N where signal N ended it. Signals to this process go to the
        command while it runs; call it in the main thread. Raises Conflict where the service is not
        active, ProcessError where the command cannot be run.
        """
        from niso.base.errors import UsageError
        from niso.runtime.execute import execute

        threading = sys.modules.get("threading")
        if threading and threading.current_thread() is not threading.main_thread():
            raise UsageError("exec passes signals on, which the main thread alone can", "use run()")
        return execute(*self._to_run(name, command))

    @guarded
    def run(self, name: str, command: Iterable[str], *, stdin: bytes = b"") -> Executed:
        """Run a command in an active service and return what it wrote. Raises as `exec` does."""
        from niso.base.errors import UsageError
        from niso.runtime.execute import capture

        if not isinstance(stdin, bytes):
            raise UsageError(f"stdin: must be bytes, not {type(stdin).__name__}", None, "stdin")
        return Executed(*capture(*self._to_run(name, command), stdin))

    def _to_run(self, name: str, command: Iterable[str]) -> tuple[str, Any]:
        """Return the name of an active service and the words of a command."""
        from niso.base.errors import Conflict, UsageError

        words = texts(command, "command")
        if not words:
            raise UsageError("no command is given", f"niso exec {text(name, 'name')} -- CMD")
        store = self.session.store()
        service = store.resolve(text(name, "name"))
        row = store.service(service)
        if row is None or not row.active:
            raise Conflict(f"service {service!r} is not active", f"niso activate {service}")
        return service, words

    # --- ports -----------------------------------------------------------------------------------

    @guarded
    def port_forward(self, name: str, port: str, *, replace: bool = False) -> Forwarded:
        """Publish one more port of an active service: ``8080:80``, ``127.0.0.1:53:53/udp``.

        With ``replace`` it is taken from the service that has it. Raises Conflict, KernelError.
        """
        from niso.commands import port_forward

        wanted = self._port(name, port)
        machine = self.session.machine_for_change()
        store = machine.store
        service = store.resolve(name)
        changed, taken = port_forward.port_forward(
            machine, service, wanted, replace=replace, report=self.session.report
        )
        return Forwarded(
            service,
            changed,
            rows([wanted], store.port_families(service)),
            tuple(
                Taken(holder, rows([held], store.port_families(holder))) for holder, held in taken
            ),
        )

    @guarded
    def port_unforward(self, name: str, port: str) -> Forwarded:
        """Take away a port that `port_forward` has published. Raises NotFound, Conflict."""
        from niso.commands import port_forward

        wanted = self._port(name, port)
        machine = self.session.machine_for_change()
        store = machine.store
        service = store.resolve(name)
        port_forward.port_unforward(machine, service, wanted, self.session.report)
        return Forwarded(service, True, rows([wanted], store.port_families(service)), ())

    def _port(self, name: str, port: str) -> records.Port:
        from niso.base.errors import InvalidInput, UsageError
        from niso.manifest.parse_ports import parse_port

        self.session.require()
        text(name, "name")
        try:
            wanted = parse_port(text(port, "PORT"), "PORT")
        except InvalidInput as error:
            raise UsageError.of(error) from None
        if not wanted.host_port:
            raise UsageError(
                f"PORT {port!r}: a forward names its host port",
                f"niso port-forward {name} 8080{port}",
            )
        return wanted


_MOST_LINES = (1 << 63) - 1


def described(store: Store, outcomes: Iterable[activation.Outcome]) -> tuple[Outcome, ...]:
    """Return the outcomes of an activation as results."""
    return tuple(
        Outcome(
            each.service,
            each.changed,
            ", ".join(each.addresses),
            rows(each.ports, store.port_families(each.service)),
        )
        for each in outcomes
    )


def with_healthcheck(store: Store, names: Iterable[str]) -> list[str]:
    """Return those of known services that are waited for until they are healthy."""
    checked = set(store.checked_services())
    return [name for name in names if name in checked]


def _wish(what: object) -> Any:
    """Return one thing to activate: the text of a path or a name, or a checked manifest."""
    if isinstance(what, Package):
        import os

        from niso.manifest import load

        folder = os.path.abspath(path(what.folder, "folder"))
        return load.of_data(what.manifest, folder)
    return path(what, "what")


def _resolved(store: Store, names: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(store.resolve(each) for each in names)]


def _known(store: Store, name: str, with_volumes: bool) -> str:
    """Return the service that ``name`` means.

    With ``with_volumes`` also one that is not known any more and has left volumes.
    """
    from niso.base.errors import NotFound

    try:
        return store.resolve(name)
    except NotFound:
        from niso.runtime import volumes

        if with_volumes and "/" not in name and volumes.kept(name):
            return name
        raise


def _marked(marked: Iterable[boot.Marked]) -> tuple[Marked, ...]:
    return tuple(Marked(each.service, each.changed, each.unit) for each in marked)
