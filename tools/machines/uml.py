"""Run tests on user-mode kernels: ``uml.py KERNEL CACHE [PYTEST ARGS | -- COMMAND]``.

``./dev test-uml`` calls it. A COMMAND runs alone on one kernel, and its output is shown.
Each kernel is a process. It boots from the machine's own files, read-only (hostfs), has no network
device, and writes results to one folder below CACHE. It runs in mount, PID and network namespaces
of its own, whose root is read-only too. `uml_guest.py` shares the tests among the kernels. If a
kernel ends early or no test ends for `STALL_SECONDS`, the kernel is killed, the test that ran
counts as failed, and a new kernel continues. CACHE/report.md has the results of the run.

Variables: ``NISO_SLOW`` (default 4) multiplies the tests' time limits, ``UML_KERNELS`` (default 2)
is the number of kernels at a time, ``UML_MINUTES`` (default 240) ends the run, and ``UML_KEEP=1``
keeps the results of the last run and runs only the other tests.
"""

from __future__ import annotations

import collections
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SLOW = float(os.environ.get("NISO_SLOW") or 4)
STALL_SECONDS = 700 * SLOW
"""Longer than pytest's limit for a test, which is 600 s times ``NISO_SLOW``."""
CONSOLE_BYTES = 4_000_000
RESTARTS = 10
MEMORY = "2500M"
# A kernel is PID 1's only child: with it, all of its processes end. The whole tree is read-only but
# for the folder of results; the kernel's memory is a file in /dev/shm.
ENTER = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
PREPARE = """
set -e
mount --bind "$1" "$1"
mount -o remount,ro,bind /
mount -t tmpfs -o size=3g none /dev/shm
ulimit -n "$(ulimit -H -n)" # hostfs has a descriptor open for each file
shift
exec env -i TMPDIR=/dev/shm HOME=/dev/shm PATH=/usr/bin:/bin "$@"
"""


class Machine:
    """A user-mode kernel that runs tests. ``number`` names its files in ``scratch``."""

    def __init__(self, kernel: str, scratch: pathlib.Path, number: int) -> None:
        self.number = number
        self.started = self.seen = time.monotonic()
        self._results = scratch / f"results-{number}"
        self._size = self._results.stat().st_size if self._results.exists() else 0
        command = (
            kernel,
            f"mem={MEMORY}",
            *("rootfstype=hostfs", "rootflags=/", "ro", f"init={HERE}/uml-init"),
            *("con=null", "con0=null,fd:1", "ssl=null", "quiet", "fb_tunnels=none"),
            *(f"UML_SCRATCH={scratch}", f"UML_ROOT={ROOT}", f"UML_NUMBER={number}"),
        )
        self.process = subprocess.Popen(
            [*ENTER, "sh", "-c", PREPARE, "sh", str(scratch), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(
            target=self._read, args=(scratch / f"console-{number}",), daemon=True
        )
        self._reader.start()

    def _read(self, log: pathlib.Path) -> None:
        """Write the console to a file, which does not grow without limit."""
        assert self.process.stdout
        left = CONSOLE_BYTES
        with log.open("ab") as file:
            while chunk := os.read(self.process.stdout.fileno(), 65536):
                file.write(chunk[:left])
                file.flush()
                left -= min(left, len(chunk))

    def stalled(self) -> bool:
        """Return whether no test has ended for too long."""
        size = self._results.stat().st_size if self._results.exists() else 0
        if size != self._size:
            self._size, self.seen = size, time.monotonic()
        return time.monotonic() - self.seen > STALL_SECONDS

    def kill(self) -> None:
        """End the kernel with all of its processes."""
        self.process.kill()
        self.process.wait(30)
        self._reader.join(30)


def unfinished(scratch: pathlib.Path, number: int, reason: str) -> None:
    """Count the test that ran in a machine as failed, and release the machine's groups."""
    running = scratch / f"running-{number}"
    if running.exists() and (test := running.read_text()):
        result = {"test": test, "outcome": "failed", "seconds": 0, "text": reason}
        with (scratch / f"results-{number}").open("a") as file:
            file.write(json.dumps(result) + "\n")
        running.unlink()
    for mark in scratch.glob(f"claims/*/{number}"):
        shutil.rmtree(mark.parent)


def run(kernel: str, scratch: pathlib.Path, kernels: int, minutes: float) -> None:
    """Run machines until no test is left, or the time is over."""
    deadline = time.monotonic() + minutes * 60
    machines = [Machine(kernel, scratch, number) for number in range(kernels)]
    restarts = 0
    try:
        while machines:
            time.sleep(1)
            for machine in list(machines):
                late = time.monotonic() > deadline
                stalled = machine.stalled()
                if machine.process.poll() is None and not stalled and not late:
                    continue
                machines.remove(machine)
                machine.kill()
                if (scratch / f"finished-{machine.number}").exists():
                    continue
                reason = "no result for too long" if stalled else "the kernel ended"
                if late:
                    (scratch / f"running-{machine.number}").unlink(missing_ok=True)
                    reason = "the run's time is over"
                unfinished(scratch, machine.number, reason)
                print(f"uml: machine {machine.number}: {reason}", flush=True)
                if machine.seen == machine.started:
                    print(
                        (scratch / f"console-{machine.number}").read_text("utf-8", "replace")[
                            -2000:
                        ]
                    )
                elif not late and restarts < RESTARTS:
                    restarts += 1
                    machines.append(Machine(kernel, scratch, machine.number))
    finally:
        for machine in machines:
            machine.kill()


def results(scratch: pathlib.Path) -> list[dict[str, str]]:
    """Return the last result of each test."""
    last = {}
    for file in sorted(scratch.glob("results-*")):
        for line in file.read_text().splitlines():
            result = json.loads(line)
            last[result["test"]] = result
    return list(last.values())


def report(kernel: str, tests: list[dict[str, str]], minutes: float, arguments: list[str]) -> str:
    """Return the report as Markdown."""
    count = collections.Counter(test["outcome"] for test in tests)
    release = subprocess.run([kernel, "--version"], capture_output=True, text=True, check=False)
    lines = [
        f"{datetime.date.today()}, Linux {release.stdout.strip()} in user mode,"
        f" `NISO_SLOW={SLOW:g} ./dev test-uml {' '.join(arguments)}`, {minutes:.0f} min:",
        f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped.",
    ]
    for outcome in ("failed", "skipped"):
        chosen = [test for test in tests if test["outcome"] == outcome]
        if not chosen:
            continue
        lines += ["", f"| {outcome} | reason |", "| --- | --- |"]
        for test in chosen:
            ends = [line for line in test["text"].splitlines() if line.startswith("E ")]
            reason = (ends[0][2:] if ends else test["text"].strip().split("\n")[-1]).strip()
            lines.append(f"| `{test['test']}` | {reason[:200].replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def prepare(scratch: pathlib.Path, words: list[str], keep: bool) -> None:
    """Empty the folder of results, and write the command for the machines."""
    if not keep:
        shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "claims").mkdir(parents=True, exist_ok=True)
    for stale in [*scratch.glob("[frc]*-*")]:
        if not stale.name.startswith("results"):
            stale.unlink()
    for claim in scratch.glob("claims/*"):
        shutil.rmtree(claim)
    command = [f"NISO_SLOW={SLOW:g}", "PYTHONDONTWRITEBYTECODE=1", "NO_COLOR=1", *words]
    (scratch / "command").write_bytes(b"".join(word.encode() + b"\0" for word in command))


def main() -> int:
    kernel, cache, arguments = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    minutes = float(os.environ.get("UML_MINUTES") or 240)
    scratch = cache / "run"
    if arguments[:1] == ["--"]:
        scratch = cache / "command"
        prepare(scratch, arguments[1:], keep=False)
        run(kernel, scratch, 1, minutes)
        return 0
    if not any("tests" in argument for argument in arguments if not argument.startswith("-")):
        arguments = ["tests/netns", *arguments]
    pytest = [sys.executable, "-m", "pytest", "-p", "machines.uml_guest", "-p", "no:cacheprovider"]
    prepare(
        scratch,
        [*pytest, "-p", "no:xdist", "--tb=short", *arguments],
        keep=bool(os.environ.get("UML_KEEP")),
    )
    started = time.monotonic()
    run(kernel, scratch, int(os.environ.get("UML_KERNELS") or 2), minutes)
    tests = results(scratch)
    text = report(kernel, tests, (time.monotonic() - started) / 60, arguments)
    (cache / "report.md").write_text(text)
    print(text, end="")
    return 0 if tests and all(test["outcome"] != "failed" for test in tests) else 1


if __name__ == "__main__":
    sys.exit(main())
