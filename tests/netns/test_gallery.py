"""Verify the claims in the READMEs of examples/; test_docs.py runs the commands they show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import Lab
from services import CLIENT, HOST, NEIGHBOUR, ps

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


def test_changed_pages_of_the_static_site_are_shown_after_the_next_activate(lab: Lab) -> None:
    site = copied(lab, "static-site")
    lab.niso("activate", "./static-site")
    (site / "html" / "new.html").write_text("new\n")
    url = f"http://{HOST}:8080/new.html"
    assert lab.client("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url).stdout == "404"
    lab.niso("activate", "./static-site")
    assert lab.client("curl", "-sSf", url).stdout == "new\n"


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


def test_a_script_of_a_venv_does_not_start_and_leaves_nothing(lab: Lab) -> None:
    app = copied(lab, "uvicorn")
    replace(app / "manifest.toml", '"venv/bin/python"', '"venv/bin/uvicorn"')
    replace(app / "manifest.toml", '"-m", "uvicorn", ', "")
    done = lab.niso("activate", "./uvicorn", check=False)
    assert done.returncode == 1
    assert json.loads(lab.niso("ps", "--json").stdout) == []


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


def test_a_job_may_end_at_once_and_is_run_again_by_activate_and_restart(lab: Lab) -> None:
    job = copied(lab, "job")
    assert lab.niso("activate", "./job").stdout.startswith("report: completed")
    for command, runs in ((("activate", "./job"), 2), (("restart", "report"), 3)):
        lab.niso(*command)
        assert ps(lab, "report")["status"] == "completed"
        assert lab.niso("logs", "report").stdout.count("report: ") == runs
    (job / "bin" / "report").write_text("#!/bin/sh\n")
    lab.niso("activate", "./job")
    assert ps(lab, "report")["status"] == "completed"
