"""Follow one kind of objects of Kubernetes: list them, then watch what changes."""

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
"""How long the server keeps a watch. It sends bookmarks about once a minute."""
_SILENCE_S = WATCH_S + 30.0
RESYNC_S = 1800.0
"""A new list, for what a watch may have missed."""
_PAGE = "500"
_BACK_OFF_S = (0.2, 15.0)
_LONGEST_VERSION = 20
"""Digits of a number of 64 bits."""

Key = tuple[str, str]
"""Namespace and name."""


class Kept(NamedTuple):
    """An object with its version, which grows with every change of the cluster."""

    version: int
    thing: Any


class Stream:
    """The objects of one kind, as last heard.

    ``parse`` makes something of an object's JSON and raises ValueError. ``changed`` is called, in
    another thread, when there is something new. ``log`` takes a line of text.
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
        self._merged: dict[Key, Kept] = {}  # since the present list was begun
        self._version = 0  # of the last list or event; 0: none yet
        self._lock = threading.Lock()
        self._said = ""

    @property
    def is_known(self) -> bool:
        """Return whether there was a first list."""
        return self._version > 0

    def things(self) -> dict[Key, Any]:
        """Return what is known now, by namespace and name."""
        with self._lock:
            return {key: kept.thing for key, kept in self._kept.items()}

    def merge(self, data: Mapping[str, Any]) -> None:
        """Take over a newer list of a part, which the watch has not reached yet.

        What it does not have stays until the watch says that it is gone. Raises NoAnswer.
        """
        version, items = self._listed(data)
        with self._lock:
            if version > self._version:
                for item in items:
                    self._keep(self._kept, item)
                    self._keep(self._merged, item)

    def _listed(self, data: Mapping[str, Any]) -> tuple[int, list[Any]]:
        """Return the version of a list, and its objects. Raises NoAnswer if it is none."""
        items = data.get("items") or []
        if not (version := _version(data)) or not isinstance(items, list):
            raise NoAnswer(f"{self.path}: the answer is not a list with a resourceVersion")
        for item in items:
            _key(item)
        return version, items

    def run(self, over: threading.Event) -> None:
        """List and watch until ``over``; after a failure again, ever less often."""
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
                if error.status != GONE:  # that the versions it asks from are forgotten is usual
                    self._say(error.message)
            except Error as error:
                self._say(error.message)
            over.wait(wait * (0.5 + os.urandom(1)[0] / 255))
            wait = min(2 * wait, _BACK_OFF_S[1])

    def _list(self, server: ApiServer) -> None:
        """Replace what is known by a list. Raises NoAnswer, Refused."""
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
            # what `merge` did not read meanwhile is gone, even with a higher version: etcd may have
            # been restored from a backup
            kept |= {key: one for key, one in self._merged.items() if one.version > version}
            self._kept, self._version = kept, version

    def _watch(self, server: ApiServer, over: threading.Event) -> None:
        """Follow what changes until the server ends it. Raises NoAnswer, Refused."""
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
            # most events of pods are about their status alone
            if (before and before.thing) != (after and after.thing):
                self._changed()

    def _keep(self, kept: dict[Key, Kept], item: Mapping[str, Any]) -> None:
        """Add an object unless a newer one is known."""
        key, version = _key(item), _version(item)
        if key in kept and kept[key].version > version:
            return
        try:
            kept[key] = Kept(version, self._parse(item))
        except ValueError as error:
            kept.pop(key, None)
            self._log(f"{self.path}: {error}")

    def _say(self, text: str) -> None:
        """Log a line, unless it was the last one."""
        if text != self._said:
            self._said = text
            self._log(text)


def _key(item: object) -> Key:
    """Return what names an object. Raises NoAnswer if it is none."""
    meta = _meta(item)
    return str(meta.get("namespace") or ""), str(meta.get("name") or "")


def _version(item: object) -> int:
    """Return the version of an object or list, which is a revision of etcd; 0 for none."""
    text = str(_meta(item).get("resourceVersion") or "0")
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_VERSION else 0


def _meta(item: object) -> Mapping[str, Any]:
    meta = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(meta, dict):
        raise NoAnswer("the API server sends what is not an object of its API")
    return meta
