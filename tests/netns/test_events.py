"""Test niso events beside real commands, kills and changes by hand."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from typing import Any

from conftest import Lab, Process
from services import BUSYBOX, idle, on, package

PYTHON = "import niso; h = niso.connect(); h.services.deactivate('api')"


class Follower:
    """What ``niso events --json`` prints from now on."""

    def __init__(self, lab: Lab, *words: str) -> None:
        self.process: Process = lab.popen("niso", "events", "--json", *words)
        self._rest = b""

    def until(self, what: str) -> list[tuple[str | None, str, str]]:
        """All lines up to the one of ``what``, as (service or network, what, detail)."""
        lines: list[dict[str, Any]] = []
        end = time.monotonic() + 20
        while not lines or lines[-1]["what"] != what:
            while b"\n" not in self._rest:
                assert select.select([self.process.stdout], [], [], end - time.monotonic())[0], (
                    lines
                )
                self._rest += os.read(self.process.stdout.fileno(), 1 << 16)
            line, _, self._rest = self._rest.partition(b"\n")
            lines.append(json.loads(line))
        return [(x["service"] or x["network"], x["what"], x["detail"]) for x in lines]


def watching(lab: Lab, *words: str) -> Follower:
    follower = Follower(lab, *words)
    # it watches once it has an inotify descriptor
    fds = f"/proc/{follower.process.pid}/fd"
    see = ("/usr/bin/sh", "-c", f"readlink {fds}/* | grep -q eventpoll")
    lab.wait_for(lambda: lab.run(*see, check=False).returncode == 0)
    time.sleep(0.3)  # its first look
    return follower


def test_each_change_is_one_line(lab: Lab) -> None:
    events = watching(lab)
    api = idle(
        lab,
        "api",
        network={"ports": ["8080:80"]},
        service={"restart": "always", "restart_delay": "300ms"},
    )
    lab.niso("activate", api)
    network = ("niso-default", "network created", "10.99.0.0/24")
    assert events.until("activated") == [network, ("api", "activated", "10.99.0.2, 8080→80")]
    lab.niso("port-forward", "api", "8081:81")
    assert events.until("published") == [("api", "published", "8081→81 (port-forward)")]
    lab.niso("port-forward", "api", "8081:81", "--remove")
    assert events.until("unpublished") == [("api", "unpublished", "8081→81 (port-forward)")]

    pid = json.loads(lab.niso("inspect", "api").stdout)["pid"]
    lab.run("/usr/bin/kill", "-9", str(pid))
    exited, restarted = events.until("restarted")
    assert exited == ("api", "exited (137)", "restart: always")
    assert restarted == ("api", "restarted", "restart 1 since its activation")

    lab.niso("restart", "api")
    assert events.until("restarted") == [("api", "restarted", "")]
    lab.run("nft", "add element inet niso watched { dummy0 }")
    (foreign,) = events.until("foreign")
    assert foreign[2].startswith("inet niso changed by nft (pid ")
    assert foreign[2].endswith("): niso net check")
    # tables of others are nobody's concern here; niso's repair and probes are its own
    lab.run("nft", "add table inet other")
    lab.niso("net", "repair")
    lab.niso("net", "create", "back")
    lab.niso("net", "attach", "box", "--new", "--network", "back")
    assert [line[:2] for line in events.until("attached")] == [
        ("back", "network created"),
        ("box", "attached"),
    ]
    lab.niso("net", "explain", "box", "api:80", "--prove", check=False)
    lab.niso("net", "detach", "box")
    assert events.until("detached") == [("box", "detached", "")]
    lab.niso("net", "remove", "back")
    assert events.until("network removed") == [("back", "network removed", "")]
    # the thread of a Python program has niso's name when it commits
    lab.run("python3", "-c", PYTHON)
    assert events.until("deactivated") == [("api", "deactivated", "")]
    lab.niso("remove", "api")
    # its network goes with it, in another commit, which may be seen first
    assert events.until("removed")[-1] == ("api", "removed", "")
    events.process.send_signal(signal.SIGINT)
    assert events.process.wait(10) == 130
    assert events.process.communicate()[1] == ""


def test_one_service_its_health_and_the_past_beside_a_lost_run_folder(lab: Lab) -> None:
    ask = ["sh", "-c", "test ! -e /tmp/ill"]
    check = {"command": ask, "interval": "100ms", "timeout": "5s", "retries": 1}
    lab.niso("net", "create", "back")
    api = idle(lab, "api", network=on("back"))
    lab.niso("activate", api, idle(lab, "db", network=on("back"), healthcheck=check))
    text = lab.niso("events", "db", "--since", "1h", "--for", "300ms").stdout
    (line,) = text.splitlines()
    assert line.split()[1:3] == ["db", "activated"]

    events = watching(lab, "db")
    lab.niso("restart", "api", "db")
    assert events.until("restarted") == [("db", "restarted", "")]
    lab.niso("exec", "db", "--", "touch", "/tmp/ill")

    def is_unhealthy() -> bool:
        return "unhealthy" in lab.niso("ps").stdout

    lab.wait_for(is_unhealthy)
    assert events.until("unhealthy")[-1] == ("db", "unhealthy", "command sh: exit status 1")
    lab.run("/usr/bin/rm", "-rf", "/run/niso/services/db")
    assert events.until("failed") == [("db", "failed", "no process: niso net check db")]
    lab.run("/usr/bin/rm", "-rf", "/run/niso")
    lab.niso("net", "repair", check=False)
    lab.niso("deactivate", "db")
    assert events.until("deactivated")[-1] == ("db", "deactivated", "")
    events.process.kill()
    events.process.wait(10)


def test_no_event_is_lost_however_fast_they_follow(lab: Lab) -> None:
    loop = package(
        lab, "loop", BUSYBOX, "sleep", "0.3", service={"restart": "always", "restart_delay": "10ms"}
    )
    lab.niso("activate", idle(lab, "api"), loop)
    events = watching(lab)
    for _ in range(3):
        lab.niso("deactivate", "api")
        lab.niso("activate", "api")

    def restarts() -> int:
        return int(json.loads(lab.niso("inspect", "loop").stdout)["restarts"])

    lab.wait_for(lambda: restarts() >= 5, 60)
    lab.niso("deactivate", "loop")
    seen: list[tuple[str | None, str]] = []
    while ("loop", "deactivated") not in seen:
        seen += [line[:2] for line in events.until("deactivated")]
    events.process.kill()
    events.process.wait(10)
    # the ring, without a process that watches
    past = lab.niso("events", "--json", "--since", "1h", "--for", "200ms").stdout.splitlines()
    known = [(line["service"], line["what"]) for line in map(json.loads, past)]
    api = [what for service, what in known if service == "api"]
    assert api == ["activated", *["deactivated", "activated"] * 3]
    ends = [what for service, what in known if service == "loop"][1:-1]
    assert ends[:2] == ["exited (0)", "restarted"] and len(ends) >= 10
    assert ends == (["exited (0)", "restarted"] * len(ends))[: len(ends)]
    watched = ["deactivated", "activated"] * 3
    assert [what for service, what in seen if service == "api"] == watched
