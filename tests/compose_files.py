"""Write compose files, for tests of their import."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, text: str) -> Path:
    path = folder / "compose.yaml"
    path.write_text(text)
    return path
