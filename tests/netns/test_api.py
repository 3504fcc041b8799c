"""Test the Python API in a lab: events, rollback, threads, manifests given as data."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from conftest import Lab
from services import BUSYBOX, idle, package

PRELUDE = """\
import json, os, sys, threading, time
import niso
host = niso.connect()
def data(name, *command, **tables):
    binary = {"entrypoint": command[0], "args": list(command[1:])}
    return niso.Package({"package": {"name": name, "version": "1"}, "binary": binary, **tables}, "/tmp")
def say(value):
    print(json.dumps(niso.plain(value)))
"""


def script(lab: Lab, text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script that uses niso, in the lab."""
    return lab.run(sys.executable, "-c", PRELUDE + text, **options)


def said(lab: Lab, text: str) -> list[Any]:
    """What a script has said, a value for each line."""
    return [json.loads(line) for line in script(lab, text).stdout.splitlines()]


def test_events_tell_what_happens_in_order(lab: Lab) -> None:
    api = idle(lab, "api", healthcheck={"tcp": 80, "interval": "200ms"})
    events = said(
        lab,
        f"""
host.progress = lambda event: say([type(event).__name__, event.describe()])
try:
    host.services.activate({api!r}, timeout=1)
except niso.ProcessError as error:
    say(["failed"])
host.services.activate(data("web", {BUSYBOX!r}, "sleep", "1000"))
host.services.activate(data("web", {BUSYBOX!r}, "sleep", "1000"), dry_run=True)
""",
    )
    kinds = [event[0] for event in events]
    assert events[0] == ["ExpectingHealth", "waiting until healthy: api"]
    assert [kind for kind in kinds if kind in ("Starting", "Undoing", "failed")][:3] == [
        "Starting",
        "Undoing",
        "failed",
    ]
    after = kinds[kinds.index("failed") + 1 :]
    assert after.index("Starting") < after.index("Finished")
    assert after.count("Finished") == 2  # nothing was started the second time
    assert after.count("Starting") == 1


def test_change_of_a_program_is_undone_by_its_error_and_applied_by_its_difference(lab: Lab) -> None:
    """A child after a fork has to connect again."""
    undone, *applied, child, parent = said(
        lab,
        f"""
class Enough(Exception): pass
def stop(event):
    if isinstance(event, niso.Starting):
        raise Enough
def web(ports):
    package = data("web", {BUSYBOX!r}, "sleep", "1000", network={{"ports": ports}})
    return package._replace(folder="/tmp/files")
os.makedirs("/tmp/files")
host.progress = stop
try:
    host.services.activate(web(("8080:80",)))
except Enough:
    host.progress = None
    say([host.services.list(), host.networks.list(), host.check()])
say(host.services.activate(web(("8080:80",))))
pid = host.services.inspect("web").process.pid
say(host.services.activate(web(["8080:80"])))
say(host.services.activate(web(["8081:80"])))
assert host.services.inspect("web").process.pid == pid
sys.stdout.flush()
if os.fork() == 0:
    try:
        host.networks.list()
    except niso.Conflict:
        say([line.name for line in niso.connect().networks.list()])
    sys.stdout.flush()
    os._exit(0)
os.wait()
say([line.name for line in host.networks.list()])
""",
    )
    assert undone == [[], [], []]
    assert [answer[0]["changed"] for answer in applied] == [True, False, True]
    assert applied[2][0]["ports"][0]["host_port"] == 8081
    assert child == parent == ["niso-default"]


def test_calls_of_several_threads_and_of_commands_wait_for_each_other(lab: Lab) -> None:
    [names] = said(
        lab,
        f"""
errors = []
def one(number):
    try:
        with niso.connect() as own:
            name = f"s{{number}}"
            own.services.activate(data(name, {BUSYBOX!r}, "sleep", "1000"))
            done = own.services.run(name, ["sh", "-c", f"echo {{name}}; exit {{number}}"])
            assert (done.status, done.stdout) == (number, f"{{name}}\\n".encode()), done
            own.services.restart(name)
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
assert host.check() == ()
say([line.service for line in host.services.list() if line.status == "running"])
""",
    )
    assert names == ["s1", "s2", "s3", "s4"]
    assert "s4" in lab.niso("ps").stdout


def test_what_a_command_wrote_is_returned_whole(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    [answer] = said(
        lab,
        """
done = host.services.run("api", ["sh", "-c", "cat >&2; head -c 3000000 /dev/zero; kill -9 $$"],
                         stdin=b"x" * 1000000)
say([done.status, len(done.stdout), len(done.stderr)])
""",
    )
    assert answer == [137, 3000000, 1000000]
    done = script(
        lab,
        """
for command in (["no-such"], ["/etc/passwd"]):
    try:
        host.services.run("api", command)
    except niso.ProcessError as error:
        print(error.exit_status, flush=True)
print(host.services.exec("api", ["sh", "-c", "read x; echo got $x; exit 4"]))
""",
        input="line\n",
    )
    assert done.stdout == "127\n126\ngot line\n4\n" and done.stderr == ""


def test_drops_and_logs_can_be_followed(lab: Lab) -> None:
    script = ("sh", "-c", "echo one; sleep 1; echo two; sleep 1000")
    policy = {"network.policy": {"allow_from": [], "log": True}}
    lab.niso("activate", idle(lab, "web"), package(lab, "api", *script, **policy))
    answers = said(
        lab,
        """
lines = host.services.logs("api", follow=True)
say([next(lines).decode(), next(lines).decode()])
lines.close()
with host.drops("api") as drops:
    host.services.run("web", ["ping", "-c", "1", "-W", "1", "api"])
    drop = next(iter(drops))
    say([drop.service, drop.direction, drop.key, drop.source.service])
""",
    )
    assert answers[0] == ["one\n", "two\n"]
    assert answers[1] == ["api", "in", "network.policy.allow_from", "web"]
