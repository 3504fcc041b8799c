"""Run the soak (`./dev soak`) for a few seconds, and test that it detects failures."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import TESTS

SOAK = (sys.executable, "-B", str(TESTS / "soak" / "soak.py"), "--seed", "7")


@pytest.mark.first
def test_services_are_churned_and_nobody_else_notices() -> None:
    argv = [*SOAK, "--minutes", "0.1", "--services", "9", "--rate", "100"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "soak: passed"), (
        done.stdout + done.stderr
    )
