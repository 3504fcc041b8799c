"""Show the output of another niso command on the screen of niso top, with Textual."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen
from textual.widgets import Footer, Log, Static

from niso.cli.output import escaped

NISO = (sys.executable, "-I", "-m", "niso.cli")
_MOST_LINES = 5000
_MOST_BYTES = 8192
"""Bytes read at a time, so that keys keep working; longer lines are broken."""
_END_S = 5.0
"""How long (s) the command has to exit by itself."""


class Output(ModalScreen[None]):
    """Runs ``niso WORDS`` and shows its output as it comes. The command ends with the screen.

    The screen is modal, so that the keys of the tables have no effect.
    """

    CSS = """
    #command { padding: 0 1; background: $panel; text-style: bold; }
    #output { height: 1fr; background: $background; }
    """
    BINDINGS: ClassVar = [
        Binding("escape", "dismiss", "back"),
        Binding("q", "app.quit", "quit"),
        Binding("ctrl+c", "app.interrupt", "quit", show=False, priority=True),
    ]

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = words
        self._unfinished = b""
        self._process: subprocess.Popen[bytes] | None = None

    def compose(self) -> ComposeResult:
        """Yield the parts of the screen, from top to bottom."""
        yield Static(id="command", markup=False)
        yield Log(id="output", max_lines=_MOST_LINES)
        yield Footer()

    def on_mount(self) -> None:
        """Start the command."""
        self._title("")
        self.query_one(Log).focus()
        self._process = subprocess.Popen(
            (*NISO, *self.words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        asyncio.get_running_loop().add_reader(self._descriptor(), self._read)

    def on_unmount(self) -> None:
        """End the command."""
        self._end()

    def _descriptor(self) -> int:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.fileno()

    def _read(self) -> None:
        """Show the complete lines, and at the end the exit status."""
        log = next(iter(self.query(Log)), None)
        if log is None:  # the screen is being left
            self._end()
            return
        data = os.read(self._descriptor(), _MOST_BYTES)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if self._unfinished and (not data or len(self._unfinished) > _MOST_BYTES):
            lines, self._unfinished = [*lines, self._unfinished], b""
        log.write_lines(
            [escaped(line.decode("utf-8", "replace").expandtabs()) for line in lines],
            scroll_end=log.is_vertical_scroll_end,
        )
        if not data:
            self._title(f"(exit status {self._end()})")

    def _end(self) -> int | None:
        """End the command if it is still running; return its exit status."""
        process = self._process
        if process is None:
            return None
        asyncio.get_running_loop().remove_reader(self._descriptor())
        self._process = None
        with process:  # closes the pipe
            process.terminate()
            try:
                return process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    def _title(self, state: str) -> None:
        words = " ".join(("niso", *self.words))
        self.query_one("#command", Static).update(f"{words}  {state}".rstrip())
