"""Expect an error of niso by its fields. Only golden files hold the wording of messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from niso.base.errors import Error, ErrorGroup


@contextlib.contextmanager
def refuses[E: Error](
    kind: type[E],
    *facts: str,
    key: str | None = None,
    hint: str | None = None,
    file: str | None = None,
) -> Iterator[pytest.ExceptionInfo[E]]:
    """Fail unless the block raises an error of ``kind`` with these fields.

    ``facts`` are names and values that the message must contain, not its words. ``file`` is the
    end of the path that the error is about. A field that is None is not compared. The fields of a
    group of one error are those of the error.
    """
    with pytest.raises(kind) as raised:
        yield raised
    error: Error = raised.value
    if isinstance(error, ErrorGroup) and len(error.errors) == 1:
        error = error.errors[0]
    assert [fact for fact in facts if fact not in error.message] == [], error.message
    if key is not None:
        assert error.key == key, error.message
    if hint is not None:
        assert error.hint == hint, error.message
    if file is not None:
        assert error.file.endswith(file), error.message
