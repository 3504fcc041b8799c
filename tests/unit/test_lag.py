"""Test how an agent measures that it is behind."""

import pytest

from niso.change.cluster_hosts import ClusterHost, ClusterStatus
from niso.cli.cluster_commands import _print_status
from niso.cluster.agent import Lag


def test_lag_is_counted_from_the_first_thing_that_no_look_has_seen() -> None:
    lag = Lag()
    assert lag.seconds(100) == 0
    lag.notice(100)
    lag.notice(103)
    assert lag.seconds(105) == 5
    lag.caught_up(102)  # a look that began before the second one
    assert lag.seconds(105) == 2
    lag.caught_up(104)
    assert lag.seconds(200) == 0


@pytest.mark.parametrize(("lag", "printed"), [(0.4, "0s"), (1.2, "1s"), (None, "-")])
def test_hint_agrees_with_the_lag_in_the_table(
    lag: float | None, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host = ClusterHost("a", "198.51.100.1", "here", None, (), 0, "0.1.0", lag)
    _print_status(ClusterStatus("983031c9", "a", True, 1, True, None, (), (host,), ()))
    out = capsys.readouterr().out
    assert f"  {printed}\n" in out and ("is behind" in out) == (printed == "1s")
