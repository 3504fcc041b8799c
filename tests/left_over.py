"""Run in a lab whose command hangs: print every process, its wait channel and its open files."""

from __future__ import annotations

import os


def read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(4000).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError as error:
        return f"({error.strerror})"


def files(pid: str) -> list[str]:
    found = []
    for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        try:
            found.append(f"{fd}={os.readlink(f'/proc/{pid}/fd/{fd}')}")
        except OSError:
            continue
    return found


for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
    try:
        if int(pid) == os.getpid():
            continue
        parent = read(f"/proc/{pid}/stat").rpartition(") ")[2].split()[1]
        print(
            f"--- {pid} (of {parent}): {read(f'/proc/{pid}/cmdline') or read(f'/proc/{pid}/comm')}"
        )
        print(f"    {read(f'/proc/{pid}/wchan')}; system call {read(f'/proc/{pid}/syscall')}")
        print("   ", read(f"/proc/{pid}/stack").replace("\n", "\n    "))
        print("   ", *files(pid))
    except (OSError, LookupError) as error:
        print(f"--- {pid}: {error}")
