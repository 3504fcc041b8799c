"""Fill a store with services as an activation does, without a kernel or manifests."""

from __future__ import annotations

import os
import shutil
import tempfile
from types import TracebackType

from niso.base import convert, names
from niso.manifest import keys
from niso.manifest.keys import Manifest
from niso.plan.records import NetworkRecord, PortMapping
from niso.plan.specs import ServiceSpec
from niso.store import service_rows
from niso.store.service_rows import ServiceRow
from niso.store.store import Store


def service_spec(name: str = "api", **tables: object) -> ServiceSpec:
    """What a small manifest asks for that has these tables too: ``network={"ports": ["80:80"]}``."""
    data = {"package": {"name": name, "version": "1"}, "binary": {"entrypoint": "sleep"}, **tables}
    return keys.spec(convert.convert(data, Manifest), {})


class TemporaryStore:
    """A context manager: a new state folder, named by NISO_STATE_DIR while it lives, and its store."""

    def __enter__(self) -> Store:
        # /dev/shm: no disk is waited for at each commit
        self._folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self._before = os.environ.get("NISO_STATE_DIR")
        os.environ["NISO_STATE_DIR"] = self._folder
        self._store = Store.open()
        return self._store

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._store.close()
        if self._before is None:
            del os.environ["NISO_STATE_DIR"]
        else:
            os.environ["NISO_STATE_DIR"] = self._before
        shutil.rmtree(self._folder)


def add_network(store: Store, network: NetworkRecord, implicit: bool = False) -> None:
    """In a transaction of the caller."""
    store.add_network(network._replace(bridge=names.bridge(network.name)), implicit, 1.0)


def put(
    store: Store,
    name: str,
    networks: tuple[str, ...],
    *,
    static: dict[str, str] | None = None,
    ports: tuple[PortMapping, ...] = (),
    chosen: tuple[PortMapping, ...] = (),
    hostname: str | None = None,
    mode: str = "bridge",
    provider: str | None = None,
    manifest: str = "{}",
) -> None:
    """What admission.record writes of one service; in a transaction of the caller. Raises what leases.lease raises."""
    before = store.service(name)
    generation = 1 if before is None else before.generation + (not before.active)
    store.put_service(
        ServiceRow(
            name=name,
            manifest_path=f"/srv/{name}/manifest.toml",
            manifest=manifest,
            rootfs=None,
            package=f"/p/{name}",
            fingerprint="f",
            uid=before.uid if before else store.free_uid(5000),
            active=True,
            generation=generation,
            networks=networks,
            spec="{}",
            created_at=1.0,
            activated_at=2.0,
            mode=mode,
            provider=provider,
        )
    )
    store.set_names(name, tuple(dict.fromkeys((hostname or name, name))))
    store.set_endpoints(name, networks)
    for network in networks:
        wanted = (static or {}).get(network)
        service_rows.lease(store, name, network, () if wanted is None else (wanted,))
    store.set_ports(name, ports, chosen)
    for sharer in store.sharers(name):
        store.note_published(sharer)


def dump(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, without intents, the history and the place of the folder."""
    tables = store._db.execute(
        "SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite%'"
    ).fetchall()
    return {
        table: sorted(
            (row for row in store._db.execute(f"SELECT * FROM {table}") if row[0] != "folder"),
            key=repr,
        )
        for (table,) in tables
        if table not in ("intent", "deploy")
    }
