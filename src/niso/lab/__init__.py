"""A throw-away host: own namespaces, file systems, cgroups and a small network, gone with the command that runs in it."""

from niso.lab.process import run

__all__ = ["run"]
