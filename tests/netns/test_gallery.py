"""Verify the claims in the READMEs of examples/; test_docs.py runs the commands they show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import Lab
from services import CLIENT, HOST, NEIGHBOUR

TIMED_OUT = 28
"""The exit status of curl where there is no connection in time."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def copied(lab: Lab, name: str) -> Path:
    """Copy an example into the lab's /tmp; return its path out here."""
    return Path(shutil.copytree(EXAMPLES / name, lab.path(f"/tmp/{name}"), symlinks=True))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file} has no {old}"
    file.write_text(text.replace(old, new))


def queued(lab: Lab, job: str) -> None:
    lab.run("curl", "-sSf", "--max-time", "5", "-d", job, "http://127.0.0.1:8090/jobs")


def is_done(lab: Lab, job: str) -> bool:
    return f"done: '{job}' " in lab.niso("logs", "worker").stdout


def test_nginx_has_no_privileges_and_ends_at_term(lab: Lab) -> None:
    site = copied(lab, "static-site")
    replace(site / "manifest.toml", "[network]", '[service]\nstop_timeout = "10m"\n\n[network]')
    lab.niso("activate", "./static-site")
    status = lab.niso(
        "exec", "site", "--", "sh", "-c", 'cat /proc/"$(cat /tmp/nginx.pid)"/status'
    ).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0 and "0" not in fields["Uid"].split()
    lab.niso("deactivate", "site")  # takes longer than the limit of a test if TERM is ignored


def test_a_venv_does_not_need_the_folder_that_it_was_made_in(lab: Lab) -> None:
    app = copied(lab, "uvicorn")
    lab.niso("activate", "./uvicorn")
    shutil.rmtree(app)
    lab.niso("restart", "app")
    url = f"http://{HOST}:8000/"
    lab.wait_for(lambda: lab.client("curl", "-sSf", url, check=False).returncode == 0)
    assert json.loads(lab.client("curl", "-sSf", url).stdout) == {
        "client": CLIENT,
        "prefix": "/app/venv",
    }


def test_the_worker_goes_on_when_the_queue_comes_back(lab: Lab) -> None:
    copied(lab, "worker")
    lab.niso("stack", "up", "./worker")
    lab.niso("restart", "queue")
    lab.wait_for(
        lambda: (
            lab.run(
                "curl", "-sf", "-d", "one", "http://127.0.0.1:8090/jobs", check=False
            ).returncode
            == 0
        )
    )
    lab.wait_for(lambda: is_done(lab, "one"))


def test_the_worker_reaches_its_queue_and_nobody_else(lab: Lab) -> None:
    copied(lab, "worker")
    server = ("python3", "-m", "http.server", "80")
    servers = [lab.popen(*server, cwd="/run", netns=netns) for netns in ("neighbour", None)]
    lab.niso("stack", "up", "./worker")

    def reach(service: str, host: str) -> int:
        curl = ("curl", "-s", "-o", "/dev/null", "--connect-timeout", "1", f"http://{host}/")
        return int(lab.niso("exec", service, "--", *curl, check=False).returncode)

    for host in (NEIGHBOUR, HOST):
        lab.wait_for(lambda host=host: reach("queue", host) == 0)  # type: ignore[misc]
        assert reach("worker", host) == TIMED_OUT
    queued(lab, "two")
    lab.wait_for(lambda: is_done(lab, "two"))
    for process in servers:
        process.kill()
