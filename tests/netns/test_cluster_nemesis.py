"""Test hosts of a cluster by random commands on a real etcd, while a nemesis works on its members.

Each host is a process with a kernel in memory (tests/netns/cluster_driver.py); tests/unit/test_cluster_walk.py takes
the same steps without etcd. The order of events differs from run to run, also with one seed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TESTS
from samples import samples

SECONDS = samples(10, 1200)
SHARE = samples(8, 100)
"""Percent of a processor for each host: in each run of the tests, others need it meanwhile."""


@pytest.mark.first
def test_hosts_agree_whatever_happens_to_the_members_of_etcd(tmp_path: Path) -> None:
    seed = os.urandom(4).hex()
    words = ("unshare", "--net", sys.executable, str(TESTS / "netns/nemesis_driver.py"))
    run = subprocess.Popen(
        [*words, str(tmp_path), seed, str(SECONDS), str(SHARE / 100)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "netns")))},
    )
    try:
        said, wrong = run.communicate(timeout=SECONDS + 300)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, f"seed {seed}\n{wrong}"
    print(said)
