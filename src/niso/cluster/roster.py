"""Decode the cluster's hosts from the cache (`niso.cluster.kept`)."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster.host_values import Host, host_of
from niso.cluster.kept import Kept
from niso.cluster.membership import Membership

if TYPE_CHECKING:
    from niso.cluster.engine import Engine, Item
    from niso.cluster.keys import Keys


class Roster:
    """The cluster's hosts; each value is decoded only once."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.kept = Kept(keys.hosts)
        self._items: dict[str, Item] = {}
        self._decoded: dict[Item, Host] = {}
        self.hosts: tuple[Host, ...] = ()  # sorted by name, as of the last call of `look`

    def look(self, engine: Engine, own: str, now_s: float) -> tuple[tuple[Host, ...], Host | None]:
        """Return all hosts, and the host ``own``, whose key is always read from the engine.

        Raises NoAnswer, Refused, and Error if a value is invalid.
        """
        item = Membership(engine, self.keys).host_item(own)
        items = self.kept.items(engine, now_s, item)
        if items is not self._items:
            self._decode(items)
        return self.hosts, self._decoded.get(item) if item is not None else None

    def _decode(self, items: dict[str, Item]) -> None:
        decoded: dict[Item, Host] = {}
        hosts = []
        for key in sorted(items):
            if "/" in key.removeprefix(self.keys.hosts):
                continue
            item = items[key]
            decoded[item] = host = self._decoded.get(item) or host_of(item, self.keys)
            hosts.append(host._replace(alive=f"{key}/live" in items))
        self._items, self._decoded, self.hosts = items, decoded, tuple(hosts)
