"""Run ``python -m niso.runtime.exited SERVICE BUNDLE``, the former name of `niso.runtime.on_exit`.

The conmon of a service that an earlier version of niso started has this exit command.
"""

from __future__ import annotations

import sys

from niso.runtime.on_exit import main

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
