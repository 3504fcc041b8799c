"""`throw_away_host` runs a test in a process with new network and mount namespaces and an empty /run.

For the tests of niso.kernel, which call it in process; a lab's commands are other processes.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import subprocess
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from niso.base import signals
from niso.kernel import link_records, netns
from niso.kernel.rtnetlink import Rtnl

SECONDS = 300
"""How long a test may take at most, on a busy machine too: it is a limit for hangs alone."""
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

ALIAS = "niso:0123abcd"
MAC = "0a:00:00:00:00:07"


def throw_away_host[**P](test: Callable[P, None]) -> Callable[P, None]:
    """The decorated test runs in the child of a fork; what it raises fails the test in the parent."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # fork beside xdist's threads: the child uses none
            pid = os.fork()
        if pid == 0:
            _child(write, functools.partial(test, *args, **kwargs))
        os.close(write)
        with os.fdopen(read) as pipe:
            failure = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            pytest.fail(failure or f"the test's process ended with {status}", pytrace=False)

    return run


def _child(write: int, test: Callable[[], None]) -> None:
    try:
        signal.alarm(SECONDS)
        home = os.stat("/proc/self/ns/net").st_ino
        os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
        assert os.stat("/proc/self/ns/net").st_ino != home
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0
        assert libc.mount(b"none", b"/run", b"tmpfs", 0, None) == 0
        sh("ip link set lo up")
        # read once for each process: an earlier test of this one may have passed a point already
        signals._spec, signals._count = None, 0
        test()
    except BaseException:
        os.write(write, traceback.format_exc().encode()[-60000:])
        os._exit(1)
    os._exit(0)


def sh(command: str) -> str:
    """What a command (words, no shell) writes to stdout; it must succeed."""
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def ip(words: str) -> list[dict[str, Any]]:
    """``ip -j -d WORDS``; without the empty objects that it prints for what a filter left out."""
    out = sh(f"ip -j -d {words}")
    return [item for item in (json.loads(out) if out.strip() else []) if item]


def nft(text: str) -> None:
    """Load rules by the nft command."""
    done = subprocess.run(
        ["nft", "-f", "-"], input=text, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def add_pair(
    rtnl: Rtnl,
    name: str = "niapi-1",
    peer: str = "eth0",
    bridge: str = "niso-b",
    hairpin: bool = True,
) -> None:
    fd = netns.open_fd("niso-api")
    try:
        rtnl.add_veth(
            name,
            peer=peer,
            peer_netns_fd=fd,
            peer_mac=MAC,
            mtu=1400,
            bridge=bridge,
            port=link_records.new_port(hairpin, learns=True),
            alias=ALIAS,
        )
    finally:
        os.close(fd)
