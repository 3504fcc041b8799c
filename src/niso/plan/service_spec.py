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
        """Return ``web``, ``1000`` or ``1000:1000``, as written in a manifest."""
        if self.name is not None:
            return self.name
        return str(self.uid) if self.gid is None else f"{self.uid}:{self.gid}"


class Published(NamedTuple):
    """A published port of a manifest. A host port of 0 means that niso chooses it."""

    port: Port
    key: str  # manifest key: network.ports[1]


class Volume(NamedTuple):
    """A volume of a manifest. With neither ``host`` nor ``tmpfs``, it is a named volume."""

    name: str
    mount: str  # path inside the service
    host: str | None  # path on the host
    tmpfs: bool
    read_only: bool
    size: int | None  # size of a tmpfs in bytes; None: the kernel's default


class ServiceSpec(NamedTuple):
    """One manifest, including the defaults of missing keys."""

    name: str
    rootfs: str | None  # path relative to the package
    entrypoint: str
    args: tuple[str, ...]
    working_dir: str
    environment: Mapping[str, str]
    user: User | None  # None: a uid reserved for the service
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
    # attached: an attachment, without a process run by niso
    mode: Literal["bridge", "host", "none", "share", "attached"]
    share: str | None  # with mode share: the service whose namespace it joins
    networks: tuple[str, ...]  # the n-th is eth<n>; mode bridge
    addresses: Mapping[str, str]  # network to static address
    hostname: str
    aliases: tuple[str, ...]
    ports: tuple[Published, ...]
    policy: Policy
    manifest: Mapping[str, object]
    """The manifest's keys as written, with defaults for missing ones, for display."""
    restrict_suid_sgid: bool | None = None  # here and below: None if an older niso activated it
    shm_size: int | None = None  # bytes of /dev/shm
    tmp_size: int | None = None  # bytes of each of /tmp, /run and /var/tmp
    kind: Literal["service", "job"] = "service"  # a job runs until it exits
    folder: str | None = None
    """The absolute package folder of a service written in a stack.toml; "" for an empty package.

    None: the folder of the manifest.
    """
    timeout_s: float | None = None  # timeout of a job; None: no timeout
    limits: Limits | None = None
    addresses6: Mapping[str, str] = {}  # like `addresses`, for IPv6
    extra_hosts: Mapping[str, str] = {}  # name to address, or HOST_GATEWAY
    dns: tuple[str, ...] | None = None  # None: the host's name servers
    dns_search: tuple[str, ...] | None = None  # None: the host's
    secrets: Mapping[str, str] = {}  # name to an absolute path of the host
    bandwidth: Mapping[str, int] = {}  # "in" and "out", bytes per second; missing: no limit
    apart: tuple[str, ...] = ()
    """Files excluded from the package: of variables, and of the stack's secrets. Absolute paths."""

    def statics(self, network: str) -> tuple[str, ...]:
        """Return the static addresses on a network, at most one of each family."""
        return tuple(
            table[network] for table in (self.addresses, self.addresses6) if network in table
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the service, hostname first. No two on a network share one."""
        return tuple(dict.fromkeys((self.hostname, self.name, *self.aliases)))
