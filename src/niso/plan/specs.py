"""Define `ServiceSpec`, what a manifest declares, and `ProcessSpec`, what a process needs.

A ServiceSpec has a `NetworkSpec`, and a `ProgramSpec` for its process; an attachment has none.

`niso.manifest` builds a ServiceSpec from the text of a file; the store saves it, and all other code
uses only this form. A ProcessSpec is complete: starting the process needs no further look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.plan.records import Healthcheck, Limits, Policy, Port

if TYPE_CHECKING:
    from typing import Literal


# --- ServiceSpec: the content of a manifest -------------------------------------------------------


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


class NetworkSpec(NamedTuple):
    """The network of a service: what its manifest or its attachment says."""

    mode: Literal["bridge", "host", "none", "share"]
    share: str | None  # with mode share: the service whose namespace it joins
    networks: tuple[str, ...]  # the n-th is eth<n>; mode bridge
    addresses: Mapping[str, str]  # network to static address
    addresses6: Mapping[str, str]  # like `addresses`, for IPv6
    hostname: str
    aliases: tuple[str, ...]
    ports: tuple[Published, ...]
    policy: Policy
    limits: Limits | None = None
    extra_hosts: Mapping[str, str] = {}  # name to address, or HOST_GATEWAY
    dns: tuple[str, ...] | None = None  # None: the host's name servers
    dns_search: tuple[str, ...] | None = None  # None: the host's
    bandwidth: Mapping[str, int] = {}  # "in" and "out", bytes per second; missing: no limit

    def statics(self, network: str) -> tuple[str, ...]:
        """Return the static addresses on a network, at most one of each family."""
        return tuple(
            table[network] for table in (self.addresses, self.addresses6) if network in table
        )


class ProgramSpec(NamedTuple):
    """The process of a service and its files: what its manifest says."""

    rootfs: str | None  # path relative to the package
    entrypoint: str
    args: tuple[str, ...]
    working_dir: str
    environment: Mapping[str, str]
    user: User | None  # None: a uid reserved for the service
    kind: Literal["service", "job"]  # a job runs until it exits
    restart: Literal["on-failure", "no", "always"]
    restart_delay_s: float
    stop_timeout_s: float
    timeout_s: float | None  # timeout of a job; None: no timeout
    capabilities: tuple[str, ...]  # without CAP_
    read_only: bool
    restrict_suid_sgid: bool
    memory_max: int | None  # bytes; None means no limit, here and in the next two
    cpu_max: int | None  # percent of one CPU
    pids_limit: int | None
    shm_size: int | None  # bytes of /dev/shm
    tmp_size: int | None  # bytes of each of /tmp, /run and /var/tmp
    healthcheck: Healthcheck | None
    volumes: tuple[Volume, ...]
    secrets: Mapping[str, str]  # name to an absolute path of the host
    folder: str | None = None
    """The absolute package folder of a service written in a stack.toml; "" for an empty package.

    None: the folder of the manifest.
    """
    apart: tuple[str, ...] = ()
    """Files excluded from the package: of variables, and of the stack's secrets. Absolute paths."""


class ServiceSpec(NamedTuple):
    """One manifest, including the defaults of missing keys; or an attachment."""

    name: str
    network: NetworkSpec
    process: ProgramSpec | None  # None for an attachment, whose process is not niso's
    manifest: Mapping[str, object] = {}
    """The manifest's keys as written, with defaults for missing ones, for display."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the service, hostname first. Names on a network are unique."""
        return tuple(dict.fromkeys((self.network.hostname, self.name, *self.network.aliases)))

    @property
    def program(self) -> ProgramSpec:
        """Return the process of a spec that was made from a manifest."""
        assert self.process is not None, f"{self.name} is an attachment"
        return self.process


# --- ProcessSpec: the process of a service --------------------------------------------------------


class Identity(NamedTuple):
    """Identifies the file that a path referred to at the activation (stat(2))."""

    device: int
    inode: int
    """0 for a file that is not a folder."""
    boot: str
    """The boot id, since a device may have another number after a reboot."""


class MountedVolume(NamedTuple):
    """One volume of a process."""

    name: str
    mount: str
    """The mount point from the manifest."""
    source: str | None
    """A path on the host; None for a tmpfs."""
    named: bool
    """Whether it is a named volume, which niso creates and keeps after a removal."""
    read_only: bool
    size: int | None
    """The size of a tmpfs in bytes; None for the kernel's default, half of the memory."""
    identity: Identity | None = None
    """Identity of the host path; None if an older niso activated the service."""


class Secret(NamedTuple):
    """One secret of a process: a file of the host that is read at each start."""

    name: str
    """The name of the secret's file in /run/secrets."""
    source: str
    """A path on the host."""
    salt: str = ""
    """Random, so that equal secrets do not have equal digests."""
    digest: str = ""
    """Digest of the salt and the content at the activation, to detect changes of the content."""


class ProcessSpec(NamedTuple):
    """The process of one activation of a service. All paths on the host are absolute."""

    service: str
    state_id: str
    generation: int
    package: str
    """The copy of the package, mounted read-only at /app."""
    rootfs: str | None
    """The service's own root file system, never written to; None to assemble one from /usr."""
    argv: tuple[str, ...]
    """The entrypoint as a path inside the service, followed by its arguments."""
    working_dir: str
    environment: Mapping[str, str]
    uid: int
    gid: int
    groups: tuple[int, ...]
    user_name: str
    home: str
    capabilities: tuple[str, ...]
    """Names without ``CAP_``."""
    read_only: bool
    hostname: str
    hosts_folder: str
    """The folder with the file ``hosts`` that is mounted; "" for the host's own file."""
    resolv_conf: str
    """The content of /etc/resolv.conf."""
    netns: str
    """The path of its network namespace; "" for the host's.

    With the host's, hostname and resolv_conf are also the host's, read at each start.
    """
    restart: str
    """no, on-failure or always."""
    restart_delay_s: float
    stop_timeout_s: float
    memory_max: int | None = None
    """Bytes; None means no limit, here and in the next two fields."""
    cpu_max: int | None = None
    """Percent of one CPU."""
    pids_limit: int | None = None
    volumes: tuple[MountedVolume, ...] = ()
    restrict_suid_sgid: bool | None = None
    """Whether it cannot create setuid and setgid files; None if an older niso activated it."""
    shm_size: int | None = None
    """Size of /dev/shm in bytes. None, here and in the next field: the kernel's default, half of
    memory."""
    tmp_size: int | None = None
    """Size of each of /tmp, /run and /var/tmp in bytes."""
    rootfs_identity: Identity | None = None
    """Identity of the rootfs; None without one, or if an older niso activated the service."""
    dns: tuple[str, ...] | None = None
    """Its name servers; None for the host's."""
    dns_search: tuple[str, ...] | None = None
    """Its search domains; None for the host's."""
    secrets: tuple[Secret, ...] = ()


# --- paths where no volume can be mounted ---------------------------------------------------------


TAKEN = ("/proc", "/sys", "/dev", "/app", "/etc/niso-hosts")
"""niso's own paths: neither these nor paths below them can be a mount point."""
TAKEN_FILES = (
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
)
HIDING = ("/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/var")
"""These paths cannot be mount points: a mount would hide the root, or niso's own mounts."""


def taken(path: str) -> str | None:
    """Return why nothing can be mounted at a path inside the service; None if it is possible."""
    for own in TAKEN:
        if path == own or path.startswith(f"{own}/"):
            return f"{own} is niso's"
    for file in TAKEN_FILES:
        if path == file or path.startswith(f"{file}/"):
            return f"{file} is written by niso"
    return f"it would hide the service's {path}" if path in HIDING else None
