"""Share the tests among user-mode kernels: a pytest plugin that runs in each (see `uml.py`).

Every machine collects all tests, and takes groups of some tests of one file until none is left. A
group belongs to the machine that creates its folder below ``claims``. The folder is on the outer
machine's disk: there mkdir(2) succeeds for one of two callers, while open(2) with O_EXCL on hostfs
does not exclude anyone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib

import pytest

SCRATCH = pathlib.Path(os.environ.get("UML_SCRATCH_INSIDE", "/run/scratch"))
NUMBER = os.environ.get("UML_NUMBER", "0")
GROUP = 6
"""How many tests of a file belong together: labs of fixtures are created once in each machine."""


def done() -> set[str]:
    """Return the tests that have a result."""
    names = set()
    for file in SCRATCH.glob("results-*"):
        names |= {json.loads(line)["test"] for line in file.read_text().splitlines()}
    return names


def claim(tests: list[str]) -> bool:
    """Return whether the group of ``tests`` is now this machine's."""
    folder = SCRATCH / "claims" / hashlib.sha256("\n".join(tests).encode()).hexdigest()[:16]
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    (folder / NUMBER).touch()
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Run the groups of tests that no other machine has taken."""
    before = done()
    for _, tests in itertools.groupby(session.items, lambda item: item.path):
        for batch in itertools.batched(tests, GROUP):
            if not claim([item.nodeid for item in batch]):
                continue
            items = [item for item in batch if item.nodeid not in before]
            for item, following in itertools.zip_longest(items, items[1:]):
                (SCRATCH / f"running-{NUMBER}").write_text(item.nodeid)
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    (SCRATCH / f"running-{NUMBER}").unlink(missing_ok=True)
    (SCRATCH / f"finished-{NUMBER}").touch()
    return True


_parts: dict[str, list[pytest.TestReport]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append the result of a test to this machine's file, one line of JSON each."""
    parts = _parts.setdefault(report.nodeid, [])
    parts.append(report)
    if str(report.outcome) == "rerun":
        parts.clear()
    if report.when != "teardown" or not parts:
        return
    del _parts[report.nodeid]
    outcome, text = "passed", ""
    for part in parts:
        if part.failed:
            outcome, text = "failed", part.longreprtext[-4000:]
            break
        if part.skipped:
            reason = part.longrepr[2] if isinstance(part.longrepr, tuple) else part.longreprtext
            outcome, text = "skipped", reason.removeprefix("Skipped: ")
    result = {
        "test": report.nodeid,
        "outcome": outcome,
        "seconds": round(sum(part.duration for part in parts), 1),
        "text": text,
    }
    with (SCRATCH / f"results-{NUMBER}").open("a") as file:
        file.write(json.dumps(result) + "\n")
