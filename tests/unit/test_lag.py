"""Test how an agent measures that it is behind."""

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
