"""The errors that niso reports, each with the next step for the person who reads it.

A message is lower case, names the thing and its value, and has no full stop. ``hint`` is the next
step, a command where there is one. ``key`` is the path of a manifest key (``network.ports[1]``), ``service`` whose manifest it is
where that is not clear from the message.
Whatever is raised on the way to a user is an `Error`; only `niso.cli` turns it into text and an exit status.
"""

from __future__ import annotations


class Error(Exception):
    """It could not be done (exit status 1)."""

    exit_status = 1

    def __init__(self, message: str, hint: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.key = key
        self.service = ""


NisoError = Error


class UsageError(Error):
    """The command was called wrongly (exit status 2)."""

    exit_status = 2


class InvalidInput(Error):
    """A manifest, name or value cannot be; nothing has changed."""


class Conflict(Error):
    """Something else holds what was asked for; the message names the holder."""


class NotFound(Error):
    """No such service, network or file."""


class KernelError(Error):
    """The kernel refused a step. ``errno`` is its number (errno.h), 0 where there is none."""

    def __init__(self, message: str, hint: str | None = None, errno: int = 0) -> None:
        super().__init__(message, hint)
        self.errno = errno


class ProcessError(Error):
    """A service's process could not be started, reached or stopped; the message has the runtime's own words."""


class ErrorGroup(Error):
    """Several errors at once (all of one manifest, or all that a teardown met). Never empty."""

    def __init__(self, errors: list[Error]) -> None:
        super().__init__(
            "; ".join(error.message for error in errors), errors[0].hint, errors[0].key
        )
        self.errors = errors
        self.exit_status = errors[0].exit_status
