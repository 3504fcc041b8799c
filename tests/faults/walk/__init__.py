"""A random walk through niso's commands, beside a model that says what must hold after each one.

``parts`` has what commands are about, ``model`` what each command does to it, ``reach`` who reaches
whom then. ``draw`` chooses steps, ``walker`` takes them in a lab, ``compare`` holds the kernel to
the model, ``probe`` connects, ``outside`` is what other programs do, ``shrink`` shortens a failure.
None of it imports niso, except for the lab that it runs in.
"""

from __future__ import annotations

import pathlib
import sys

_TESTS = pathlib.Path(__file__).resolve().parents[2]
# the lab, and the sockets in its namespaces, are shared with the other tests
for _folder in ("", "faults", "netns"):
    if str(_TESTS / _folder) not in sys.path:
        sys.path.append(str(_TESTS / _folder))
