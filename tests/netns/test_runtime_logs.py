"""Test logs of real services: nothing is lost when niso or conmon rotates them."""

from __future__ import annotations

import pytest
from conftest import Lab
from runtime_world import LOG, PACKAGE, Runtime

KEPT_BYTES = 10 << 20

# Numbered lines of 1000 bytes: COUNT of them each time a line is read from the fifo.
WRITER = """#!/usr/bin/python3
import sys
number = 0
while True:
    with open("/tmp/go") as go:
        count = int(go.read())
    for number in range(number, number + count):
        sys.stdout.write(f"{number} ".ljust(999, "x") + "\\n")
    sys.stdout.write(f"done {number}\\n")
    sys.stdout.flush()
    number += 1
"""

READ = """
import sys
from niso.runtime import logs
sys.stdout.writelines(line.split(b" ")[0 if line[0:1].isdigit() else 1].decode().strip() + "\\n" for line in logs.read("demo"))
"""


class Writer:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.runtime = Runtime(lab)
        lab.write(f"{PACKAGE}/writer", WRITER, 0o755)
        self.pid = self.runtime.start(["/bin/sh", "-c", "mkfifo /tmp/go; exec /app/writer"])
        self.written = 0
        lab.wait_for(
            lambda: (
                lab.run("test", "-p", f"/proc/{self.pid}/root/tmp/go", check=False).returncode == 0
            )
        )

    def write(self, lines: int) -> None:
        """Have the service write so many more lines, and wait until the log has them."""
        self.lab.run("sh", "-c", f"echo {lines} >/proc/{self.pid}/root/tmp/go")
        self.written += lines
        last = f"done {self.written - 1}\n"
        code = "import sys; from niso.runtime import logs; sys.stdout.buffer.writelines(logs.read('demo', 1))"
        self.lab.wait_for(lambda: self.lab.run("python", "-c", code).stdout == last, 60)

    def look(self) -> None:
        self.lab.run("python", "-c", "from niso.runtime import logs; logs.rotate_if_large('demo')")

    def numbers(self) -> list[int]:
        return sorted({int(line) for line in self.lab.run("python", "-c", READ).stdout.split()})


@pytest.fixture
def writer(lab: Lab) -> Writer:
    return Writer(lab)


def assert_kept(writer: Writer) -> None:
    """At least the last 10 MB, without a gap."""
    found = writer.numbers()
    assert found == list(range(found[0], writer.written))
    assert len(found) * 1000 >= min(KEPT_BYTES, (writer.written - 1) * 1000)


def test_log_that_niso_rotates_loses_nothing_recent(writer: Writer, lab: Lab) -> None:
    inode = lab.run("stat", "-c", "%i", f"{LOG}/service.log").stdout
    for _ in range(4):
        writer.write(17_000)
        writer.look()
        assert_kept(writer)
    assert lab.run("stat", "-c", "%i", f"{LOG}/service.log").stdout != inode
    writer.write(1)
    assert_kept(writer)
    assert int(lab.run("du", "-sm", LOG).stdout.split()[0]) < 60
    writer.runtime.stop()


def test_log_that_conmon_rotates_by_itself_loses_nothing_recent(writer: Writer, lab: Lab) -> None:
    writer.look()
    inode = lab.run("stat", "-c", "%i", f"{LOG}/service.log").stdout
    writer.write(62_000)
    assert lab.run("stat", "-c", "%i", f"{LOG}/service.log").stdout == inode
    for _ in range(4):
        writer.write(1_500)
        assert_kept(writer)
    assert lab.run("stat", "-c", "%i", f"{LOG}/service.log").stdout != inode
    writer.look()
    assert_kept(writer)
    writer.runtime.stop()


def test_log_survives_stop_and_goes_on_after_the_next_start(lab: Lab) -> None:
    runtime = Runtime(lab)
    assert runtime.output("echo one").splitlines() == ["one"]
    assert runtime.output("echo two").splitlines() == ["one", "two"]


def test_state_folder_with_a_colon_in_its_name_has_its_log(lab: Lab) -> None:
    runtime = Runtime(lab)
    lab.environment["NISO_STATE_DIR"] = "/tmp/a:b c"
    lab.environment["NISO_RUN_DIR"] = "/tmp/r:u,n"
    assert runtime.output("echo one", hosts_folder="/run/niso/hosts/backend").splitlines() == [
        "one"
    ]
