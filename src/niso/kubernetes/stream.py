"""Follow one kind of Kubernetes objects: list them, then watch for changes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kubernetes.api_server import GONE, ApiServer, NoAnswer, Refused

if TYPE_CHECKING:
    from typing import Any

WATCH_S = 240
"""How long (s) the server keeps a watch open. It sends bookmarks about once a minute."""
_SILENCE_S = WATCH_S + 30.0
RESYNC_S = 1800.0
"""The interval (s) between full lists, which make up for what a watch has missed."""
_PAGE = "500"
_BACK_OFF_S = (0.2, 15.0)
_LONGEST_VERSION = 20
"""The most digits of a 64-bit number."""

Key = tuple[str, str]
"""Namespace and name."""


class Kept(NamedTuple):
    """An object with its resource version, which grows with every change in the cluster."""

    version: int
    thing: Any


class Stream:
    """A cache of all objects of one kind, updated by a watch.

    ``parse`` converts an object's JSON and raises ValueError. ``changed`` is called after a change,
    in another thread. ``log`` takes a line of text.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], ApiServer],
        parse: Callable[[Mapping[str, Any]], Any],
        changed: Callable[[], object],
        log: Callable[[str], None],
    ) -> None:
        self.path = path
        self._connect = connect
        self._parse = parse
        self._changed = changed
        self._log = log
        self._kept: dict[Key, Kept] = {}
        self._merged: dict[Key, Kept] = {}  # objects merged since the current list was started
        self._version = 0  # resource version of the last list or event; 0 before the first
        self._lock = threading.Lock()
        self._said = ""

    @property
    def is_known(self) -> bool:
        """Return whether the first list is complete."""
        return self._version > 0

    def things(self) -> dict[Key, Any]:
        """Return the cached objects, by namespace and name."""
        with self._lock:
            return {key: kept.thing for key, kept in self._kept.items()}

    def merge(self, data: Mapping[str, Any]) -> None:
        """Add a newer list of some of the objects, which the watch has not reached yet.

        Cached objects that are not in it stay until the watch reports their deletion. Raises
        NoAnswer.
        """
        version, items = self._listed(data)
        with self._lock:
            if version > self._version:
                for item in items:
                    self._keep(self._kept, item)
                    self._keep(self._merged, item)

    def _listed(self, data: Mapping[str, Any]) -> tuple[int, list[Any]]:
        """Return the resource version of a list, and its objects.

        Raises NoAnswer if it is not a list.
        """
        items = data.get("items") or []
        if not (version := _version(data)) or not isinstance(items, list):
            raise NoAnswer(f"{self.path}: the answer is not a list with a resourceVersion")
        for item in items:
            _key(item)
        return version, items

    def run(self, over: threading.Event) -> None:
        """List and watch until ``over``; retry after failures with growing delays."""
        wait, listed = _BACK_OFF_S[0], 0.0
        again = True
        server: ApiServer | None = None
        while not over.is_set():
            try:
                server = server or self._connect()
                if again or time.monotonic() - listed > RESYNC_S:
                    self._list(server)
                    again, listed = False, time.monotonic()
                    self._changed()
                self._watch(server, over)
                wait, self._said = _BACK_OFF_S[0], ""
            except Refused as error:
                again = True
                # a watch from a version that the server has dropped is normal, not an error
                if error.status != GONE:
                    self._say(error.message)
            except Error as error:
                self._say(error.message)
            over.wait(wait * (0.5 + os.urandom(1)[0] / 255))
            wait = min(2 * wait, _BACK_OFF_S[1])

    def _list(self, server: ApiServer) -> None:
        """Replace the cache by a new list. Raises NoAnswer, Refused."""
        kept: dict[Key, Kept] = {}
        with self._lock:
            self._merged.clear()
        query = {"limit": _PAGE}
        while True:
            page = server.get(self.path, query)
            if page is None:
                raise Refused(f"{self.path}: the API server does not have it", None, 404)
            version, items = self._listed(page)
            for item in items:
                self._keep(kept, item)
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                break
            query["continue"] = str(token)
        with self._lock:
            # drop what neither the list nor `merge` has, even with a higher version: etcd may have
            # been restored from a backup
            kept |= {key: one for key, one in self._merged.items() if one.version > version}
            self._kept, self._version = kept, version

    def _watch(self, server: ApiServer, over: threading.Event) -> None:
        """Apply changes until the server ends the watch. Raises NoAnswer, Refused."""
        query = {
            "resourceVersion": str(self._version),
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        for event in server.watch(self.path, query, _SILENCE_S):
            if over.is_set():
                return
            item: Any = event.get("object")
            kind = event.get("type")
            key, version = _key(item), _version(item)
            if not version or not isinstance(item, dict):
                raise NoAnswer(f"{self.path}: a watch sends an object without a resourceVersion")
            with self._lock:
                before = self._kept.get(key)
                if kind in ("ADDED", "MODIFIED"):
                    self._keep(self._kept, item)
                elif kind == "DELETED" and before is not None and before.version <= version:
                    del self._kept[key]
                after = self._kept.get(key)
                self._version = max(self._version, version)
            # most events of pods only change their status
            if (before and before.thing) != (after and after.thing):
                self._changed()

    def _keep(self, kept: dict[Key, Kept], item: Mapping[str, Any]) -> None:
        """Add an object unless a newer version is cached."""
        key, version = _key(item), _version(item)
        if key in kept and kept[key].version > version:
            return
        try:
            kept[key] = Kept(version, self._parse(item))
        except ValueError as error:
            kept.pop(key, None)
            self._log(f"{self.path}: {error}")

    def _say(self, text: str) -> None:
        """Log a line, unless it repeats the last one."""
        if text != self._said:
            self._said = text
            self._log(text)


def _key(item: object) -> Key:
    """Return the namespace and name of an object. Raises NoAnswer if it is not an object."""
    meta = _meta(item)
    return str(meta.get("namespace") or ""), str(meta.get("name") or "")


def _version(item: object) -> int:
    """Return the resource version of an object or list, a revision of etcd; 0 if there is none."""
    text = str(_meta(item).get("resourceVersion") or "0")
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_VERSION else 0


def _meta(item: object) -> Mapping[str, Any]:
    meta = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(meta, dict):
        raise NoAnswer("the API server sends what is not an object of its API")
    return meta
