"""Run as a CNI plugin: attach containers of containerd, Nomad and others to niso's networks.

The specification is containernetworking/cni, SPEC.md, versions 0.3.0 to 1.1.0. The engine passes
CNI_* variables and the network's configuration on stdin; the answer is JSON on stdout.
`niso.engines.cni_calls` carries out the calls; VERSION does not load it.
"""

from __future__ import annotations

import json
import os
import sys

from niso.base.errors import Error, ErrorGroup, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.engines import protocol

if TYPE_CHECKING:
    from typing import Any

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
WRONG_VARIABLE, WRONG_CONFIG, KERNEL = 4, 7, 100
_WRONG_VERSION, _NOT_READ, _NOT_JSON = 1, 5, 6


class Failure(Exception):
    """An error as defined by the specification, with its code."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


def main() -> None:
    """Carry out one call and end the process."""
    version, status = VERSIONS[-1], 0
    try:
        command = os.environ.get("CNI_COMMAND", "")
        config = _config()
        version = str(config.get("cniVersion", "0.3.0"))
        answer = _answer(command, version, config)
    except Failure as failure:
        answer, status = _error(version, failure), 1
    except Error as error:
        answer, status = _error(version, _failure(error)), 1
    except OSError as error:
        text = f"{error.filename or 'system call'}: {error.strerror}"
        answer, status = _error(version, Failure(KERNEL, text)), 1
    except protocol.MALFORMED as error:
        text = f"does not understand this call: {error!r}"
        answer, status = _error(version, Failure(WRONG_CONFIG, text)), 1
    if answer is not None:
        sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(status)


def _error(version: str, failure: Failure) -> dict[str, object]:
    shown = version if version in VERSIONS else VERSIONS[-1]
    return {
        "cniVersion": shown,
        "code": failure.code,
        "msg": f"niso: {failure.message}",
        "details": failure.details,
    }


def _failure(error: Error) -> Failure:
    """Convert niso's error to one with the matching code."""
    if isinstance(error, ErrorGroup):
        text = "; ".join(one.message for one in error.errors)
        return Failure(KERNEL, text, "; ".join(one.hint or "" for one in error.errors))
    code = WRONG_CONFIG if isinstance(error, InvalidInput) else KERNEL
    return Failure(code, error.message, error.hint or "")


def _config() -> dict[str, Any]:
    """Read the configuration from stdin. Raises Failure."""
    try:
        data = json.loads(protocol.read_stdin())
    except OSError as error:
        raise Failure(_NOT_READ, f"stdin: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Failure(_NOT_JSON, f"stdin is not JSON: {error}") from error
    except InvalidInput as error:
        raise Failure(_NOT_JSON, error.message) from error
    if not isinstance(data, dict):
        raise Failure(_NOT_JSON, "stdin is not a JSON object")
    return data


def _answer(command: str, version: str, config: dict[str, Any]) -> dict[str, Any] | None:
    if command == "VERSION":
        shown = version if version in VERSIONS else VERSIONS[-1]
        return {"cniVersion": shown, "supportedVersions": list(VERSIONS)}
    if command not in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        raise Failure(WRONG_VARIABLE, f"CNI_COMMAND is {command!r}, and no command of CNI")
    if version not in VERSIONS:
        reason = f"cniVersion {version!r} is not supported"
        raise Failure(_WRONG_VERSION, reason, f"supported: {', '.join(VERSIONS)}")
    from niso.engines import cni_calls

    return cni_calls.answer(command, version, config)
