"""Read the administrator's policies for attachments, ``/etc/niso/policies/*.toml``.

The policy of an attachment is written by the user of the engine. A packet must also be allowed by
the administrator's policies. A file has tables ``[[policy]]`` with matchers that select attachments
(name, network, owner, pod_namespace, as patterns of fnmatch(3)), and the keys of
``[network.policy]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from niso.base import files, paths
from niso.base.errors import Error, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.manifest import toml
from niso.manifest.parse_policy import denials, parse_entry
from niso.plan.records import Entry, Policy

if TYPE_CHECKING:
    from typing import Any

MATCHERS = ("name", "network", "owner", "pod_namespace")
_LISTS = ("allow_from", "deny_from")
_EGRESS = ("allow", "deny")
_FURTHER = ("log", "egress")
_LONGEST_NAME = 30
"""The longest file name in characters: it is part of the comments of nftables elements."""


class Subject(NamedTuple):
    """The attachment that the matchers of a file are compared with."""

    name: str
    networks: tuple[str, ...]
    owner: str
    labels: Mapping[str, str]

    def values(self, matcher: str) -> tuple[str, ...]:
        """Return the attachment's values for a matcher; none if it has none."""
        if matcher == "name":
            return (self.name,)
        if matcher == "network":
            return self.networks
        if matcher == "owner":
            return (self.owner,)
        return (self.labels[matcher],) if matcher in self.labels else ()


def about(subject: Subject) -> Iterator[Policy]:
    """Yield the policies of all files that apply to an attachment.

    Raises Error if a file cannot be read or is invalid, since it could apply to this attachment.
    """
    for file in _files():
        for number, table in enumerate(_tables(file)):
            if _is_about(table, subject):
                yield _policy(table, f"{os.path.basename(file)}:policy[{number}]")


def _files() -> list[str]:
    folder = paths.policy_dir()
    try:
        # who changes the folder, or the one above, can take policies away
        for at in (os.path.dirname(folder), folder):
            if how := files.changed_by_others(at, {0}):
                raise InvalidInput(f"{at}: it {how}", _untrusted(at))
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Error(f"{folder}: {error.strerror}") from error
    return [os.path.join(folder, name) for name in sorted(names) if name.endswith(".toml")]


def _untrusted(path: str) -> str:
    """Return the hint for a file or folder that others than root can change."""
    return f"chown root: {path}; chmod go-w {path}; nothing is attached until then"


def _tables(file: str) -> list[dict[str, Any]]:
    """Read the tables of a file and check them for unknown keys. Raises Error."""
    if len(os.path.basename(file)) > _LONGEST_NAME:
        raise InvalidInput(f"{file}: its name is too long", f"at most {_LONGEST_NAME} characters")
    data = toml.load(file, "file of policies", {0}, _untrusted(file))
    tables = data.get("policy", [])
    if data.keys() - {"policy"} or not isinstance(tables, list):
        raise _wrong(file, "has other keys than tables [[policy]]")
    for number, table in enumerate(tables):
        where = f"policy[{number}]"
        if not isinstance(table, dict):
            raise _wrong(file, f"{where} is not a table")
        for key, value in table.items():
            if key not in (*MATCHERS, *_LISTS, *_FURTHER):
                raise _wrong(file, f"{where}.{key} is not a known key")
            if key in MATCHERS:
                _require_texts(file, f"{where}.{key}", [value] if isinstance(value, str) else value)
            if key in _LISTS:
                _require_texts(file, f"{where}.{key}", value)
        if not isinstance(table.get("log", False), bool):
            raise _wrong(file, f"{where}.log is neither true nor false")
        egress = table.get("egress", {})
        if not isinstance(egress, dict) or egress.keys() - set(_EGRESS):
            raise _wrong(file, f"{where}.egress has other keys than allow and deny")
        for key, value in egress.items():
            _require_texts(file, f"{where}.egress.{key}", value)
    return tables


def _require_texts(file: str, key: str, value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(file, f"{key} is not a list of texts")


def _wrong(file: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{file}: {reason}", "nothing is attached until this file is right")


def _is_about(table: Mapping[str, Any], subject: Subject) -> bool:
    """Return whether every matcher of a table matches one of the attachment's values."""
    from fnmatch import fnmatchcase

    for matcher in MATCHERS:
        if matcher in table:
            given = table[matcher]
            patterns = [given] if isinstance(given, str) else given
            values = subject.values(matcher)
            if not any(fnmatchcase(value, pattern) for value in values for pattern in patterns):
                return False
    return True


def _policy(table: Mapping[str, Any], where: str) -> Policy:
    """Return the policy of a table; the keys of its entries begin with ``where``."""

    def entries(texts: Iterable[str], key: str, egress: bool) -> tuple[Entry, ...]:
        return tuple(
            parse_entry(text, f"{where}.{key}[{number}]", egress)
            for number, text in enumerate(texts)
        )

    allow, egress = table.get("allow_from"), table.get("egress", {})
    out = egress.get("allow")
    return Policy(
        None if allow is None else entries(allow, "allow_from", False),
        entries(table.get("deny_from", ()), "deny_from", False),
        None if out is None else entries(out, "egress.allow", True),
        denials(entries(egress.get("deny", ()), "egress.deny", True)),
        bool(table.get("log", False)),
    )
