"""Test that the host knows services by name if it shall: a block of /etc/hosts that is whole at every moment."""

from __future__ import annotations

import json

from conftest import Lab
from services import idle, on, refused


def resolved(lab: Lab, name: str) -> str:
    return str(lab.run("getent", "ahostsv4", name, check=False).stdout).partition(" ")[0]


def test_host_knows_services_while_it_shall(lab: Lab) -> None:
    """And the rest of the file, its mode, owner and attributes stay."""
    hosts = lab.path("/etc/hosts")
    lab.run("chmod", "640", "/etc/hosts")
    lab.run("chown", "0:44", "/etc/hosts")
    lab.run("python3", "-c", "import os; os.setxattr('/etc/hosts', 'trusted.x', b'kept')")
    before = hosts.read_bytes()
    lab.niso("activate", idle(lab, "api", network=on("back")))
    assert resolved(lab, "api.niso.local") == ""
    done = lab.niso("net", "names", "on")
    assert "/etc/hosts has these names" in done.stdout
    assert resolved(lab, "api.niso.local") == "10.99.1.2"
    lab.niso("activate", idle(lab, "web", network=on("back")))
    lab.niso("activate", idle(lab, "side", network={"mode": "share", "share": "web"}))
    assert resolved(lab, "web.niso.local") == resolved(lab, "side.niso.local") == "10.99.1.3"
    assert "unchanged" in lab.niso("net", "names", "on").stdout
    assert lab.niso("net", "check").stdout.startswith("OK")
    # somebody writes to the file, and somebody takes lines out of the block
    hosts.write_bytes(hosts.read_bytes().replace(b"10.99.1.2", b"10.99.1.9") + b"192.0.2.9 nas\n")
    assert "/etc/hosts" in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "repair")
    assert resolved(lab, "api.niso.local") == "10.99.1.2" and resolved(lab, "nas") == "192.0.2.9"
    lab.niso("deactivate", "web", "side")
    assert resolved(lab, "web.niso.local") == ""
    lab.niso("deactivate", "api")
    assert "will have the names" in lab.niso("net", "names").stdout
    # of the block nothing is left with the last service, and it comes with the next one
    assert hosts.read_bytes() == before + b"192.0.2.9 nas\n"
    lab.niso("activate", "api")
    assert resolved(lab, "api.niso.local") == "10.99.1.2"
    names = json.loads(lab.niso("net", "names", "--json").stdout)
    assert names["names"] == [{"name": "api.niso.local", "address": "10.99.1.2"}]
    lab.niso("net", "names", "off")
    assert hosts.read_bytes() == before + b"192.0.2.9 nas\n"
    assert lab.run("stat", "-c", "%a %u %g", "/etc/hosts").stdout == "640 0 44\n"
    kept = "import os; print(os.getxattr('/etc/hosts', 'trusted.x'))"
    assert lab.run("python3", "-c", kept).stdout == "b'kept'\n"
    # a sweep, which needs no store, leaves none either
    lab.niso("net", "names", "on")
    lab.niso("reset", "--yes")
    assert hosts.read_bytes() == before + b"192.0.2.9 nas\n"


def test_file_that_cannot_be_replaced_is_left_alone_and_stops_no_service(lab: Lab) -> None:
    lab.run("cp", "-a", "/etc/hosts", "/tmp/mine")
    before = lab.path("/tmp/mine").read_bytes()
    lab.run("mount", "--bind", "/tmp/mine", "/etc/hosts")
    assert "is a mount point" in refused(lab, "net", "names", "on")
    assert lab.path("/tmp/mine").read_bytes() == before
    lab.run("umount", "/etc/hosts")
    lab.run("sh", "-c", "mv /etc/hosts /etc/real; ln -s real /etc/hosts")
    assert "is a symbolic link to real" in refused(lab, "net", "names", "on")
    lab.run("sh", "-c", "rm /etc/hosts; mv /etc/real /etc/hosts")
    if lab.run("chattr", "+i", "/etc/hosts", check=False).returncode == 0:
        assert "immutable" in refused(lab, "net", "names", "on")
        lab.run("chattr", "-i", "/etc/hosts")
    assert refused(lab, "net", "names", "yes", status=2)
    assert json.loads(lab.niso("net", "names", "--json").stdout)["on_host"] is False
    # killed anywhere, it is done or completed by the next command that changes something
    original = lab.path("/etc/hosts").read_bytes()
    lab.niso("activate", idle(lab, "early"))
    for point in ("1", "2"):
        kill = {"NISO_FAILPOINT": point}
        assert lab.niso("net", "names", "on", env=kill, check=False).returncode != 0
        assert lab.path("/etc/hosts").read_bytes() == original
    lab.niso("net", "repair")
    assert resolved(lab, "early.niso.local")
    lab.niso("remove", "early")
    assert lab.path("/etc/hosts").read_bytes() == original
    # later, it only warns
    lab.niso("net", "names", "on")
    lab.run("mount", "--bind", "/tmp/mine", "/etc/hosts")
    done = lab.niso("activate", idle(lab, "api"))
    assert "the host does not know the present names of services" in done.stderr
    lab.run("umount", "/etc/hosts")
    lab.niso("net", "repair")
    assert resolved(lab, "api.niso.local")
    # nothing is half written
    names = {path.name for path in lab.path("/etc").iterdir() if path.name.startswith("hosts.")}
    assert "hosts.niso-new" not in names
    text = lab.path("/etc/hosts").read_text().replace(": end\n", ": and\n")
    lab.path("/etc/hosts").write_text(text)
    assert "damaged block" in refused(lab, "net", "names", "off")
