"""Write docs/reference, docs/man and the generated tables of guides.

``python -m reference DOCS`` (``./dev docs``).
"""

from __future__ import annotations

import os
import sys

from reference import other_tools
from reference.pages import pages


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m reference DOCS", file=sys.stderr)
        return 2
    for name, text in pages().items():
        path = os.path.join(sys.argv[1], name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        print(path)
    guide = os.path.join(sys.argv[1], other_tools.GUIDE)
    with open(guide, encoding="utf-8") as file:
        before = file.read()
    with open(guide, "w", encoding="utf-8") as file:
        file.write(other_tools.with_commands(before))
    print(guide)
    return 0


sys.exit(main())
