"""What the manifest will know and does not know yet: refused by name, so that nothing is accepted and ignored."""

from __future__ import annotations

KEYS = frozenset({"healthcheck", "volumes", "isolation.resources", "network.share"})
MODES = frozenset({"host", "none", "share"})
