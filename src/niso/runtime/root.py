"""Assemble the root file system of a service.

niso's layer is a small folder with mount points, /etc/passwd, /etc/hosts and the like. It is the
upper of the two lower layers of an overlay, above the service's rootfs, which is never written to.
Without a rootfs it is above a skeleton (`niso.runtime.skeleton`), and the root shows the host's
/usr read-only.

All folders of the host that a service sees are overlays too. A service with access to the host's
inodes could watch them (inotify(7)), lock them (flock(2)) or take leases on them (fcntl(2)), and so
observe or delay every program of the host and of other services that opens them.

`write_layer` writes the folder. `assemble` mounts, and must run in a private mount namespace: the
host's namespace never has a mount of niso's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from functools import partial

from niso.base import files
from niso.base.errors import InvalidInput
from niso.plan.process_spec import ProcessSpec
from niso.runtime import service_paths, users
from niso.runtime.mount_calls import attach, mount
from niso.runtime.skeleton import HOSTS, LOWER, MOUNT_POINTS, NSSWITCH, TMPFS
from niso.runtime.under_way import once

# mount(2), linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV = 0x1, 0x2, 0x4

HOST, INIT, SECRETS = "host", "init", "secrets"
"""Folders of the bundle: they show the host's folders, that of catatonit, and the secrets."""


def write_layer(spec: ProcessSpec, layer: str, below: str) -> str:
    """Fill the empty folder ``layer`` with the files that only this service's root has.

    ``below`` is the rootfs or, without one, the skeleton, which has the mount points. Returns the
    mount point of the hosts folder inside the service. Raises OSError.
    """
    _copy_owner(below, layer)
    etc = place(below, "/etc")
    for point in (*MOUNT_POINTS, f"{etc}/{HOSTS}") if spec.rootfs is not None else ():
        mount_point(below, layer, point)
    mount_point(below, layer, etc)
    _write_etc(spec, layer + etc)
    return f"{etc}/{HOSTS}"


def assemble(
    spec: ProcessSpec,
    bundle: str,
    init: str,
    folders: Sequence[str],
    sources: Mapping[str, int],
    secrets: Mapping[str, bytes],
) -> None:
    """Mount the root at ``bundle``/root, in a mount namespace of `mount_base.enter`.

    ``init`` is the path of catatonit; its folder is shown at ``bundle``/init. ``folders`` are the
    folders of the host that the root shows. ``sources`` are detached mounts, by their mount point
    in ``bundle``; ``secrets`` is the content of each secret by name.

    Makes ``bundle`` the working directory: relative names of the layers keep ``:`` and ``,`` out of
    overlay's options. Raises OSError.
    """
    os.chdir(bundle)
    flags = MS_NOSUID | MS_NODEV
    _show(os.path.dirname(init), INIT)
    if spec.rootfs is None:
        _show_host(folders)
    for point, tree in sources.items():
        attach(tree, point)
    if secrets:
        _write_secrets(spec, secrets)
    if not spec.read_only:
        mount("none", "scratch", "tmpfs", flags, "mode=0755")
        os.mkdir("scratch/upper", 0o755)
        os.mkdir("scratch/work", 0o700)
        _copy_owner("layer", "scratch/upper")
        mount(
            "niso",
            "root",
            "overlay",
            flags,
            f"lowerdir=layer:{LOWER},upperdir=scratch/upper,workdir=scratch/work",
        )
    else:
        mount("niso", "root", "overlay", flags | MS_RDONLY, f"lowerdir=layer:{LOWER}")


def _write_secrets(spec: ProcessSpec, secrets: Mapping[str, bytes]) -> None:
    """Write the secrets to a tmpfs of this mount namespace, readable by the service's user alone.

    On the host, the folder stays empty.
    """
    mount("none", SECRETS, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    for name, content in secrets.items():
        path = f"{SECRETS}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            files.write(fd, content)
            os.fchown(fd, spec.uid, spec.gid)
        finally:
            os.close(fd)


def _show_host(folders: Sequence[str]) -> None:
    """Mount an overlay of each top-level folder of the host that an assembled root shows.

    An overlay does not include mounts below its folder. So a shown folder on a file system of its
    own gets a separate overlay, and so does such a folder directly below /usr.
    """
    devices = {}
    for top in dict.fromkeys(folder.split("/")[1] for folder in folders):
        os.mkdir(f"{HOST}/{top}")
        _show(f"/{top}", f"{HOST}/{top}")
        devices[top] = os.stat(f"/{top}").st_dev
    for folder in (*folders, *(f"/usr/{name}" for name in os.listdir("/usr"))):
        info = os.lstat(folder)
        if stat.S_ISDIR(info.st_mode) and info.st_dev != devices[folder.split("/")[1]]:
            _show(folder, HOST + folder)


def _show(folder: str, at: str) -> None:
    """Mount a read-only overlay of ``folder``; overlay needs two layers, so one is empty."""
    lower = "".join(f"\\{char}" if char in "\\:," else char for char in folder)
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    mount("niso", at, "overlay", flags, f"lowerdir={lower}:empty")


def _write_etc(spec: ProcessSpec, etc: str) -> None:
    """Write the files of /etc that depend on the service: users, name resolution, hostname."""
    read = users.read_database if spec.rootfs is not None else partial(once, users.read_database)
    passwd, group = [*read(spec.rootfs, "passwd")], [*read(spec.rootfs, "group")]
    if spec.rootfs is None:
        # Hide the host's users except root, nobody and the service's own.
        passwd = [
            line for line in passwd if line[0] in ("root", "nobody") or line[2] == str(spec.uid)
        ]
        shown = {0, spec.gid, *spec.groups, *(int(line[3]) for line in passwd)}
        group = [[*line[:3], ""] for line in group if int(line[2]) in shown]
    if all(line[2] != str(spec.uid) for line in passwd):
        passwd.append(
            [_free_name(spec, passwd), "x", str(spec.uid), str(spec.gid), "", spec.home, "/bin/sh"]
        )
    if all(line[2] != str(spec.gid) for line in group):
        group.append([_free_name(spec, group), "x", str(spec.gid), ""])
    _write(f"{etc}/passwd", _lines(passwd))
    _write(f"{etc}/group", _lines(group))
    _write(f"{etc}/hostname", f"{spec.hostname}\n".encode())
    _write(f"{etc}/resolv.conf", spec.resolv_conf.encode(errors="surrogateescape"))
    if spec.hosts_folder:
        os.symlink(f"{HOSTS}/hosts", f"{etc}/hosts")
    else:
        # its network is the host's, so the host's address is loopback
        text = f"{of_host('hosts').rstrip()}\n127.0.0.1  host.niso.local\n"
        _write(f"{etc}/hosts", text.encode(errors="surrogateescape"))
    if spec.rootfs is not None and not _exists(spec.rootfs, "/etc/nsswitch.conf"):
        _write(f"{etc}/nsswitch.conf", NSSWITCH.encode())


def of_host(name: str) -> str:
    """Read a file of the host's /etc; empty if it cannot be read."""
    try:
        with open(f"/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(service_paths.MAX_FILE_BYTES)
    except OSError:
        return ""


def _free_name(spec: ProcessSpec, lines: list[list[str]]) -> str:
    """Return the service's user name, with its uid appended if another entry has that name."""
    taken = {line[0] for line in lines}
    return spec.user_name if spec.user_name not in taken else f"{spec.user_name}-{spec.uid}"


def _lines(database: list[list[str]]) -> bytes:
    return "".join(":".join(line) + "\n" for line in database).encode()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, 0o644)


def check_points(rootfs: str) -> None:
    """Raise InvalidInput (key package.rootfs) if a link would make niso's mounts hide each other.

    Such a link leads from a mount point to /, or into another mount.
    """
    at = {point: place(rootfs, point) or "/" for point in (*MOUNT_POINTS, "/etc")}
    for point in MOUNT_POINTS:
        for other, where in at.items():
            if other == point or (point in TMPFS and other in TMPFS):
                continue
            if at[point] == "/":
                what = f"its {point} leads to /"
            elif not f"{where}/".startswith(f"{at[point]}/"):
                continue
            elif at[point] == point:
                what = f"its {other} leads to {where}"
            else:
                what = f"its {point} leads to {at[point]}"
            raise InvalidInput(
                f"{what}, which niso's mount at {at[point]} would hide",
                "replace the link by a folder in the rootfs",
                "package.rootfs",
            )


def place(rootfs: str, path: str) -> str:
    """Resolve the links of ``path`` in the rootfs, as far as the path exists."""
    missing = ""
    while path:
        try:
            fd, real = service_paths.open_inside({"": rootfs}, path)
        except OSError:
            path, _, name = path.rpartition("/")
            missing = f"/{name}{missing}"
            continue
        os.close(fd)
        return real.rstrip("/") + missing
    return missing


def _exists(rootfs: str, path: str) -> bool:
    try:
        fd, _ = service_paths.open_inside({"": rootfs}, path)
    except OSError:
        return False
    os.close(fd)
    return True


def mount_point(below: str, layer: str, path: str) -> None:
    """Make the folder ``path`` in the layer above the rootfs or skeleton ``below``. Raises OSError.

    Folders that exist there get the same owner and mode.
    """
    path = place(below, path)
    built = ""
    for part in path.split("/")[1:]:
        built += f"/{part}"
        try:
            os.mkdir(layer + built, 0o755)
        except FileExistsError:
            # a link of niso's own, which leads to a path on the host
            if os.path.islink(layer + built):
                raise OSError(errno.ELOOP, "it is below a symlink", built) from None
            continue
        os.chmod(layer + built, 0o755)
        if os.path.isdir(below + built):
            _copy_owner(below + built, layer + built)


def mount_file(below: str, layer: str, path: str) -> None:
    """Make the empty file ``path`` in the layer as a mount point; no-op if it exists.

    ``below`` is as in `mount_point`. Raises OSError.
    """
    path = place(below, path)
    mount_point(below, layer, os.path.dirname(path))
    try:
        os.close(os.open(layer + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        return


def _copy_owner(source: str, target: str) -> None:
    """Copy the owner and mode of a folder; no-op if ``source`` is not a folder."""
    info = os.lstat(source)
    if not stat.S_ISDIR(info.st_mode):
        return
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))
