"""``python -m niso.cli``: the command, for whom a path of Python's is surer than one of a script (units of systemd)."""

from niso.cli.main import main

if __name__ == "__main__":
    main()
