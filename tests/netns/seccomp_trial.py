"""Try fcntl(2) commands and modes with setuid and setgid bits, through system calls of x86-64.

Runs in a service. The first argument is a writable folder. Prints a JSON object: the name of each trial and its error, or "".
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
HIGH = 1 << 32  # the kernel ignores it, a filter must too
AT, TMPFILE = -100, 0o20200000
said: dict[str, str] = {}


def call(name: str, number: int, *arguments: int | bytes) -> int:
    words = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    said[name] = errno.errorcode[ctypes.get_errno()] if result < 0 else ""
    return result


folder = pathlib.Path(sys.argv[1])
file = folder / "file"
file.write_bytes(b"")
path, fd = bytes(file), os.open(file, os.O_RDONLY)
inside = os.open(folder, os.O_RDONLY)
for command in (*range(1024, 1029), *range(1030, 1041), HIGH + 1024, HIGH + 1026, HIGH + 1040):
    call(f"fcntl {command:#x}", 72, inside if command & 0xFFFF == 1026 else fd, command, 0)
for mode in (0o644, 0o1755, 0o4755, 0o2755, 0o6755, HIGH + 0o4755):
    for name, number, *before in (
        ("chmod", 90, path),
        ("fchmod", 91, fd),
        ("fchmodat", 268, AT, path),
        ("fchmodat2", 452, AT, path),
    ):
        call(f"{name} {mode:o}", number, *before, mode, *((0,) if number == 452 else ()))
        os.chmod(file, 0o644)
    made = bytes(folder / f"made{mode:o}")
    for name, number, *before in (
        ("creat", 85, made),
        ("mkdir", 83, made),
        ("mkdirat", 258, AT, made),
        ("mknod", 133, made),
        ("mknodat", 259, AT, made),
        ("open", 2, made, os.O_CREAT | os.O_WRONLY),
        ("openat", 257, AT, made, os.O_CREAT | os.O_WRONLY),
        ("open tmpfile", 2, bytes(folder), TMPFILE | os.O_WRONLY),
        ("openat tmpfile", 257, AT, bytes(folder), TMPFILE | os.O_WRONLY),
        ("open existing", 2, path, os.O_RDONLY),
        ("openat existing", 257, AT, path, os.O_RDONLY),
    ):
        call(f"{name} {mode:o}", number, *before, mode)
        if os.path.lexists(made):
            os.rmdir(made) if os.path.isdir(made) else os.unlink(made)
how = ctypes.create_string_buffer(struct.pack("=3Q", os.O_RDONLY, 0, 0))
call("openat2", 437, AT, path, ctypes.addressof(how), 24)
print(json.dumps(said))
