"""Run many niso commands in a lab, each in a forked child of one preloaded interpreter.

It is the command's own code from its first line on; only Python's start is saved, which is most of a short command's time. As a
program it reads a command's arguments from a line of stdin, as JSON, and prints a line: [exit status, stdout, stderr].
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Lab

LOADED = (
    "api.handover",
    "api.host_networks",
    "api.host_services",
    "api.service_views",
    "cli.net",
    "cli.service",
    "commands.activate",
    "commands.check",
    "commands.repair",
    "commands.store_repair",
    "explain.exposure",
    "explain.foreign_firewalls",
    "kernel.nft_compare",
    "manifest.validate",
)


class Quick:
    """Runs commands in ``lab`` one after another."""

    def __init__(self, lab: Lab) -> None:
        self._process = lab.popen(sys.executable, "-B", os.path.abspath(__file__), stdin=-1)

    def niso(self, *argv: str) -> tuple[int, str, str]:
        """Exit status, stdout, stderr of one command."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(argv).encode() + b"\n")
        status, out, err = json.loads(self._process.stdout.readline())
        assert "Traceback" not in err and "bug in niso" not in err, (argv, err)
        return int(status), str(out), str(err)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


def main() -> None:
    for name in LOADED:
        importlib.import_module(f"niso.{name}")
    from niso.cli.main import run

    for line in sys.stdin:
        files = [os.memfd_create(name) for name in ("out", "err")]
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for fd, file in enumerate(files, 1):
                os.dup2(file, fd)
            status = 70
            try:
                status = run(json.loads(line))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        said = []
        for file in files:
            os.lseek(file, 0, os.SEEK_SET)
            with open(file, encoding="utf-8", errors="replace") as text:
                said.append(text.read())
        print(json.dumps([os.waitstatus_to_exitcode(waited), *said]), flush=True)


if __name__ == "__main__":
    main()
