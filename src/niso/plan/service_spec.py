"""Define the content of a manifest as typed data, the only form that the rest of niso uses.

`niso.manifest` builds it from the text of a file, and the store keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.lite_typing import Literal, NamedTuple
from niso.plan.records import Healthcheck, Limits, Policy, Port


class User(NamedTuple):
    """The user of a service: a ``name`` in its rootfs, or a ``uid`` with an optional ``gid``."""

    name: str | None
    uid: int | None
    gid: int | None

    @property
    def text(self) -> str:
        """Return ``web``, ``1000`` or ``1000:1000``, as in a manifest."""
        if self.name is not None:
            return self.name
        return str(self.uid) if self.gid is None else f"{self.uid}:{self.gid}"


class Published(NamedTuple):
    """A published port of a manifest. Its host port is 0 if niso chooses it."""

    port: Port
    key: str  # network.ports[1]


class Volume(NamedTuple):
    """A volume of a manifest. With neither ``host`` nor ``tmpfs``, niso creates and keeps it."""

    name: str
    mount: str  # a path inside the service
    host: str | None  # a path of the host
    tmpfs: bool
    read_only: bool
    size: int | None  # bytes of a tmpfs; None: the kernel's default


class ServiceSpec(NamedTuple):
    """One manifest, with the defaults of the keys that it leaves out."""

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
    memory_max: int | None  # bytes; None means no limit, here and in the next two
    cpu_max: int | None  # percent of one CPU
    pids_limit: int | None
    healthcheck: Healthcheck | None
    volumes: tuple[Volume, ...]
    mode: Literal["bridge", "host", "none", "share", "attached"]  # attached: no process of niso's
    share: str | None  # with mode share: the service whose namespace it joins
    networks: tuple[str, ...]  # the n-th is eth<n>, the first has the default route; mode bridge
    addresses: Mapping[str, str]  # network to static address
    hostname: str
    aliases: tuple[str, ...]
    ports: tuple[Published, ...]
    policy: Policy
    manifest: Mapping[str, object]
    """The manifest's keys as written, with defaults for missing ones, for people to read."""
    restrict_suid_sgid: bool | None = None  # here and below: None if an older niso activated it
    shm_size: int | None = None  # bytes of /dev/shm
    tmp_size: int | None = None  # bytes of each of /tmp, /run and /var/tmp
    kind: Literal["service", "job"] = "service"  # a job runs to its end
    folder: str | None = None
    """The package of a service that is written in a stack.toml, absolute; "" for an empty one.

    None: the folder of the manifest.
    """
    timeout_s: float | None = None  # of a job; None: it may take as long as it needs
    limits: Limits | None = None
    addresses6: Mapping[str, str] = {}  # as `addresses`, of IPv6
    extra_hosts: Mapping[str, str] = {}  # name to address, or HOST_GATEWAY
    dns: tuple[str, ...] | None = None  # None: the host's name servers
    dns_search: tuple[str, ...] | None = None  # None: the host's
    secrets: Mapping[str, str] = {}  # name to an absolute path of the host
    bandwidth: Mapping[str, int] = {}  # "in" and "out", bytes per second; missing: no limit
    apart: tuple[str, ...] = ()
    """Files that are not part of the package: of variables, and secrets of its stack; absolute."""

    def statics(self, network: str) -> tuple[str, ...]:
        """Return the static addresses on a network, at most one of each family."""
        return tuple(
            table[network] for table in (self.addresses, self.addresses6) if network in table
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the service, hostname first. No two on a network share one."""
        return tuple(dict.fromkeys((self.hostname, self.name, *self.aliases)))
