"""Read, write and remove niso's own files and folders, even if another program has replaced them.

A path that is not a regular file is treated as a missing file. No function here follows a symbolic
link or blocks on a FIFO.

A service can nest folders so deeply that their paths exceed PATH_MAX, and that no process can open
all of them at once. Therefore `remove_tree` first moves each subfolder up, next to the folder that
is being emptied, and needs only two descriptors.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import stat
from collections.abc import Collection
from itertools import count

# --- read, write, remove files --------------------------------------------------------------------


_NONE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)  # ELOOP: a symbolic link; ENXIO: a socket


_BLOCK = 65536


def is_elsewhere(before: str, now: str) -> bool:
    """Return whether the file ``before``, from which a service or stack was activated, still
    exists and is a different file from ``now``. Symbolic links are resolved.
    """
    return os.path.exists(before) and os.path.realpath(before) != os.path.realpath(now)


def read(path: str, mode: int = 0) -> bytes | None:
    """Return the content of a regular file. Returns None if ``path`` is missing or is not a regular
    file, or if the file lacks one of the permission bits in ``mode``. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & mode != mode:
            return None
        # files in /proc and /sys have the size 0; in other files, a short read means end of file
        parts, size = [], status.st_size + 1 if status.st_size else _BLOCK
        while part := os.read(fd, size):
            parts.append(part)
            if status.st_size and len(part) < size:
                break
        return b"".join(parts)
    finally:
        os.close(fd)


def of_process(pid: int | None, name: str) -> bytes:
    """Return the content of /proc/PID/NAME (proc(5)), or b"" if the process no longer exists."""
    content = b""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while part := os.read(fd, 1 << 16):
                content += part
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    return content


def make(path: str, mode: int) -> int:
    """Create the file ``path`` with the permissions ``mode``. Return a descriptor for writing. An
    existing file or empty folder at ``path`` is removed first. Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        remove(path)
        return os.open(path, flags, mode)


def write(fd: int, content: bytes) -> None:
    """Write all of ``content`` to an open descriptor. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def replace(path: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Replace the file ``path`` atomically: a reader sees either the old file or the new one.

    This also holds after a power cut: the content is written to ``path``.new, flushed to disk, and
    then renamed. ``owner`` is (uid, gid), by default the user of this process. Raises OSError.
    """
    draft = f"{path}.new"
    fd = make(draft, mode)
    try:
        write(fd, content)
        if owner is not None:
            os.fchown(fd, *owner)
        os.fsync(fd)
    finally:
        os.close(fd)
    rename(draft, path)


def require_plain(path: str) -> None:
    """Raise OSError if ``path`` exists and is no regular file: a rename would delete a device."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "it is not a regular file")


def sync(path: str) -> None:
    """Flush a file's content, or a folder's entries, to disk (fsync(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(draft: str, path: str) -> None:
    """Rename ``draft`` to ``path``, replacing a file or empty folder there. Raises OSError."""
    try:
        os.rename(draft, path)
    except IsADirectoryError:
        os.rmdir(path)
        os.rename(draft, path)


def remove(path: str) -> None:
    """Remove a file or an empty folder. Raises OSError."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        os.rmdir(path)


def file_changed_by_others(
    path: str, trusted: Collection[int], fd: int | None = None
) -> str | None:
    """Describe how users not in ``trusted`` (uids) can change or replace a file.

    Returns None if they cannot, otherwise a clause, such as "its folder is writable for group
    devs". ``fd`` is an open descriptor of the file, if the caller has read it. If ``path`` is a
    symbolic link, the folders of the link and of its target are both checked. All links on the path
    must belong to users in ``trusted``, because another user's link can lead to any file of root.
    Raises OSError.
    """
    if fd is not None and not os.path.samestat(os.fstat(fd), os.stat(path)):
        return "it was replaced while it was read"
    if how := changed_by_others(path if fd is None else fd, trusted):
        return f"it {how}"
    if how := link_of_others(path, trusted):
        return f"it {how}"
    for at in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        if how := changed_by_others(os.path.dirname(at), trusted):
            return f"its folder {how}"
    return None


def link_of_others(path: str, trusted: Collection[int]) -> str | None:
    """Describe the first symbolic link in a path that belongs to a user not in ``trusted`` (uids).

    Returns None if there is no such link. Otherwise the result continues a sentence, such as "leads
    through /srv/app, which belongs to user bob". Symbolic links in /proc are not followed, because
    the links to a process's descriptors belong to that process. Raises OSError.
    """
    at, followed = "/", 0
    # a working folder outside the root of its namespace has no path, and absolute paths need none
    whole = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    left = whole.split("/")[::-1]
    while left:
        name = left.pop()
        if name in ("", ".", ".."):
            at = os.path.dirname(at) if name == ".." else at
            continue
        step = os.path.join(at, name)
        info = os.lstat(step)
        if not stat.S_ISLNK(info.st_mode):
            at = step
            continue
        if info.st_uid not in trusted:
            return f"leads through {step}, which belongs to {_user(info.st_uid)}"
        if at.startswith("/proc/"):
            return None
        followed += 1
        if followed > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(step)
        at = "/" if target.startswith("/") else at
        left += target.split("/")[::-1]
    return None


_MOST_LINKS = 40  # as the kernel (MAXSYMLINKS, linux/namei.h)


def changed_by_others(
    place: str | int, trusted: Collection[int], sticky: bool = True
) -> str | None:
    """Describe how users not in ``trusted`` (uids) can change a file. Returns None if they cannot.

    ``place`` is the path of a file or folder, or a descriptor that was not opened with O_PATH. A
    symbolic link is followed. The result continues a sentence: "belongs to user bob", or "is
    writable for group devs".

    A group is trusted only if it is the private group of a trusted user (`_is_private`). Users and
    groups in an access control list (acl(5)) are checked in the same way. With ``sticky``, write
    permission for a folder with the sticky bit is ignored, because it does not allow users to
    replace files of others (inode(7)). Raises OSError.
    """
    info = os.stat(place)
    if info.st_uid not in trusted:
        return f"belongs to {_user(info.st_uid)}"
    if sticky and info.st_mode & stat.S_ISVTX and stat.S_ISDIR(info.st_mode):
        return None
    if info.st_mode & stat.S_IWOTH:
        return "is writable for everybody"
    if not info.st_mode & stat.S_IWGRP:  # with a list, this bit is the mask of its entries
        return None
    users, groups = _listed(place) or ([], [_OWNING_GROUP])
    for uid in users:
        if uid not in trusted:
            return f"is writable for {_user(uid)} by its access control list"
    for number in groups:
        gid = info.st_gid if number == _OWNING_GROUP else number
        if not _is_private(gid, trusted):
            return f"is writable for {_group(gid)}"
    return None


_OWNING_GROUP = -1
_ACL = "system.posix_acl_access"
_ACL_VERSION, _ACL_WRITE = 2, 2
_ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP = 0x02, 0x04, 0x08
"""Constants of linux/posix_acl_xattr.h and linux/posix_acl.h."""


def _listed(place: str | int) -> tuple[list[int], list[int]] | None:
    """Return (uids, gids) that a file's access control list (acl(5)) allows to write. Raises
    OSError. If the file has no such list, returns None.
    """
    try:
        value = os.getxattr(place, _ACL)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise
    if len(value) % 8 != 4 or int.from_bytes(value[:4], "little") != _ACL_VERSION:
        raise OSError(errno.EINVAL, "its access control list has an unknown form")
    users, groups = [], []
    for at in range(4, len(value), 8):
        tag, allowed, number = (
            int.from_bytes(value[at + first : at + last], "little")
            for first, last in ((0, 2), (2, 4), (4, 8))
        )
        if allowed & _ACL_WRITE and tag == _ACL_USER:
            users.append(number)
        elif allowed & _ACL_WRITE and tag in (_ACL_GROUP, _ACL_GROUP_OBJ):
            groups.append(number if tag == _ACL_GROUP else _OWNING_GROUP)
    return users, groups


def _is_private(gid: int, trusted: Collection[int]) -> bool:
    """Return whether a group is the private group of a user in ``trusted`` (uids).

    Such a group has the user's name and is the user's primary group (useradd(8), USERGROUPS_ENAB).
    All of its members must be in ``trusted``. Other groups do not qualify, because a directory
    service may not list all of their members.
    """
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    for uid in trusted:
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            continue
        if (user.pw_gid, user.pw_name) != (gid, group.gr_name):
            continue
        members = set(group.gr_mem)
        if uid:  # some distributions have accounts without a login in the group of root
            members |= {one.pw_name for one in pwd.getpwall() if one.pw_gid == gid}
        try:
            return all(pwd.getpwnam(name).pw_uid in trusted for name in members)
        except KeyError:
            return False
    return False


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return f"group {grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"group {gid}"


def is_own_folder(info: os.stat_result) -> bool:
    """Return whether stat(2) describes a folder that only root and this user can change."""
    own = info.st_uid in (0, os.geteuid()) and not info.st_mode & 0o022
    return stat.S_ISDIR(info.st_mode) and own


# --- remove a folder with its content -------------------------------------------------------------


FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags for open(2) to open a folder, but not a symbolic link to a folder."""
# linux/fs.h
_IOC_GETFLAGS, _IOC_SETFLAGS = 0x8000_6601, 0x4000_6602  # plus the size of a long << 16
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""The error numbers with which rename(2) reports that the new name is already in use."""
_PROTECTED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL


def remove_tree(path: str) -> None:
    """Remove a folder and its content. Symbolic links are not followed. A missing folder is not an
    error.

    Immutable and append-only files are removed too (ioctl_iflags(2)). No other process may modify
    the folder at the same time. After a failure, another call removes the rest. Raises OSError.
    """
    try:
        top = os.open(path, FOLDER)
    except FileNotFoundError:
        return
    try:
        numbers = count()
        while names := os.listdir(top):
            for name in names:
                if not _unlink(name, top):
                    _empty(name, top, numbers)
    finally:
        os.close(top)
    try:
        os.rmdir(path)
    except PermissionError:
        _unprotect(path, None)
        os.rmdir(path)


def _empty(name: str, top: int, numbers: count[int]) -> None:
    """Remove the folder ``name`` from the folder with the descriptor ``top``.

    Subfolders that are not empty are first moved to ``top``, where the caller must remove them.
    Their new names are taken from ``numbers``. Raises OSError.
    """
    folder = os.open(name, FOLDER, dir_fd=top)
    try:
        for inner in os.listdir(folder):
            if not _unlink(inner, folder):
                _move(inner, folder, top, numbers)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _unlink(name: str, folder: int) -> bool:
    """Remove a file or an empty folder from the folder with the descriptor ``folder``.

    Attributes that prevent the removal (immutable, append-only) are cleared. A folder that is not
    empty is left unchanged; the result is then False. Raises OSError.
    """
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return _rmdir(name, folder)
    except PermissionError:
        _unprotect(".", folder)
        _unprotect(name, folder)
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            return _rmdir(name, folder)
    return True


def _rmdir(name: str, folder: int) -> bool:
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _move(name: str, folder: int, top: int, numbers: count[int]) -> None:
    for number in numbers:
        try:
            os.rename(name, f".{number}", src_dir_fd=folder, dst_dir_fd=top)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise


def _unprotect(name: str, folder: int | None) -> None:
    """Clear the immutable and append-only attributes of a regular file or a folder. ``name`` is in
    the folder with the descriptor ``folder``, or is a path if ``folder`` is None.
    """
    if stat.S_IFMT(os.lstat(name, dir_fd=folder).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return
    import struct

    size = struct.calcsize("l")
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        flags = fcntl.ioctl(fd, _IOC_GETFLAGS | size << 16, bytes(size))
        (now,) = struct.unpack("l", flags)
        if now & _PROTECTED:
            wanted = struct.pack("l", now & ~_PROTECTED)
            fcntl.ioctl(fd, _IOC_SETFLAGS | size << 16, wanted)
    except OSError:
        # a file system without attributes (ENOTTY): the removal failed for another reason
        return
    finally:
        os.close(fd)
