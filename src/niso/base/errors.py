"""The errors that niso reports, each with the next step for the person who reads it.

An error is data: ``reason`` says what is wrong, in lower case and without a full stop; ``file``, ``key`` and
``value`` say where, ``right`` what would be right, ``hint`` the next step, a command where there is one. Text for
people is made of them in one place, `Error.message`; who passes an error on changes fields, never text.
Whatever is raised on the way to a user is a `Error`; only `niso.cli` turns it into an exit status.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Error(Exception):
    """It could not be done (exit status 1)."""

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
        """The path of a manifest's key (``network.ports[1]``), an option (``--subnet``) or an argument (``PORT``)."""
        self.file = file
        """The path of the file that has the key, printable."""
        self.value = value
        """The value of the key, as the file would have it, printable."""
        self.right = right
        """What would be right instead, or what to do; shown in parentheses."""
        self.service = service
        """Whose process or manifest it is about."""
        self.names_key = names_key
        """Whether the message begins with the key; else the reason names it, or need not."""
        self.about_key = about_key
        """Whether the reason is about the key; else its subject is the value, if there is one."""

    @property
    def detail(self) -> str:
        """Return the message without the file or the service that it is about.

        ``KEY: VALUE REASON (RIGHT)``, or ``KEY = VALUE: REASON (RIGHT)`` if it is about the key.
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
        """One line, or the reason's lines: where it is, and what is wrong."""
        place = self.file or self.service
        return f"{place}: {self.detail}" if place else self.detail

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of(cls, error: Error) -> Self:
        """Return an error of this class with all fields of ``error``."""
        new = cls(error.reason, error.hint, error.key)
        new.file, new.service = error.file, error.service
        new.value, new.right = error.value, error.right
        new.names_key, new.about_key = error.names_key, error.about_key
        return new


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

    def __init__(self, reason: str, hint: str | None = None, errno: int = 0) -> None:
        super().__init__(reason, hint)
        self.errno = errno


class ProcessError(Error):
    """A service's process could not be started, reached or stopped; the message has the runtime's own words."""


class ErrorGroup(Error):
    """Several errors at once (all of one manifest, or all that a teardown met). Never empty."""

    def __init__(self, errors: list[Error]) -> None:
        first = errors[0]
        super().__init__(
            "; ".join(error.message for error in errors), first.hint, first.key, names_key=False
        )
        self.errors = errors
        self.exit_status = errors[0].exit_status


def each(error: Error) -> list[Error]:
    """Return the errors of a group, and of any other error itself."""
    if not isinstance(error, ErrorGroup):
        return [error]
    return [one for inner in error.errors for one in each(inner)]
