"""Keep a mount namespace from which starts are copied: the host's without /run/netns.

Each start copies a mount namespace twice: niso for the root, and crun for the container. The kernel
copies mount by mount under one lock of the machine, and each service has a mount in /run/netns. So
the first of several concurrent starts copies the host's mounts and unmounts /run/netns in its copy;
the other starts copy that namespace.
"""

from __future__ import annotations

import _thread
import os
from contextlib import suppress

from niso.base import paths
from niso.runtime import under_way
from niso.runtime.mount_calls import mount, unmount

# mount(2), linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_SLAVE = 0x2, 0x4, 0x4000, 0x80000
_MNT_DETACH = 2

_lock = _thread.allocate_lock()
_base: list[int] = []
"""Descriptors of the namespace from which starts are copied, and of this process's root in it."""


def enter() -> None:
    """Move the calling thread into a mount namespace of its own, whose mounts the host never sees.

    Later mounts of the host appear in it (mount_namespaces(7), MS_SLAVE). The thread must have
    unshared CLONE_FS, and be in a start (`under_way.begin`). Raises OSError.
    """
    with _lock:
        if _base:
            namespace, root = _base
            os.setns(namespace, os.CLONE_NEWNS)  # also moves the thread to the namespace's root
            os.fchdir(root)
            os.chroot(".")
        else:
            os.unshare(os.CLONE_NEWNS)
            _prepare()
            root = os.open("/", os.O_PATH)
            try:
                _base[:] = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY), root
            except OSError:
                os.close(root)
                raise
            under_way.at_end(_close)
    os.unshare(os.CLONE_NEWNS)


def _close() -> None:
    """Close the base namespace, since it would keep mounts in use that the host unmounts."""
    while _base:
        os.close(_base.pop())


def _prepare() -> None:
    """Unmount in this thread's namespace what no start needs."""
    mount(None, "/", None, _MS_REC | _MS_SLAVE)
    with suppress(OSError):  # /run/netns is not a mount: no service has a network namespace
        unmount(os.fsencode(paths.NETNS_DIR), _MNT_DETACH)
    if os.path.isdir("/sys/fs/cgroup/unified") and os.path.isdir("/sys/fs/cgroup/systemd"):
        # crun does not accept the unified hierarchy next to those of v1: hide it.
        mount("none", "/sys/fs/cgroup/unified", "tmpfs", _MS_NOSUID | _MS_NODEV)
