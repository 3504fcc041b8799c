"""Run nft commands in this process through libnftables.so.1 (libnftables(3), libnftables-json(5)).

An `Nft` object belongs to the network namespace that opened it. Single elements of sets are read by
`niso.kernel.nft_elements`, because libnftables reads all elements of the table to return one, and
crashes on a request for 200 elements.
"""

from __future__ import annotations

import errno
import os

from niso.base import signals
from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import from_json
from niso.kernel.netlink import MALFORMED, named, refused, refusing

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterable
    from typing import Any, Self

# NFT_CTX_OUTPUT_... of libnftables(3)
_STATELESS, _HANDLES, _JSON, _TERSE = 1 << 2, 1 << 3, 1 << 4, 1 << 11

_MALFORMED = (*MALFORMED, TypeError, AttributeError, RecursionError)

_library: ctypes.CDLL | None = None


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        import ctypes  # most commands write through netlink alone, and need no libnftables

        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise KernelError(
                f"cannot load libnftables.so.1: {error}", "apt install libnftables1"
            ) from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        for name in ("nft_run_cmd_from_buffer", "nft_run_cmd_from_filename"):
            getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        _library = library
    return _library


def release_memory() -> None:
    """Give memory that libnftables no longer uses back to the operating system (malloc_trim(3)):
    about 3 MiB after a comparison of both nftables tables.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


class Nft:
    """A libnftables context in the caller's network namespace, used as a context manager. Nothing
    is written to stdout or stderr. Methods raise KernelError with the error message of nft.
    """

    def __init__(self) -> None:
        self._nft = _load()
        self._context: int | None = self._nft.nft_ctx_new(0)
        if not self._context:
            raise KernelError("cannot open libnftables")
        self._nft.nft_ctx_buffer_output(self._context)
        self._nft.nft_ctx_buffer_error(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._nft.nft_ctx_free(self._context)
            self._context = None

    def run(self, text: str) -> None:
        """Execute nft(8) commands as one transaction. ``text`` may have any number of lines."""
        self.run_all((text,))

    def run_all(self, commands: Iterable[str]) -> None:
        """Execute nft(8) commands as one transaction. A command may have any number of lines."""
        # a file needs less memory than a string, and nft reports the kernel's errors at their lines
        fd = os.memfd_create("nft")
        try:
            with open(fd, "w", encoding="utf-8", closefd=False) as file:
                file.writelines(f"{command}\n" for command in commands)
            first = os.pread(fd, 80, 0).decode("utf-8", "ignore").partition("\n")[0]
            what = f"apply nftables rules ({first})"
            with refusing(what):
                signals.hit(what)
            with named():
                failed = self._nft.nft_run_cmd_from_filename(
                    self._context, f"/proc/self/fd/{fd}".encode()
                )
            if failed:
                raise self._error(self._errors(), os.fstat(fd).st_size > len(first) + 1)
        finally:
            os.close(fd)
        if signals.broken(signals.OVERRUN):
            raise refused(what, errno.ENOBUFS)

    def query(self, command: str) -> list[dict[str, Any]]:
        """Execute a ``list`` command. Returns the objects in its JSON output, except metainfo."""
        answer = self._list(command, _JSON) or b'{"nftables": []}'
        try:
            items = from_json(answer.decode())["nftables"]
            return [item for item in items if "metainfo" not in item]
        except _MALFORMED as error:
            raise KernelError(
                f"nft: cannot parse the reply to '{command}'", "nft -j list ruleset shows it"
            ) from error

    def text(self, command: str, flags: int = 0) -> str:
        """Execute a ``list`` command, and return its output. See libnftables(3) for ``flags``."""
        return self._list(command, flags).decode("utf-8", "replace")

    def _list(self, command: str, flags: int) -> bytes:
        self._nft.nft_ctx_output_set_flags(self._context, flags)
        failed = self._nft.nft_run_cmd_from_buffer(self._context, command.encode())
        self._nft.nft_ctx_output_set_flags(self._context, 0)
        if failed:
            raise self._error(self._errors())
        output: bytes = self._nft.nft_ctx_get_output_buffer(self._context) or b""
        return output

    def outline(self) -> str:
        """Return all tables as text, with the handles of rules, but without elements of sets."""
        return self.text("list ruleset", _HANDLES | _TERSE)

    def definition(self, family_table: str) -> str:
        """Return one table as text, without elements of sets and without values of counters."""
        return self.text(f"list table {family_table}", _STATELESS | _TERSE)

    def chain(self, family: str, table: str, name: str) -> str:
        """Return one chain as text, without counter values. The names must need no quotes."""
        return self.text(f"list chain {family} {table} {name}", _STATELESS)

    def _errors(self) -> str:
        errors: bytes = self._nft.nft_ctx_get_error_buffer(self._context) or b""
        return errors.decode("utf-8", "replace")

    def _error(self, errors: str, has_lines: bool = False) -> KernelError:
        """Convert the first error in nft's output, ``errors``, to a KernelError. ``has_lines`` is
        true if the executed commands had several lines. nft prints an error as "[FILE:LINE:FROM-TO:
        ]Error: REASON". The next two lines are the command's line, and carets below a part of it.
        """
        lines = errors.splitlines()
        start = next((i for i, line in enumerate(lines) if "Error: " in line), -1)
        if start < 0:
            return KernelError(f"nft: {errors.strip() or 'failed without a message'}")
        place, _, reason = lines[start].partition("Error: ")
        reason = reason[:1].lower() + reason[1:]
        number = place.split(":")[1] if place.count(":") >= 3 else ""
        shown = "".join(lines[start + 1 : start + 2])
        carets = "".join(lines[start + 2 : start + 3]).expandtabs(1)
        at = len(carets) - len(carets.lstrip())
        token = shown[at : len(carets)].strip()
        where = f"line {number}, " if number and has_lines else ""
        near = f"at '{token[:80]}' of " if token and token != shown.strip() else ""
        return KernelError(f"nft: {reason}: {where}{near}'{shown.strip()[:160]}'")
