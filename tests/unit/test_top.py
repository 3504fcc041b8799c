"""Test niso top: rates between two looks, the cells of tables, and the screen by Textual's pilot."""

from __future__ import annotations

import asyncio
import html
import os
import pathlib
import re

import pytest
from policy_worlds import HOST, OUTSIDE, known, network, policy, world

from niso.api import top_views
from niso.api.service_views import ServiceLine
from niso.api.top_views import FlowLoad, Load, Look, ServiceLoad
from niso.cli import top
from niso.explain.drops import Stats
from niso.kernel.sensor import Recorded
from niso.see import seen

PICTURE = pathlib.Path(__file__).parents[1] / "golden" / "top.svg"
DB, API = "10.99.1.2", "10.99.1.3"
WORLD = world(
    [known("db", {"back": [DB]}, policy(["api:80"])), known("api", {"back": [API]})],
    [network("back", "10.99.1.0/24")],
    [HOST],
)


def row(source: str, to: str, packets: int) -> Recorded:
    return Recorded(source, to, "tcp", 80, packets, 60, 1.0)


def look(at: float, memory: seen.Memory, *stats: Stats) -> Look:
    lines = tuple(
        ServiceLine(name, "running", None, "bridge", (), (), 1.0, None, None, None)
        for name in ("api", "db", "side")
    )
    networks = {"api": ("back",), "db": ("back",), "side": ()}
    return Look(at, lines, networks, {s.service: s for s in stats}, top_views.counts(memory))


def test_rates_between_two_looks() -> None:
    before = look(
        10.0,
        seen.Memory((row(API, DB, 5), row(HOST, DB, 9)), (row(OUTSIDE, DB, 50),), ()),
        Stats("db", 1, 1000, 3, 1, 500, 0, 0, None, None),
    )
    now = look(
        12.0,
        seen.Memory((row(API, DB, 11), row(HOST, DB, 9)), (row(OUTSIDE, DB, 4),), ()),
        Stats("db", 9, 3000, 7, 9, 100, 0, 0, None, None),  # sent: a new interface
        Stats("api", 9, 900, None, 9, 900, None, 0, None, None),  # was not there before
    )
    load = top_views.between(WORLD, before, now)
    assert load.seconds == 2.0
    assert load.services == (
        ServiceLoad("api", "running", None, ("back",), 0.0, 0.0, 3.0, None, None),
        ServiceLoad("db", "running", None, ("back",), 8000.0, 400.0, 5.0, 7, 0),
        ServiceLoad("side", "running", None, (), None, None, None, None, None),
    )
    assert [(f.from_.name, f.to.name, f.port, f.verdict, f.new) for f in load.flows] == [
        ("api", "db", 80, "pass", 3.0),
        (OUTSIDE, "db", 80, "drop", 2.0),  # forgotten, and counted from 0 again
    ]
    moved = {(API, DB, "tcp", 80): 250, (HOST, DB, "tcp", 80): 500, (DB, API, "tcp", 9): 999}
    counted = top_views.between(WORLD, before, now, moved)
    assert [top.flow_cells(f) for f in counted.flows] == [
        ("api", "db:80/tcp", "1.0 kb/s", "3.0", "pass"),
        (OUTSIDE, "db:80/tcp", "0 b/s", "2.0", "drop"),
        ("host", "db:80/tcp", "2.0 kb/s", "0.0", "pass"),  # has begun before
    ]
    assert [top.cells(each) for each in load.services] == [
        ("api", "running", "0 b/s", "0 b/s", "3.0", "-", "-", "back"),
        ("db", "running", "8.0 kb/s", "400 b/s", "5.0", "7", "0", "back"),
        ("side", "running", "-", "-", "-", "-", "-", "-"),
    ]
    assert top.summary(load) == [
        ("3 of 3 up", ""),
        ("3.0 new/s", ""),
        ("2.0 refused/s", "bad"),
        ("8.0 kb/s", ""),
    ]


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
    assert top.rate(bits) == text


def end(name: str) -> top_views.FlowEnd:
    return top_views.FlowEnd(name, name, "10.99.1.9")


def loads() -> Load:
    return Load(
        2.0,
        (
            ServiceLoad("api", "running", "healthy", ("edge", "back"), 4e5, 7e5, 12.9, 0, 0),
            ServiceLoad("db", "running", "unhealthy", ("back",), 9e5, 2e5, 2.2, 44, 0),
            ServiceLoad("job", "inactive", None, (), None, None, None, None, None),
        ),
        (
            FlowLoad(end("api"), end("db"), 5432, "tcp", "pass", 2.0),
            FlowLoad(end("bad"), end("db"), 5432, "tcp", "drop", 1.5),
            FlowLoad(end("api"), end("web"), 80, "tcp", "pass", 0.5),
        ),
    )


def test_screen() -> None:
    pytest.importorskip("textual")
    asyncio.run(_on_the_screen())


async def _on_the_screen() -> None:
    from niso.cli.top_screen import Rows, TopScreen

    screen = TopScreen()
    async with screen.run_test(size=(120, 16)) as pilot:

        def rows() -> list[str]:
            """The first cells of the table that is shown."""
            (table,) = (each for each in screen.query(Rows) if each.display)
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
        assert re.search(r"db +unhealthy +900 kb/s +200 kb/s +███ +2\.2 +44 +0 +back", picture), (
            picture
        )
        assert "api      healthy" in picture and "find" in picture and "quit" in picture
        assert await press("d") == ["db"]
        assert "only denied" in shown(screen.export_screenshot())
        assert await press("d", "s") == ["api", "db", "job"]
        assert await press("s", "s") == ["db", "api", "job"]
        assert await press("s") == ["api", "db", "job"]
        # the cursor is on db since it was alone, and stays there when the order changes
        screen.update_load(loads()._replace(services=loads().services[::-1]))
        assert await press("enter") == ["bad", "api"]
        assert "db: flows" in shown(screen.export_screenshot())
        assert await press("d") == ["bad"]
        assert await press("d", "escape") == ["job", "db", "api"]
        assert await press("slash", "a", "p") == ["api"]
        assert await press("enter", "enter") == ["api", "api"]  # its two flows
        assert await press("escape") == ["job", "db", "api"]
        # there is room: flows of all below, which Tab reaches, and Enter there shows the service's
        await pilot.resize_terminal(120, 30)
        await pilot.pause()
        services, flows = screen.query_one("#services", Rows), screen.query_one("#flows", Rows)
        assert services.display and flows.display and services.has_focus
        screen.update_load(loads()._replace(flows=loads().flows[:1]))
        await pilot.pause()
        assert [flows._cells(key)[0][0] for key in flows.keys] == ["bad", "api", "api"]
        assert re.search(
            r"bad +db:5432/tcp +drop +- +[▁█]+ +0\.0", shown(screen.export_screenshot())
        )
        await pilot.press("tab", "home", "down", "enter")
        await pilot.pause()
        assert screen.chosen == "db" and flows.has_focus and not services.display
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
    async with screen.run_test(size=(110, 9)) as pilot:
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
    from niso.cli.top_screen import Rows, TopScreen

    first = loads().services[0]
    many = [first._replace(service=f"s{n:03}", received=1e3 * n) for n in range(1000)]
    load = loads()._replace(services=tuple(many))
    screen = TopScreen()
    async with screen.run_test(size=(120, 16)) as pilot:
        table = screen.query_one("#services", Rows)
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
        await pilot.press("end", "s")
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
