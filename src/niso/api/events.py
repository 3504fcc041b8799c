"""The events of a call, for the ``progress`` callback of `niso.connect`."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple


class Step(NamedTuple):
    """A step that is taken next, or with ``dry_run`` would be; ``text`` is one line."""

    text: str


class Expects(NamedTuple):
    """The services whose start ends when they are healthy; sent before the first step."""

    services: tuple[str, ...]


class Finished(NamedTuple):
    """The change is complete. Cautions and the hand-over to systemd follow."""


class Caution(NamedTuple):
    """Something that may keep the result from working: no name server, another firewall."""

    text: str
    hints: tuple[str, ...] = ()


Event = Step | Expects | Finished | Caution
