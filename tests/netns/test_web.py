"""Test niso web in Debian's Chromium, and what its two processes are and leave."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from chromium import Chromium, is_installed
from conftest import Lab, Process
from reference.results import MAP
from result_forms import conforms
from services import ask, echo, idle, on
from web_states import state_of

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

ADDRESS = re.compile(rb"(http://127\.0\.0\.1:(\d+)/)#token=([\w-]{32})\n")
NOBODY = "65534"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
CONFINED = """
import os, sys
from niso.web import page_server as confined
call = confined._prctl
confined._prctl = lambda option, value: call(option, int(sys.argv[1]) if option == 4 else value)
confined.confine()
os.write(1, b"confined\\n")
sys.stdin.read()
"""


class Web:
    """A niso web that serves."""

    def __init__(self, lab: Lab, *options: str, env: dict[str, str | None] | None = None) -> None:
        self.lab = lab
        self.process: Process = lab.popen("niso", "web", *options, env=env, inside=False)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = ADDRESS.fullmatch(line)
        assert found, (line, self.process.stderr and self.process.stderr.read())
        self.url, self.port, self.token = (part.decode() for part in found.groups())
        self.address = line.decode().strip()
        children = lab.run("cat", f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        # of --open, the browser is a second child
        self.server = int(children.stdout.split()[0])

    def curl(self, path: str, *options: str) -> str:
        words = ("-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "--path-as-is")
        return str(self.lab.run("curl", *words, *options, f"{self.url}{path}").stdout)

    def lives(self) -> bool:
        return self.lab.run("test", "-d", f"/proc/{self.server}", check=False).returncode == 0

    def said(self) -> str:
        assert self.process.stderr is not None
        return bytes(self.process.stderr.read()).decode()

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        self.lab.run("kill", f"-{number}", str(pid))


def listeners(lab: Lab) -> list[str]:
    return [line.split()[3] for line in lab.run("ss", "-Hltn").stdout.splitlines()]


def test_the_server_has_no_privileges_and_nothing_is_left(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    lab.niso("activate", idle(lab, "db", network=on("backend")))
    before = listeners(lab)
    web = Web(lab, "--port", "0")
    assert sorted(listeners(lab)) == sorted([*before, f"127.0.0.1:{web.port}"])
    of = f"/proc/{web.server}"
    status = dict(
        line.split(":\t", 1)
        for line in lab.run("cat", f"{of}/status").stdout.splitlines()
        if "\t" in line
    )
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {NOBODY}
    assert status["Groups"].strip() == "" and status["NoNewPrivs"] == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert lab.run("ls", "-A", f"{of}/root/").stdout == ""
    assert lab.run("touch", f"{of}/root/x", check=False).returncode != 0
    for kind in ("net", "mnt", "ipc", "uts"):
        own, parents = (
            lab.run("readlink", f"/proc/{p}/ns/{kind}").stdout
            for p in (web.server, web.process.pid)
        )
        assert own != parents, kind
    open_files = lab.run("sh", "-c", f"readlink {of}/fd/*").stdout.split()
    assert {re.sub(r"\W.*", "", name.lstrip("/")) for name in open_files} <= {
        *("socket", "pipe", "anon_inode", "dev")
    }
    assert not [name for name in open_files if "niso" in name]
    # what else nobody runs cannot look into it, and could without the last step
    assert lab.run(*AS_NOBODY, "cat", f"{of}/maps", check=False).returncode != 0
    for dumpable in (1, 0):
        confined = lab.popen(sys.executable, "-c", CONFINED, str(dumpable), stdin=subprocess.PIPE)
        assert confined.stdout is not None and confined.stdout.readline() == b"confined\n"
        looked = lab.run(*AS_NOBODY, "cat", f"/proc/{confined.pid}/maps", check=False)
        assert (looked.returncode == 0) == bool(dumpable), looked
        confined.kill()

    bearer = ("-H", f"Authorization: Bearer {web.token}")
    assert web.curl("api/state.json", *bearer) == web.curl("") == "200"
    assert web.curl("api/state.json") == "403"  # more: unit/test_page_server.py

    state = json.loads(lab.run("curl", "-sS", *bearer, f"{web.url}api/state.json").stdout)["state"]
    conforms(state, MAP.fields, "state")
    assert [service["service"] for service in state["services"]] == ["db"]

    # while no page is open, niso neither measures nor counts; a page gets a new state at once
    def is_counted() -> bool:
        return "niso_live_" in lab.run("nft", "list", "tables").stdout

    def spent() -> int:
        words = lab.run("cat", f"/proc/{web.process.pid}/stat").stdout.rpartition(")")[2].split()
        return int(words[11]) + int(words[12])

    lab.wait_for(lambda: not is_counted(), 30, "the end of counting")
    before_rest = spent()
    time.sleep(4)
    assert spent() - before_rest <= 1  # of 400 ticks
    again = json.loads(lab.run("curl", "-sS", *bearer, f"{web.url}api/state.json").stdout)["state"]
    lab.wait_for(is_counted, 30, "counting")
    assert again["at"] > state["at"]
    assert isinstance(again["services"][0]["past"], list)

    for wrong in (["--port", web.port], ["--socket", "/tmp"], ["--open", "--port", "0"]):
        done = lab.niso("web", *wrong, check=False)
        assert done.returncode in (1, 2) and "hint" in done.stderr, wrong

    # killed: the other one ends by itself
    web.kill(web.process.pid)
    lab.wait_for(lambda: not web.lives(), 10, "the end of the server")
    assert listeners(lab) == before
    web = Web(lab, "--port", web.port)
    web.kill(web.server)
    assert web.process.wait(10) == 1
    assert "signal SIGKILL" in web.said() and listeners(lab) == before

    path = "/run/web.sock"
    web = Web(lab, "--socket", os.path.relpath(path))
    assert web.process.stderr is not None
    assert b"Ctrl-C" in web.process.stderr.readline()
    assert b"ssh -L 9500:/run/web.sock root@" in web.process.stderr.readline()
    assert listeners(lab) == before
    assert lab.run("stat", "-c", "%a %u %F", path).stdout == "600 0 socket\n"
    assert web.curl("api/state.json", *bearer, "--unix-socket", path) == "403"  # an old token
    assert web.curl("", "--unix-socket", path) == "200"
    second = lab.niso("web", "--socket", path, check=False)
    assert second.returncode == 1 and "in use" in second.stderr
    web.kill(web.process.pid)
    lab.wait_for(lambda: not web.lives(), 10, "the end of the server")
    web = Web(lab, "--socket", path)  # in the place of the dead one
    web.process.send_signal(signal.SIGINT)
    assert web.process.wait(10) == 130 and not web.lives()
    assert "Traceback" not in web.said()
    assert lab.run("test", "-e", path, check=False).returncode == 1
    # the browser of who called sudo gets a file of its own, and nobody the token
    lab.write(
        "/tmp/bin/xdg-open", '#!/bin/sh\nstat -c "%a %u" "$1" | cat - "$1" > /tmp/opened\n', 0o755
    )
    lab.run("install", "-d", "-o", NOBODY, "/run/user/65534")
    sudo = {"SUDO_UID": NOBODY, "PATH": f"/tmp/bin:{lab.environment['PATH']}"}
    web = Web(lab, "--port", "0", "--open", env=sudo)
    opened = lab.wait_for(
        lambda: lab.run("cat", "/tmp/opened", check=False).stdout, 10, "the browser"
    )
    assert opened.startswith("600 65534\n") and web.address in opened
    assert web.token not in lab.run("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout
    web.process.send_signal(signal.SIGTERM)
    assert web.process.wait(10) == 130
    assert lab.run("ls", "/run/user/65534").stdout == ""

    web = Web(lab, "--port", "0", "--for", "1s")
    assert web.process.wait(10) == 0 and not web.lives()
    assert listeners(lab) == before
    assert lab.run("sh", "-c", "ls -d /run/niso-web-* 2>/dev/null", check=False).stdout == ""


SERVE = """
import os, socket, sys
sys.path[:0] = [sys.argv[1]]
from niso.web import page_server
listener = socket.create_server(("127.0.0.1", 9400))
ours, theirs = os.pipe()
if os.fork() == 0:
    os.close(theirs)
    page_server.serve(listener, ours, 2, "other")
    os._exit(0)
os.close(ours)
for line in sys.stdin.buffer:
    os.write(theirs, line)
"""

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</title><script>alert(1)</script>",
    "javascript:alert(1)",
    "\\u202ereversed",
    "' onfocus='alert(1)",
    "{{constructor.constructor('alert(1)')()}}",
    "s g d o | \\0 a b",
    "x" * 300,
]


@pytest.mark.skipif(not is_installed(), reason="chromium-headless-shell is not installed")
def test_the_page_in_chromium(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    db = echo(
        lab,
        "db",
        network=on("backend", ports=["8080:80"]),
        healthcheck={"tcp": 80, "interval": "1s"},
        **{"network.policy": {"allow_from": ["api:80/tcp", "192.0.2.0/24"]}},
    )
    lab.niso(
        "activate",
        db,
        idle(lab, "api", network=on("backend")),
        idle(lab, "guest", network=on("backend")),
    )
    assert ask(lab, "10.99.1.2", 80, "niso-guest") == ""
    assert ask(lab, "10.99.1.2", 80, "niso-api") and ask(lab, "192.0.2.1", 8080, "client")
    web = Web(lab)
    browser = Chromium(lab, "'--host-resolver-rules=MAP evil.example 127.0.0.1'")
    own = re.compile(rf"http://127\.0\.0\.1:{web.port}/|data:|about:")

    # without the token there is nothing to see
    browser.open(web.url)
    browser.wait("document.getElementById('notice').innerText.includes('Open the one')")
    assert browser.ask("document.querySelectorAll('.node').length") == 0
    # with it, without a reload; and it is in the address no more
    browser.open(web.address)
    browser.wait("document.querySelectorAll('.node.service').length === 3")
    assert browser.ask("location.href") == web.url and browser.ask("document.cookie") == ""
    assert browser.ask("document.getElementById('live').innerText") == "live"
    side = browser.wait("document.querySelector('.card').innerText")
    assert "guest → db:80/tcp" in side
    assert 'allow_from = ["api:80/tcp", "192.0.2.0/24", "guest:80/tcp"]' in side
    assert browser.ask("document.querySelectorAll('.edge.drop').length") == 1
    ends = browser.ask("[...document.querySelectorAll('.node')].map(n => n.dataset.key).sort()")
    assert ends == ["d *:8080", "o client 192.0.2.2", "s api", "s db", "s guest"]

    # by keyboard alone: find, choose, move, unchoose, the table
    browser.press("/")
    for letter in "gues":
        browser.press(letter)
    assert browser.ask("document.activeElement.id") == "find"
    dim = "[...document.querySelectorAll('.node.dim')].map(n => n.dataset.key).sort()"
    assert browser.ask(dim) == ["d *:8080", "o client 192.0.2.2", "s api"]
    browser.press("Escape")
    assert browser.ask(dim) == []
    browser.ask("document.querySelector('[data-key=\"s guest\"] .box').focus()")
    browser.press("ArrowRight")
    chosen = browser.ask("document.activeElement.closest('.node').dataset.key")
    assert chosen == "s db"
    browser.press("Enter")
    assert browser.wait("document.querySelector('#side h2').innerText") == chosen[2:]
    side = browser.ask("document.querySelector('#side').innerText")
    assert re.search(r"processor\s+[\d.]+ % of one\s+memory\s+[\d.]+ MiB", side), side
    assert browser.ask("document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.press("Escape")
    assert "Not allowed" in browser.ask("document.querySelector('#side h2').innerText")
    browser.press("d")
    browser.wait("document.querySelectorAll('.edge:not(.idle)').length === 1")
    browser.press("d")
    browser.press("t")
    rows = browser.wait(
        "[...document.querySelectorAll('#tables table:first-of-type tbody tr')].map(r => r.innerText)"
    )
    assert len(rows) == 3 and sum("denied" in row and "guest" in row for row in rows) == 1
    unnamed = browser.ask(
        "[...document.querySelectorAll('button, input, select, [role=button]')].filter(e =>"
        " !(e.ariaLabel || e.innerText || e.textContent).trim()).length"
    )
    assert unnamed == 0
    browser.press("m")

    # dark and printed
    light = browser.ask("getComputedStyle(document.body).backgroundColor")
    moves = "getComputedStyle(document.querySelector('.node')).transitionDuration"
    assert browser.ask(moves) != "0s"
    browser.prefer(prefers_reduced_motion="reduce")
    assert browser.ask(moves) == "0s"
    browser.prefer(prefers_color_scheme="dark")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") != light
    browser.prefer("print")
    assert browser.ask("getComputedStyle(document.getElementById('tables')).display") == "block"
    assert browser.ask("getComputedStyle(document.querySelector('.zoom')).display") == "none"
    assert browser.ask("getComputedStyle(document.getElementById('map')).display") == "block"
    browser.prefer()

    # what it looks with is killed: the page says so and keeps what it has; then a new one
    web.kill(web.process.pid)
    browser.wait("document.getElementById('notice').innerText.includes('has ended')")
    assert browser.ask("document.querySelectorAll('.node.service').length") == 3
    assert browser.ask("document.getElementById('live').className") == "bad"
    lab.wait_for(lambda: not web.lives(), 10, "the end of the server")
    web = Web(lab)
    browser.wait("document.getElementById('notice').innerText.includes('Open the one')")
    browser.open(web.address)
    browser.wait("document.getElementById('live').innerText === 'live'")
    assert [address for address in browser.requests if not own.match(address)] == []

    # another site, and a name that was changed to this address (DNS rebinding)
    browser.open("about:blank")
    state = f"{web.url}api/state.json"
    for options in ("{mode: 'no-cors'}", f"{{headers: {{Authorization: 'Bearer {web.token}'}}}}"):
        outcome = browser.ask(
            f"fetch('{state}', {options}).then(r => r.type + r.status, e => 'refused')"
        )
        assert outcome in ("opaque0", "refused")
    assert browser.statuses.get(state, 403) == 403
    browser.open(f"http://evil.example:{web.port}/")
    browser.wait("document.body.innerText.includes('localhost alone')")
    web.process.send_signal(signal.SIGINT)

    # hostile names as text, and 200 services
    source = page_server_source()
    made = lab.popen(sys.executable, "-c", SERVE, source, stdin=-1)
    assert made.stdin is not None and made.stderr is not None
    made.stdin.write(json.dumps({"state": state_of(HOSTILE, HOSTILE[:3])}).encode() + b"\n")
    assert made.stderr.readline() == b"serving\n"
    browser.logged.clear()
    browser.open("http://127.0.0.1:9400/#token=other")
    browser.wait(f"document.querySelectorAll('.node.service').length === {len(HOSTILE)}")
    for view in ("t", "m"):
        browser.press(view)
    for name in HOSTILE:
        assert browser.ask(
            f"document.getElementById('tables').textContent.includes({json.dumps(name)})"
        ), name
    assert (
        browser.ask(
            "document.querySelectorAll('img, script:not([type=module]), [onerror], [onfocus]').length"
        )
        == 0
    )
    for i in range(len(HOSTILE)):
        browser.ask(
            f"document.querySelectorAll('.node')[{i}].dispatchEvent(new MouseEvent('click', {{bubbles: true}}))"
        )
    many = [f"service-{i}" for i in range(200)]
    line = json.dumps({"state": state_of(many, ["a", "b"])}).encode() + b"\n"
    made.stdin.write(line)
    browser.wait("document.querySelectorAll('.node.fold').length > 0")
    assert browser.ask("document.querySelectorAll('.node').length") <= 60
    on_a_phone(browser)
    browser.press("/")
    for letter in "service-19":
        browser.press(letter)
    browser.wait("document.querySelectorAll('.node.service').length === 11")  # 19 and 190 to 199
    browser.ask("document.activeElement.blur()")
    browser.press("Escape")
    folded = browser.wait("document.querySelectorAll('.node.fold').length")
    browser.ask(
        "document.querySelector('.node.fold').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    browser.wait(f"document.querySelectorAll('.node.fold').length < {folded}")
    # nothing was stopped by the page's policy, which does stop what is put in
    assert [text for text in browser.logged if "favicon" not in text] == []
    assert (
        browser.ask(
            "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'parsed' } catch (e) { return e.name } })()"
        )
        == "TypeError"
    )
    browser.ask(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'http://evil.example:9/x'}))"
    )
    browser.wait_logged("violates the following Content Security Policy directive")
    browser.close()
    made.kill()


def on_a_phone(browser: Chromium) -> None:
    """Names can be read, nothing is wider than the window, and fingers move and zoom the map."""

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        browser.call("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=fingers)

    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **phone)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.press("t")
    assert browser.ask("getComputedStyle(document.getElementById('map')).display") == "none"
    browser.press("m")
    browser.ask("document.getElementById('arrange').click()")
    browser.wait("document.querySelector('.node .name').getBoundingClientRect().height > 8")
    assert browser.ask("document.documentElement.scrollWidth") == 390
    box = "document.getElementById('picture').getAttribute('viewBox').split(' ').map(Number)"
    seen = (
        "[...document.querySelectorAll('{}')].map(n => n.getBoundingClientRect())"
        ".map(r => [r.x + r.width / 2, r.y + r.height / 2])"
        ".find(([x, y]) => document.elementFromPoint(x, y)?.closest('.node'))"
    )
    x, y, width, _ = browser.ask(box)
    nodes = browser.ask("document.querySelectorAll('.node').length")
    at = browser.ask(seen.format(".node"))
    touch("Start", at)
    for part in (1, 2):
        touch("Move", (at[0] + 40 * part, at[1] + 15 * part))
    touch("End")
    moved = browser.ask(box)
    assert moved[0] < x - 60 and moved[1] < y - 20 and moved[2] == width, (x, y, moved)
    assert browser.ask("document.querySelectorAll('.node').length") == nodes  # none unfolded
    touch("Start", (150, 400))
    touch("Start", (150, 400), (250, 400))
    for right in (220, 190):
        touch("Move", (150, 400), (right, 400))
    touch("End")
    assert browser.ask(box)[2] > 1.5 * width
    browser.press("0")
    touch("Start", browser.ask(seen.format(".node.fold")))
    touch("End")
    browser.wait(f"document.querySelectorAll('.node').length > {nodes}")  # a tap unfolds
    browser.press("Escape")
    browser.wait(f"document.querySelectorAll('.node').length === {nodes}")
    browser.call("Emulation.setTouchEmulationEnabled", enabled=False)
    browser.call("Emulation.clearDeviceMetricsOverride")


def page_server_source() -> str:
    from pathlib import Path

    return str(Path(__file__).resolve().parents[2] / "src")
