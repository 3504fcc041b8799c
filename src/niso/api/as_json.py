"""Convert results to plain data for JSON.

The types of the results are the schema: docs/reference/json.md is generated from them.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

KEYS = {
    "from_": "from",
    **{
        name: name.replace("_", "-")
        for name in (
            "in_packets",
            "in_bytes",
            "in_drops",
            "out_packets",
            "out_bytes",
            "out_drops",
            "in_audits",
            "out_audits",
        )
    },
}
"""Field -> JSON key, where they differ."""

JOINED = ("mapping", "process", "judged")
"""Fields whose value is a result, which is merged into its parent."""

PYTHON_ONLY = ("anywhere", "label", "idle")
"""Fields that are left out of JSON."""


def plain(value: object) -> Any:
    """Return a result, or a sequence of them, as dict, list, str, int, float, bool or None."""
    fields: tuple[str, ...] | None = getattr(value, "_fields", None)
    if fields is None:
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value
    left_out = value.left_out() if hasattr(value, "left_out") else ()
    described: dict[str, object] = {}
    for name in fields:
        member = getattr(value, name)
        if name in left_out or name in PYTHON_ONLY:
            continue
        if name in JOINED:
            described |= plain(member) or {}
        else:
            described[KEYS.get(name, name)] = plain(member)
    return described
