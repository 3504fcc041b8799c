"""Test pictures of who talks to whom: Mermaid and dot."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import HOST, OUTSIDE, known, network, policy, world
from samples import samples

from niso.kernel.flow_memory import Recorded
from niso.look import flows as look_flows
from niso.look import graph
from niso.manifest import stack as manifest_stack
from niso.plan import verdict
from niso.plan.records import Policy, PortMapping

ROOT = Path(__file__).resolve().parents[2]
BACK, EDGE = network("back", "10.99.1.0/24"), network("edge", "10.99.2.0/24")
WORLD = world(
    [
        known("db", {"back": ["10.99.1.2"]}, policy(["api:80"], ["api:81", "web"])),
        known(
            "api",
            {"back": ["10.99.1.3"], "edge": ["10.99.2.3"]},
            policy(allow=["db", "10.0.0.0/8:53/udp", "198.51.100.0/24:443"]),
        ),
        known("web", {"edge": ["10.99.2.2"]}, policy(), PortMapping("", 8080, 80, "tcp")),
        known("bad", {"back": ["10.99.1.9"]}, active=False),
    ],
    [BACK, EDGE],
    [HOST],
)


def row(source: str, to: str, port: int, proto: str = "tcp") -> Recorded:
    return Recorded(source, to, proto, port, 1, 60, 1.0)


def test_traffic_as_mermaid() -> None:
    passed = [row("10.99.1.3", "10.99.1.2", 80), row("10.99.1.3", "10.99.1.2", 53, "udp")]
    passed += [row(OUTSIDE, "10.99.2.2", 80), row("127.0.0.1", "10.99.2.2", 80)]
    memory = look_flows.Memory(tuple(passed), (row("10.99.1.9", "10.99.1.2", 80),), {})
    flows = look_flows.joined(WORLD, memory)
    assert (
        graph.mermaid(graph.of_traffic(WORLD, flows, None))
        == """\
flowchart LR
  subgraph g0["back 10.99.1.0/24"]
    n_bad["bad<br>10.99.1.9<br>inactive"]
    n_db["db<br>10.99.1.2"]
  end
  subgraph g1["back 10.99.1.0/24 #43; edge 10.99.2.0/24"]
    n_api["api<br>10.99.1.3<br>10.99.2.3"]
  end
  subgraph g2["edge 10.99.2.0/24"]
    n_web["web<br>10.99.2.2"]
  end
  x_o1(["192.0.2.2"])
  x_host(["host"])
  x_o1 -- ":80" --> n_web
  n_api -- ":53/udp, :80" --> n_db
  n_bad -. ":80 denied" .-x n_db
  x_host -- ":80" --> n_web
  linkStyle 2 stroke:#c62f2b,color:#c62f2b
"""
    )
    shared = world([known("pod", {"back": ["10.99.1.7"]}, names=("b", "pod", "a"))], [BACK], [HOST])
    text = graph.mermaid(graph.of_traffic(shared, (), None))
    assert 'n_pod["pod #43; a #43; b<br>10.99.1.7"]' in text
    text = graph.mermaid(graph.of_policies(shared, None, True, {"b": "exited (1)", "c": "failed"}))
    assert 'n_pod["pod #43; a #43; b<br>10.99.1.7<br>b: exited (1)"]' in text
    text = graph.mermaid(graph.of_traffic(WORLD, (), None, {"db": "exited (137)"}))
    assert 'n_db["db<br>10.99.1.2<br>exited (137)"]' in text
    only = graph.of_traffic(WORLD, flows, frozenset(["web"]))
    assert [lines[0] for _, nodes in only[0] for _, lines in nodes] == ["web"]
    many = [row(f"198.51.100.{i}", "10.99.2.2", 80 + i) for i in range(9)]
    folded = graph.of_traffic(
        WORLD, look_flows.joined(WORLD, look_flows.Memory(tuple(many), (), {})), None
    )
    assert [lines for _, lines in folded[1]] == [("outside",)]
    assert [label for _, _, label, _ in folded[2]] == [":80, :81, :82, :83, :84, 4 more"]


def test_what_policies_allow_is_what_the_engine_says() -> None:
    drawn = graph.of_policies(WORLD, None, False)
    names = {id_: lines[0] for _, nodes in drawn[0] for id_, lines in nodes}
    names |= {id_: lines[0] for id_, lines in drawn[1]}
    assert {(names[source], names[to], label) for source, to, label, _ in drawn[2]} == {
        ("api", "db", ":80"),
        ("api", "db", ":81 denied"),
        ("api", "198.51.100.0/24", ":443"),
        ("api", "10.0.0.0/8", ":53/udp"),
        ("api", "web", ":53/udp"),
        ("api", "bad", ":53/udp"),
        ("outside", "web", "8080→80"),
    }


def test_a_published_port_is_drawn_for_those_who_may_use_it() -> None:
    """As the policy engine says of a client outside, and of one of a prefix."""

    def users(
        host_ip: str, own: Policy, *, is_open: bool = True, **more: int
    ) -> set[tuple[str, str]]:
        ports = [PortMapping(host_ip, 8080, 80, "tcp", **more)] if is_open else []
        alone = world([known("web", {"edge": ["10.99.2.2"]}, own, *ports)], [EDGE], [HOST])
        drawn = graph.of_policies(alone, None, False)
        names = {id_: lines[0] for id_, lines in drawn[1]}
        edges = {(names[source], label) for source, _, label, _ in drawn[2]}
        port80 = {name for name, label in edges if label.partition("→")[2] != "81"}
        _, into = verdict.evaluate(alone, "203.0.113.9", "10.99.2.2", 80, "tcp")
        assert (into.passes and is_open) == bool(port80 & {"outside", "host"})
        return edges

    assert users("", policy()) == {("outside", "8080→80")}
    assert users("127.0.0.1", policy()) == {("host", "8080→80")}
    assert users("", policy(), count=3) == {("outside", "8080-8082→80-82")}
    assert users("", policy(["192.0.2.0/24:80", "web"])) == {("192.0.2.0/24", "8080→80")}
    assert users("", policy(["192.0.2.0/24:81", "web"])) == set()
    assert users("", policy(["0.0.0.0/0:80"])) == {("outside", "8080→80")}
    denied = ("0.0.0.0/0", "8080→80 denied")
    assert users("", policy(["0.0.0.0/0:80"], ["0.0.0.0/0"])) == {denied}
    # without a published port, no packet from outside arrives, whatever the policy says
    for own in (policy(["outside:80", "192.0.2.0/24"]), policy(["web"], ["192.0.2.0/24"])):
        assert users("", own, is_open=False) == set()
    # parts of a range have different clients
    some = policy(["outside:81", "192.0.2.0/24:80-81"])
    assert users("", some, count=3) == {
        ("outside", "8081→81"),
        ("192.0.2.0/24", "8080-8081→80-81"),
    }


def test_no_two_declared_arrows_are_about_the_same_ports() -> None:
    def arrows(own: Policy, peer: Policy, **more: object) -> list[str]:
        edge = EDGE._replace(**more)  # type: ignore[arg-type]
        db = known("db", {"edge": ["10.99.2.2"]}, own)
        there = world([db, known("api", {"edge": ["10.99.2.3"]}, peer)], [edge], [HOST])
        return [label for *_, label, _ in graph.of_policies(there, None, False)[2]]

    egress = policy(allow=["db:5432/tcp", "db:80", "192.0.2.0/24:443"])
    assert arrows(policy(["api"]), egress) == [":443", ":5432/tcp", ":80"]
    # nothing leaves an internal network
    assert arrows(policy(["api"]), egress, internal=True) == [":5432/tcp", ":80"]
    assert arrows(policy(["api", "api:80", "api:81/udp"]), policy()) == ["*"]
    assert arrows(policy(["api:80", "api:80-90/tcp"]), policy()) == [":80", ":81-90/tcp"]
    assert arrows(policy(["api"], ["api:25/tcp"]), policy()) == [
        ":1-24",
        ":25/sctp",
        ":25/tcp denied",
        ":25/udp",
        ":26-65535",
        "icmp",
    ]


def test_picture_of_a_stack_depends_on_its_files_alone_and_is_in_the_readme() -> None:
    """What `niso net graph --declared --stack examples/shop` prints; run it again after a change of the shop."""
    stack = manifest_stack.load(str(ROOT / "examples/shop"), None, lambda *_: ())
    text = graph.mermaid(graph.of_policies(graph.declared_context(stack), None, False))
    page = (ROOT / "examples/shop/README.md").read_text()
    assert f"```mermaid\n{text}```\n" in page
    assert 'n_api -- ":5432/tcp" --> n_postgres' in text


HOSTILE = st.text(min_size=1, max_size=12) | st.sampled_from(
    [
        '"]; click n_a "javascript:alert(1)"',
        "</script><b>",
        '\\" ]',
        "end",
        "%%{init}%%",
        "&quot;",
        "a\nb",
        "\x1b[2J",
    ]
)


def test_flows_that_pass_because_of_an_audit_are_not_drawn_as_allowed() -> None:
    db = known("db", {"back": ["10.99.1.2"]}, policy(["api:80"], ["bad"]), audits=True)
    api, bad = (known(n, {"back": [a]}) for n, a in (("api", "10.99.1.3"), ("bad", "10.99.1.9")))
    there = world([db, api, bad], [BACK], [HOST])
    rows = row("10.99.1.9", "10.99.1.2", 80), row("10.99.1.3", "10.99.1.2", 80)
    flows = look_flows.joined(there, look_flows.Memory(rows, (), {}, 0, rows[:1]))
    text = graph.mermaid(graph.of_traffic(there, flows, None))
    assert text.splitlines()[-3:] == [
        '  n_api -- ":80" --> n_db',
        '  n_bad -. ":80 would be denied" .-> n_db',
        "  linkStyle 1 stroke:#9a6700,color:#9a6700",
    ]
    dotted = 'color="#9a6700", fontcolor="#9a6700", style=dotted];'
    assert f'n_bad -> n_db [label=":80 would be denied", {dotted}' in graph.dot(
        graph.of_traffic(there, flows, None), {}
    )
    declared = graph.of_policies(there, None, False)
    assert [edge[2:] for edge in declared[2]] == [
        (":80", "pass"),
        ("* would be denied", "audit"),
    ]


@settings(max_examples=samples(60, 2000), deadline=None)
@given(st.lists(HOSTILE, min_size=2, max_size=4, unique=True))
def test_names_cannot_be_syntax(names: list[str]) -> None:
    """Names are validated long before. If they were not, a picture would still show them as text alone."""
    services = [known(name, {"back": [f"10.99.1.{i + 2}"]}) for i, name in enumerate(names)]
    there = world(services, [BACK._replace(name=names[0])], [HOST])
    there = there._replace(networks={"back": BACK._replace(name=names[0])})
    flows = look_flows.joined(
        there, look_flows.Memory((row("10.99.1.2", "10.99.1.3", 80),), (), {})
    )
    picture = graph.of_traffic(there, flows, None)
    ids = [id_ for _, nodes in picture[0] for id_, _ in nodes]
    assert len(set(ids)) == len(names)
    quoted = r'"[^"\n]*"'
    plain = rf"(flowchart LR|end|subgraph g\d+\[{quoted}\]|\w+\[{quoted}\]|\w+ -- {quoted} --> \w+)"
    for line in graph.mermaid(picture).splitlines():
        assert re.fullmatch(rf" *{plain}", line), line
    for text in (graph.mermaid(picture), graph.dot(picture, {})):
        strings = "".join(re.findall(quoted, text)).replace("<br>", "").replace("\\n", "")
        assert text.isascii() or "→" in text or all(ord(c) < 128 for c in strings)
        assert not set(strings) & set("<>\\'`;[]{}") - {";"}


@pytest.mark.skipif(not shutil.which("gvpack"), reason="Graphviz is not installed")
def test_many_services_are_drawn_on_a_page_for_each_network() -> None:
    networks = {f"net{k}": network(f"net{k}", f"10.99.{k}.0/24") for k in range(3)}
    services = [
        known(f"s{i}", {f"net{i % 3}": [f"10.99.{i % 3}.{i + 2}"]}, policy([])) for i in range(63)
    ]
    there = world(services, [*networks.values()], [HOST])
    rows = (row("10.99.0.2", "10.99.1.3", 80), row("10.99.0.2", "10.99.0.5", 80))
    picture = graph.of_traffic(
        there, look_flows.joined(there, look_flows.Memory(rows, (), {})), None
    )
    pages = graph.pages(picture)
    assert [[title for title, _ in page[0]] for page in pages] == [[g[0]] for g in picture[0]]
    assert [len(page[0][0][1]) for page in pages] == [21, 21, 21]
    # a flow between two networks is on the pages of both, with the other service as a place
    assert [[text for _, text in page[1]] for page in pages] == [[("s1",)], [("s0",)], []]
    assert [len(page[2]) for page in pages] == [2, 1, 0]
    texts = [graph.dot(page, {}, i).encode() for i, page in enumerate(pages)]
    drawn = graph._drawn(texts, "svg").decode()
    assert all(f">s{i}<" in drawn for i in range(63))
    assert all(colour in drawn for colour in ("#f5f1fb", "#ecf6f5", "#f8f3e8"))
    small = (picture[0][:1], [], [])
    assert graph.pages(small) == [small]


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
@pytest.mark.parametrize("format_", ["svg", "png"])
def test_graphviz_draws_it(format_: str) -> None:
    hostile = known('x"];\n<b>&amp;', {"back": ["10.99.1.7"]})
    there = WORLD._replace(services={**WORLD.services, hostile.name: hostile})
    flows = look_flows.joined(
        there, look_flows.Memory((row("10.99.1.7", "10.99.1.2", 80),), (), {})
    )
    marks = {"db": ("unhealthy", "policy in audit"), "api": ("healthy", "")}
    text = graph.dot(graph.of_traffic(there, flows, None), marks)
    assert re.search(r'n_db \[label="db.*\\nunhealthy\\npolicy in audit", color="#c2271f"', text)
    assert re.search(r'n_api \[label="[^"]*[^y]", color="#17804a"', text), text
    assert text.count('fillcolor="#f5f1fb"') == 1  # the area of the first network
    done = subprocess.run(
        ["dot", f"-T{format_}"], input=text.encode(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert format_ == "png" or b"<b>" not in done.stdout
