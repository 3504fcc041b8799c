"""Manage services (``host.services``): start, stop and inspect them, and run commands in them."""

from __future__ import annotations

import os
import sys

from niso.base.errors import Conflict, NotFound, UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import owner
from niso.base.report import Finished
from niso.look.host_ports import Port, rows
from niso.look.session import (
    LEAST_TIMEOUT_S,
    ApiPart,
    as_usage,
    callers,
    line_count,
    path,
    seconds,
    since_time,
    text,
    texts,
    user_of,
)
from niso.plan import records
from niso.store.policy_rows import bare_name
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    import niso
    from niso.change.scope import Target
    from niso.change.start import After
    from niso.runtime.machine import Machine
    from niso.runtime.units import Following


class Package(NamedTuple):
    """The content of a manifest.toml as a mapping. Its paths are relative to ``folder``."""

    manifest: Mapping[str, Any]
    folder: str | os.PathLike[str]


class Services(ApiPart):
    """The API of services: ``host.services``. Methods take a service's name, hostname or alias."""

    # --- start and stop --------------------------------------------------------------------------

    def activate(
        self,
        *what: str | os.PathLike[str] | Package,
        timeout: float = 60.0,
        dry_run: bool = False,
        replace: bool = False,
        take: bool = False,
        trust_owner: bool = True,
    ) -> tuple[niso.Outcome, ...]:
        """Activate services. If one of the services fails, roll back all of them.

        ``what`` are manifests, folders with a manifest.toml, existing services, or `Package`
        values. If a service is already active, only the changes of its manifest are applied.
        ``timeout`` is the number of seconds for each service to start or become healthy. With
        ``replace``, a service may replace a service of the same name from another folder. With
        ``take``, a service may move here from a host of the cluster that no longer answers. With
        ``dry_run``, nothing is changed. Without ``trust_owner``, a manifest that users other than
        root and the caller can change is refused.

        Raises InvalidInput, Conflict, NotFound, KernelError, ProcessError, ErrorGroup.
        """
        from niso.change import activate, targets, warnings
        from niso.manifest import load

        self.session.require()
        timeout_s = seconds(timeout, "timeout", LEAST_TIMEOUT_S)
        requested = [
            load.of_data(item.manifest, os.path.abspath(path(item.folder, "folder")))
            if isinstance(item, Package)
            else path(item, "what")
            for item in what
        ]
        machine = self.session.machine_for_change(create=not dry_run)
        trusted = None if trust_owner else callers()
        found = targets.find_targets(machine.store, requested, replace, trusted)
        wanted = [target._replace(take=take) for target in found]
        for one in wanted:
            copy, name = one.files, one.name
            if copy is None or copy.fingerprint is not None:
                continue
            # the caller may have meant the folder of the same name
            if targets.is_beside_another(name, one.manifest_path, copy.folder):
                text = f"{name}: has the manifest of its last activation, not that of ./{name}"
                self.session.caution(text, (f"to apply that one: niso activate ./{name}",))
        self.session.expect(target.name for target in wanted if target.spec.program.healthcheck)
        outcomes = activate.activate(machine, wanted, timeout_s, dry_run)
        self.session.report(Finished())
        if not dry_run:
            warnings.activated(machine, outcomes)
        return tuple(outcomes)

    def deactivate(self, *names: str, dry_run: bool = False) -> tuple[niso.Done, ...]:
        """Stop services and remove their networks. Addresses and volumes stay. Raises Error."""
        from niso.change import boot

        wanted = texts(names, "names")
        self.session.require()
        machine = self.session.machine_for_change()
        if boot.has_ended_by_itself(machine.store, wanted):
            return ()
        names_ = _resolved(machine.store, wanted)
        return tuple(boot.deactivate(machine, names_, dry_run))

    def deactivate_all(self, *, dry_run: bool = False) -> tuple[niso.Done, ...]:
        """Stop all active services, as `deactivate` does."""
        from niso.change import boot, journal

        machine = self.session.machine_for_change()
        store = machine.store
        if not dry_run:
            journal.recover(machine)  # recovery can restore services
        rows = [row for row in store.services() if row.active and not row.is_attachment]
        own = [row.name for row in rows if "." not in row.name]
        return tuple(boot.deactivate(machine, own, dry_run))

    def restart(self, *names: str) -> tuple[niso.Done, ...]:
        """Restart the processes of active services. Addresses and ports stay the same.

        Raises NotFound, ProcessError, and Conflict if a service is not active.
        """
        return self.restart_in_order(texts(names, "names"), None)

    def restart_in_order(self, names: list[str], after: After | None) -> tuple[niso.Done, ...]:
        """Restart services as `restart` does, each after the services that it depends on.

        ``after`` maps each service to its dependencies. If it is None, dependencies are ignored.
        """
        from niso.change import activate, deactivate, warnings

        machine = self.session.machine_for_change()
        store = machine.store
        wanted = _resolved(store, names, instances=True)
        self.session.expect(_with_healthcheck(store, wanted))
        activate.restart(machine, wanted, after)
        self.session.report(Finished())
        running = store.instances.runners(wanted)
        warnings.warn_of_limits(machine, running)
        warnings.warn_of_name_servers(machine, running)
        warnings.hand_over_started(machine, wanted)
        return tuple(deactivate.Done(name, True) for name in wanted)

    def scale(self, name: str, replicas: int, *, timeout: float = 60.0) -> tuple[niso.Outcome, ...]:
        """Change the number of instances of a service, until its manifest is activated again.

        ``timeout`` is the number of seconds for each new instance to become healthy. Raises
        UsageError, NotFound, Conflict, ProcessError. In these cases nothing has changed.
        """
        from niso.change import deploy
        from niso.manifest.process_keys import MAX_REPLICAS

        if type(replicas) is not int or not 1 <= replicas <= MAX_REPLICAS:
            reason = f"{replicas!r} is not a number of instances, 1 to {MAX_REPLICAS}"
            raise UsageError(reason, None, "N")
        machine = self.session.machine_for_change()
        service = _own(machine.store, text(name, "name"))
        return self._deploy(machine, deploy.scaled(machine.store, service, replicas), timeout)

    def rollback(
        self, name: str, version: int | None = None, *, timeout: float = 60.0
    ) -> tuple[niso.Outcome, ...]:
        """Activate a former generation of a service.

        ``version`` is the number of a deploy in the result of `history`. The default is the last
        deploy whose version differs from the present one. ``timeout`` is as for `scale`. Raises
        UsageError, NotFound, Conflict, ProcessError. In these cases nothing has changed.
        """
        from niso.change import deploy

        machine = self.session.machine_for_change()
        service = _own(machine.store, text(name, "name"))
        return self._deploy(machine, deploy.former(machine.store, service, version), timeout)

    def _deploy(self, machine: Machine, target: Target, timeout: float) -> tuple[niso.Outcome, ...]:
        from niso.change import activate, warnings

        timeout_s = seconds(timeout, "timeout", LEAST_TIMEOUT_S)
        outcomes = activate.activate(machine, [target], timeout_s)
        self.session.report(Finished())
        warnings.activated(machine, outcomes)
        return tuple(outcomes)

    def remove(self, *names: str, volumes: bool = False) -> tuple[niso.Done, ...]:
        """Stop services and delete their records. ``volumes`` deletes volumes too. Raises Error."""
        from niso.change import boot, deactivate

        machine = self.session.machine_for_change()
        store = machine.store
        wanted = [*dict.fromkeys(_own_name(store, name, volumes) for name in texts(names, "names"))]
        _refuse_instances(store, wanted)
        enabled = [name for name in wanted if (row := store.service(name)) and row.enabled]
        deactivate.remove(machine, wanted, volumes)
        if enabled:
            boot.clear(machine, enabled)
        return tuple(deactivate.Done(name, True) for name in wanted)

    def watch_health(self, log: Callable[[str], None]) -> Following:
        """Return the agent that removes unhealthy instances from their service address.

        The agent also restarts unhealthy services whose manifest requests this. It calls ``log``
        with each line to log. Raises Conflict if the agent is already running.
        """
        from niso.change import health_agent

        return health_agent.follow(self.session, log)

    def exit_hooks(self, instance: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return two functions for the supervisor of an instance's process.

        The supervisor calls the first function when the process has exited, and the second one when
        it has restarted the process.
        """
        from niso.change import health_agent

        machine = self.session.machine_for_change()
        return (
            lambda: health_agent.ended(machine, instance),
            lambda: health_agent.restarted(machine, instance),
        )

    # --- at boot ---------------------------------------------------------------------------------

    def enable(self, *names: str, firewall: bool = True) -> tuple[niso.Marked, ...]:
        """Start services at boot from now on. Raises Conflict, Error.

        If no service was enabled before, systemd also repairs niso's rules after each start of
        another firewall, as by `Host.guard_firewalls`. With ``firewall=False``, niso warns instead.
        """
        from niso.change import boot

        machine = self.session.machine_for_change()
        wanted = _resolved(machine.store, texts(names, "names"))
        return tuple(boot.enable(machine, wanted, firewall))

    def disable(self, *names: str) -> tuple[niso.Marked, ...]:
        """No longer start services at boot. Active services stay active. Raises Conflict, Error."""
        from niso.change import boot

        machine = self.session.machine_for_change()
        wanted = _resolved(machine.store, texts(names, "names"))
        return tuple(boot.disable(machine, wanted))

    def restore(self, *, timeout: float = 60.0) -> niso.Restored:
        """Create all bridges and activate all enabled services.

        On a host without systemd, an init script calls this at boot.
        """
        from niso.change import boot, warnings

        self.session.require()
        timeout_s = seconds(timeout, "timeout", LEAST_TIMEOUT_S)
        machine = self.session.machine_for_change()
        store = machine.store
        enabled = [row.name for row in store.services() if row.enabled]
        self.session.expect(_with_healthcheck(store, enabled))
        done = boot.restore(machine, timeout_s)
        self.session.report(Finished())
        warnings.activated(machine, done.outcomes)
        return done

    # --- inspect ---------------------------------------------------------------------------------

    def list(
        self, *, instances: bool = False, listening: bool = False, stats: bool = False
    ) -> tuple[niso.ServiceLine, ...]:
        """Return all services with their status, sorted by name.

        ``instances`` adds the active instances of services with replicas. ``listening`` adds the
        sockets on which each service listens. ``stats`` adds the processor time and memory of each
        service, which takes half a second.
        """
        from niso.look.services import (
            service_lines,
            unfinished,
            unwatched,
            unwatched_words,
            with_listening,
            with_loads,
        )

        store = self.session.store()
        lines = service_lines(self.session, store, instances=instances)
        if lost := unwatched(store):
            text_, hint = unwatched_words(lost)
            self.session.caution(text_, (hint,))
        for text_, hint in unfinished(store).values():
            self.session.caution(text_, (hint,))
        lines = with_loads(store, lines) if stats else lines
        return with_listening(self.session, store, lines) if listening else lines

    def history(self, name: str | None = None) -> tuple[niso.Deploy, ...]:
        """Return the deploys, restarts and stops of one service or of all services, oldest first.

        niso stores the last 50 of each service. An instance has the history of its service. Raises
        NotFound.
        """
        from niso.look.services import deploys

        store = self.session.store()
        return deploys(store, None if name is None else owner(store.resolve(text(name, "name"))))

    def everywhere(self) -> tuple[niso.ClusterLine, ...]:
        """Return the services of all hosts of the cluster, sorted by name.

        If etcd does not answer, returns what this host has recorded, and reports a warning. Raises
        Error if this host is in no cluster.
        """
        from niso.look import other_hosts

        return other_hosts.lines(self.session)

    def names(self) -> tuple[tuple[str, bool, bool], ...]:
        """Return (name, is active, starts at boot) for each service."""
        return tuple(self.session.store().service_names())

    def resolve(self, name: str) -> str:
        """Return the name of the service that has this name, hostname or alias. Raises NotFound."""
        return self.session.store().resolve(text(name, "name"))

    def inspect(self, name: str) -> niso.Service:
        """Return all details of a service. Raises NotFound, Error."""
        from niso.look.services import everything

        store = self.session.store()
        return everything(self.session, store, store.resolve(text(name, "name")))

    def forwards(self, name: str) -> tuple[Port, ...]:
        """Return the ports of a service that `port_forward` has published. Raises NotFound."""
        store = self.session.store()
        service = store.resolve(text(name, "name"))
        return rows(store.forwards(service), store.port_families(service))

    def logs(
        self,
        name: str,
        *,
        lines: int | None = None,
        follow: bool = False,
        timestamps: bool = False,
        since: str | None = None,
    ) -> Iterator[bytes]:
        """Return the output of a service as lines, with stdout and stderr in order of arrival.

        Lines include their newline, except an incomplete last line. ``lines`` limits the result to
        the last N lines. ``follow`` waits for new lines until the service is removed.
        ``timestamps`` puts the time (RFC 3339) before each line. ``since`` is a time (RFC 3339), or
        a period until now (``10m``). Raises NotFound, UsageError.
        """
        from niso.runtime import logs

        store = self.session.store()
        service = _own(store, text(name, "name"))
        start = since_time(since)
        if instances := store.instances.names(service):
            read = logs.read_joint(instances, line_count(lines), follow, timestamps, start)
            return (f"{name} | ".encode() + line for name, line in read)
        logs.rotate_if_large(service)
        return logs.read(service, line_count(lines), follow, timestamps, start)

    # --- run commands ----------------------------------------------------------------------------

    def exec(self, name: str, command: Iterable[str], *, user: str | None = None) -> int:
        """Run a command in an active service with this process's stdin, stdout and stderr.

        ``user`` is a user in the service's root file system, or uid[:gid]. The default is the
        service's user. Returns the exit status, or 128 + N if signal N killed the command. Signals
        are forwarded to the command, so call this method in the main thread. Raises Conflict if the
        service is not active, and ProcessError if the command cannot be run.
        """
        from niso.runtime.execute import execute

        threading = sys.modules.get("threading")
        if threading and threading.current_thread() is not threading.main_thread():
            raise UsageError("exec forwards signals: call it in the main thread", "use run()")
        return execute(*self._to_run(name, command), user_of(user))

    def run(
        self,
        name: str,
        command: Iterable[str],
        *,
        stdin: bytes = b"",
        user: str | None = None,
    ) -> Executed:
        """Run a command in an active service as `exec` does. Return its exit status and output."""
        from niso.runtime.execute import capture

        if not isinstance(stdin, bytes):
            raise UsageError(f"must be bytes, not {type(stdin).__name__}", None, "stdin")
        return Executed(*capture(*self._to_run(name, command), stdin, user_of(user)))

    def kill(self, *names: str, signal: str = "KILL") -> tuple[Signalled, ...]:
        """Send a signal, by name (HUP, SIGHUP) or number, to the processes of active services.

        If the signal ends a process, the restart policy of the service applies. Raises Conflict if
        a service is not active, and ProcessError if a service has no process.
        """
        from niso.runtime import lifecycle

        number = lifecycle.number(text(signal, "signal"))
        word, store = lifecycle.name(number), self.session.store()
        wanted = [
            one
            for name in texts(names, "names")
            for one in store.instances.running(self._active(store, name))
        ]
        return tuple(
            Signalled(name, word, lifecycle.send(name, number)) for name in dict.fromkeys(wanted)
        )

    def _to_run(self, name: str, command: Iterable[str]) -> tuple[str, Any]:
        words = texts(command, "command")
        if not words:
            raise UsageError("missing command", f"niso exec {text(name, 'name')} -- CMD")
        if any("\0" in word for word in words):
            raise UsageError("contains a NUL character", None, "command")
        store = self.session.store()
        running = store.instances.runners([service := self._active(store, name)])
        if not running:
            raise Conflict(f"no instance of {service!r} serves", "niso ps -i")
        return running[0], words

    def _active(self, store: Store, name: str) -> str:
        service = _own(store, text(name, "name"))
        store.require_active(service)
        return service

    # --- ports -----------------------------------------------------------------------------------

    def port_forward(self, name: str, port: str, *, replace: bool = False) -> Forwarded:
        """Publish one more port of an active service: ``8080:80`` or ``127.0.0.1:53:53/udp``.

        With ``replace``, the host port is taken from the service that publishes it now. Otherwise
        this service's use of the port raises Conflict. Raises KernelError.
        """
        from niso.change import port_forward

        wanted = self._port(name, port)
        machine = self.session.machine_for_change()
        service = machine.store.resolve(name)
        changed, taken = port_forward.port_forward(machine, service, wanted, replace=replace)
        [(_, ports)] = _taken(machine.store, [(service, wanted)])
        return Forwarded(service, changed, ports, _taken(machine.store, taken), ())

    def port_unforward(self, name: str, port: str) -> Forwarded:
        """Stop publishing a port that `port_forward` published.

        If `port_forward` took the host port from another service, the other service publishes it
        again. Raises NotFound, and Conflict if the manifest publishes the port.
        """
        from niso.change import port_forward

        wanted = self._port(name, port)
        machine = self.session.machine_for_change()
        service = machine.store.resolve(name)
        back = port_forward.port_unforward(machine, service, wanted)
        [(_, ports)] = _taken(machine.store, [(service, wanted)])
        return Forwarded(service, True, ports, (), _taken(machine.store, back))

    def _port(self, name: str, port: str) -> records.PortMapping:
        from niso.manifest.addresses_and_ports import parse_port

        self.session.require()
        text(name, "name")
        wanted = as_usage(lambda: parse_port(text(port, "PORT"), "PORT"))
        if not wanted.host_port:
            hint = f"niso port-forward {name} {wanted._replace(host_port=8080).text}"
            raise UsageError(f"PORT {port!r}: missing host port", hint)
        return wanted


def _with_healthcheck(store: Store, names: Iterable[str]) -> list[str]:
    checked = set(store.checked_services())
    return [name for name in names if name in checked]


def _resolved(store: Store, names: Iterable[str], instances: bool = False) -> list[str]:
    """Return the names of the services that have these names, hostnames or aliases.

    Raises Conflict for the name of an instance, unless ``instances`` is true.
    """
    services = [*dict.fromkeys(_own(store, name) for name in names)]
    if not instances:
        _refuse_instances(store, services)
    return services


def _refuse_instances(store: Store, services: Iterable[str]) -> None:
    for service in services:
        if (one := store.instances.get(service)) is not None:
            reason = f"{service!r} is an instance of {one.front!r}"
            raise Conflict(reason, f"name the service; niso scale {one.front}=N changes its number")


def _own(store: Store, name: str) -> str:
    service = store.resolve(name)
    if (row := store.service(service)) is not None:
        row.require_own()
    return service


def _own_name(store: Store, name: str, with_volumes: bool) -> str:
    """Return ``name``, without .niso.local, if it is the name of a service to remove.

    A hostname or alias is refused, because the user may mean a different service. With
    ``with_volumes``, the name of a removed service is accepted if its volumes still exist. Raises
    NotFound, or Conflict for an attachment.
    """
    from niso.runtime import volumes

    own = bare_name(name)
    is_left = store.service(own) is None and with_volumes and "/" not in own
    if is_left and volumes.existing_names(own):
        return own
    service = _own(store, name)
    if service != own:
        hint = f"it is a hostname or alias of {service}: remove takes the service's own name"
        raise NotFound(f"no service {name!r}", hint)
    return service


# --- results of less common commands --------------------------------------------------------------


class Taken(NamedTuple):
    """Ports that `port_forward` took from a service, or that `port_unforward` returned to it."""

    service: str  # the service's name
    ports: tuple[Port, ...]  # published ports, one for each IP version


class Forwarded(NamedTuple):
    """The result of `Services.port_forward` and `Services.port_unforward`."""

    service: str  # the service's name
    changed: bool  # false if nothing changed
    ports: tuple[Port, ...]  # published ports, one for each IP version
    taken: tuple[Taken, ...]  # services that lost a host port because of --take-over
    returned: tuple[Taken, ...]  # services whose manifest ports are published again after --remove


def _taken(store: Store, ports: Iterable[tuple[str, records.PortMapping]]) -> tuple[Taken, ...]:
    return tuple(Taken(name, rows([one], store.port_families(name))) for name, one in ports)


class Executed(NamedTuple):
    """The result of `Services.run`. ``status`` is 128 + N if signal N killed the command."""

    status: int
    stdout: bytes
    stderr: bytes


class Signalled(NamedTuple):
    """The result of `Services.kill` for one service."""

    service: str  # the service's name
    signal: str  # name of the signal
    ended: bool  # whether the service's process exited within a short time after the signal
