"""Describe the process of a service as plain data, complete without further lookups."""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.lite_typing import NamedTuple


class Identity(NamedTuple):
    """Identifies the file that a path led to at the activation (stat(2))."""

    device: int
    inode: int
    """0 for a file that is not a folder."""
    boot: str
    """The boot id, since a device may have another number after a reboot."""


class Volume(NamedTuple):
    """One volume of a process."""

    name: str
    mount: str
    """The mount point from the manifest."""
    source: str | None
    """A path on the host; None for a tmpfs."""
    named: bool
    """Whether it is a named volume, which niso creates and keeps."""
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
    """Random, so that equal secrets cannot be recognised by their digests."""
    digest: str = ""
    """Digest of the salt and the content at the activation, to detect a changed content."""


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
    """The text of /etc/resolv.conf."""
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
    volumes: tuple[Volume, ...] = ()
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
