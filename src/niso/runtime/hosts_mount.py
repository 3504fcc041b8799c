"""Replace the hosts file of a running service when its networks, and so its hosts folder, change.

The new folder is mounted beneath the old one, which is then unmounted (move_mount(2),
MOVE_MOUNT_BENEATH, Linux 6.5): the service sees one of the two at every moment. On an older kernel
it briefly sees neither.

niso acts with full privileges in an /etc that the service may have changed. So it follows no
symlink, and replaces only a mount of the file system that contains niso's hosts files. Otherwise it
changes nothing, and the service must be restarted.
"""

from __future__ import annotations

import errno
import os

from niso.base import failpoint, paths
from niso.base.errors import ProcessError
from niso.base.signals import signals_held
from niso.plan.process_spec import ProcessSpec
from niso.runtime import mount_calls as calls
from niso.runtime import process
from niso.runtime.skeleton import HOSTS
from niso.runtime.spec import save

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_ATTRIBUTES = (
    calls.MOUNT_ATTR_RDONLY
    | calls.MOUNT_ATTR_NOSUID
    | calls.MOUNT_ATTR_NODEV
    | calls.MOUNT_ATTR_NOEXEC
)
_RESOLVE = calls.BENEATH | calls.NO_SYMLINKS | calls.NO_MAGICLINKS


def swap(spec: ProcessSpec) -> None:
    """Mount ``spec.hosts_folder`` in a running service, also for later restarts; idempotent.

    Raises ProcessError.
    """
    what = f"{spec.service}: cannot replace its hosts file"
    again = f"a restart of {spec.service} mounts it again"
    pidfd = process.open_init(spec.service)
    try:
        failpoint.hit(f"replace the hosts file of {spec.service}")
        save(spec)
        if pidfd < 0:
            raise ProcessError(f"{what}: it has ended", f"niso logs {spec.service}")
        tree = _clone(spec.hosts_folder)
        try:
            problem = _swap_in_child(pidfd, tree, os.stat(paths.hosts_root()).st_dev)
        finally:
            os.close(tree)
        if problem:
            raise ProcessError(f"{what}: {problem}", again)
    except OSError as error:
        raise ProcessError(f"{what}: {error.strerror}", again) from error
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _clone(folder: str) -> int:
    """Open a detached, read-only bind mount of ``folder`` (open_tree(2), mount_setattr(2))."""
    tree = calls.clone_mount(calls.AT_FDCWD, folder)
    calls.set_attributes(tree, _ATTRIBUTES)
    return tree


def _swap_in_child(pidfd: int, tree: int, device: int) -> str:
    """Swap the mounts in the mount namespace of ``pidfd``; return the error, "" for none.

    ``device`` is the st_dev of niso's hosts files.
    """
    with signals_held():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setns(pidfd, os.CLONE_NEWNS)  # also sets this process's root to the service's
                _swap(tree, device)
            except OSError as error:
                os.write(write, (error.strerror or "refused").encode())
            finally:
                os._exit(0)
        os.close(write)
        try:
            return os.read(read, 1000).decode()
        finally:
            os.close(read)
            os.waitpid(pid, 0)


def _swap(tree: int, device: int) -> None:
    """Replace the mount on /etc/niso-hosts of this process's root by ``tree``. Raises OSError."""
    os.chdir("/")
    etc = _open_folder(calls.AT_FDCWD, "etc")
    os.fchdir(etc)
    target = _open_folder(etc, HOSTS)
    if os.fstat(target).st_dev != device:
        raise OSError(errno.ENOENT, "the service has moved or unmounted it")
    try:
        calls.attach_beneath(tree, target)
    except OSError as error:
        if error.errno != errno.EINVAL:  # otherwise the kernel lacks MOVE_MOUNT_BENEATH
            raise
        _unmount_hosts()
        calls.attach(tree, HOSTS, etc)
        return
    _unmount_hosts()


def _open_folder(folder: int, name: str) -> int:
    """Open a folder below ``folder`` without following a symlink. Raises OSError."""
    return calls.open_place(name, _RESOLVE, folder, os.O_DIRECTORY)


def _unmount_hosts() -> None:
    """Unmount the hosts folder of the current directory. Raises OSError.

    The mount was checked before; only a process with CAP_SYS_ADMIN could have replaced it since.
    """
    calls.unmount(HOSTS.encode(), _MNT_DETACH | _UMOUNT_NOFOLLOW)
