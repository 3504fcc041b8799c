"""Define the errors that niso reports, each with a next step for the user.

An error is structured data. ``reason`` says what is wrong, in lower case and without a full stop.
``file``, ``key`` and ``value`` say where; ``right`` says what would be valid; ``hint`` is the next
step, as a command if there is one. Only `Error.message` composes the text for users: code that
passes an error on changes its fields, never its text. Every error that reaches a user is an
`Error`; only `niso.cli` turns it into an exit status.
"""

from __future__ import annotations

import sys

from niso.base.named_tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Error(Exception):
    """Base class of niso's errors: the request failed, and the exit status is 1."""

    exit_status = 1

    def __init__(
        self,
        reason: str,
        hint: str | None = None,
        key: str | None = None,
        *,
        file: str = "",
        value: str = "",
        right: str = "",
        service: str = "",
        names_key: bool = True,
        about_key: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.key = key
        """A manifest key (``network.ports[1]``), option (``--subnet``) or argument (``PORT``)."""
        self.file = file
        """The path of the file with the key. Unprintable characters are escaped."""
        self.line = 0
        """The line number of the key in the file; 0 if unknown."""
        self.value = value
        """The value of the key as written in the file. Unprintable characters are escaped."""
        self.right = right
        """A valid value, or the right way to do it. Messages show it in parentheses."""
        self.service = service
        """The service whose process or manifest the error is about."""
        self.names_key = names_key
        """Whether the message begins with the key. If it does not, the reason may name the key."""
        self.about_key = about_key
        """Whether the reason describes the key. If it does not, it describes the value."""

    @property
    def detail(self) -> str:
        """Return the message without the file or service that the error is about.

        Its form is ``KEY: VALUE REASON (RIGHT)``, or ``KEY = VALUE: REASON (RIGHT)`` if the reason
        describes the key.
        """
        key = (self.key or "") if self.names_key else ""
        reason = f"{self.reason} ({self.right})" if self.right else self.reason
        if self.value and self.about_key:
            key = f"{key} = {self.value}"
        elif self.value:
            reason = f"{self.value} {reason}"
        if not key:
            return reason
        return f"{key} {reason}" if key.startswith("--") else f"{key}: {reason}"

    @property
    def message(self) -> str:
        """Return the message for users: `Error.detail` after the file and line. If no file is set,
        the service takes the place of the file.
        """
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file or self.service
        return f"{place}: {self.detail}" if place else self.detail

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of(cls, error: Error) -> Self:
        """Return a new error of this class with the fields of ``error``."""
        new = cls(error.reason, error.hint, error.key)
        new.file, new.line, new.service = error.file, error.line, error.service
        new.value, new.right = error.value, error.right
        new.names_key, new.about_key = error.names_key, error.about_key
        return new


class UsageError(Error):
    """Raised if the command line is invalid; the exit status is 2."""

    exit_status = 2


class InvalidInput(Error):
    """Raised if a manifest, a name or a value is invalid. The command has changed nothing."""

    example = ""
    """A valid value as TOML, if the hint shows one; otherwise ""."""


class Conflict(Error):
    """Raised if another service or program has the requested name, address, port or other resource.
    The message names the service or program.
    """


class NotFound(Error):
    """Raised if a service, network or file that the user named does not exist."""


class KernelError(Error):
    """Raised if the kernel refused a step of a change.

    ``errno`` is the error number (errno.h), or 0 if there is none. ``space`` is the name of the
    network namespace in which the step failed, or "" for the host or an unknown namespace. ``obj``
    is the kernel object that the step should have created or changed, or None if the step concerned
    several objects.
    """

    def __init__(self, reason: str, hint: str | None = None, errno: int = 0) -> None:
        super().__init__(reason, hint)
        self.errno = errno
        self.space = ""
        self.obj: object = None


class ProcessError(Error):
    """Raised if a service's process cannot be started or stopped, with the runtime's message."""


class ErrorGroup(Error):
    """Several errors raised as one, for example all errors in one manifest. The list ``errors`` is
    never empty. The group has the hint, key and exit status of its first error.
    """

    def __init__(self, errors: list[Error]) -> None:
        first = errors[0]
        super().__init__(
            "; ".join(error.message for error in errors), first.hint, first.key, names_key=False
        )
        self.errors = errors
        self.exit_status = errors[0].exit_status


def raise_all(errors: list[Error]) -> None:
    """Raise one error as it is, or several as an ErrorGroup. Do nothing for an empty list."""
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)


def flatten(error: Error) -> list[Error]:
    """Return a list of the errors in a group and its nested groups, or of ``error`` alone."""
    if not isinstance(error, ErrorGroup):
        return [error]
    return [one for inner in error.errors for one in flatten(inner)]


def missing_library(names: str, what: str, *pip: str, instead: str = "") -> Error:
    """Return an error about missing Python libraries. The hint is the command that installs them.

    ``names`` are the libraries' names in the message. ``what`` is a clause about their purpose,
    such as "reads YAML files". ``pip`` are the packages on PyPI. If Python uses Debian's packages,
    the hint is an apt command, otherwise a pip command. ``instead`` is a command that works without
    the libraries.
    """
    if any(path.endswith("/dist-packages") for path in sys.path):
        install = f"apt install {' '.join(f'python3-{_DEBIAN.get(one, one)}' for one in pip)}"
    else:
        install = f"{sys.executable} -m pip install {' '.join(pip)}"
    verb = "is" if len(pip) == 1 else "are"
    hint = f"{instead}, or {install}" if instead else install
    return Error(f"{names}, which {what}, {verb} not installed", hint)


_DEBIAN = {"pyyaml": "yaml"}
