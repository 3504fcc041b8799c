"""Run the command as ``python -m niso.cli``, as systemd units do."""

from __future__ import annotations

import signal

from niso.cli.main import main

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # before niso installs its own handler there is nothing to undo
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if __name__ == "__main__":
    main()
