"""Run the command as ``python -m niso.cli``, as systemd units do."""

import _signal  # type: ignore[import-not-found]

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # nothing to undo until niso installs its own handler
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from niso.cli.main import main

if __name__ == "__main__":
    main()
