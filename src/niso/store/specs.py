"""Encode and decode the JSON of ServiceSpec and ProcessSpec in the store."""

from __future__ import annotations

import json
from zlib import crc32

from niso.base import convert
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.records import Policy
from niso.plan.service_spec import ServiceSpec

if TYPE_CHECKING:
    from typing import Any

    from niso.plan.process_spec import ProcessSpec

_decoded: dict[tuple[type, str], Any] = {}
"""Cache of decoded texts, since a command reads the same row many times. None if damaged."""
_MOST_DECODED = 64
"""The most cached texts: a command that reads the rows of all services must not keep them all."""


def encode_service(spec: ServiceSpec) -> str:
    """Encode a ServiceSpec as JSON with every key.

    So a recorded service does not change if a later version of niso has another default.
    """
    text = json.dumps(convert.plain(spec), ensure_ascii=False, separators=(",", ":"))
    _remember((ServiceSpec, text), spec)
    return text


def encode_process(spec: ProcessSpec) -> str:
    """Encode a ProcessSpec as ASCII JSON.

    Bytes of resolv.conf that are not UTF-8 are surrogates.
    """
    text = json.dumps(convert.plain(spec))
    _remember((type(spec), text), spec)
    return text


def service(text: str) -> ServiceSpec | None:
    """Decode a ServiceSpec that `encode_service` wrote; None if the text is damaged."""
    return _decode(text, ServiceSpec)


def process(text: str) -> ProcessSpec | None:
    """Decode a ProcessSpec that `encode_process` wrote; None if the text is damaged."""
    from niso.plan.process_spec import ProcessSpec

    return _decode(text, ProcessSpec)


def mark(name: str, mode: str, manifest: str, spec: str, networks: str) -> int:
    """Return the checksum of the record of a plain service; 0 for any other service.

    All rows of a plain service follow from its names and networks: it has no policy, alias, static
    address or extra host. A record that matches its checksum can be compared with its rows without
    decoding it. The arguments are columns of the table service.
    """
    own = service(manifest) if mode != "attached" else None
    if own is None or process(spec) is None:
        return 0
    more = own.aliases or own.addresses or own.addresses6 or own.extra_hosts
    if more or own.policy != Policy():
        return 0
    return checksum(*(text.encode() for text in (name, manifest, spec, networks)))


def checksum(*columns: bytes) -> int:
    """Return the CRC-32 of a record's columns, never 0."""
    return crc32(b"\0".join(columns)) or 1


def _decode[T](text: str, table: type[T]) -> T | None:
    known = table, text
    if known not in _decoded:
        try:
            data = json.loads(text)
            if table is ServiceSpec and "\\u" in text:
                # json accepts lone surrogates, which are not valid text
                json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
            _remember(known, convert.convert(data, table))
        except (ValueError, RecursionError):  # Mismatch is a ValueError
            _remember(known, None)
    return _decoded[known]  # type: ignore[no-any-return]


def _remember(known: tuple[type, str], spec: object) -> None:
    if len(_decoded) >= _MOST_DECODED:
        del _decoded[next(iter(_decoded))]  # the oldest entry
    _decoded[known] = spec
