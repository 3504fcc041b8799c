"""Save services with packages and volumes to an archive, and load them on this or another host.

`niso.runtime.archive` writes and reads the archive. `SavedHost`, the first entry of an archive,
describes its content.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network, ip_network

from niso import __version__
from niso.base import convert, files, locks, paths
from niso.base.errors import Conflict, Error, InvalidInput, NotFound, UsageError, raise_all
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import DEFAULT_NETWORK
from niso.base.report import Extracting, Report, Saving
from niso.base.text import escaped, time_text
from niso.change import activate, deactivate, journal, networks, start, targets
from niso.change.admit import NO_STACK, StackMembership
from niso.change.scope import Target
from niso.look import stack_members
from niso.look.host_ports import Listeners
from niso.manifest import load as manifest_load
from niso.manifest import toml, values
from niso.manifest.stack import long_name
from niso.plan.records import ANY, Entry, PortMapping
from niso.plan.subnets import NetworkRequest
from niso.runtime import archive, package, sources, volumes
from niso.runtime.machine import Machine
from niso.store.service_rows import ServiceRow

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import IO, Any

    from niso.change.activate import Outcome

FORMAT = 1
_ROOTFS = ".niso-rootfs"
"""Name of the folder with a loaded service's root file system, inside its package."""


class SavedNetwork(NamedTuple):
    """One network in an archive, which the saved services use."""

    name: str
    subnets: tuple[str, ...]
    gateways: tuple[str, ...]
    internal: bool
    mtu: int | None  # None: that of the host's default route
    observe: bool
    implicit: bool  # whether it exists only as long as services use it
    span: bool  # whether it spans the hosts of a cluster
    multicast: bool = False


class SavedService(NamedTuple):
    """One service in an archive."""

    name: str
    stack: str  # "" without a stack
    active: bool
    job: bool
    enabled: bool
    has_rootfs: bool
    addresses: Mapping[str, tuple[str, ...]]  # network -> addresses
    volumes: tuple[str, ...]
    secrets: tuple[str, ...]  # names of the secrets whose content is in the archive
    after: Mapping[str, str]  # dependency -> the state that it must reach first


class SavedHost(NamedTuple):
    """The description of an archive's content. It is the first entry of the archive."""

    format: int
    niso: str  # the version that wrote it
    host: str
    saved_at: str
    networks: tuple[SavedNetwork, ...]
    services: tuple[SavedService, ...]


class Saved(NamedTuple):
    """Result of `Services.save`."""

    file: str  # path of the archive
    size: int  # bytes
    services: tuple[str, ...]  # strings: names of the saved services


class LoadedService(NamedTuple):
    """One service in the result of `Services.load`."""

    service: str  # the service's name on this host
    saved_as: str  # its name in the archive
    active: bool  # whether it was started
    address: tuple[str, ...]  # addresses; can be empty
    file: str  # its manifest.toml on this host, or the stack.toml of its stack
    was_enabled: bool  # whether it started at boot where it was saved


# --- save -----------------------------------------------------------------------------------------


def save(machine: Machine, names: list[str], path: str | None, secrets: bool, stop: bool) -> Saved:
    """Write services to an archive file, or to standard output if ``path`` is None.

    With ``secrets``, the content of their secrets is included. With ``stop``, active services are
    stopped during the save, so that their volumes do not change. Raises Conflict, NotFound, Error.
    """
    store = machine.store
    journal.recover(machine, names)
    rows = [store.require_known(name) for name in names]
    for row in rows:
        row.require_own()
        if (one := store.instances.get(row.name)) is not None:
            raise Conflict(
                f"{row.name!r} is an instance of {one.front!r}", f"niso save {one.front}"
            )
        if not os.path.isdir(row.package):
            reason = f"its package copy {row.package} is gone"
            raise NotFound(reason, row.activation_command, service=row.name)
    if path is not None and os.path.exists(path) and not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "not a regular file"
        raise InvalidInput(f"{path} is {what}", "name a file in a folder", "--output")
    after = _dependencies(machine, names)
    active = [row.name for row in rows if stop and row.active and not row.is_job]
    size = 0

    def write() -> None:
        nonlocal size
        now = [store.require_known(name) for name in names]
        kept = [row._replace(active=was.active) for row, was in zip(now, rows, strict=True)]
        described = _describe(machine, kept, secrets, after)
        size = _write_file(path, lambda out: _write(machine, now, described, out))

    if active and not any(row.mode == "front" for row in rows):
        # also if this process is killed, the next command or boot starts the services
        activate.restart(machine, active, _among(after, active), meanwhile=write)
        return Saved(path or "-", size, tuple(names))
    with ExitStack() as held:
        if active:
            held.callback(_activate_again, machine, active, after)
            deactivate.deactivate(machine, active, keep_forwards=True, needs=after)
        # an active service is not locked: conmon could not restart it while it is saved
        idle = [name for name in names if not store.require_known(name).active]
        held.enter_context(journal.locked(store, idle))
        write()
    return Saved(path or "-", size, tuple(names))


def _write_file(path: str | None, write: Callable[[IO[bytes]], None]) -> int:
    """Write a file, or write to standard output if ``path`` is None. Return the size in bytes."""
    try:
        return _write_whole(path, write)
    except OSError as error:
        if error.filename is not None:
            raise
        raise Error(f"cannot write the archive: {error.strerror}") from error


def _write_whole(path: str | None, write: Callable[[IO[bytes]], None]) -> int:
    if path is None:
        with open(1, "wb", closefd=False) as out:
            write(out)
        return 0
    target = os.path.realpath(path)  # a link stays, and leads to the archive
    draft = f"{target}.new"
    try:
        with open(files.make(draft, 0o600), "wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
            size = os.fstat(out.fileno()).st_size
        files.rename(draft, target)
    finally:
        _unlink(draft)
    return size


def _unlink(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def _activate_again(machine: Machine, names: list[str], after: start.After) -> None:
    wanted = [targets.from_store(machine.store, name) for name in names]
    order = _among(after, {target.name for target in wanted})
    activate.activate(machine, wanted, start.TIMEOUT_S, after=order)


def _among(after: start.After, names: Container[str]) -> dict[str, dict[str, str]]:
    return {
        name: {other: state for other, state in needs.items() if other in names}
        for name, needs in after.items()
        if name in names
    }


def _dependencies(machine: Machine, names: Iterable[str]) -> start.After:
    store, after = machine.store, dict[str, dict[str, str]]()
    for stack in dict.fromkeys(filter(None, map(store.stack_of, names))):
        try:
            for file in store.stack_files(stack):
                for member in stack_members.named(store, stack_members.load(file)).members:
                    after[member.name] = dict(member.after)
        except Error as error:
            what = f"the dependencies of stack {stack} are not saved: {error.message}"
            machine.caution(what)
    return _among(after, {*names})


def _write(machine: Machine, rows: list[ServiceRow], described: SavedHost, out: IO[bytes]) -> None:
    """Write an archive. Raises Error if another command changes a service at the same time."""
    with archive.compressed(out) as stream:
        writer = archive.ArchiveWriter(stream, convert.plain(described))
        writer.add_folder("services")
        for row, service in zip(rows, described.services, strict=True):
            try:
                _write_one(writer, row, service, machine.report)
            except BrokenPipeError:
                raise  # of the archive
            except OSError as error:
                reason = f"cannot save it: {error.filename or ''}: {error.strerror}"
                hint = (
                    "files of a running service can change; save it after it is stopped"
                    if row.active
                    else None
                )
                raise Error(reason, hint, service=row.name) from error
        for row in rows:
            if machine.store.service(row.name) != row:
                reason = "another command has changed it while it was saved"
                raise Conflict(reason, "save it again", service=row.name)
        writer.close()


def _write_one(
    writer: archive.ArchiveWriter, row: ServiceRow, service: SavedService, report: Report
) -> None:
    spec, base = row.require_service(), f"services/{row.name}"
    writer.add_folder(base)
    writer.add_bytes(f"{base}/manifest.toml", package.text(spec))
    report(Saving(row.name, "the package"))
    writer.add_tree(f"{base}/package", row.package, but=package.MANIFEST)
    if row.rootfs is not None:
        report(Saving(row.name, "the rootfs"))
        writer.add_tree(f"{base}/rootfs", row.rootfs)
    if service.secrets:
        writer.add_folder(f"{base}/secrets")
    process = row.process
    for secret in process.secrets if process is not None and service.secrets else ():
        writer.add_bytes(f"{base}/secrets/{secret.name}", sources.read_secret(secret))
    if service.volumes:
        writer.add_folder(f"{base}/volumes")
    for name in service.volumes:
        path = os.path.join(paths.volume_dir(row.name), name)
        if point := volumes.mounted_in(path):
            reason = f"cannot save volume {name!r}: something is mounted at {point}"
            raise Conflict(reason, f"umount {point}", service=row.name)
        report(Saving(row.name, f"volume {name}"))
        writer.add_tree(f"{base}/volumes/{name}", os.path.realpath(path))


def _describe(
    machine: Machine, rows: list[ServiceRow], secrets: bool, after: start.After
) -> SavedHost:
    store = machine.store
    used = dict.fromkeys(network for row in rows for network in row.networks)
    default = machine.kernel.default_mtu()
    known = [record for name in used if (record := store.network(name)) is not None]
    nets = tuple(
        SavedNetwork(
            record.name,
            tuple(subnet.cidr for subnet in record.subnets),
            tuple(subnet.gateway for subnet in record.subnets),
            record.internal,
            None if record.mtu == default else record.mtu,
            record.observe,
            store.is_implicit(record.name),
            record.span is not None,
            record.multicast,
        )
        for record in known
    )
    services = []
    for row in rows:
        program = row.require_service().program
        addresses: dict[str, tuple[str, ...]] = {}
        for network, address in store.addresses(row.name) if row.provider is None else ():
            addresses[network] = (*addresses.get(network, ()), address)
        stack = store.stack_of(row.name) or ""
        services.append(
            SavedService(
                row.name,
                stack,
                row.active,
                row.is_job,
                row.enabled,
                row.rootfs is not None,
                addresses,
                tuple(volumes.existing_names(row.name)),
                tuple(program.secrets) if secrets else (),
                after.get(row.name, {}),
            )
        )
    at = time_text(time.time()) or ""
    return SavedHost(FORMAT, __version__, os.uname().nodename, at, nets, tuple(services))


# --- load -----------------------------------------------------------------------------------------


def load(
    machine: Machine,
    path: str,
    prefix: str | None,
    owners: Collection[int] | None,
    timeout_s: float,
) -> list[LoadedService]:
    """Load the services of an archive with their volumes, networks and addresses.

    Services that were running when they were saved are started. With ``prefix``, all services are
    put into a new stack of this name, and names of services and networks begin with it. With
    ``owners``, the file must belong to one of these uids. ``timeout_s`` is the time in seconds for
    the start of a service. After an error, everything that was loaded is removed. Raises
    InvalidInput, Conflict, and the errors of an activation.
    """
    journal.recover(machine)
    folder = os.path.join(paths.state_dir(), "loaded")
    os.makedirs(folder, 0o700, exist_ok=True)
    with ExitStack() as kept:
        staged = _staging(folder, kept)
        machine.report(Extracting(path))
        saved = _read(path, staged, owners)
        loading = _Loading(machine, saved, staged, folder, prefix)
        loading.check()
        with ExitStack() as undo:
            loading.make_networks(undo)
            try:
                loading.place(undo)
            except InvalidInput as error:
                error.file = error.file or path
                raise
            loading.activate(undo, timeout_s)
            undo.pop_all()
    return loading.loaded()


def _staging(folder: str, kept: ExitStack) -> str:
    """Create a locked folder into which an archive is extracted. Return the folder's path. Closing
    ``kept`` removes folder and lock. The lock allows only one process to load at a time.
    """
    lock = os.open(folder, files.FOLDER)
    kept.callback(os.close, lock)
    locks.flock(lock, "")
    staged = os.path.join(folder, ".new")
    files.remove_tree(staged)
    os.mkdir(staged, 0o700)
    kept.callback(files.remove_tree, staged)
    return staged


def _read(path: str, staged: str, owners: Collection[int] | None) -> SavedHost:
    """Extract an archive into the folder ``staged``. Return its `SavedHost`. Raises Error."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(opened, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                hint = "niso save NAME writes an archive; store what comes from a pipe in a file"
                raise InvalidInput("is not a regular file", hint)
            if owners is not None:
                how = files.file_changed_by_others(path, owners, file.fileno())
                toml.require_owner(how, owners)
            with archive.decompressed(file) as stream:
                saved = convert.convert(archive.extract(stream, staged), SavedHost)
        if saved.format != FORMAT:
            raise InvalidInput(f"has format {saved.format}, which this niso does not know")
        _check_names(saved)
    except Error as error:
        error.file = path
        raise
    except OSError as error:
        reason = f"cannot be read: {str(error.strerror).lower()}"
        raise Error(reason, "niso save NAME writes such a file", file=path) from error
    except (ValueError, RecursionError):
        raise InvalidInput("has no valid description of its content", file=path) from None
    return saved


def _check_names(saved: SavedHost) -> None:
    """Raise InvalidInput if an archive has names that could be paths, or one service twice."""
    for network in saved.networks:
        if network.name != DEFAULT_NETWORK:
            values.network_name(network.name, "networks")
    for service in saved.services:
        values.service_name(service.name, "services")
        if service.stack:
            values.service_name(service.stack, "services.stack")
        for name in (*service.volumes, *service.secrets):
            if name in ("", ".", "..") or "/" in name or name.startswith("."):
                raise InvalidInput(f"has a volume or secret with the name {name!r}")
    names = [service.name for service in saved.services]
    if len(set(names)) != len(names) or not names:
        raise InvalidInput("has no service, or one service twice")


class _Loading:
    """The steps of `load`, in order. Each step adds its undo function to an ExitStack."""

    def __init__(
        self, machine: Machine, saved: SavedHost, staged: str, folder: str, prefix: str | None
    ) -> None:
        self._machine, self._store, self._saved = machine, machine.store, saved
        self._staged, self._folder = staged, folder
        self._prefix = prefix
        self._joined: dict[str, str] = {}
        """The stacks that exist on this host, with their stack.toml, which is not replaced."""
        for stack in {*map(self._stack, saved.services)} - {""}:
            if file := next(iter(self._store.stack_files(stack)), ""):
                self._joined[stack] = file
        self._moved: set[str] = set()
        """The networks (names in the archive) that have other subnets than those saved."""
        self._requests: dict[str, NetworkRequest] = {}
        """The networks to create, by their names in the archive. They have their final names."""
        self._outcomes: dict[str, Outcome] = {}

    def _name(self, saved: str) -> str:
        return long_name(self._prefix, saved) if self._prefix else saved

    def _stack(self, service: SavedService) -> str:
        return self._prefix or service.stack

    def _home(self, service: SavedService) -> str:
        stack = self._stack(service)
        if stack and stack not in self._joined:
            return os.path.join(self._stack_folder(stack), service.name)
        return os.path.join(self._folder, "services", service.name)

    def _stack_folder(self, stack: str) -> str:
        return os.path.join(self._folder, "stacks", stack)

    def _stack_path(self, stack: str) -> str:
        return os.path.join(self._stack_folder(stack), "stack.toml")

    def check(self) -> None:
        """Check the names of services and the settings of networks. Raises all errors at once."""
        errors: list[Error] = []
        if self._prefix and self._store.stack_members(self._prefix):
            errors.append(Conflict(f"stack {self._prefix!r} exists already", "choose another name"))
        hint = "niso load --as PREFIX loads it next to the existing one"
        for service in self._saved.services:
            name = self._name(service.name)
            if self._store.service(name) is not None:
                errors.append(Conflict("a service of this name exists", hint, service=name))
            elif existing := volumes.existing_names(name):
                reason = f"volumes of this name exist already: {', '.join(existing)}"
                errors.append(Conflict(reason, f"{hint}; niso volume list", service=name))
        for network in self._saved.networks:
            try:
                self._plan(network)
            except Error as error:
                errors.append(error)
        raise_all(errors)

    def _plan(self, network: SavedNetwork) -> None:
        """Plan the creation of a missing network. If its subnets are taken, choose others."""
        name = self._name(network.name)
        present = self._store.network(name)
        if present is not None:
            if network.internal and not present.internal:
                reason = f"network {name!r} exists and is not internal, but the saved one is"
                hint = "niso load --as PREFIX makes networks of its own"
                raise Conflict(reason, hint)
            if present.multicast and not network.multicast:
                reason = f"network {name!r} exists with multicast, and the saved one has none"
                raise Conflict(reason, "niso load --as PREFIX makes networks of its own")
            if {subnet.cidr for subnet in present.subnets} != {*network.subnets}:
                self._moved.add(network.name)
            return
        if network.span:
            reason = f"network {name!r} spans the hosts of a cluster, and does not exist here"
            raise Conflict(reason, f"niso net create --span {name}, on a host of the cluster")
        request = NetworkRequest(
            name,
            network.subnets,
            gateways=network.gateways,
            internal=network.internal,
            mtu=network.mtu,
            allow_public=True,
            observe=network.observe,
            multicast=network.multicast,
        )
        besides = [(net, other.name) for other in self._requests.values() for net in other.nets]
        try:
            networks.plan_network(self._machine, request, besides=besides)
        except UsageError as error:
            reason = f"has a network {network.name!r} with invalid keys: {error.reason}"
            raise InvalidInput(reason) from None
        except Conflict as error:
            has_ipv6 = any(":" in subnet for subnet in network.subnets)
            request = request._replace(subnets=(), gateways=(), ipv6=has_ipv6)
            record = networks.plan_network(self._machine, request, besides=besides)
            request = request._replace(
                subnets=tuple(subnet.cidr for subnet in record.subnets), ipv6=False
            )
            self._moved.add(network.name)
            what = f"network {name} gets {', '.join(request.subnets)}: {error.reason}"
            self._machine.caution(what)
        self._requests[network.name] = request

    def make_networks(self, undo: ExitStack) -> None:
        """Create the networks, except implicit ones, which exist only while services use them."""
        for network in self._saved.networks:
            request = self._requests.get(network.name)
            if request is not None and not network.implicit:
                networks.create(self._machine, request)
                undo.callback(networks.remove, self._machine, [request.name])

    def place(self, undo: ExitStack) -> None:
        """Move packages and volumes from the staging folder to niso's state folder."""
        for service in self._saved.services:
            source, home = os.path.join(self._staged, "services", service.name), self._home(service)
            undo.callback(files.remove_tree, home)
            undo.callback(files.remove_tree, f"{home}.secrets")
            self._place_package(source, home, service)
            name = self._name(service.name)
            if service.volumes:
                target = paths.volume_dir(name)
                os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                volumes.remove_empty_folder(name)
                _rename(os.path.join(source, "volumes"), target)
                undo.callback(self._drop_volumes, name)
                if {*os.listdir(target)} != {*service.volumes}:
                    raise InvalidInput(f"has other volumes of {service.name!r} than it lists")
        for stack in {*map(self._stack, self._saved.services)} - {"", *self._joined}:
            folder = self._stack_folder(stack)
            undo.callback(files.remove_tree, folder)
            files.replace(self._stack_path(stack), self._stack_file(stack), 0o600)

    def _drop_volumes(self, name: str) -> None:
        """Delete the volumes of a service that was not loaded, unless the service exists now."""
        with journal.locked_one(self._store, name):
            if self._store.service(name) is None:
                volumes.remove_all(name, self._machine.report)

    def _place_package(self, source: str, home: str, service: SavedService) -> None:
        files.remove_tree(home)
        files.remove_tree(f"{home}.secrets")
        os.makedirs(os.path.dirname(home), 0o700, exist_ok=True)
        _rename(os.path.join(source, "package"), home)
        os.chown(home, 0, 0)
        os.chmod(home, 0o755)
        if service.has_rootfs:
            _rename(os.path.join(source, "rootfs"), os.path.join(home, _ROOTFS))
        if service.secrets:
            _rename(os.path.join(source, "secrets"), f"{home}.secrets")
        content = files.read(os.path.join(source, "manifest.toml"))
        if content is None:
            raise InvalidInput(f"lacks the manifest of {service.name!r}")
        data: dict[str, Any] = toml.parse(content)
        if service.has_rootfs:
            data["package"]["rootfs"] = _ROOTFS
        for name in service.secrets:
            data["secrets"][name]["file"] = os.path.join(f"{home}.secrets", name)
        manifest = os.path.join(home, package.MANIFEST)
        self._adapt(data, manifest, service)
        lines = [line for name, one in data.items() for line in toml.table(name, one, 0)]
        files.replace(manifest, "\n".join(lines).encode(), 0o600)

    def _adapt(self, data: dict[str, Any], manifest: str, service: SavedService) -> None:
        """Replace taken host ports in a loaded manifest, and warn about unusable addresses."""
        spec = manifest_load.checked(manifest_load.prepared(data, manifest), manifest)
        if spec.name != service.name:
            raise InvalidInput(f"has the manifest of {spec.name!r} as that of {service.name!r}")
        network, name = data.get("network", {}), self._name(service.name)
        if "ip" in network and self._moved & {*spec.network.networks}:
            del network["ip"]
            what = f"{name}: gets new addresses instead of static ones: its network has others here"
            self._machine.caution(what)
        former = [
            ip_network(subnet)
            for one in self._saved.networks
            if one.name in self._moved
            for subnet in one.subnets
        ]
        texts = [entry.text for entry in spec.network.policy.entries() if _is_within(entry, former)]
        if texts:
            what = f"{name}: its policy names addresses of a network that has others here: "
            hint = f"correct them in {manifest}"
            self._machine.caution(what + ", ".join(texts), (hint,))
        families = (4, 6)
        listeners = Listeners(self._machine.kernel, families)
        ports = []
        for text, published in zip(network.get("ports", ()), spec.network.ports, strict=False):
            port = published.port
            is_taken = port.host_port and (
                self._store.port_holders(port, frozenset()) or listeners.clashing(port)
            )
            if is_taken:
                what = f"{name}: host port {port.host_side} is taken: niso chooses another"
                self._machine.caution(what, ("niso net ports shows which",))
            ports.append(_chosen(port) if is_taken else text)
        if ports:
            network["ports"] = ports

    def _stack_file(self, stack: str) -> bytes:
        """Return the content of a new stack.toml for the loaded services of a stack."""
        members = [one for one in self._saved.services if self._stack(one) == stack]
        used = {network for one in members for network in one.addresses}
        lines = [*toml.table("stack", {"name": stack, "prefix": self._prefix is not None}, 0)]
        for network in self._saved.networks:
            name = network.name
            if name in used and name != DEFAULT_NETWORK and (network.implicit or self._prefix):
                lines += toml.table(f"networks.{toml.key(name)}", self._network_keys(network), 0)
        for one in members:
            after = _among({one.name: one.after}, {member.name for member in members})
            needs = after.get(one.name, {})
            lines += ["[[service]]", f"name = {toml.value(one.name)}"]
            lines += [f"package = {toml.value(f'./{one.name}')}"]
            lines += [f"depends_on = {toml.value(needs)}"] if needs else []
            lines.append("")
        return "\n".join(lines).encode()

    def _network_keys(self, network: SavedNetwork) -> dict[str, Any]:
        request = self._requests.get(network.name)
        keys: dict[str, Any] = {}
        if request is not None:
            keys = {"subnet": list(request.subnets), "gateway": list(request.gateways)}
            keys |= {"mtu": request.mtu, "allow_public": True if network.subnets else None}
        keys |= {"internal": network.internal, "observe": network.observe}
        keys |= {"multicast": network.multicast or None}
        return {key: value for key, value in keys.items() if value is not None and value != []}

    def activate(self, undo: ExitStack, timeout_s: float) -> None:
        """Start the services that were active when they were saved, in one activation per stack."""
        groups: dict[str, list[SavedService]] = {}
        for service in self._saved.services:
            groups.setdefault(self._stack(service), []).append(service)
        for stack, services in groups.items():
            started = [*filter(_starts, services)]
            names = [self._name(one.name) for one in started]
            if not names:
                continue
            found = self._targets(stack, started)
            after = _among(
                {
                    self._name(one.name): {self._name(o): s for o, s in one.after.items()}
                    for one in started
                },
                {*names},
            )
            used = {network for one in started for network in one.addresses}
            implicit = [one.name for one in self._saved.networks if one.implicit]
            requests = [self._requests.get(name) for name in implicit if name in used]
            made = tuple(request for request in requests if request is not None)
            file = self._joined.get(stack) or self._stack_path(stack)
            joins = NO_STACK._replace(networks=made)
            if stack:
                joins = StackMembership(stack, file, escaped(file), made, ())
            outcomes = activate.activate(self._machine, found, timeout_s, after=after, stack=joins)
            undo.callback(deactivate.remove, self._machine, names)
            self._outcomes |= {one.service: one for one in outcomes}

    def _targets(self, stack: str, started: list[SavedService]) -> list[Target]:
        """Return targets for services of a stack, with their saved addresses if these are free."""
        if stack and stack not in self._joined:
            plain = stack_members.load(self._stack_path(stack))
            named = stack_members.named(self._store, plain)
            loaded = {member.name: member.loaded for member in named.members}
        else:
            loaded = {one.name: manifest_load.load(self._home(one)) for one in started}
        return [
            targets.from_manifest(loaded[self._name(one.name)])._replace(
                prefers={self._name(on): ips for on, ips in one.addresses.items()},
                placed=True,
            )
            for one in started
        ]

    def loaded(self) -> list[LoadedService]:
        result = []
        for one in self._saved.services:
            name = self._name(one.name)
            outcome, stack = self._outcomes.get(name), self._stack(one)
            file = os.path.join(self._home(one), package.MANIFEST)
            if stack and stack not in self._joined:
                file = self._stack_path(stack)
            result.append(
                LoadedService(
                    name,
                    one.name,
                    outcome is not None,
                    outcome.address if outcome is not None else (),
                    file,
                    one.enabled,
                )
            )
        return result


def _is_within(entry: Entry, subnets: list[IPv4Network | IPv6Network]) -> bool:
    """Return whether a policy entry's address or prefix is within one of the subnets."""
    if entry.peer.kind not in ("prefix", "prefixes"):
        return False
    named = [ip_network(prefix) for prefix in entry.peer.name.split(",")]
    return any(
        one.version == subnet.version and one.subnet_of(subnet)  # type: ignore[arg-type]
        for one in named
        for subnet in subnets
    )


def _starts(service: SavedService) -> bool:
    return service.active and not service.job


def _chosen(port: PortMapping) -> str:
    """Return a port without its host port, as in a manifest, so that niso chooses a host port."""
    inner = str(port.container_port)
    if port.count > 1:
        inner += f"-{port.container_port + port.count - 1}"
    host = f"[{port.host_ip}]:" if ":" in port.host_ip else f"{port.host_ip}:"
    return f"{'' if port.host_ip == ANY else host}:{inner}/{port.proto}"


def _rename(source: str, target: str) -> None:
    try:
        if not os.path.isdir(source) or os.path.islink(source):
            raise InvalidInput(f"lacks the folder {os.path.basename(source)} of a service")
        os.rename(source, target)
    except OSError as error:
        raise Error(f"cannot create {target}: {error.strerror}") from error
