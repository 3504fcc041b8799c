"""Test when a started service is examined again."""

from __future__ import annotations

import pytest

from niso.kernel.fake import Fake
from niso.runtime.fake_processes import FakeProcesses
from niso.services import waits
from niso.store.store import ServiceRow

BUSY = ServiceRow("busy", "", "{}", None, "", "", 0, True, 1, (), "{}", 1.0, 1.0)


@pytest.mark.parametrize("passes", [0.1, 0.0002, 0.0])
def test_the_moment_of_being_started_is_waited_for_also_where_it_has_just_passed(
    monkeypatch: pytest.MonkeyPatch, passes: float
) -> None:
    """It passes between the look at the service and the question until when to wait: the next look must not be at the deadline."""
    now = [1000.0]
    monkeypatch.setattr(waits.time, "monotonic", lambda: now[0])
    wait = waits.Wait(FakeProcesses(Fake()), waits.Start(BUSY, None, True, None, 60.0))
    ripe_at = now[0] + waits.STARTED_WITHIN_S
    now[0] = ripe_at - 0.0001
    assert not wait.is_started
    now[0] += passes
    assert wait.next_at <= ripe_at
    now[0] = ripe_at
    assert wait.is_started
    assert wait.next_at == 1060.0  # nothing more to be done before
