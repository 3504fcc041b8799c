"""Define `ServiceSpec`, a parsed manifest, and `ProcessSpec`, the values to start a process.

A ServiceSpec consists of a `NetworkSpec` and a `ProgramSpec` for the service's process. An
attachment is a service whose process niso does not run; it has no ProgramSpec. `niso.manifest`
builds a ServiceSpec from the text of a file. The store saves the ServiceSpec, and all other code
uses only this form. A ProcessSpec contains all values that are needed to start the process, so that
no name has to be looked up.
"""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.plan.records import Entry, Healthcheck, Limits, Peer, Policy, PortMapping

if TYPE_CHECKING:
    from typing import Literal


SERVICE_UIDS = range(1_900_000_000, 2_000_000_000)
"""The uids and gids of services whose manifest names no user.

They are above all ranges that Debian, systemd and subuid allocate.
"""


class ProcessUser(NamedTuple):
    """The user of a service: a ``name`` in its rootfs, or a ``uid`` with an optional ``gid``."""

    name: str | None
    uid: int | None
    gid: int | None

    @property
    def text(self) -> str:
        """Return the user as written in a manifest: ``web``, ``1000`` or ``1000:1000``."""
        if self.name is not None:
            return self.name
        return str(self.uid) if self.gid is None else f"{self.uid}:{self.gid}"


class Published(NamedTuple):
    """A published port of a manifest. If the host port is 0, niso chooses one."""

    port: PortMapping
    key: str  # manifest key: network.ports[1]


class Volume(NamedTuple):
    """A volume of a manifest. If it has neither ``host`` nor ``tmpfs``, it is a named volume."""

    name: str
    mount: str  # path inside the service
    host: str | None  # path on the host
    tmpfs: bool
    read_only: bool
    size: int | None  # size of a tmpfs in bytes; None: the kernel's default
    shared: bool = False  # several instances of the service may write to it


class Device(NamedTuple):
    """A device of the host that a service may use, or a folder whose devices it may use."""

    host: str  # path on the host, below /dev
    inside: str  # path in the service, below /dev
    access: str  # r, w or rw


class DeploySpec(NamedTuple):
    """The number of instances of a service with a service address, and how they are replaced."""

    replicas: int
    update: Literal["start-first", "stop-first"]
    monitor_s: float  # after a swap, how long the former instances stay ready to serve again
    drain_s: float  # how long an instance may finish its connections before TERM
    drain_signal: str | None  # signal to the former instances right after a swap
    on_failure: Literal["rollback", "keep"]
    surge: int = 0  # with start-first, how many instances are replaced at a time; 0: all


class NetworkSpec(NamedTuple):
    """The network settings of a service, from its manifest or its attachment."""

    mode: Literal["bridge", "host", "none", "share"]
    share: str | None  # with mode share: the service whose namespace this service joins
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
    dns_search: tuple[str, ...] | None = None  # None: the host's search domains
    bandwidth: Mapping[str, int] = {}  # "in" and "out", bytes per second; missing: no limit
    sysctls: Mapping[str, str] = {}  # name with dots to value, in the service's own namespace

    def statics(self, network: str) -> tuple[str, ...]:
        """Return the static addresses on a network: at most one IPv4 and one IPv6 address."""
        return tuple(
            table[network] for table in (self.addresses, self.addresses6) if network in table
        )


class ProgramSpec(NamedTuple):
    """The settings of a manifest for the process of a service, and for the files that it uses."""

    rootfs: str | None  # path relative to the package
    entrypoint: str
    args: tuple[str, ...]
    working_dir: str
    environment: Mapping[str, str]
    user: ProcessUser | None  # None: a uid reserved for the service
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
    # the absolute package folder of a service that is written in a stack.toml; "": an empty one;
    # None: the folder of the manifest
    folder: str | None = None
    # absolute paths of files with variables or secrets, which are not copied with the package
    apart: tuple[str, ...] = ()
    deploy: DeploySpec | None = None  # how its instances run; None without a service address
    stop_signal: str = "TERM"  # without SIG
    # name of setrlimit(2) in lower case, without RLIMIT_, to soft and hard limit
    rlimits: Mapping[str, tuple[int, ...]] = {}
    devices: tuple[Device, ...] = ()
    schedule: str | None = None  # the times of a job, as in systemd.time(7)


class ServiceSpec(NamedTuple):
    """The content of a manifest, with defaults for missing keys, or an attachment's settings."""

    name: str
    network: NetworkSpec
    process: ProgramSpec | None  # None for an attachment, whose process is not niso's
    # the keys of the manifest as written, and the defaults of missing ones, for display
    manifest: Mapping[str, object] = {}
    front: str = ""  # the service of which this is an instance; "" for other services

    @property
    def is_front(self) -> bool:
        """Return whether the service has a service address, and instances that run its process."""
        return not self.front and self.process is not None and self.process.deploy is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the service that can be resolved on its networks, hostname first. An
        instance has no names: the names of its service resolve to the service address.
        """
        if self.front:
            return ()
        return tuple(dict.fromkeys((self.network.hostname, self.name, *self.network.aliases)))

    @property
    def program(self) -> ProgramSpec:
        """Return the process settings of a manifest. Must not be called for an attachment."""
        assert self.process is not None, f"{self.name} is an attachment"
        return self.process

    def instance(self, number: int) -> ServiceSpec:
        """Return the spec of one instance of this service, with the name ``NAME.NUMBER``. The
        instance has no static address, alias or published port. Its policy also allows the service
        itself, and so all of its instances: an instance that connects to the service address may
        reach any of them.
        """
        policy = self.network.policy
        own = Entry("service.replicas", self.name, Peer("service", self.name), 0, 65535, "")
        allow, egress = policy.allow_from, policy.egress_allow
        network = self.network._replace(
            addresses={},
            addresses6={},
            ports=(),
            aliases=(),
            policy=policy._replace(
                allow_from=None if allow is None else (*allow, own),
                egress_allow=None if egress is None else (*egress, own),
            ),
        )
        program, check = self.program, self.program.healthcheck
        if check is not None and not check.command:
            program = program._replace(healthcheck=check._replace(address="", outer=True))
        return self._replace(
            name=f"{self.name}.{number}", network=network, process=program, front=self.name
        )


class Identity(NamedTuple):
    """Numbers that identify a file of the host, as read at a service's activation (stat(2))."""

    device: int
    inode: int  # the inode number of a folder; 0 for any other file
    boot: str  # the boot id: a device may have another number after a reboot


class MountedVolume(NamedTuple):
    """One volume of a process, with the host path that is mounted."""

    name: str
    mount: str  # the mount point from the manifest
    source: str | None  # a path on the host; None for a tmpfs
    named: bool  # whether niso creates the volume, and keeps it after a removal
    read_only: bool
    size: int | None  # size of a tmpfs in bytes; None: the kernel's default, half of the memory
    identity: Identity | None = None  # of the host path; None if activated by an older niso


class Secret(NamedTuple):
    """A secret of a process: a file of the host, whose content is read at each start."""

    name: str  # the name of the file in /run/secrets
    source: str  # a path on the host
    salt: str = ""  # random, so that equal secrets do not have equal digests
    digest: str = ""  # digest of salt and content at the activation, to detect changed content


class ProcessSpec(NamedTuple):
    """All values that are needed to start an active service's process. Host paths are absolute."""

    service: str
    state_id: str
    generation: int
    package: str  # the path of the copy of the package, which is mounted read-only at /app
    # the path of the service's own root file system, which is never written to; None: one is
    # assembled from the host's /usr
    rootfs: str | None
    argv: tuple[str, ...]  # the entrypoint as a path inside the service, and its arguments
    working_dir: str
    environment: Mapping[str, str]
    uid: int
    gid: int
    groups: tuple[int, ...]
    user_name: str
    home: str
    capabilities: tuple[str, ...]  # without CAP_
    read_only: bool
    hostname: str
    hosts_folder: str  # its file ``hosts`` is mounted as /etc/hosts; "": the host's file
    resolv_conf: str  # the content of /etc/resolv.conf
    # the path of its network namespace; "": the host's, where hostname and resolv_conf are also the
    # host's, read at each start
    netns: str
    restart: str  # no, on-failure or always
    restart_delay_s: float
    stop_timeout_s: float
    memory_max: int | None = None  # bytes; None means no limit, here and in the next two
    cpu_max: int | None = None  # percent of one CPU
    pids_limit: int | None = None
    volumes: tuple[MountedVolume, ...] = ()
    # whether it cannot create setuid and setgid files; None if an older niso activated the service
    restrict_suid_sgid: bool | None = None
    # bytes of /dev/shm; None, here and in the next, is the kernel's default, half of the memory
    shm_size: int | None = None
    tmp_size: int | None = None  # bytes of each of /tmp, /run and /var/tmp
    rootfs_identity: Identity | None = None  # None also if an older niso activated the service
    dns: tuple[str, ...] | None = None  # its name servers; None: the host's
    dns_search: tuple[str, ...] | None = None  # its search domains; None: the host's
    secrets: tuple[Secret, ...] = ()
    stop_signal: str = "TERM"  # the signal that asks the process to exit, without SIG
    rlimits: Mapping[str, tuple[int, ...]] = {}  # as in ProgramSpec: those that are not the default
    devices: tuple[Device, ...] = ()


UNLIMITED = (1 << 64) - 1
"""The value of a resource limit that is no limit: RLIM_INFINITY (sys/resource.h)."""

NOT_DEVICES = tuple(f"/dev/{name}/" for name in ("pts", "shm", "mqueue", "fd", "niso-init"))
"""Paths at which no device can be, because niso mounts something else there."""

TAKEN = ("/proc", "/sys", "/dev", "/app", "/etc/niso-hosts")
"""Paths that niso mounts itself: they and paths below them cannot be a volume's mount point."""
TAKEN_FILES = tuple(
    f"/etc/{name}"
    for name in ("hosts", "hostname", "resolv.conf", "passwd", "group", "nsswitch.conf")
)
HIDING = ("/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/var")
"""Paths where a volume would hide the root file system, or the files that niso mounts."""


def taken(path: str) -> str | None:
    """Return why no volume can be mounted at a path in a service, or None if that is possible."""
    for own in TAKEN:
        if path == own or path.startswith(f"{own}/"):
            return f"{own} is niso's"
    for file in TAKEN_FILES:
        if path == file or path.startswith(f"{file}/"):
            return f"{file} is written by niso"
    return f"it would hide the service's {path}" if path in HIDING else None
