"""Draw the Mermaid text of niso net graph in Chromium, with Mermaid from the lock file of tests/browser.

It needs npm, the registry and Chromium, so it is part of ``./dev test-long`` alone.
"""

from __future__ import annotations

import html
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from policy_worlds import known, network, policy, world

from niso.kernel.flow_memory import Recorded
from niso.look import flows as look_flows
from niso.look import graph

LOCKED = Path(__file__).resolve().parents[1] / "browser"
PAGE = """<!DOCTYPE html><meta charset="utf-8"><pre id="text">{text}</pre><div id="out"></div>
<script src="node_modules/mermaid/dist/mermaid.min.js"></script><script>
mermaid.initialize({{startOnLoad: false, securityLevel: "strict"}});
mermaid.render("picture", document.getElementById("text").textContent)
  .then(r => {{ document.getElementById("out").innerHTML = r.svg; document.title = "drawn"; }})
  .catch(e => {{ document.title = "failed: " + e; }});
</script>
"""
NAMES = ['x"]; click n_a "javascript:alert(1)"', "<b>bold</b>", "end", "plain-name", "%%{init}%%"]


@pytest.mark.skipif(os.environ.get("NISO_TEST_LONG") != "1", reason="part of ./dev test-long")
def test_browser_draws_each_name_as_text(tmp_path: Path) -> None:
    chromium = shutil.which("chromium-headless-shell")
    if not (chromium and shutil.which("npm")):
        pytest.skip("npm or chromium-headless-shell is not installed")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LOCKED / name, tmp_path)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit"], cwd=tmp_path, check=True)
    services = [known(name, {"back": [f"10.99.1.{i + 2}"]}) for i, name in enumerate(NAMES)]
    services[1] = services[1]._replace(policy=policy([]), audits=True)
    there = world(services, [network("back", "10.99.1.0/24")], ["192.0.2.1"])
    rows = tuple(Recorded("10.99.1.2", f"10.99.1.{i}", "tcp", 80, 1, 60, 1.0) for i in (3, 4, 5, 6))
    flows = look_flows.joined(there, look_flows.Memory(rows[:3], rows[3:], {}))
    text = graph.mermaid(graph.of_traffic(there, flows, None))
    assert ":80 would be denied" in text and ":80 denied" in text
    (tmp_path / "page.html").write_text(PAGE.format(text=html.escape(text)))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
    options += ("--virtual-time-budget=20000", "--dump-dom")
    done = subprocess.run(
        [chromium, *options, f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/page.html"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    drawn = done.stdout.partition('<div id="out">')[2]
    assert "<title>drawn</title>" in done.stdout, (done.stdout[-2000:], done.stderr[-2000:])
    for name in NAMES:
        assert html.escape(name, quote=False) in drawn, (name, drawn[:4000])
    assert "<b>" not in drawn and "javascript:" not in drawn.replace(
        html.escape(NAMES[0], quote=False), ""
    )
    assert drawn.count("marker-end") >= len(rows)
