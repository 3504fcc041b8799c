"""Test that a failed activation leaves nothing, and that a dry run shows the steps."""

from __future__ import annotations

import json
import re

import snapshots
from conftest import Lab
from services import environment_of, idle, on, package, pid_of, ps, refused


def test_several_services_are_activated_all_or_none(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "old", environment={"LEVEL": "info"}))
    pid = pid_of(lab, "old")
    before = snapshots.take(lab)
    changed = idle(lab, "old", environment={"LEVEL": "debug"}, network={"ports": ["9000:80"]})
    dies = package(lab, "bad", "sh", "-c", "echo no luck; exit 7")
    said = refused(lab, "activate", idle(lab, "one", network=on("backend")), changed, dies)
    assert "bad: its process ended at once (exit status 7)" in said and "no luck" in said
    assert "LEVEL=info" in environment_of(lab, pid_of(lab, "old"))
    after = snapshots.take(lab)
    for each in (before, after):
        each["processes"] = [re.sub(r"^\d+ |/proc/\d+", "", line) for line in each["processes"]]
        each["files"] = {
            path: v for path, v in each["files"].items() if "/run/niso/services/old" not in path
        }
    assert snapshots.differences(before, after) == []
    assert pid_of(lab, "old") != pid  # it was replaced, and put back

    good = [idle(lab, name) for name in ("one", "two", "three")]
    lab.niso("activate", *good)
    assert {ps(lab, name)["status"] for name in ("one", "two", "three")} == {"running"}


def test_program_that_cannot_run_leaves_nothing(lab: Lab) -> None:
    new = on("new", ports=["8080:80"])
    lab.niso("activate", idle(lab, "base"))

    def written(text: str) -> str:
        return package(lab, "api", "bin/run", files={"bin/run": text}, network=new)

    def fails(folder: str, *words: str) -> None:
        done = lab.niso("activate", "--json", folder, check=False)
        error = json.loads(done.stderr.splitlines()[0])["error"]
        assert (done.returncode, done.stdout, {*error}) == (1, "", {"message", "hint", "key"})
        assert all(word in f"{error['key']} {error['message']}" for word in words), error
        assert snapshots.differences(before, snapshots.take(lab)) == []

    dies = package(lab, "api", "sh", "-c", "echo last words >&2; exit 3", network=new)
    before = snapshots.take(lab)
    fails(dies, "api: its process ended at once (exit status 3)", "last words")
    fails(written("#!/no/such/interpreter\n"), "/no/such/interpreter")
    fails(written("not a program\n"), "bin/run")
    # nor is a bridge or a namespace of another program taken for niso's
    lab.run("ip", "link", "add", "niso-new", "type", "bridge")
    lab.run("ip", "netns", "add", "niso-api")
    before = snapshots.take(lab)
    fails(idle(lab, "api", network=new), "link 'niso-new'", "does not belong to this niso")
    fails(idle(lab, "api"), "network namespace 'niso-api'", "does not belong to this niso")


def test_dry_run_makes_not_even_a_store_and_a_second_state_folder_is_refused(lab: Lab) -> None:
    folder = idle(lab, "api")
    before = snapshots.take(lab)
    assert "ip netns add niso-api" in lab.niso("activate", "--dry-run", folder).stdout
    lab.niso("net", "create", "--dry-run", "backend")
    assert snapshots.differences(before, snapshots.take(lab)) == []
    lab.niso("activate", folder)
    before = snapshots.take(lab)
    other = {"NISO_STATE_DIR": "/tmp/other", "NISO_RUN_DIR": "/tmp/other-run"}
    said = refused(lab, "activate", idle(lab, "second"), env=other)
    assert "/tmp/other/state.db is missing" in said and "of the niso state folder with id" in said
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_same_service_activated_at_the_same_time_is_started_once(lab: Lab) -> None:
    folder = package(lab, "api", "sh", "-c", "echo begin; sleep 1000")
    commands = [lab.popen("niso", "activate", folder) for _ in range(3)]
    said = []
    for command in commands:
        out, err = command.communicate()
        assert command.returncode == 0, err
        said.append("unchanged" in out)
    assert sorted(said) == [False, True, True]
    assert lab.niso("logs", "api").stdout == "begin\n"


def test_open_files_beyond_the_limit_are_no_hindrance_and_nobody_inherits_them(lab: Lab) -> None:
    folder = idle(lab, "api")
    script = 'exec 7>/tmp/seven 200>/tmp/two-hundred; ulimit -S -n 150; niso activate "$0"; ls -l /proc/self/fd >&2'
    done = lab.run("bash", "-c", script, folder)
    assert done.stdout.startswith("api: active")
    assert "/tmp/seven" in done.stderr and "/tmp/two-hundred" in done.stderr, (
        "the caller has them still"
    )
    conmon = lab.run("sh", "-c", "cat /run/niso/services/api/run-*/conmon.pid").stdout.strip()
    for pid in (conmon, str(pid_of(lab, "api"))):
        assert "/tmp/" not in lab.run("ls", "-l", f"/proc/{pid}/fd").stdout
