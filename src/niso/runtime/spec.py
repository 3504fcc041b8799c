"""What a service's process is, as plain data: everything that the runtime needs and nothing that it must look up."""

from __future__ import annotations

import json
import os

from niso.base import files, paths
from niso.base.errors import NisoError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

APP = "/app"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProcessSpec(NamedTuple):
    """One activation of a service. All paths of the host are absolute."""

    service: str
    state_id: str
    generation: int
    package: str
    """The copy of the package, shown read-only at /app."""
    rootfs: str | None
    """The service's own root file system, never written to; None: assembled from the host's /usr."""
    argv: list[str]
    """The entrypoint as a path inside the service, then its arguments."""
    working_dir: str
    environment: dict[str, str]
    uid: int
    gid: int
    groups: list[int]
    user_name: str
    home: str
    capabilities: list[str]
    """Names without ``CAP_``."""
    read_only: bool
    hostname: str
    hosts_folder: str
    """The folder that holds the file ``hosts``; empty where the host's own is shown."""
    resolv_conf: str
    """The text of /etc/resolv.conf."""
    netns: str
    """The path of its network namespace; empty for the host's. Then hostname and resolv_conf are the host's as well, read at each start."""
    restart: str
    """no, on-failure or always."""
    restart_delay_s: float
    stop_timeout_s: float
    memory_max: int | None = None
    """Bytes; None in this and the next two: no limit."""
    cpu_max: int | None = None
    """Per cent of one CPU."""
    pids_limit: int | None = None
    volumes: list[dict[str, Any]] = []  # noqa: RUF012 - never changed
    """As `niso.runtime.volumes.Volume`."""


def path_env(environment: dict[str, str]) -> str:
    """The PATH that the service sees."""
    return environment.get("PATH", DEFAULT_PATH)


def namespace(spec: ProcessSpec) -> str | None:
    """The name of the network namespace that a service runs in; None for the host's."""
    return os.path.basename(spec.netns) if spec.netns else None


def parse(text: str) -> ProcessSpec:
    """The spec that `niso.store` keeps as JSON, whichever version of niso wrote it. Raises NisoError where it is damaged."""
    try:
        return ProcessSpec(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        words = "the stored process spec cannot be understood"
        raise NisoError(words, "activate the service again from its manifest.toml") from None


def understood(text: str) -> ProcessSpec | None:
    """As `parse`; None where it is damaged, for who can do without."""
    try:
        return parse(text)
    except NisoError:
        return None


def damaged(service: str, manifest_path: str) -> NisoError:
    """The error for a row of the store that cannot be understood, where nothing can be done without."""
    words = f"service {service!r}: what the store has of it cannot be understood"
    return NisoError(words, f"niso activate {manifest_path}, or niso remove {service}")


def save(spec: ProcessSpec) -> None:
    """Write spec.json into the service's folder, whole or not at all. Raises OSError."""
    write_json(os.path.join(paths.service_dir(spec.service), "spec.json"), spec._asdict())


def load(service: str) -> ProcessSpec | None:
    """The spec of a service's present activation; None where there is none."""
    found = read_json(os.path.join(paths.service_dir(service), "spec.json"))
    try:
        return None if found is None else ProcessSpec(**found)
    except TypeError:  # other keys
        return None


def read_state(service: str) -> dict[str, Any] | None:
    """What state.json says of a service's present activation; None where there is none, or one that cannot be understood."""
    found = read_json(os.path.join(paths.service_dir(service), "state.json"))
    kinds = {"run": int, "phase": str, "restarts": int, "failures": int}
    if found is None or not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        return None
    return found


def write_json(path: str, value: object) -> None:
    """Replace ``path`` by ``value`` as JSON (0600), whole or not at all. Raises OSError."""
    draft = f"{path}.new"
    with open(files.make(draft, 0o600), "w", encoding="utf-8") as file:
        # Not json.dump: only dumps is done in C.
        file.write(json.dumps(value))
    files.rename(draft, path)


def read_json(path: str) -> dict[str, Any] | None:
    """The JSON object in ``path``; None where there is no such file, or something else in it: a damaged record counts as none."""
    try:
        text = files.read(path)
        found = None if text is None else json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
