"""Parse [secrets]: files of the host that only the service's user can read, below /run/secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values

if TYPE_CHECKING:
    from typing import Any

FOLDER = "/run/secrets"
_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def name(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name of a secret and its file. Raises InvalidInput."""
    if not (0 < len(text) <= values.MAX_NAME and _CHARACTERS.issuperset(text) and text[0] != "."):
        right = "letters, digits, -, _ and ., first not a dot, at most 63 characters"
        raise values.wrong(key, text, "is not a valid name of a secret", right, "DB_PASSWORD")
    return text


def file(text: str, key: str) -> str:
    """Return ``text`` if it is an absolute path of the host. Raises InvalidInput.

    Relative paths have been made absolute before. Activation reads the file.
    """
    reason = values.path_reason(text) or (None if text.startswith("/") else "is not absolute")
    if reason:
        raise values.wrong(key, text, reason, "a path of the host", '"./secret.txt"')
    return text


def problems(
    section: Mapping[str, Any], volumes: Mapping[str, Any], parsed: dict[str, Any]
) -> Iterator[InvalidInput]:
    """Yield an error for each invalid value of the section, given as tomllib returned it.

    ``volumes`` are those of the manifest, which must not hide the secrets. Valid values are added
    to ``parsed`` under their keys.
    """
    from niso.manifest.validate import join

    for secret, keys in section.items():
        base = join("secrets", secret)
        text = keys.get("file") if isinstance(keys, dict) else None
        checks = [(name, secret, base)]
        checks += [(file, text, f"{base}.file")] if isinstance(text, str) else []
        for rule, value, key in checks:
            try:
                parsed[key] = rule(value, key)
            except InvalidInput as error:
                yield error
    for volume, keys in volumes.items() if section else ():
        mount = keys.get("mount") if isinstance(keys, dict) else None
        if isinstance(mount, str) and (mount == "/run" or f"{mount}/".startswith(f"{FOLDER}/")):
            reason = f"is where [secrets] are: {FOLDER}"
            yield values.wrong(join("volumes", volume) + ".mount", mount, reason, "another path")
