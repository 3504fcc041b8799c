"""Show a failure at once: the tests of virtual machines take hours."""

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the error of a failed test when it fails."""
    if report.failed:
        print(f"\nvm: {report.nodeid} failed\n{report.longreprtext}", flush=True)
