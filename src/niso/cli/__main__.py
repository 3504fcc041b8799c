"""``python -m niso.cli``: the command, for whom a path of Python's is surer than one of a script (units of systemd)."""

import _signal  # type: ignore[import-not-found]

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(
        _signal.SIGINT, _signal.SIG_DFL
    )  # until niso has its own: nothing has begun by then

from niso.cli.main import main

if __name__ == "__main__":
    main()
