"""Test metrics without a kernel: how flows are counted, and the text as another parser reads it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import HOST, OUTSIDE, known, network, policy, world
from samples import samples

from niso.base.errors import UsageError
from niso.kernel.flow_memory import Recorded
from niso.look import flows as look_flows
from niso.look.metrics import Metric, Sample

WORLD = world(
    [
        known("db", {"back": ["10.99.1.2"], "edge": ["10.99.2.2"]}, policy(["api:80"])),
        known("api", {"back": ["10.99.1.3"]}),
    ],
    [network("back", "10.99.1.0/24"), network("edge", "10.99.2.0/24")],
    [HOST],
)


def row(source: str, to: str, packets: int, port: int = 80) -> Recorded:
    return Recorded(source, to, "tcp", port, packets, 60, 1.0)


def test_flows_are_counted_by_name_and_the_rarest_are_left_out() -> None:
    passed = [row("10.99.1.3", "10.99.1.2", 2), row("10.99.1.3", "10.99.2.2", 3)]
    passed += [row(f"198.51.100.{n}", "10.99.1.2", 1) for n in range(9)]
    passed += [row(HOST, "10.99.1.2", 1), row("127.0.0.1", "10.99.1.2", 1)]
    audited = (row("10.99.1.3", "10.99.2.2", 1), row("10.99.1.3", "10.99.2.9", 1))
    memory = look_flows.Memory(tuple(passed), (row(OUTSIDE, "10.99.1.2", 4),), {}, 0, audited)
    everything, none = look_flows.totals(WORLD, memory, 10)
    assert [(*names[:3], names[4], number) for names, number in everything] == [
        ("api", "db", 80, "audit", 1),
        ("api", "db", 80, "pass", 4),
        ("host", "db", 80, "pass", 2),
        ("outside", "db", 80, "drop", 4),
        ("outside", "db", 80, "pass", 9),
    ]
    assert none == 0
    frequent, others = look_flows.totals(WORLD, memory, 2)
    assert ([number for _, number in frequent], others) == ([4, 9], 3)
    assert look_flows.totals(WORLD, memory, 0) == ([], 5)


_NAMES = st.from_regex(r"niso_[a-z][a-z_]{0,8}[a-z]", fullmatch=True).filter(
    lambda name: not name.endswith(("_total", "_created", "_info", "_bucket", "_sum", "_count"))
)
_SAMPLES = st.dictionaries(st.text(max_size=8), st.integers(0, 1 << 53), max_size=3)


@settings(max_examples=samples(30, 2000), deadline=None)
@given(st.dictionaries(_NAMES, st.tuples(st.text(max_size=8), _SAMPLES, st.booleans()), max_size=3))
def test_text_means_the_same_to_another_parser(drawn) -> None:
    """Names are validated long before. If they were not, a label would still be one label."""
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from niso.cli import prometheus

    wanted = []
    for name, (words, values, counts) in drawn.items():
        rows = tuple(Sample({"service": label}, value) for label, value in values.items())
        full = f"{name}_total" if counts else name
        wanted.append(Metric(full, "counter" if counts else "gauge", words, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus, "connect", lambda progress: _Host(tuple(wanted)))
        text = prometheus.text(7).decode()
    read = {
        (sample.name, sample.labels["service"]): (family.type, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert read == {
        (metric.name, sample.labels["service"]): (metric.type, sample.value)
        for metric in wanted
        for sample in metric.samples
    }


class _Host:
    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def __enter__(self) -> _Host:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def metrics(self, *, flows: int) -> tuple[Metric, ...]:
        assert flows == 7
        return self._metrics


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        ("9500", ("127.0.0.1", 9500)),
        ("0.0.0.0:9500", ("0.0.0.0", 9500)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_where_to_listen(given_: str, meant: tuple[str, int]) -> None:
    from niso.cli import prometheus

    assert prometheus.address_of(given_) == meant


@pytest.mark.parametrize(
    "wrong",
    ["", "x", ":9500", "65536", "1" * 5000, "-1", "localhost:1", "::1:1", "[10.0.0.1]:1", "[]:1"],
)
def test_never_listens_elsewhere_than_given(wrong: str) -> None:
    from niso.cli import prometheus

    with pytest.raises(UsageError):
        prometheus.address_of(wrong)
