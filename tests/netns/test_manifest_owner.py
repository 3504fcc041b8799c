"""Files of another user that root runs into: what they say is not obeyed unless root says so."""

from __future__ import annotations

from conftest import Lab
from services import idle, ps, refused

HOME = "/tmp/packages"


def test_folder_of_another_user_is_not_taken_for_a_service_that_is_not_known(lab: Lab) -> None:
    """Root types the name of a service that is not active, in a folder where somebody waits for it."""
    folder = idle(lab, "redis", isolation={"capabilities": ["SYS_ADMIN"]}, service={"user": "0:0"})
    lab.run("chown", "-R", "1000:1000", folder)
    said = refused(lab, "activate", "redis", cwd=HOME)
    assert f"{folder}/manifest.toml: it belongs to uid 1000, not to you or root" in said
    assert "then pass --trust-owner. As sudo niso, it obeys the files of the user who calls" in said
    for other in ("0", "1001"):  # sudo by somebody else, or in a root shell
        said = refused(lab, "activate", "redis", cwd=HOME, env={"SUDO_UID": other})
        assert "then pass --trust-owner" in said and "As sudo" not in said
    assert lab.niso("ps", "--json").stdout == "[]\n"
    for argv in (("activate", folder), ("activate", f"{folder}/manifest.toml")):
        refused(lab, *argv)
    warned = lab.niso("activate", "--trust-owner", "redis", cwd=HOME).stderr
    assert "SYS_ADMIN affects the whole machine" in warned, "what it would have been"
    lab.niso("activate", "redis", cwd=HOME)  # known now: the store has what was looked at
    lab.niso("restart", "redis")
    refused(lab, "activate", folder)
    lab.niso("activate", folder, env={"SUDO_UID": "1000"})
    assert ps(lab, "redis")["status"] == "running"


def test_root_shell_needs_nothing_for_its_own_folders(lab: Lab) -> None:
    """Nor for one of root below the home of a user."""
    folder = idle(lab, "api")
    lab.run("mkdir", "/tmp/alice")
    lab.run("chown", "1000:1000", "/tmp/alice")
    lab.run("cp", "-a", folder, "/tmp/alice/api")
    for path in (folder, "/tmp/alice/api"):
        lab.niso("activate", "--dry-run", path)
        lab.niso("activate", "--dry-run", path, env={"SUDO_UID": "1000"})


CHANGES = (
    ("chown 1000 .", "its folder belongs to uid 1000"),
    ("chown 1000 manifest.toml", "it belongs to uid 1000"),
    ("chmod o+w manifest.toml", "it is writable for everybody"),
    ("chmod o+w .", "its folder is writable for everybody"),
    ("chmod 1777 .", ""),
    ("chgrp 1000 . manifest.toml; chmod g+w . manifest.toml", ""),
)


def test_owner_and_mode_of_file_and_folder_count(lab: Lab) -> None:
    for change, words in CHANGES:
        lab.run("rm", "-rf", "/tmp/packages/api")
        folder = idle(lab, "api")
        lab.run("sh", "-ec", change, cwd=folder)
        if words:
            assert words in refused(lab, "activate", "--dry-run", folder)
            lab.niso("activate", "--dry-run", "--trust-owner", folder)
        else:
            lab.niso("activate", "--dry-run", folder)


def test_every_file_of_a_stack_counts(lab: Lab) -> None:
    folder = idle(lab, "api")
    stack = '[stack]\nname = "shop"\n[[service]]\nname = "api"\npackage = "./api"\n'
    lab.write(f"{HOME}/stack.toml", stack)
    lab.niso("stack", "up", "--dry-run", cwd=HOME)
    lab.run("chown", "1000", f"{folder}/manifest.toml")
    assert "api/manifest.toml: it belongs to uid 1000" in refused(lab, "stack", "up", cwd=HOME)
    lab.run("chown", "0", f"{folder}/manifest.toml")
    lab.run("chown", "1000", f"{HOME}/stack.toml")
    assert "stack.toml: it belongs to uid 1000" in refused(lab, "stack", "up", cwd=HOME)
    lab.niso("stack", "up", "--dry-run", "--trust-owner", cwd=HOME)
