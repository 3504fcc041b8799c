"""Use the config of an image (``package.oci``) for values that a manifest does not set.

The image is a folder. It is an OCI layout (image-spec, image-layout.md), as skopeo copy and podman
save write it, or an unpacked bundle (runtime-spec, bundle.md), as umoci unpack writes it. Only the
configuration is read. niso unpacks no layers and contacts no registry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from niso.base.errors import Error, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import from_json, sha256, to_json
from niso.base.text import shown
from niso.manifest import process_keys, toml, values

if TYPE_CHECKING:
    from typing import Any


KEY = "package.oci"
_RIGHT = values.IMAGE_RIGHT
_HINT = "skopeo copy docker://IMAGE oci:FOLDER:TAG makes a layout, umoci unpack a bundle"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le"}
_MACHINES |= {"s390x": "s390x", "armv7l": "arm", "i686": "386"}
"""Maps names of processors in uname(2) to their names in images (GOARCH)."""
_REF = "org.opencontainers.image.ref.name"
_MAX_DEPTH = 3
"""How deep indexes may be nested. An image for several processors has an index in the index."""
_MAX_VOLUMES = 100
_OF_BUNDLE = ("/dev/", "/proc/", "/sys/", "/run/", "/tmp/")  # noqa: S108  # every bundle mounts them


class Image(NamedTuple):
    """The parts of an image's configuration that niso uses."""

    folder: str  # absolute path of the layout or bundle, without symbolic links
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]  # the arguments, or the whole command without an entrypoint
    environment: Mapping[str, str]
    user: str  # as in a manifest; "" for root, which a uid of the service replaces
    working_dir: str
    stop_signal: str  # "" if the image sets none
    ports: tuple[str, ...]  # 6379/tcp: the ports that it exposes, which niso does not publish
    volumes: tuple[str, ...]  # mount points
    rootfs: str | None  # absolute path of the root file system of a bundle


def read(text: str, folder: str, owners: Collection[int] | None = None) -> Image:
    """Read the configuration of an image. Raises Error.

    ``text`` is the path of the image's folder, relative to ``folder``. The path can end with
    ``:TAG``. If ``owners`` (uids) are given, only these users may be able to change the files.
    """
    place = os.path.join(folder, values.image_path(text, KEY))
    tag = ""
    if not os.path.isdir(place) and ":" in os.path.basename(place):
        place, _, tag = place.rpartition(":")
    place = os.path.realpath(place)
    if not os.path.isdir(place):
        raise InvalidInput("does not exist", _HINT, KEY, value=shown(text), right=_RIGHT)
    if os.path.lexists(f"{place}/index.json"):
        return _of_layout(_File(place, owners), tag)
    if os.path.lexists(f"{place}/config.json") and not tag:
        return _of_bundle(_File(place, owners))
    raise values.wrong(KEY, text, "has no index.json and no config.json", _RIGHT)


class _File:
    """A reader of the JSON files in an image's folder. Refuses files that others can change."""

    def __init__(self, folder: str, owners: Collection[int] | None) -> None:
        self.folder = folder
        self._owners = owners

    def error(self, name: str, reason: str) -> InvalidInput:
        error = InvalidInput(f"{name} of the image {reason}", _HINT, KEY)
        error.value = shown(self.folder)
        return error

    def table(self, name: str, digest: str = "") -> dict[str, Any]:
        """Return the JSON object in a file. Raises Error. ``digest`` is the SHA-256 that the file
        must have in hexadecimal, or "" for any.
        """
        try:
            content = toml.content(f"{self.folder}/{name}", "image", self._owners, _HINT)
        except Error as error:
            error.file = f"{self.folder}/{name}"
            raise
        if digest and sha256(content).hexdigest() != digest:
            raise self.error(name, "is damaged: its SHA-256 is not its name")
        try:
            found = from_json(content)
            to_json(found, compact=True).encode()  # "\\ud800" is valid JSON, but no text
        except (ValueError, RecursionError):
            raise self.error(name, "is not JSON in UTF-8") from None
        if not isinstance(found, dict):
            raise self.error(name, "is not a JSON object")
        return found

    def blob(self, descriptor: object) -> dict[str, Any]:
        """Return the JSON object of a descriptor (image-spec, descriptor.md). Raises Error."""
        digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
        found = re.fullmatch("sha256:([0-9a-f]{64})", digest if isinstance(digest, str) else "")
        if found is None:
            raise self.error("index.json", f"has no valid digest: {shown(digest)}")
        return self.table(f"blobs/sha256/{found[1]}", found[1])


def _of_layout(file: _File, tag: str) -> Image:
    index = file.table("index.json")
    for _ in range(_MAX_DEPTH):
        manifest = file.blob(_chosen(file, index, tag))
        if "manifests" not in manifest:
            break
        index, tag = manifest, ""
    config = file.blob(manifest.get("config")).get("config") or {}
    if not isinstance(config, dict):
        raise file.error("its config", "is not an object")
    return Image(
        file.folder,
        _words(file, config, "Entrypoint"),
        _words(file, config, "Cmd"),
        _environment(_words(file, config, "Env")),
        _user(_word(file, config, "User")),
        _word(file, config, "WorkingDir") or "/",
        _word(file, config, "StopSignal"),
        _ports(_table(config.get("ExposedPorts"))),
        tuple(sorted(_table(config.get("Volumes")))),
        None,
    )


def _chosen(file: _File, index: Mapping[str, Any], tag: str) -> object:
    """Return the descriptor in ``index`` for this machine's processor and ``tag``, or "" for any.
    Raises Error if no image or several images match.
    """
    given = index.get("manifests")
    found = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    tags = [_table(one.get("annotations")).get(_REF) for one in found]
    if tag:
        found = [one for one, name in zip(found, tags, strict=True) if name == tag]
    elif len(found) > 1 and any(tags):
        raise file.error("index.json", f"has several images: add :TAG to the path{_list(tags)}")
    machine = _MACHINES.get(os.uname().machine, os.uname().machine)
    platforms = [str(_table(one.get("platform")).get("architecture", machine)) for one in found]
    if len(found) > 1:
        found = [one for one, of in zip(found, platforms, strict=True) if of == machine]
    if not found:
        what = f"the tag {shown(tag)}" if tag else f"the processor {machine}"
        raise file.error("index.json", f"has no image with {what}{_list(tags)}")
    return found[0]


def _list(tags: list[object]) -> str:
    words = sorted(shown(tag) for tag in tags if tag)
    return f" ({', '.join(words[:20])})" if words else ""


def _of_bundle(file: _File) -> Image:
    config = file.table("config.json")
    process, notes = _table(config.get("process")), _table(config.get("annotations"))
    args = _words(file, process, "args")
    user = _table(process.get("user"))
    ids = [user.get("uid"), user.get("gid")]
    mounts = config.get("mounts")
    volumes = [
        str(one.get("destination"))
        for one in (mounts if isinstance(mounts, list) else ())
        # the form in which umoci writes a volume of the image
        if isinstance(one, dict) and (one.get("type"), one.get("source")) == ("tmpfs", "none")
    ]
    ports = _word(file, notes, "org.opencontainers.image.exposedPorts")
    root = _word(file, _table(config.get("root")), "path") or "rootfs"
    rootfs = os.path.realpath(os.path.join(file.folder, root))
    if not rootfs.startswith(f"{file.folder}/"):
        raise file.error("config.json", f"has its root outside: {shown(root)}")
    return Image(
        file.folder,
        args[:1],
        args[1:],
        _environment(_words(file, process, "env")),
        _user(":".join(str(one) for one in ids if type(one) is int)),
        _word(file, process, "cwd") or "/",
        _word(file, notes, "org.opencontainers.image.stopSignal"),
        _ports(ports.split(",")),
        tuple(sorted(one for one in volumes if not f"{one}/".startswith(_OF_BUNDLE))),
        rootfs,
    )


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(file: _File, table: Mapping[str, Any], name: str) -> str:
    given = table.get(name) or ""
    if not isinstance(given, str):
        raise file.error(f"{name} in the config", "is not a string")
    return given


def _words(file: _File, table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    given = table.get(name) or []
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise file.error(f"{name} in the config", "is not an array of strings")
    return tuple(given)


def _ports(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        sorted(filter(re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(/[a-z]{1,8})?").fullmatch, names))
    )


def _environment(words: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _user(text: str) -> str:
    name, _, group = text.partition(":")
    if name in ("", "0", "root"):
        return ""
    return f"{name}:{group}" if name.isdecimal() and group.isdecimal() else name


# --- a manifest and its image ---------------------------------------------------------------------


def applied(
    data: dict[str, Any], folder: str, owners: Collection[int] | None
) -> tuple[dict[str, Any], Mapping[str, str], tuple[str, ...], tuple[Error, ...]]:
    """Complete a manifest's data with values from its image (package.oci), if it has one.

    Returns (data, environment of the image, folders of the image, errors). The caller gives the
    manifest's variables precedence over this environment, and leaves these folders out of the
    package. ``folder`` and ``owners`` are as for `read`. Tables of a wrong type are not changed,
    because `niso.manifest.validate.walk` reports them.
    """
    package = _table(data.get("package"))
    text = package.get("oci")
    own = {name: data.get(name, {}) for name in ("binary", "service", "volumes")}
    if not isinstance(text, str) or not all(isinstance(table, dict) for table in own.values()):
        return data, {}, (), ()
    try:
        image = read(text, folder, owners)
    except Error as error:
        # so that no error about a missing entrypoint hides this one
        binary = {"entrypoint": "unknown", **own["binary"]}
        return {**data, "binary": binary}, {}, (), (error,)
    errors: list[tuple[str, str]] = []
    binary = _program(own["binary"], image, errors)
    service = dict(own["service"])
    if "working_dir" not in binary and _fits(
        "binary.working_dir", image.working_dir, values.working_dir, errors
    ):
        binary["working_dir"] = image.working_dir
    for name, value, rule in (
        ("user", image.user, values.user),
        ("stop_signal", image.stop_signal, process_keys.signal),
    ):
        if name not in service and value and _fits(f"service.{name}", value, rule, errors):
            service[name] = value
    environment = {
        name: value
        for name, value in image.environment.items()
        if name not in _table(data.get("environment"))
        and _fits("environment", name, values.environment_name, errors)
        and _fits("environment", value, values.argument, errors)
    }
    if len(image.volumes) > _MAX_VOLUMES:
        reason = f"its image has more than {_MAX_VOLUMES} volumes"
        errors.append((reason, f"set all keys without {KEY}"))
        image = image._replace(volumes=())
    volumes = {**_volumes(image.volumes, own["volumes"]), **own["volumes"]}
    package = {"rootfs": image.rootfs, **package} if image.rootfs else package
    done = {**data, "package": package, "binary": binary}
    done |= {"service": service} if service else {}
    done |= {"volumes": volumes} if volumes else {}
    folder = image.folder
    refused = (InvalidInput(why, hint, KEY, value=shown(folder)) for why, hint in errors)
    return done, environment, (folder,), tuple(refused)


def _fits(
    key: str, value: str, rule: Callable[[str, str], object], errors: list[tuple[str, str]]
) -> bool:
    """Return whether ``rule`` accepts an image's value for a manifest key. Otherwise append
    (reason, next step) to ``errors``.
    """
    try:
        rule(value, key)
    except InvalidInput as error:
        hint = f"set {key}, or all keys without {KEY}"
        errors.append((f"its image has {key} {shown(value)}, which {error.reason}", hint))
        return False
    return True


def _program(own: Mapping[str, Any], image: Image, errors: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the table [binary] ``own`` with entrypoint and arguments from the image, as in Docker.
    If the manifest has an entrypoint, the image's entrypoint and command are not used. Arguments of
    the manifest are used instead of the image's command. If the image has no entrypoint, the first
    argument is the program. Invalid values are appended to ``errors`` as (reason, next step).
    """
    if "entrypoint" in own:
        return dict(own)
    words = [*image.entrypoint, *(() if "args" in own else image.command)]
    rules = [
        ("binary.entrypoint", values.entrypoint),
        *[("binary.args", values.argument)] * len(words),
    ]
    fits = [_fits(key, word, rule, errors) for word, (key, rule) in zip(words, rules, strict=False)]
    given = own.get("args", [])
    if not all(fits) or not isinstance(given, list):
        return {**own, "entrypoint": "unknown"}  # so that no other error hides this one
    argv = [*words, *given]
    if not argv:
        errors.append(("its image has no entrypoint and no command", "set binary.entrypoint"))
    return {**own, "entrypoint": argv[0] if argv else "unknown", "args": argv[1:]}


def _volumes(points: tuple[str, ...], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table [volumes] with a named volume for each of an image's mount points ``points``.

    Mount points are left out if they overlap a volume of the manifest (``own``), or if niso allows
    no volume there. A volume's name is its mount point with ``-`` instead of ``/``, and a number if
    another volume has this name.
    """
    taken = [str(_table(volume).get("mount")) for volume in own.values()]
    made: dict[str, dict[str, str]] = {}
    for point in points:
        try:
            mount = process_keys.mount(os.path.normpath(re.sub("^/+", "/", point)), KEY)
        except InvalidInput:
            continue
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", mount.strip("/"))
        word = (word if word[:1].isalpha() else f"v{word}")[: values.MAX_NAME]
        names = (word, *(f"{word[: values.MAX_NAME - 4]}-{number}" for number in range(2, 999)))
        name = next(name for name in names if name not in own and name not in made)
        overlaps = any(
            f"{mount}/".startswith(f"{other}/") or f"{other}/".startswith(f"{mount}/")
            for other in (*taken, *(one["mount"] for one in made.values()))
        )
        if not overlaps:
            made[name] = {"mount": mount}
    return made
