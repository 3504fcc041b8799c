"""Test niso top: rates between two looks, the cells of tables, and the screen by Textual's pilot."""

from __future__ import annotations

import asyncio
import html
import importlib
import os
import pathlib
import re
import sys
from types import SimpleNamespace

import pytest
from policy_worlds import HOST, NOTHING, OUTSIDE, known, network, policy, world

from niso.base.errors import Error
from niso.cli import traffic_commands
from niso.kernel.flow_memory import Recorded
from niso.kernel.sockets import Connection, Measured
from niso.look import flows as look_flows
from niso.look import map as look_map
from niso.look import top
from niso.look.drops import Stats
from niso.look.services import ServiceLine
from niso.look.top import FlowLoad, Load, ServiceLoad, ServiceSocket, TopSample
from niso.plan.records import PortMapping
from niso.runtime.cgroups import Usage

PICTURE = pathlib.Path(__file__).parents[1] / "golden" / "top.svg"
DB, API = "10.99.1.2", "10.99.1.3"
WORLD = world(
    [known("db", {"back": [DB]}, policy(["api:80"])), known("api", {"back": [API]})],
    [network("back", "10.99.1.0/24")],
    [HOST],
)


def row(source: str, to: str, packets: int) -> Recorded:
    return Recorded(source, to, "tcp", 80, packets, 60, 1.0)


def look(at: float, memory: look_flows.Memory, *stats: Stats) -> TopSample:
    lines = tuple(
        ServiceLine(name, "running", None, "bridge", (), (), 1.0, *[None] * 7)
        for name in ("api", "db", "side")
    )
    networks = {"api": ("back",), "db": ("back",), "side": ()}
    shares = {"side": "db"}
    counts = top.counts(memory)
    # db uses 5 % of a processor
    usages = {"db": Usage(at / 20, None, 3 << 20, None, 0)}
    return TopSample(at, lines, networks, shares, {s.service: s for s in stats}, counts, usages)


def test_rates_between_two_looks() -> None:
    before = look(
        10.0,
        look_flows.Memory((row(API, DB, 5), row(HOST, DB, 9)), (row(OUTSIDE, DB, 50),), {}),
        Stats("db", 1, 1000, 3, 1, 500, 0, 0, None, None),
    )
    now = look(
        12.0,
        look_flows.Memory((row(API, DB, 11), row(HOST, DB, 9)), (row(OUTSIDE, DB, 4),), {}),
        Stats("db", 9, 3000, 7, 9, 100, 0, 0, None, None),  # sent: a new interface
        Stats("api", 9, 900, None, 9, 900, None, 0, None, None),  # was not there before
    )
    reader = look_flows.FlowReader(WORLD)
    load = top.between(reader, before, now, None)
    assert load.seconds == 2.0
    assert load.services == (
        ServiceLoad(
            "db", "running", None, ("back",), 8e3, 4e2, 5.0, 7, 0, None, None, 5.0, 3 << 20
        ),
        ServiceLoad("api", "running", None, ("back",), 0.0, 0.0, 3.0, *[None] * 6),
        ServiceLoad("side", "running", None, (), *[None] * 5, "db", *[None] * 3),
    )
    assert [(f.from_.name, f.to.name, f.port, f.verdict, f.new) for f in load.flows] == [
        ("api", "db", 80, "pass", 3.0),
        (OUTSIDE, "db", 80, "drop", 2.0),  # forgotten, and counted from 0 again
    ]
    moved = {(API, DB, "tcp", 80): 250, (HOST, DB, "tcp", 80): 500, (DB, API, "tcp", 9): 999}
    counted = top.between(reader, before, now, moved)
    assert [traffic_commands.flow_cells(f) for f in counted.flows] == [
        ("api", "db:80/tcp", "1.0 kb/s", "3.0", "pass", 'db allow_from[0] "api:80"'),
        (OUTSIDE, "db:80/tcp", "0 b/s", "2.0", "drop", "db allow_from"),
        ("host", "db:80/tcp", "2.0 kb/s", "0.0", "pass", "-"),  # has begun before
    ]
    assert [traffic_commands.cells(service) for service in load.services] == [
        ("db", "running", "5.0%", "3.0M", "8.0 kb/s", "400 b/s", "5.0", "7", "0", "back"),
        ("api", "running", "-", "-", "0 b/s", "0 b/s", "3.0", "-", "-", "back"),
        ("side", "running", "-", "-", "-", "-", "-", "-", "-", "-"),
    ]
    assert traffic_commands.summary(load) == [
        ("3 of 3 up", ""),
        ("3.0 new/s", ""),
        ("2.0 refused/s", "bad"),
        ("8.0 kb/s", ""),
    ]


def test_sockets_have_the_names_of_flows() -> None:
    published = PortMapping("0.0.0.0", 8080, 80, "tcp")
    back = [known("db", {"back": [DB]}, NOTHING, published), known("api", {"back": [API]})]
    there = world(back, [network("back", "10.99.1.0/24")], [HOST])
    figures = ("established", 0.00021, 3, 1500, 2_400_000)
    measured = [
        Measured(Connection(OUTSIDE, 5555, DB, 80), True, *figures),
        Measured(Connection(API, 4444, DB, 80), True, *figures),
        Measured(Connection("127.0.0.1", 3333, "127.0.0.1", 80), False, *figures),
        Measured(Connection(DB, 2222, API, 9), False, "syn-sent", None, None, None, None),
    ]
    sockets = top.sockets_of(look_flows.FlowReader(there), measured)
    assert [traffic_commands.socket_cells(socket) for socket in sockets] == [
        # of the service itself, although the address is also the host's
        (
            "127.0.0.1:3333",
            "127.0.0.1:80/tcp",
            "established",
            *(rest := ("0.21 ms", "3", "1.5 kB", "2.4 MB")),
        ),
        (f"{OUTSIDE}:5555", "db:80/tcp", "established", *rest),
        ("api:4444", "db:80/tcp", "established", *rest),
        ("db:2222", "api:9/tcp", "syn-sent", "-", "-", "-", "-"),
    ]
    assert [socket.published for socket in sockets] == [None, 8080, None, None]
    assert (sockets[0].from_.service, sockets[2].from_.service) == (None, "api")


def test_commands_about_a_flow() -> None:
    """Addresses, since a service can have several; and where it was sent to."""
    flow = FlowLoad(end("api"), end("db", "10.99.1.2"), 53, "udp", "pass", 1.0, None, *BY_NOTHING)
    outside = look_flows.FlowEnd("fd00::9", None, "fd00::9")
    host = look_flows.FlowEnd("host", None, "10.99.1.1")
    assert traffic_commands.explain_words(flow) == [
        "net",
        "explain",
        "10.99.1.9",
        "10.99.1.2:53/udp",
    ]
    assert traffic_commands.capture_words("db", flow) == ["net", "capture", "db", "10.99.1.9:53"]
    assert traffic_commands.capture_words("api", flow) == ["net", "capture", "api", "10.99.1.2:53"]
    assert traffic_commands.capture_words("api", None) == ["net", "capture", "api"]
    came = flow._replace(from_=outside, published=5353, verdict="drop")
    assert traffic_commands.explain_words(came) == ["net", "explain", "fd00::9", "host:5353/udp"]
    assert traffic_commands.capture_words("db", came) == [
        "net",
        "capture",
        "db",
        "[fd00::9]:53",
        "--drops",
    ]
    assert traffic_commands.capture_words("db", flow._replace(from_=host))[-1] == "host:53"
    to_outside = flow._replace(to=outside)
    assert traffic_commands.explain_words(to_outside)[-1] == "[fd00::9]:53/udp"


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (0, "0 b/s"),
        (999.4, "999 b/s"),
        (999.6, "1.0 kb/s"),
        (9_940, "9.9 kb/s"),
        (9_960, "10 kb/s"),
        (999_600, "1.0 Mb/s"),
        (2.5e12, "2500 Gb/s"),
        (None, "-"),
    ],
)
def test_rate_in_three_digits(bits, text) -> None:
    assert traffic_commands.rate(bits) == text


def end(name: str, address: str = "10.99.1.9") -> look_flows.FlowEnd:
    return look_flows.FlowEnd(name, name, address)


def loads() -> Load:
    return Load(
        2.0,
        (
            ServiceLoad(
                *("api", "running", "healthy", ("edge", "back"), 4e5, 7e5, 12.9, 0, 0, None),
                *(3.0, 41.5, 24 << 20),
            ),
            ServiceLoad(
                *("db", "running", "unhealthy", ("back",), 9e5, 2e5, 2.2, 44, 0, None),
                *(65.0, 12.0, 2 << 30),
            ),
            ServiceLoad("job", "inactive", None, (), *[None] * 9),
        ),
        (
            FlowLoad(end("api"), end("db"), 5432, "tcp", "pass", 2.0, None, *BY_NOTHING),
            FlowLoad(end("bad"), end("db"), 5432, "tcp", "drop", 1.5, None, *REFUSED),
            FlowLoad(end("api"), end("web"), 80, "tcp", "pass", 0.5, None, *BY_NOTHING),
        ),
    )


REFUSED = ("db", "network.policy.allow_from", None, "words", None, True)
BY_NOTHING = (None, None, None, None, None, True)
SOCKETS = (
    ServiceSocket(end("api"), 4444, end("db"), 5432, None, "established", 0.0123, 2, 900, 5_000),
    ServiceSocket(end("api"), 4445, end("db"), 5432, None, "syn-sent", None, 0, 0, 0),
)


@pytest.mark.parametrize(
    ("status", "up"), [("running", 1), ("2/2 running", 1), ("1/2 running", 0), ("0/0 running", 0)]
)
def test_services_with_replicas_are_up_if_all_instances_run(status: str, up: int) -> None:
    (api, _, _) = loads().services
    load = loads()._replace(services=(api._replace(status=status),))
    assert traffic_commands.summary(load)[0] == (f"{up} of 1 up", "")
    assert top.runs(status) == bool(up)


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("NISO_STATE_DIR", str(tmp_path))  # keeps the order of services


def test_screen_of_80_columns_has_the_whole_reason_and_keeps_the_order() -> None:
    pytest.importorskip("textual")
    asyncio.run(_on_80_columns())


async def _on_80_columns() -> None:
    from niso.cli.top_screen import TopScreen

    reason = ("postgres", "network.policy.allow_from[2]", "worker:5432/tcp", "words", None, True)
    flow = FlowLoad(end("worker"), end("postgres"), 5432, "tcp", "pass", 2.0, 4e6, *reason)
    for order, pressed in (("busy", ("s", "s")), ("memory", ("question_mark",))):
        screen = TopScreen()
        async with screen.run_test(size=(80, 24), notifications=True) as pilot:
            screen.update_load(loads()._replace(flows=(flow,)))
            await pilot.pause()
            picture = shown(screen.export_screenshot())
            assert 'pass     postgres allow_from[2] "worker:5432/tcp"' in picture, picture
            assert f"sorted by {order}" in picture and "quit" in picture, picture
            assert "LAST 30 s" not in picture
            await pilot.resize_terminal(140, 24)
            await pilot.pause()
            assert "LAST 30 s" in shown(screen.export_screenshot())
            await pilot.press(*pressed)
            await pilot.pause(0.3)
            is_help = "sort: busy" in shown(screen.export_screenshot())
            assert is_help == (order == "memory")


def test_screen() -> None:
    pytest.importorskip("textual")
    asyncio.run(_on_the_screen())


async def _on_the_screen() -> None:
    from niso.cli.top_screen import RowTable, TopScreen

    screen = TopScreen()
    async with screen.run_test(size=(120, 16)) as pilot:

        def rows() -> list[str]:
            """The first cells of the first table that is shown."""
            table = next(each for each in screen.query(RowTable) if each.display)
            return [table._cells(key)[0][0] for key in table.keys]

        async def press(*keys: str) -> list[str]:
            await pilot.press(*keys)
            await pilot.pause()
            return rows()

        screen.update_load(loads())
        screen.update_load(loads()._replace(services=loads().services[:2]))
        screen.update_load(loads())
        await pilot.pause()
        assert rows() == ["api", "db", "job"]
        picture = shown(screen.export_screenshot())
        assert "2 of 3 up  1 unhealthy  2.5 new/s  1.5 refused/s  1.3 Mb/s" in picture
        assert re.search(
            r"db +unhealthy 1m5s ago +12\.0% +2\.0G +900 kb/s +200 kb/s +███ +2\.2 +44 +0 +back",
            picture,
        ), picture
        assert "api      healthy 3s ago" in picture and "find" in picture and "quit" in picture
        assert await press("d") == ["db"]
        assert "only denied" in shown(screen.export_screenshot())
        assert await press("d", "s") == ["api", "db", "job"]
        assert await press("s", "s", "s", "s") == ["db", "api", "job"]
        assert await press("s") == ["api", "db", "job"]
        # the cursor is on db since it was alone, and stays there when the order changes
        screen.update_load(loads()._replace(services=loads().services[::-1]))
        assert await press("enter") == ["bad", "api"]
        assert re.search("niso top *db  2 of 3 up", shown(screen.export_screenshot()))
        assert await press("d") == ["bad"]
        assert await press("d", "escape") == ["job", "db", "api"]
        assert await press("slash", "a", "p") == ["api"]
        assert await press("enter", "enter") == ["api", "api"]  # its two flows
        assert await press("escape") == ["job", "db", "api"]
        # there is room: flows of all below, which Tab reaches, and Enter there shows the service's
        await pilot.resize_terminal(120, 30)
        await pilot.pause()
        services, flows, sockets = screen._tables()
        assert services.display and flows.display and services.has_focus
        screen.update_load(loads()._replace(flows=loads().flows[:1]))
        await pilot.pause()
        assert [flows._cells(key)[0][0] for key in flows.keys] == ["bad", "api", "api"]
        assert re.search(
            r"bad +db:5432/tcp +drop +- +[▁█]+ +0\.0  db allow_from",
            shown(screen.export_screenshot()),
        )
        await pilot.press("tab", "home", "down", "enter")
        await pilot.pause()
        assert screen.chosen == "db" and flows.has_focus and not services.display
        screen.update_sockets("api", SOCKETS)  # was chosen when it was asked for
        assert sockets.display and sockets.keys == []
        screen.update_sockets("db", SOCKETS + SOCKETS[:1])  # the last one: its other end
        await pilot.pause()
        assert len(sockets.keys) == 3
        picture = shown(screen.export_screenshot())
        assert re.search(
            r"api:4444 +db:5432/tcp +established +12\.30 ms +2 +900 B +5\.0 kB", picture
        ), picture
        for _ in range(15):
            screen.update_load(loads()._replace(flows=()))
        await pilot.pause()
        assert flows.keys == []  # 30 s without
        await pilot.press("escape")
        await pilot.resize_terminal(120, 16)
        await pilot.pause()
        assert services.has_focus and not flows.display
        # a click moves the cursor, the next one chooses
        await pilot.click(services, offset=(3, 3))
        assert services.key == "job" and screen.chosen is None
        await pilot.click(services, offset=(3, 3))
        await pilot.pause()
        assert screen.chosen == "job"
        await pilot.press("escape")
        # a name that could not be one is shown as text, not as markup or an escape
        odd = loads().services[0]._replace(service="[red]x\x1b")
        screen.update_load(loads()._replace(services=(odd,)))
        await pilot.pause()
        assert rows() == ["[red]x\\x1b"]
        await pilot.press("q")
    assert not screen.signalled


def test_without_its_libraries_the_screen_names_the_package(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "niso.cli.top_screen", raising=False)
    monkeypatch.setitem(sys.modules, "rich.segment", None)
    with pytest.raises(Error) as caught:
        importlib.import_module("niso.cli.top_screen")
    assert "textual" in (caught.value.hint or "")


@pytest.mark.first
def test_commands_of_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("textual")
    from niso.cli import top_screen

    # says what it was asked for, then ends, waits, or says it again and again
    program = """\
        echo "$@"; printf "\\033[2J\tend" >&2
        case "$*" in "logs db"*) exec yes -- "$@";; logs*) exec sleep 60;; esac
        exit 3"""
    monkeypatch.setattr(top_screen, "NISO", ("/bin/sh", "-c", program, "sh"))
    asyncio.run(_commands())


async def _commands() -> None:
    from textual.widgets import Log

    from niso.cli.top_screen import Output, TopScreen

    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
    screen = TopScreen()
    async with screen.run_test(size=(120, 40)) as pilot:

        async def said(key: str) -> str:
            """Press a key and return what is shown once its command has ended, or goes on."""
            await pilot.press(key)
            for _ in range(500):
                output = screen.screen
                is_there = isinstance(output, Output) and output.query_one(Log).line_count > 0
                if is_there and (key == "l" or output._process is None):
                    break
                await asyncio.sleep(0.02)
            await pilot.pause()
            return shown(screen.export_screenshot())

        screen.update_load(loads())
        await pilot.pause()
        await pilot.press("e")  # of no flow
        await pilot.pause()
        assert not isinstance(screen.screen, Output)
        text = await said("c")
        assert "niso net capture api  (exit status 3)" in text and "\nnet capture api" in text
        assert r"\x1b[2J    end" in text and "d denied" not in text
        await pilot.press("d", "escape")  # d has no effect
        assert not screen.only_denied and not isinstance(screen.screen, Output)
        assert "logs api -n 200 -f" in await said("l")
        logs = screen.screen
        assert isinstance(logs, Output) and logs._process is not None
        running = logs._process
        assert running.poll() is None
        await pilot.press("escape")
        await pilot.pause()
        assert running.poll() is not None and logs._process is None
        # the cursor is on a flow, then on a socket of the service that is shown
        await pilot.press("tab")
        text = await said("e")
        assert "net explain 10.99.1.9 10.99.1.9:5432/tcp" in text
        await pilot.press("escape")
        assert "net capture db 10.99.1.9:5432 --drops" in await said("c")
        await pilot.press("escape", "enter")
        screen.update_sockets("db", SOCKETS)
        await pilot.press("tab")
        assert "net capture db 10.99.1.9:5432\n" in await said("c")
        await pilot.press("escape")
        assert "logs db -n 200 -f" in await said("l")
        assert isinstance(screen.screen, Output) and screen.screen._process is not None
        running = screen.screen._process
        await pilot.press("ctrl+c")
    assert screen.signalled and running.poll() is not None
    assert failures == []


def test_screen_as_a_picture() -> None:
    """The picture is Textual's own, of the version that wrote it; others draw other outlines."""
    pytest.importorskip("textual")
    svg = asyncio.run(_picture())
    if os.environ.get("UPDATE") == "1":
        PICTURE.write_text(svg)
    golden = PICTURE.read_text()
    assert shown(svg) == shown(golden)
    assert colours(svg) == colours(golden)


async def _picture() -> str:
    from niso.cli.top_screen import TopScreen

    screen = TopScreen()
    async with screen.run_test(size=(110, 24)) as pilot:
        screen.update_load(loads())
        screen.update_load(loads())
        await pilot.pause()
        return re.sub(r"terminal-\d+", "terminal", screen.export_screenshot(title="niso top"))


def colours(svg: str) -> list[tuple[str, str]]:
    """Each text with its colour."""
    styles = dict(re.findall(r"\.(terminal-r\d+) \{ fill: ([^;} ]+)", svg))
    return [
        (html.unescape(text).replace("\xa0", " ").strip(), styles[name])
        for name, text in re.findall(r'<text class="(terminal-r\d+)"[^>]*>([^<]*)</text>', svg)
        if html.unescape(text).strip("\xa0 \n")
    ]


def test_of_many_services_those_in_view_are_written() -> None:
    pytest.importorskip("textual")
    asyncio.run(_many())


async def _many() -> None:
    from niso.cli.top_screen import RowTable, TopScreen

    first = loads().services[0]
    many = [first._replace(service=f"s{n:03}", received=1e3 * n) for n in range(1000)]
    load = loads()._replace(services=tuple(many))
    screen = TopScreen()
    async with screen.run_test(size=(120, 16)) as pilot:
        table = screen.query_one("#services", RowTable)
        made = 0
        cells = screen._cells

        def counted(one: ServiceLoad) -> object:
            nonlocal made
            made += 1
            return cells(one)

        screen._cells = counted  # type: ignore[method-assign, assignment]
        screen.update_load(load)
        await pilot.pause()
        assert 0 < made < 3 * 16 and len(table.keys) == 1000
        # what comes into view is made; the order changes under the cursor
        assert "s999" not in shown(screen.export_screenshot())
        await pilot.press("ctrl+end")
        await pilot.pause()
        assert re.search("s987.*s999", shown(screen.export_screenshot()), re.DOTALL)
        await pilot.press("pageup")
        assert table.key == "s987"
        await pilot.press("end", "s", "s", "s")
        await pilot.pause()
        assert table.key == "s999" and table.cursor == 0
        await pilot.press("down", "down", "up")
        await pilot.pause()
        assert table.key == "s998"
        assert "s999" in shown(screen.export_screenshot())


def shown(svg: str) -> str:
    """The text of a screenshot, line by line."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for words, text in re.findall(r"<text ([^>]*)>([^<]*)</text>", svg):
        place = {axis: float(re.search(rf'\b{axis}="([\d.]+)"', words)[1]) for axis in "xy"}  # type: ignore[index]
        lines.setdefault(place["y"], []).append((place["x"], html.unescape(text)))
    parts = ("".join(text for _, text in sorted(line)) for _, line in sorted(lines.items()))
    return "\n".join(parts).replace("\xa0", " ")


def test_traffic_of_each_minute_is_recorded_whether_or_not_a_page_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [SimpleNamespace(name=n, generation=1, networks=("back",)) for n in ("web.1", "web.2")]
    rows.append(SimpleNamespace(name="db", generation=1, networks=("back", "side")))
    store = SimpleNamespace(active_rows=lambda: rows)
    session = SimpleNamespace(store=lambda: store, listening=None, listen_no_more=lambda _: None)
    now, octets = 1000.0, 0
    monkeypatch.setattr(look_map.time, "monotonic", lambda: now)
    counted = lambda ends: {end: {"rx_bytes": octets, "tx_bytes": octets} for end in ends}  # noqa: E731
    monkeypatch.setattr(look_map.link_records, "of_links", counted)
    seen = look_map.Map(session)  # type: ignore[arg-type]
    for minute in range(70):
        octets, now = octets + 600, now + 60
        seen.glance()
        now += 2
        octets += 10**9  # is part of the next minute
        seen.glance()  # too early
        octets -= 10**9
        now -= 2
        # two interfaces of two instances, and of db, in both directions: 8 * 4 * 600 / 60
        assert [*seen._past["web"]] == [*seen._past["db"]] == [320] * min(minute, 60)
    rows.pop()
    now += 60
    seen.glance()
    assert set(seen._past) == {"web"}  # db was removed
