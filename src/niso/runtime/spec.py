"""Read and write the records of a service's present activation (spec.json, state.json)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache

from niso.base import convert, files, paths
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.process_spec import ProcessSpec

if TYPE_CHECKING:
    from typing import Any

APP = "/app"
INIT = "/dev/niso-init"
"""PID 1 of a service: catatonit, mounted into the service's /dev."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def path_env(environment: Mapping[str, str]) -> str:
    """Return the PATH of a service."""
    return environment.get("PATH", DEFAULT_PATH)


def cgroup_of(spec: ProcessSpec) -> str:
    """Return the service's cgroup, relative to the root of each hierarchy."""
    return f"/niso-{spec.state_id}/{spec.service}"


def namespace(spec: ProcessSpec) -> str | None:
    """Return the name of a service's network namespace; None for the host's."""
    return os.path.basename(spec.netns) if spec.netns else None


def save(spec: ProcessSpec) -> None:
    """Write spec.json into the service's folder, atomically. Raises OSError."""
    write_json(f"{paths.service_dir(spec.service)}/spec.json", convert.plain(spec))


def load(service: str) -> ProcessSpec | None:
    """Read the spec of a service's present activation; None if there is none, or it is damaged."""
    text = files.read(f"{paths.service_dir(service)}/spec.json")
    return None if text is None else _parsed(text)


def group(service: str) -> str | None:
    """Return the cgroup of a service's present activation, as `cgroup_of`; None if it has no spec.

    Decodes only this part of the spec, for lists of many services.
    """
    fields = read_json(f"{paths.service_dir(service)}/spec.json") or {}
    state_id = fields.get("state_id")
    return f"/niso-{state_id}/{service}" if isinstance(state_id, str) else None


@lru_cache(maxsize=1)
def _parsed(text: bytes) -> ProcessSpec | None:
    """Decode a spec.json. Cached, since reading a status decodes it several times in a row."""
    fields = _parse_json(text)
    try:
        return None if fields is None else convert.convert(fields, ProcessSpec)
    except convert.Mismatch:  # damaged
        return None


def read_state(service: str) -> dict[str, Any] | None:
    """Read state.json of a service's activation; None if there is none, or it is damaged."""
    record = read_json(f"{paths.service_dir(service)}/state.json")
    kinds = {"run": int, "phase": str, "restarts": int, "failures": int}
    if record is None:
        return None
    is_valid = all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    return record if is_valid else None


def write_json(path: str, value: object) -> None:
    """Replace ``path`` by ``value`` as JSON (mode 0600), atomically. Raises OSError."""
    draft = f"{path}.new"
    with open(files.make(draft, 0o600), "w", encoding="utf-8") as file:
        file.write(json.dumps(value))
    files.rename(draft, path)


def read_json(path: str) -> dict[str, Any] | None:
    """Read the JSON object in ``path``; None if there is none. Raises OSError."""
    text = files.read(path)
    return None if text is None else _parse_json(text)


def _parse_json(text: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None if the text is not one."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
