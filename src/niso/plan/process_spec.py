"""What a service's process is, as plain data: everything that the runtime needs and nothing that it must look up."""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.lite_typing import NamedTuple


class Volume(NamedTuple):
    """One volume of a process."""

    name: str
    mount: str
    """The mount point that the manifest names."""
    source: str | None
    """A path of the host; None for a tmpfs."""
    named: bool
    """Whether niso makes and keeps it."""
    read_only: bool
    size: int | None
    """Bytes of a tmpfs; None: what the kernel takes, half of the memory."""


class ProcessSpec(NamedTuple):
    """One activation of a service. All paths of the host are absolute."""

    service: str
    state_id: str
    generation: int
    package: str
    """The copy of the package, shown read-only at /app."""
    rootfs: str | None
    """The service's own root file system, never written to; None: assembled from the host's /usr."""
    argv: tuple[str, ...]
    """The entrypoint as a path inside the service, then its arguments."""
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
    """The folder that holds the file ``hosts``; empty where the host's own is shown."""
    resolv_conf: str
    """The text of /etc/resolv.conf."""
    netns: str
    """The path of its network namespace; empty for the host's. Then hostname and resolv_conf are the host's as well, read at each start."""
    restart: str
    """no, on-failure or always."""
    restart_delay_s: float
    stop_timeout_s: float
    memory_max: int | None = None
    """Bytes; None in this and the next two: no limit."""
    cpu_max: int | None = None
    """Per cent of one CPU."""
    pids_limit: int | None = None
    volumes: tuple[Volume, ...] = ()
