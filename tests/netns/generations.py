"""Observe what each nf_tables transaction changes, using ``nft monitor``."""

from __future__ import annotations

import itertools

from conftest import Lab


class Generations:
    """Sees what comes after it is made."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._marks = itertools.count()
        self._path = lab.path("/tmp/generations")
        with open(self._path, "wb") as file:
            lab.popen("nft", "monitor", stdout=file.fileno())
        # a table that is there already is no change, so each try is another one
        lab.wait_for(lambda: self._seen(self._mark()), 30, "nft monitor is ready")
        self._at = len(self._path.read_text())

    def since(self) -> list[list[str]]:
        """The lines of each transaction since it was made, or asked last."""
        mark = self._mark()
        self._lab.wait_for(lambda: self._seen(mark), 10, "nft monitor has seen all")
        text = self._path.read_text()
        found: list[list[str]] = [[]]
        for line in text[self._at : text.index(mark, self._at)].splitlines():
            if line.startswith("# new generation"):
                found.append([])
            else:
                found[-1].append(line.strip())
        self._at = len(text)
        return [lines for lines in found if lines]

    def _mark(self) -> str:
        name = f"mark{next(self._marks)}"
        self._lab.run("nft", "add", "table", "inet", name)
        return f"add table inet {name}\n# new generation"

    def _seen(self, mark: str) -> bool:
        return mark in self._path.read_text()
