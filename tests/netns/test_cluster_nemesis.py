"""Test hosts of a cluster by random commands on a real etcd, whose members are killed and stopped meanwhile.

Each host is a process with a kernel in memory (tests/netns/cluster_driver.py). Its steps differ from run to run, so it
is part of ``./dev test-long`` alone; tests/unit/test_cluster_walk.py takes the same steps in memory.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster_walk import HOSTS
from conftest import TESTS
from etcd_world import etcd
from samples import samples

from niso.cluster.etcd import Etcd
from niso.cluster.membership import Membership
from niso.cluster.requests import NoAnswer


@pytest.mark.skipif(os.environ.get("NISO_TEST_LONG") != "1", reason="part of ./dev test-long")
def test_hosts_agree_after_members_of_etcd_were_killed_and_stopped(tmp_path: Path) -> None:
    seconds = samples(8, 120)
    draw = random.Random(os.urandom(4))
    with etcd(tmp_path, 3) as members:
        with Etcd(members.access()) as engine:
            Membership(engine).make()
        access = json.dumps(members.access())
        drivers = []
        for name in HOSTS:
            folder = tmp_path / f"host-{name}"
            folder.mkdir()
            words = (access, name, str(draw.randrange(1 << 30)), str(seconds), str(folder))
            driver = subprocess.Popen(
                [sys.executable, str(TESTS / "netns/cluster_driver.py"), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "netns"))),
                },
            )
            drivers.append(driver)
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                member = draw.choice(members)
                number = draw.choice((signal.SIGKILL, signal.SIGSTOP))
                member.signal(number)
                time.sleep(draw.random() * 2)
                if number == signal.SIGKILL:
                    member.start(members)
                else:
                    member.signal(signal.SIGCONT)
                time.sleep(draw.random() * 1.5)
            with Etcd(members.access()) as engine:
                for _ in range(100):
                    try:
                        engine.get("ready")
                        break
                    except NoAnswer:
                        time.sleep(0.1)
            for driver in drivers:
                hears(driver, "done")
            for order in ("heal", *["look"] * 4, "agree"):
                for driver in drivers:
                    assert driver.stdin
                    driver.stdin.write(f"{order}\n")
                    driver.stdin.flush()
                    steps = int(hears(driver, "ok").split()[1])
                    assert steps > 2 * seconds, "hosts wait for most of the time"
        finally:
            for driver in drivers:
                driver.kill()


def hears(driver: subprocess.Popen[str], word: str) -> str:
    """Read a line of a driver, which begins so; else it has failed."""
    assert driver.stdout and driver.stderr
    line = driver.stdout.readline()
    assert line.startswith(word), driver.stderr.read()
    return line
