"""Packages with the scripts of debian/ in a lab, without their programs: dpkg and debconf run them."""

from __future__ import annotations

import subprocess
from typing import Any

from conftest import TESTS, Lab

DEBIAN = TESTS.parent / "debian"


class Packages:
    """Installed packages of niso in a lab."""

    def __init__(self, lab: Lab, *names: str, with_words: tuple[str, ...] = ("env",)) -> None:
        self.lab, self.with_words = lab, with_words
        for name in names:
            control = lab.path(f"/tmp/deb/{name}/DEBIAN")
            control.mkdir(parents=True, exist_ok=True)
            needs = "debconf" if name == "niso" else "debconf, niso"
            head = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x.invalid>\n"
            (control / "control").write_text(f"{head}Depends: {needs}\nDescription: a test\n")
            (control / "templates").write_bytes((DEBIAN / f"{name}.templates").read_bytes())
            script = (DEBIAN / f"{name}.prerm").read_text().replace("#DEBHELPER#", "")
            (control / "prerm").write_text(script)
            (control / "prerm").chmod(0o755)
            if name == "niso":
                for line in (DEBIAN / "niso.install").read_text().splitlines():
                    source, folder = line.split()
                    there = control.parent / folder
                    there.mkdir(parents=True, exist_ok=True)
                    (there / source.rpartition("/")[2]).write_bytes(
                        (TESTS.parent / source).read_bytes()
                    )
            lab.run("dpkg-deb", "-b", "--root-owner-group", f"/tmp/deb/{name}")
        lab.run("dpkg", "-i", *(f"/tmp/deb/{name}.deb" for name in names))

    def purge(self, *names: str, answer: bool | None = None) -> subprocess.CompletedProcess[Any]:
        """Purge packages as on a machine without a terminal, with an answer given to debconf."""
        for name in names if answer is not None else ():
            line = f"{name} {name}/disconnect boolean {str(answer).lower()}\n"
            self.lab.run("debconf-set-selections", input=line)
        words = ("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--purge", *names)
        return self.lab.run(*self.with_words, *words, check=False, timeout=120)

    def follow(self, page: str) -> None:
        """Run the commands of a page of the guide to uninstall, but those for systemd and apt."""
        text = (TESTS.parent / f"docs/guide/{page}.md").read_text()
        block = text.partition("\n## Uninstall\n")[2].partition("```text\n")[2].partition("```")[0]
        lines = [line for line in block.splitlines() if not line.startswith(("systemctl", "apt"))]
        assert len(lines) > 1
        for line in lines:
            self.lab.run(*self.with_words, "sh", "-ec", line)
