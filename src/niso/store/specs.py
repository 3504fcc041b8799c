"""The JSON in which the store keeps what a manifest asks for and what a process is: its one encoder and one decoder."""

from __future__ import annotations

import json

from niso.base import convert
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.process_spec import ProcessSpec
from niso.plan.service_spec import ServiceSpec

if TYPE_CHECKING:
    from typing import Any

_decoded: dict[tuple[type, str], Any] = {}
"""What texts mean: a command reads the same row many times. None for a damaged one."""


def encode_service(spec: ServiceSpec) -> str:
    """JSON of a ServiceSpec with every key, so that another default does not change a known service."""
    text = json.dumps(convert.plain(spec), ensure_ascii=False, separators=(",", ":"))
    _decoded[ServiceSpec, text] = spec
    return text


def encode_process(spec: ProcessSpec) -> str:
    """JSON of a ProcessSpec. ASCII: resolv.conf may have bytes that are not UTF-8, as surrogates."""
    text = json.dumps(convert.plain(spec))
    _decoded[ProcessSpec, text] = spec
    return text


def service(text: str) -> ServiceSpec | None:
    """The ServiceSpec that `encode_service` wrote; None where the text is damaged."""
    return _decode(text, ServiceSpec)


def process(text: str) -> ProcessSpec | None:
    """The ProcessSpec that `encode_process` wrote; None where the text is damaged."""
    return _decode(text, ProcessSpec)


def _decode[T](text: str, table: type[T]) -> T | None:
    known = table, text
    if known not in _decoded:
        try:
            data = json.loads(text)
            if table is ServiceSpec and "\\u" in text:
                # json also reads halves of surrogate pairs, which are no text
                json.dumps(data, ensure_ascii=False).encode()
            _decoded[known] = convert.convert(data, table)
        except (ValueError, RecursionError):  # Mismatch is a ValueError
            _decoded[known] = None
    return _decoded[known]  # type: ignore[no-any-return]
