"""What a manifest asks for, as typed data: the one form in which the rest of niso knows a manifest.

`niso.manifest` makes it of a file's text, the store keeps it. Nothing outside those two parses it again.
"""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.lite_typing import Literal, NamedTuple
from niso.plan.records import Healthcheck, Policy, Port


class User(NamedTuple):
    """Who a service runs as: a ``name`` of its rootfs, or a ``uid``, with a ``gid`` if the manifest names one."""

    name: str | None
    uid: int | None
    gid: int | None

    @property
    def text(self) -> str:
        """``web``, ``1000`` or ``1000:1000``, as in a manifest."""
        if self.name is not None:
            return self.name
        return str(self.uid) if self.gid is None else f"{self.uid}:{self.gid}"


class Published(NamedTuple):
    """A port of a manifest. Its host port is 0 where niso chooses it."""

    port: Port
    key: str  # network.ports[1]


class Volume(NamedTuple):
    """A volume of a manifest; neither ``host`` nor ``tmpfs``: niso makes and keeps it."""

    name: str
    mount: str  # a path inside the service
    host: str | None  # a path of the host
    tmpfs: bool
    read_only: bool
    size: int | None  # bytes of a tmpfs; None: the kernel's default


class ServiceSpec(NamedTuple):
    """One manifest. Keys that it leaves out have their defaults here."""

    name: str
    rootfs: str | None  # relative to the package
    entrypoint: str
    args: tuple[str, ...]
    working_dir: str
    environment: Mapping[str, str]
    user: User | None  # None: a uid of its own
    restart: Literal["on-failure", "no", "always"]
    restart_delay_s: float
    stop_timeout_s: float
    capabilities: tuple[str, ...]  # without CAP_
    read_only: bool
    memory_max: int | None  # bytes; None in this and the next two: no limit
    cpu_max: int | None  # per cent of one CPU
    pids_limit: int | None
    healthcheck: Healthcheck | None
    volumes: tuple[Volume, ...]
    mode: Literal["bridge", "host", "none", "share"]
    share: str | None  # of mode share: a name of the service whose namespace it joins
    networks: tuple[
        str, ...
    ]  # the n-th is eth<n>, the first has the default route; none but in mode bridge
    addresses: Mapping[str, str]  # network: the static address there
    hostname: str
    aliases: tuple[str, ...]
    ports: tuple[Published, ...]
    policy: Policy
    manifest: Mapping[str, object]
    """The manifest's keys as they are written, with the defaults of those that it leaves out: for people to read."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the service holds in the space that all services share, hostname first."""
        return tuple(dict.fromkeys((self.hostname, self.name, *self.aliases)))
