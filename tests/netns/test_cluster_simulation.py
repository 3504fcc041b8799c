"""Run many hosts of a cluster, with kernels in memory, on one real etcd, and compare their mirrors in the end.

``NISO_TEST_LONG=1 pytest -s`` shows the report, whose last one is in docs/design/cluster.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TESTS

HOSTS, CHANGES = 1_000, 100
PATIENCE_S = 3_600


@pytest.mark.skipif(os.environ.get("NISO_TEST_LONG") != "1", reason="part of ./dev test-long")
def test_the_mirrors_of_a_thousand_hosts_are_what_the_cluster_has(tmp_path: Path) -> None:
    own = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    words = ("unshare", *own, sys.executable, str(TESTS / "netns/simulation_driver.py"))
    run = subprocess.run(
        [*words, str(tmp_path), str(HOSTS), str(CHANGES)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "netns")))},
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    print(run.stdout)
    assert f"differ from the cluster: 0 of {HOSTS:,}" in run.stdout
