"""The records of a service's present activation (spec.json, state.json), and what follows from its spec."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from niso.base import convert, files, paths
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.process_spec import ProcessSpec

if TYPE_CHECKING:
    from typing import Any

APP = "/app"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def path_env(environment: Mapping[str, str]) -> str:
    """The PATH that the service sees."""
    return environment.get("PATH", DEFAULT_PATH)


def namespace(spec: ProcessSpec) -> str | None:
    """The name of the network namespace that a service runs in; None for the host's."""
    return os.path.basename(spec.netns) if spec.netns else None


def save(spec: ProcessSpec) -> None:
    """Write spec.json into the service's folder, whole or not at all. Raises OSError."""
    write_json(os.path.join(paths.service_dir(spec.service), "spec.json"), convert.plain(spec))


def load(service: str) -> ProcessSpec | None:
    """The spec of a service's present activation; None where there is none."""
    found = read_json(os.path.join(paths.service_dir(service), "spec.json"))
    try:
        return None if found is None else convert.convert(found, ProcessSpec)
    except convert.Mismatch:  # damaged
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
