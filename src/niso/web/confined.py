"""Drop all privileges of this process: what serves pages can read and change nothing.

See unshare(2), chroot(2), capabilities(7), prctl(2), setresuid(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import tempfile

NOBODY = 65534
"""uid and gid of nobody and nogroup in Debian's base-passwd."""
_MOST_FILES = 64
_CAPBSET_READ, _CAPBSET_DROP, _SET_DUMPABLE = 23, 24, 4  # linux/prctl.h
_SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

_libc = ctypes.CDLL(None, use_errno=True)


def confine() -> None:
    """Give up files, network, user, groups and capabilities.

    Raises OSError: the caller must then exit. Open descriptors stay usable: a listening socket
    still belongs to the network namespace in which it was created. Modules must be imported before.
    """
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS | os.CLONE_NEWNS)
    # a deleted folder: it is empty, and no process can create anything in it
    empty = tempfile.mkdtemp(prefix="niso-web-", dir="/run")
    os.chdir(empty)
    os.rmdir(empty)
    os.chroot(".")
    for kind, most in (
        (resource.RLIMIT_NOFILE, _MOST_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    capability = 0
    while _libc.prctl(_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        _prctl(_CAPBSET_DROP, capability)
        capability += 1
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_CAP_AMBIENT, _CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _prctl(_SET_NO_NEW_PRIVS, 1)
    # no other process of this user may trace it
    _prctl(_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    """Call prctl(2). Raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
