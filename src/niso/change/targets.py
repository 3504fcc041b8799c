"""Find the services that the arguments of ``niso activate`` name, and check their files.

This module changes nothing. It runs before the command takes a lock.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable

from niso.base import files, paths
from niso.base.errors import Conflict, Error, InvalidInput, NotFound, flatten, raise_all
from niso.base.named_tuples import TYPE_CHECKING
from niso.change.scope import Target
from niso.plan.specs import SERVICE_UIDS, MountedVolume, Secret, ServiceSpec
from niso.store.policy_rows import bare_name
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.manifest import load
    from niso.runtime.package import PackageFiles


FIRST_UID = SERVICE_UIDS.start


def find_targets(
    store: Store,
    arguments: Iterable[str | load.Loaded],
    replace: bool = False,
    owners: Collection[int] | None = None,
) -> list[Target]:
    """Return the targets for the services that the arguments of ``niso activate`` name.

    An argument is the path of a manifest or of its folder, the name of an existing service, a
    folder in the working directory, or a loaded manifest. With ``owners``, the files must belong to
    one of these uids. Raises Error, or an ErrorGroup of the errors of all arguments.
    """
    targets: dict[str, Target] = {}
    errors: list[Error] = []
    for argument in arguments:
        try:
            target = _find_target(store, argument, owners)
        except Error as error:
            errors += flatten(error)
        else:
            other = targets.setdefault(target.name, target)
            if other.manifest_path != target.manifest_path:
                both = f"{other.manifest_path} and {target.manifest_path}"
                errors.append(Conflict(f"{both} are both named {target.name!r}"))
    raise_all(errors)
    return [target._replace(replace=replace) for target in targets.values()]


def refuse_elsewhere(before: ServiceRow, target: Target) -> None:
    """Raise Conflict if a service of this name was activated from another existing folder."""
    if target.replace or not files.is_elsewhere(before.manifest_path, target.manifest_path):
        return
    reason = f"{target.name!r} is already the service of {before.manifest_path}"
    hint = "choose another name; --take-over takes over its addresses, ports and volumes"
    raise Conflict(reason, hint, "package.name")


def is_beside_another(name: str, manifest_path: str, copy: str) -> bool:
    """Return whether the manifest in ./NAME may differ from that of the active service ``name``.

    Returns True if the active manifest is in another folder, or if a file was changed since the
    package copy was made. The test uses the change time (ctime, inode(7)), which no program can
    set.
    """
    manifest = f"{name}/manifest.toml"
    if not os.path.exists(manifest):
        return False
    if os.path.realpath(manifest) != os.path.realpath(manifest_path):
        return True
    try:
        copied = os.stat(copy).st_ctime_ns
        return any(
            os.lstat(os.path.join(folder, entry)).st_ctime_ns > copied
            for folder, folders, files in os.walk(name)
            for entry in (".", *folders, *files)
        )
    except OSError:
        return True


def still_so(store: Store, target: Target) -> Target:
    """Read a target from the store again, because it may have changed before it was locked.

    A target from a manifest file is returned unchanged. Raises NotFound if the service was removed.
    """
    if target.files is None or target.files.fingerprint is not None:
        return target
    if target.again or target.pinned:
        return target
    row = store.service(target.name)
    if row is not None and row.service == target.spec:
        files = target.files._replace(folder=row.package, rootfs=row.rootfs)
        if (row.manifest_path, files) == (target.manifest_path, target.files):
            return target  # its files were checked just before
    return _find_target(store, store.resolve(target.name))._replace(take=target.take)


def from_store(store: Store, service: str) -> Target:
    """Return a target that repeats a service's last activation. Raises NotFound or Error."""
    return of_row(store.require_known(service))


def of_row(row: ServiceRow) -> Target:
    """Return a target that activates the service of a row again. Raises NotFound or Error."""
    from niso.runtime import package

    service = row.name
    row.require_own()
    gone = NotFound(
        f"its package copy {row.package} is gone", row.activation_command, service=service
    )
    if not os.path.isdir(row.package):
        raise gone
    if package.is_emptied(row.package):
        reason = f"its package copy {row.package} is damaged, all of its files are empty"
        raise Error(reason, row.activation_command, service=service)
    spec = row.require_service()
    files = package.PackageFiles(row.package, row.rootfs, None, (), volumes(spec))
    target = Target(spec, row.manifest_path, files)
    replaced(row)
    try:
        _check_files(target, files)
    except Error:
        if os.path.isdir(row.package):
            raise
        raise gone from None  # the service was removed during the check
    return target


def replaced(row: ServiceRow) -> None:
    """Raise Error if a service's package copy, or a file or folder that it uses, was replaced."""
    from niso.runtime import sources

    os.close(sources.open_copy(row.package, row.name, row.manifest_path))
    spec = row.process  # None if the row is damaged: then the paths are not known
    errors: list[Error] = [*sources.problems(spec)] if spec is not None else []
    for error in errors:
        error.service = row.name
        error.hint = f"put it back; or {row.activation_command}, if it may be used"
    raise_all(errors)


def _find_target(
    store: Store, argument: str | load.Loaded, owners: Collection[int] | None = None
) -> Target:
    if not isinstance(argument, str):
        return from_manifest(argument)
    if "/" not in argument and not argument.endswith(".toml"):
        if (holder := store.name_holder(bare_name(argument))) is not None:
            return from_store(store, holder)
        if not os.path.isdir(argument):
            store.resolve(argument)
    from niso.manifest import load

    loaded = load.load(argument, owners)
    _refuse_lost_networks(store, loaded)
    return from_manifest(loaded)


def _refuse_lost_networks(store: Store, loaded: load.Loaded) -> None:
    """Raise Conflict if the manifest in a package copy names a missing network that was internal.

    The network is missing after a loss of the store. An activation would create an ordinary network
    instead, from which packets can leave the host.
    """
    from niso.runtime import package

    for name in package.internal_networks(loaded.path):
        if store.network(name) is None and name in loaded.spec.network.networks:
            reason = f"network {name!r} was internal, and no longer exists"
            key, hint = "network.networks", f"niso net create --internal {name}"
            raise Conflict(reason, hint, key, file=loaded.path, service=loaded.spec.name)


def from_manifest(loaded: load.Loaded) -> Target:
    """Return the target for a valid manifest, after checking the service's files."""
    from niso.runtime import package

    spec, root = loaded.spec, rootfs(loaded)
    files = package.PackageFiles(loaded.folder, root, None, excluded(root, spec), volumes(spec))
    target = Target(spec, loaded.path, files)
    _check_files(target, files)
    contents = package.Contents(spec.name)
    fingerprint = package.fingerprint(files.folder, files.excluded, contents, loaded.path)
    return target._replace(files=files._replace(fingerprint=fingerprint, contents=contents))


def excluded(rootfs: str | None, spec: ServiceSpec) -> tuple[str, ...]:
    """Return the paths to leave out of a package copy, such as paths that the service writes."""
    program = spec.program
    written = [volume.host for volume in program.volumes if volume.host and not volume.read_only]
    kept = (*program.secrets.values(), *program.apart)
    return tuple(path for path in (rootfs, *written, *kept) if path is not None)


def rootfs(loaded: load.Loaded) -> str | None:
    """Return the real path of a manifest's rootfs, or None without a rootfs.

    Raises InvalidInput if the folder does not exist, or if it is outside the package's folder
    because a symbolic link was changed after the manifest was checked.
    """
    written = loaded.spec.program.rootfs
    if written is None:
        return None
    home = os.path.realpath(os.path.dirname(loaded.path))
    path = os.path.realpath(os.path.join(home, written))
    if not written.startswith("/") and not path.startswith(f"{home.rstrip('/')}/"):
        reason = f"leaves the folder of its file: it leads to {path}"
        raise InvalidInput(reason, None, "package.rootfs", file=loaded.path)
    inside = f"{path.rstrip('/')}/"
    if any(f"{own}/".startswith(inside) for own in (paths.state_dir(), paths.run_dir())):
        reason = "contains niso's own files, with the data of all services"
        raise InvalidInput(
            reason, "another folder", "package.rootfs", value=written, file=loaded.path
        )
    if not os.path.isdir(path):
        hint = "make this folder: niso import and docs/guide/services.md show how"
        raise InvalidInput(
            "does not exist", hint, "package.rootfs", value=written, file=loaded.path
        )
    return path


def _check_files(target: Target, files: PackageFiles) -> None:
    """Check a service's rootfs, program, user, working folder, secrets, devices and volumes."""
    from niso.runtime import crun, entrypoint, root, sources

    program, folder, rootfs = target.spec.program, files.folder, files.rootfs
    env, mounts = crun.path_env(program.environment), [one.mount for one in program.volumes]
    errors: list[Error] = []
    checks = (
        lambda: None if rootfs is None else root.check_points(rootfs),
        lambda: entrypoint.resolve_entrypoint(folder, rootfs, program.entrypoint, env),
        lambda: entrypoint.resolve_user(rootfs, program.user, FIRST_UID, target.name),
        lambda: entrypoint.check_working_dir(folder, rootfs, program.working_dir, mounts),
    )
    for name, path in program.secrets.items():
        try:
            sources.read_secret(Secret(name, os.path.realpath(path)))
        except OSError as failed:
            reason = "does not exist" if failed.errno == errno.ENOENT else failed.strerror
            invalid = InvalidInput(f"{path!r} {reason}", None, f"secrets.{name}.file")
            errors.append(_in_manifest(target, invalid))
    for index, device in enumerate(program.devices):
        try:
            sources.find_device(device)
        except OSError as failed:
            reason = "does not exist" if failed.errno == errno.ENOENT else failed.strerror
            hint, key = "ls -l /dev lists the devices of this host", f"isolation.devices[{index}]"
            invalid = InvalidInput(f"{device.host!r} {reason}", hint, key)
            errors.append(_in_manifest(target, invalid))
    errors += misplaced(target, rootfs, files.volumes)
    for call in checks:
        try:
            call()
        except Error as error:
            errors.append(_in_manifest(target, error))
    raise_all(errors)


def misplaced(
    target: Target, rootfs: str | None, volumes: Iterable[MountedVolume]
) -> list[InvalidInput]:
    """Return an error for each volume of a service that cannot be mounted at its path."""
    from niso.runtime.volumes import check

    return [_in_manifest(target, error) for error in check(rootfs, volumes)]


def _in_manifest(target: Target, error: Error) -> InvalidInput:
    new = InvalidInput.of(error)
    new.file, new.service = target.manifest_path, target.name
    return new


def volumes(spec: ServiceSpec) -> tuple[MountedVolume, ...]:
    """Return the volumes of a service's process, in manifest order."""
    result = []
    for name, mount, host, tmpfs, read_only, size, _ in spec.program.volumes:
        named = host is None and not tmpfs
        source = os.path.join(paths.volume_dir(spec.front or spec.name), name) if named else host
        result.append(MountedVolume(name, mount, source, named, read_only, size))
    return tuple(result)
