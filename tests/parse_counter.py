"""Count the calls of the parsers of a manifest's texts, of TOML, and of the JSON of stored specs, by text."""

from __future__ import annotations

import collections
import os
from types import FrameType

PARSERS = {
    "manifest": (
        *("parse_port", "parse_entry", "cpu_max", "memory_max", "url", "user"),
        "duration",
        *("size", "ipv4"),
    ),
    "tomllib": ("loads",),
    "json": ("loads",),
}
"""Package -> functions whose first argument is the text."""
counts: collections.Counter[tuple[str, str]] = collections.Counter()


def count(frame: FrameType, event: str, _: object) -> None:
    """A profile function (sys.setprofile)."""
    code = frame.f_code
    package = os.path.basename(os.path.dirname(code.co_filename))
    if event != "call" or code.co_name not in PARSERS.get(package, ()):
        return
    text = frame.f_locals[code.co_varnames[0]]
    caller = frame.f_back.f_code if frame.f_back else None
    if not isinstance(text, str) or (package == "json" and not is_spec(text)):
        return
    if package == "json" and caller is not None and caller.co_name == "_parse_json":
        package = "spec.json"  # a file of the run, which may be another one each time
    if code.co_name == "size" and caller is not None and caller.co_name == "_size_in":
        return  # a part of memory_max, or of the size of a volume
    counts[f"{package}.{code.co_name}", text] += 1


def is_spec(text: str) -> bool:
    """Whether this is JSON of a manifest or of a process, as the store or spec.json has it."""
    return '"working_dir"' in text and not text.startswith('{"ociVersion"')
