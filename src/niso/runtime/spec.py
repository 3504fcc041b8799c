"""The process of a service as plain data: all that the runtime needs to start it."""

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
    """The copy of the package, mounted read-only at /app."""
    rootfs: str | None
    """The service's root file system, never written to; None for one made of the host's /usr."""
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
    """The folder that contains the file ``hosts``; empty for the host's own."""
    resolv_conf: str
    """The text of /etc/resolv.conf."""
    netns: str
    """The path of its network namespace; empty for the host's.

    In the host's, hostname and resolv_conf are the host's too, read at each start.
    """
    restart: str
    """no, on-failure or always."""
    restart_delay_s: float
    stop_timeout_s: float
    memory_max: int | None = None
    """Bytes; None here and in the next two means no limit."""
    cpu_max: int | None = None
    """Per cent of one CPU."""
    pids_limit: int | None = None
    volumes: list[dict[str, Any]] = []  # noqa: RUF012 - never changed
    """As `niso.runtime.volumes.Volume`."""


def path_env(environment: dict[str, str]) -> str:
    """Return the PATH of a service."""
    return environment.get("PATH", DEFAULT_PATH)


def namespace(spec: ProcessSpec) -> str | None:
    """Return the name of a service's network namespace; None for the host's."""
    return os.path.basename(spec.netns) if spec.netns else None


def parse(text: str) -> ProcessSpec:
    """Parse the JSON of a spec in the store, of any version of niso. Raises NisoError."""
    try:
        return ProcessSpec(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        words = "the stored process spec cannot be understood"
        raise NisoError(words, "activate the service again from its manifest.toml") from None


def understood(text: str) -> ProcessSpec | None:
    """Parse as `parse` does, but return None if the text is damaged."""
    try:
        return parse(text)
    except NisoError:
        return None


def damaged(service: str, manifest_path: str) -> NisoError:
    """Return the error for a damaged row of the store that a command cannot do without."""
    words = f"service {service!r}: what the store has of it cannot be understood"
    return NisoError(words, f"niso activate {manifest_path}, or niso remove {service}")


def save(spec: ProcessSpec) -> None:
    """Write spec.json into the service's folder, atomically. Raises OSError."""
    write_json(os.path.join(paths.service_dir(spec.service), "spec.json"), spec._asdict())


def load(service: str) -> ProcessSpec | None:
    """Read the spec of a service's present activation; None if there is none, or it is damaged."""
    fields = read_json(os.path.join(paths.service_dir(service), "spec.json"))
    try:
        return None if fields is None else ProcessSpec(**fields)
    except TypeError:  # other keys
        return None


def read_state(service: str) -> dict[str, Any] | None:
    """Read state.json of a service's activation; None if there is none, or it is damaged."""
    record = read_json(os.path.join(paths.service_dir(service), "state.json"))
    kinds = {"run": int, "phase": str, "restarts": int, "failures": int}
    if record is None:
        return None
    is_valid = all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    return record if is_valid else None


def write_json(path: str, value: object) -> None:
    """Replace ``path`` by ``value`` as JSON (mode 0600), atomically. Raises OSError."""
    draft = f"{path}.new"
    with open(files.make(draft, 0o600), "w", encoding="utf-8") as file:
        # dumps instead of dump: only dumps is implemented in C.
        file.write(json.dumps(value))
    files.rename(draft, path)


def read_json(path: str) -> dict[str, Any] | None:
    """Read the JSON object in ``path``; None if there is none. Raises OSError."""
    try:
        text = files.read(path)
        value = None if text is None else json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
