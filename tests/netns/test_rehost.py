"""Test the replacement of a running service's hosts file, whatever the service did to its /etc."""

from __future__ import annotations

import time

from conftest import Lab
from services import busybox_rootfs, pid_of

BENT = """\
#!/bin/sh
rm /etc && mkdir /etc && ln -s /proc/sys /etc/niso-hosts && echo bent
while :; do
    (echo pwned > /proc/sys/kernel/hostname) 2>/dev/null && echo WROTE
    sleep 0.05
done
"""


def bent(lab: Lab, *networks: str) -> str:
    """A service whose root may write to /, and that makes its /etc/niso-hosts a way to /proc/sys."""
    folder = "/tmp/bent"
    if not lab.path(folder).exists():
        busybox_rootfs(lab, f"{folder}/rootfs")
        etc = lab.path(f"{folder}/rootfs/etc")
        etc.rename(etc.with_name("conf"))
        etc.symlink_to("conf")
        lab.write(f"{folder}/run.sh", BENT, 0o755)
    lab.write(
        f"{folder}/manifest.toml",
        '[package]\nname = "bent"\nversion = "1"\nrootfs = "rootfs"\n[binary]\nentrypoint = "run.sh"\n[service]\nuser = "0:0"\n'
        f'stop_timeout = "0s"\n[isolation]\nread_only = false\n[network]\nnetworks = {list(networks)}\n',
    )
    return folder


def test_service_that_bends_its_etc_has_nothing_unmounted(lab: Lab) -> None:
    lab.niso("activate", bent(lab, "one"))
    lab.wait_for(lambda: "bent" in lab.niso("logs", "bent").stdout, 10, "its /etc is another")
    lab.niso("activate", bent(lab, "one", "two"))
    lab.wait_for(
        lambda: lab.niso("logs", "bent").stdout.count("bent") > 1, 10, "its process has begun anew"
    )
    time.sleep(0.3)  # it tries every 50 ms
    mounts = lab.run("cat", f"/proc/{pid_of(lab, 'bent')}/mountinfo").stdout
    assert " /proc/sys ro," in mounts
    assert "WROTE" not in lab.niso("logs", "bent").stdout
    lab.niso("restart", "bent")
    lab.niso("remove", "bent")
