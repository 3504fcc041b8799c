"""Read a YAML file with PyYAML. Only `niso import` and a kubeconfig in YAML need it."""

from __future__ import annotations

import os
import re

from niso.base.errors import Error, InvalidInput, NotFound, missing_library
from niso.base.named_tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
"""The maximum number of values in a file. Each use of an alias counts (YAML 1.2, 3.2.2.2), since
nested aliases can expand to billions."""

_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:0|-?[1-9][0-9]*)$", "-0123456789"),
    ("float", r"^-?(?:0|[1-9][0-9]*)\.(?:0|[0-9]*[1-9])$", "-0123456789"),
)
"""(tag, pattern, first characters) of scalars that are not strings. The patterns match the forms of
YAML 1.2 (10.3.2) that Python writes in the same way, so that every scalar keeps its text. Unlike in
YAML 1.1, ``22:22`` is not a number of base 60, and ``yes`` is not a boolean."""


def load(path: str, wanted: str = "a compose.yaml") -> dict[str, Any]:
    """Read a YAML file whose top level must be a mapping. Keys are converted to strings.

    ``wanted`` describes the expected file, for messages. Raises NotFound, Error if PyYAML is
    missing or the file cannot be read, and InvalidInput if it is too large or has another content.
    """
    yaml = _library()
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("no such file", f"pass the path of {wanted}", file=path) from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        hint = f"pass the path of {wanted}" if isinstance(error, IsADirectoryError) else None
        raise Error(f"cannot be read: {reason}", hint, file=path) from error
    if len(content) > MAX_BYTES:
        raise InvalidInput(f"larger than {MAX_BYTES} bytes", file=path)
    try:
        data = yaml.load(content, _loader(yaml))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or "not valid YAML"
        raise InvalidInput(f"{place}{reason}", file=path) from None
    except (RecursionError, ValueError):
        reason = "not valid YAML: nested too deeply, or a wrong number"
        raise InvalidInput(reason, file=path) from None
    if not isinstance(data, dict):
        raise InvalidInput("is not a mapping", f"pass {wanted}", file=path)
    try:
        plain: dict[str, Any] = _plain(data, [0])
    except (RecursionError, OverflowError):
        raise InvalidInput("has too many or too deeply nested values", file=path) from None
    return plain


def _library() -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise missing_library("PyYAML", "reads YAML files", "pyyaml") from None
    return yaml


def _loader(yaml: Any) -> Any:
    """Return PyYAML's SafeLoader, but with `_SCALARS` instead of the scalar types of YAML 1.1."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_mapping_node(self, anchor: str | None) -> Any:
            """Refuse duplicate keys (YAML 1.2, 3.2.1.3). PyYAML would use the last value."""
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                    if key.value in seen:
                        reason = f"the key {key.value!r} is there twice"
                        raise yaml.MarkedYAMLError(problem=reason, problem_mark=key.start_mark)
                    seen.add(key.value)
            return node

    others = ("bool", "int", "float", "timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in others]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, form, firsts in _SCALARS:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(form), list(firsts))
    return Loader


def _plain(value: object, count: list[int]) -> Any:
    """Copy a value of PyYAML, with keys, dates and bytes as strings. Adds the number of values to
    ``count[0]``. Raises OverflowError above `MAX_VALUES`.
    """
    count[0] += 1
    if count[0] > MAX_VALUES:
        raise OverflowError
    if isinstance(value, dict):
        return {_text(key): _plain(item, count) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item, count) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else _text(value)


def _text(value: object) -> str:
    r"""Convert a value to a string. Surrogate pairs (``\ud83d\ude00``) become one character."""
    text = str(value)
    return (
        text
        if text.isascii()
        else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
