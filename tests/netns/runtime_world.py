"""Call `niso.runtime` inside a lab, and inspect the results there."""

from __future__ import annotations

import json
from typing import Any

from conftest import Lab

SERVICE = "demo"
STATE_ID = "test"
UID = 1_900_000_001
PACKAGE = "/tmp/package"
HOSTS = "/run/niso/hosts/backend"
FOLDER = f"/run/niso/services/{SERVICE}"
LOG = f"/var/lib/niso/logs/{SERVICE}"
CGROUP = f"niso-{STATE_ID}"

_CALL = r"""
import json, sys
from niso.base.errors import Error
from niso.base.convert import convert
from niso.plan.specs import ProcessSpec
from niso.runtime import lifecycle as process
from niso.runtime import crun as spec
from niso.runtime import status
from niso.base.locks import service_lock
name, args = sys.argv[1], json.loads(sys.argv[2])
if name == "start":
    args = [convert(args[0], ProcessSpec)]
try:
    if name == "status":
        result = status.read(*args)._asdict() | {"conmon": status.conmon(*args) is not None}
    elif name == "load":
        result = spec.load(*args)
    else:
        with service_lock("demo"):
            result = getattr(process, name)(*args)
except Error as error:
    print(json.dumps({"error": error.message, "hint": error.hint}))
else:
    print(json.dumps({"result": result}))
"""


class Refused(Exception):
    """niso's error; its words."""


class Runtime:
    """A lab with a network namespace, a package and a hosts file for one service."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.run("ip", "netns", "add", f"niso-{SERVICE}")
        lab.write(f"{HOSTS}/hosts", "127.0.0.1 localhost\n")
        lab.write(f"{PACKAGE}/readme", "a package\n")

    def call(self, name: str, *args: Any, env: dict[str, str | None] | None = None) -> Any:
        done = self.lab.run("python", "-c", _CALL, name, json.dumps(args), env=env)
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["result"]

    def spec(self, argv: list[str], **changes: Any) -> dict[str, Any]:
        return {
            "service": SERVICE,
            "state_id": STATE_ID,
            "generation": 1,
            "package": PACKAGE,
            "rootfs": None,
            "argv": argv,
            "working_dir": "/app",
            "environment": {},
            "uid": UID,
            "gid": UID,
            "groups": [],
            "user_name": SERVICE,
            "home": "/tmp",
            "capabilities": [],
            "read_only": True,
            "hostname": "shop",
            "hosts_folder": HOSTS,
            "resolv_conf": "nameserver 192.0.2.53\n",
            "netns": f"/run/netns/niso-{SERVICE}",
            "restart": "no",
            "restart_delay_s": 0.05,
            "stop_timeout_s": 5.0,
        } | changes

    def start(self, argv: list[str], **changes: Any) -> int:
        pid: int = self.call("start", self.spec(argv, **changes))
        return pid

    def stop(self, *args: Any) -> None:
        self.call("stop", SERVICE, *args)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("status", SERVICE)
        return found

    def wait_for_state(self, state: str, **wanted: Any) -> dict[str, Any]:
        def now() -> dict[str, Any] | None:
            found = self.status()
            same = found["state"] == state and all(
                found[key] == value for key, value in wanted.items()
            )
            return found if same else None

        found: dict[str, Any] = self.lab.wait_for(now, 20, f"{state} {wanted}")
        return found

    def output(self, script: str, **changes: Any) -> str:
        """What a service that runs ``script`` in a shell writes until it ends by itself."""
        self.start(["/bin/sh", "-c", script], **changes)
        self.wait_for_state("exited")
        text = self.log()
        self.stop()
        return text

    def log(self) -> str:
        code = "import sys; from niso.runtime import logs; sys.stdout.buffer.writelines(logs.read('demo'))"
        text: str = self.lab.run("python", "-c", code).stdout
        return text

    def exec(self, *command: str, **options: Any) -> Any:
        return self.lab.run("python", "-c", EXECUTE, *command, **options)

    def leftovers(self) -> dict[str, list[str]]:
        """All that a service's process could have left behind, its log apart."""
        listing = self.lab.run("ps", "-eo", "args=").stdout.splitlines()
        words = ("conmon", "niso-init", "crun", "niso.runtime", "nsenter")
        # one that has ended and that the lab's PID 1 is about to reap is none
        processes = [
            line
            for line in listing
            if any(word in line for word in words) and "<defunct>" not in line
        ]
        # What goes while find looks at it is no failure of find's.
        files = self.lab.run(
            "find",
            "/run/niso",
            "-path",
            f"*{SERVICE}*",
            "-not",
            "-path",
            "/run/niso/locks/*",
            check=False,
        ).stdout
        cgroups = self.lab.run("find", "/sys/fs/cgroup", "-name", f"{CGROUP}*", check=False).stdout
        mounts = self.lab.run("cat", "/proc/mounts").stdout
        return {
            "processes": processes,
            "files": files.split(),
            "cgroups": cgroups.split(),
            "mounts": [line for line in mounts.splitlines() if "/run/niso/" in line],
        }


NOTHING: dict[str, list[str]] = {"processes": [], "files": [], "cgroups": [], "mounts": []}

EXECUTE = r"""
import sys
from niso.base.errors import Error
from niso.runtime.execute import execute
try:
    sys.exit(execute("demo", sys.argv[1:]))
except Error as error:
    print(f"niso: {error.message}", file=sys.stderr)
    sys.exit(error.exit_status)
"""
