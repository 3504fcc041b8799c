"""Provide a process spec and the seccomp profile, for tests of what is made of them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from niso.plan.specs import ProcessSpec
from niso.runtime import oci

PROFILE: dict[str, Any] = json.loads(
    (pathlib.Path(oci.__file__).parent / "seccomp.json").read_text()
)
SPEC = ProcessSpec(
    service="api",
    state_id="abc",
    generation=3,
    package="/var/lib/niso/packages/api/x",
    rootfs=None,
    argv=("/app/api", "--port", "80"),
    working_dir="/app",
    environment={"A": "1"},
    uid=5,
    gid=6,
    groups=(7,),
    user_name="api",
    home="/tmp",
    capabilities=(),
    read_only=True,
    hostname="web",
    hosts_folder="/run/niso/hosts/x",
    resolv_conf="",
    netns="/run/netns/niso-api",
    restart="no",
    restart_delay_s=1.0,
    stop_timeout_s=10.0,
)
