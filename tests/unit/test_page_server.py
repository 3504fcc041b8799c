"""Test what niso web answers to which request, without a socket, and what its page is made of."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from itertools import pairwise

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from niso.web import page_server
from niso.web.page_server import PAGE, States

TOKEN = "secret-token"
STATE = b'{"state": {"services": []}}\n'


async def get(
    states: States, path: str, method: str = "GET", most: int = 1, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """The answer to one request; of a stream its first ``most`` blocks."""
    app = page_server.application(states, TOKEN, page_server.files())
    given = {"host": "127.0.0.1:9500"} | {k.replace("_", "-"): v for k, v in headers.items()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(k.encode(), v.encode()) for k, v in given.items() if v],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 9500),
    }
    sent: list[dict[str, object]] = []
    gone = asyncio.Event()
    asked = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, object]:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if sum(m["type"] == "http.response.body" for m in sent) >= most:
            gone.set()

    await asyncio.wait_for(app(scope, receive, send), 60)
    start, *rest = sent
    answered = {k.decode(): v.decode() for k, v in start["headers"]}
    return int(start["status"]), answered, b"".join(m["body"] for m in rest)


BEARER = f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/", "GET", {}, 200),
        ("/app.js", "GET", {"sec_fetch_site": "same-origin"}, 200),
        ("/", "GET", {"host": "localhost:1"}, 200),
        ("/", "GET", {"host": "[::1]:9500"}, 200),
        ("/", "GET", {"host": "localhost"}, 200),
        # a page of another name whose address was changed to this machine's
        ("/", "GET", {"host": "evil.example"}, 421),
        ("/", "GET", {"host": "127.0.0.1.evil.example:9500"}, 421),
        ("/", "GET", {"host": "evil.example:127.0.0.1"}, 421),
        ("/", "GET", {"host": "127.0.0.1:x"}, 421),
        ("/", "GET", {"host": ""}, 421),
        ("/api/state.json", "GET", {"host": "evil.example", "authorization": BEARER}, 421),
        # a page of another site
        ("/", "GET", {"sec_fetch_site": "cross-site"}, 403),
        ("/app.js", "GET", {"sec_fetch_site": "same-site"}, 403),
        ("/api/state.json", "GET", {"sec_fetch_site": "cross-site", "authorization": BEARER}, 403),
        ("/api/state.json", "OPTIONS", {"authorization": BEARER}, 405),
        # a link to the page is followed, in a frame it is not
        (
            "/",
            "GET",
            {
                "sec_fetch_site": "cross-site",
                "sec_fetch_mode": "navigate",
                "sec_fetch_dest": "document",
            },
            200,
        ),
        (
            "/",
            "GET",
            {
                "sec_fetch_site": "cross-site",
                "sec_fetch_mode": "navigate",
                "sec_fetch_dest": "iframe",
            },
            403,
        ),
        (
            "/api/state.json",
            "GET",
            {
                "sec_fetch_site": "cross-site",
                "sec_fetch_mode": "navigate",
                "sec_fetch_dest": "document",
            },
            403,
        ),
        # the token
        ("/api/state.json", "GET", {}, 403),
        ("/api/states.jsonl", "GET", {}, 403),
        ("/api/state.json", "GET", {"authorization": "Bearer secret-toke"}, 403),
        ("/api/state.json", "GET", {"authorization": "Bearer ü"}, 403),
        ("/api/state.json", "GET", {"authorization": TOKEN}, 403),
        ("/api/state.json", "GET", {"cookie": f"token={TOKEN}"}, 403),
        ("/api/state.json", "GET", {"authorization": BEARER}, 200),
        # nothing else
        *[("/", method, {}, 405) for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS")],
        *[
            (path, "GET", {"authorization": BEARER}, 404)
            for path in ("/..", "/../server.py", "/page_server.py", "//etc/passwd", "/api", "/x")
        ],
    ],
)
def test_answers(path, method, headers, status) -> None:
    states = States()
    states.put(STATE)
    found, answered, body = asyncio.run(get(states, path, method, **headers))
    assert found == status
    assert {name.lower(): value for name, value in page_server.HEADERS.items()}.items() <= (
        answered.items()
    )
    assert not {name for name in answered if name.startswith(("access-control", "set-cookie"))}
    if status != 200:
        assert TOKEN.encode() not in body and b"services" not in body
    elif path == "/api/state.json":
        assert body == STATE


def test_streams_have_the_last_state_and_an_end_and_are_few(monkeypatch) -> None:
    monkeypatch.setattr(page_server, "_PATIENCE_S", 0.01)  # for the first state

    async def run() -> None:
        states = States()
        assert (await get(states, "/api/state.json", authorization=BEARER))[0] == 503
        for number in range(5):
            states.put(b"%d\n" % number)
        readers = [
            asyncio.create_task(get(states, "/api/states.jsonl", most=9, authorization=BEARER))
            for _ in range(page_server.MOST_STREAMS)
        ]
        async with asyncio.timeout(10):
            while states.streams < len(readers):
                await asyncio.sleep(0)
        assert (await get(states, "/api/states.jsonl", authorization=BEARER))[0] == 503
        for _ in range(20):
            await asyncio.sleep(0)
        states.put(b"5\n")
        states.put(b"6\n")  # nobody has read 5 yet
        for _ in range(20):
            await asyncio.sleep(0)
        states.end()
        for status, _, body in await asyncio.gather(*readers):
            assert status == 200 and body == b"4\n6\n" + page_server.ENDED
        assert states.streams == 0

    asyncio.run(run())


def test_a_connection_that_asks_nothing_is_ended_and_a_stream_is_not(monkeypatch) -> None:
    """Otherwise 32 of them, of any user of the host, keep everybody from the page."""
    monkeypatch.setattr(page_server, "_IDLE_S", 1.0)

    async def run() -> None:
        (pipe, feed), (said, status) = os.pipe(), os.pipe()
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(
            page_server._serve(listener, pipe, status, TOKEN, page_server.files())
        )
        ends = listener.getsockname()
        try:
            os.write(feed, STATE)
            ask = f"GET /api/states.jsonl HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            quiet, slow, stream = [await asyncio.open_connection(*ends) for _ in range(3)]
            slow[1].write(ask.encode())
            stream[1].write(f"{ask}\r\n".encode())
            assert await asyncio.wait_for(quiet[0].read(), 60) == b""
            assert await asyncio.wait_for(slow[0].read(), 60) == b""
            await asyncio.wait_for(stream[0].readuntil(STATE), 60)
            await asyncio.sleep(2.5)  # more than twice the limit
            os.write(feed, b'{"state": 2}\n')
            await asyncio.wait_for(stream[0].readuntil(b'{"state": 2}\n'), 60)
        finally:
            os.close(feed)
            await asyncio.wait_for(serving, 60)
        for fd in (pipe, said, status):
            os.close(fd)

    asyncio.run(run())


def test_the_page_asks_nobody_else_and_parses_no_text() -> None:
    for path, (body, _) in page_server.files().items():
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.[a-z]", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"<[^>]+ (style|on\w+)=", text), f"{path}: the page's policy stops it"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_places_of_many_services_are_apart_and_the_same_each_time() -> None:
    """Boxes overlap nowhere, services are within the frames of their networks, 500 take no time."""
    program = """
    import { layout } from "./layout.js";
    import { mapOf } from "./model.js";
    import { routes } from "./routes.js";
    const service = (name, networks, ports = []) => ({ service: name, networks, ports, stack: null, shares: null,
      status: "running", health: null, policy: null });
    const end = (name, kind = "service") => ({ name, kind });
    const flow = (from, to) => ({ from, to, port: 80, proto: "tcp", verdict: "pass", published: null, rate: 0, open: 0, new: 1, ago: 1 });
    const out = [];
    for (const size of [0, 1, 7, 50, 500]) {
      const nets = ["a", "b", "c", "d"];
      const services = Array.from({ length: size }, (_, i) => service(`s${i}`,
        i % 5 ? [nets[i % 4]] : [nets[i % 4], nets[(i + 1) % 4]],
        i % 9 ? [] : [{ host_ip: "0.0.0.0", host_port: 8000 + i, container_port: 80, proto: "tcp" }]));
      const flows = services.flatMap((s, i) => i % 3 ? [flow(end(s.service), end(`s${(i * 7) % size}`))] : [flow(end("192.0.2.9", "outside"), end(s.service))]);
      const state = { services, networks: nets.map((network) => ({ network, subnets: [], internal: false })), flows };
      const unfolded = new Set(services.map((s) => `g  ${s.networks.join(" ")}`));
      const map = mapOf(state, flows, { unfolded });
      const once = layout(map);
      if (JSON.stringify([...once.at]) !== JSON.stringify([...layout(map).at])) throw new Error("not the same");
      if (routes(map.edges, once.at).size !== map.edges.length) throw new Error("edges");
      // shown as large in a high window as the map of a wide one, or larger
      const [wide, high] = [{ width: 1400, height: 500 }, { width: 500, height: 1000 }].map((shape) => layout(map, shape).box);
      const scale = (box) => Math.min(500 / box.width, 1000 / box.height);
      if (scale(high) < scale(wide) || (size === 50 && scale(high) < 1.2 * scale(wide))) throw new Error(`${scale(high)} ${scale(wide)}`);
      out.push({ at: [...once.at], frames: once.frames, nodes: map.nodes, folded: mapOf(state, flows).nodes.length });
    }
    // two lines between the same two services do not cross
    const pair = ["a", "b"].map((name) => service(name, ["n"]));
    const both = mapOf({ services: pair, networks: [] }, [flow(end("a"), end("b")), flow(end("b"), end("a"))]);
    const [to, back] = [...routes(both.edges, layout(both).at).values()].map((line) => [Number(line.path.match(/[0-9.]+/g)[1]), line.end.y]);
    if ((to[0] - back[1]) * (to[1] - back[0]) <= 0) throw new Error(`${to} cross ${back}`);
    console.log(JSON.stringify(out));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", program],
        cwd=PAGE,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for result in json.loads(done.stdout):
        boxes = dict(result["at"])
        assert len(boxes) == len(result["nodes"])
        placed = sorted(boxes.values(), key=lambda box: (box["x"], box["y"]))
        for one, two in pairwise(placed):
            apart = one["x"] + one["width"] <= two["x"] or one["y"] + one["height"] <= two["y"]
            assert apart, (one, two)
        frames = {frame["network"]: frame for frame in result["frames"]}
        for node in result["nodes"]:
            around = [
                frame
                for frame in frames.values()
                if frame["x"] < boxes[node["id"]]["x"] < frame["x"] + frame["width"]
                and frame["y"] < boxes[node["id"]]["y"] < frame["y"] + frame["height"]
            ]
            names = {frame["network"] for frame in around}
            assert names <= set(node["networks"]), node["id"]
            assert names or not node["networks"]
        assert result["folded"] <= 60 + 60
