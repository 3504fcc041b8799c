"""Files of another user that root runs into: what they say is not obeyed unless root says so."""

from __future__ import annotations

import sys

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
    # a sticky bit protects what is in a folder, not a file
    ("chmod 1666 manifest.toml", "it is writable for everybody"),
    ("chgrp 1000 manifest.toml; chmod g+w manifest.toml", "it is writable for group 1000"),
    ("chgrp games .; chmod 2775 .", "its folder is writable for group games"),
    ("chgrp games manifest.toml; chmod 0644 manifest.toml", ""),
    ("chmod g+w . manifest.toml", ""),
    ("acl manifest.toml 2:6:5 16:6:-1", "it is writable for user games by its access control list"),
    ("acl . 8:7:60 16:7:-1", "its folder is writable for group games"),
    ("acl . 8:5:60 2:7:0 16:7:-1; acl manifest.toml 2:4:5 16:6:-1", ""),
    ("acl manifest.toml 2:6:5 16:4:-1", ""),
    (
        "mkdir in; chgrp games in; chmod g+w in; mv manifest.toml in; ln -s in/manifest.toml .",
        "its folder is writable for group games",
    ),
    # who may create names in a folder makes a link to a file of root's
    (
        "mkdir in; mv manifest.toml in; ln -s in/manifest.toml .; chown -h 5 manifest.toml;"
        " chgrp games .; chmod 3775 .",
        "it leads through /tmp/packages/api/manifest.toml, which belongs to user games",
    ),
    (
        "mv /tmp/packages/api /tmp/packages/in; ln -sr /tmp/packages/in /tmp/packages/api;"
        " chown -h 1000 /tmp/packages/api",
        "it leads through /tmp/packages/api, which belongs to uid 1000, not to you or root",
    ),
    ("mv /tmp/packages/api /tmp/packages/in; ln -s ../packages/./in /tmp/packages/api", ""),
)
ACL = """
import os, struct, sys
name, *more = sys.argv[1:]
entries = [(1, 7, -1), (4, 5, -1), *(tuple(map(int, one.split(":"))) for one in more), (32, 5, -1)]
value = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", *one) for one in sorted(entries, key=lambda one: (one[0], one[2]))
)
os.setxattr(name, "system.posix_acl_access", value)
"""
"""acl FILE TAG:PERMISSIONS:ID...: setfacl(1), with the numbers of linux/posix_acl.h."""


def test_who_can_change_file_and_folder_counts(lab: Lab) -> None:
    lab.write("/tmp/acl.py", ACL)
    acl = f'acl() {{ {sys.executable} -IS /tmp/acl.py "$@"; }}\n'
    for change, words in CHANGES:
        lab.run("rm", "-rf", "/tmp/packages/api", "/tmp/packages/in")
        folder = idle(lab, "api")
        lab.run("sh", "-ec", acl + change, cwd=folder)
        if words:
            assert words in refused(lab, "activate", "--dry-run", folder), change
            lab.niso("activate", "--dry-run", "--trust-owner", folder)
        else:
            lab.niso("activate", "--dry-run", folder)


def test_private_group_of_the_caller_is_trusted_and_no_other(lab: Lab) -> None:
    """A user with umask 002, whose files belong to a group of the user's name, calls sudo."""
    folder = idle(lab, "api")
    # /etc of a lab is its own
    passwd, group = (lab.run("cat", f"/etc/{name}").stdout for name in ("passwd", "group"))
    lab.run("chown", "-R", "1234:1234", folder)
    lab.run("chmod", "-R", "g+w", folder)
    for users, groups, words in (
        ("al:x:1234:1234::/:/bin/sh", "al:x:1234:", ""),
        ("al:x:1234:1234::/:/bin/sh", "al:x:1234:al,root", ""),
        ("al:x:1234:1234::/:/bin/sh", "al:x:1234:games", "it is writable for group al"),
        ("al:x:1234:1234::/:/bin/sh", "devs:x:1234:", "it is writable for group devs"),
        (
            "al:x:1234:1234::/:/bin/sh\neve:x:1235:1234::/:/bin/sh",
            "al:x:1234:",
            "it is writable for group al",
        ),
        ("al:x:1234:100::/:/bin/sh", "al:x:1234:", "it is writable for group al"),
    ):
        lab.run("sh", "-c", "cat >/etc/passwd", input=f"{passwd}{users}\n")
        lab.run("sh", "-c", "cat >/etc/group", input=f"{group}{groups}\n")
        argv, env = ("activate", "--dry-run", folder), {"SUDO_UID": "1234"}
        if words:
            assert words in refused(lab, *argv, env=env), (users, groups)
        else:
            lab.niso(*argv, env=env)


def test_every_file_that_a_manifest_names_counts(lab: Lab) -> None:
    folder = idle(
        lab,
        "api",
        service={"env_file": [f"{HOME}/vars/a"]},
        secrets={"T": {"file": f"{HOME}/keys/t"}},
    )
    for change, words in (
        ("chmod g+w vars/a", "vars/a: it is writable for group games"),
        ("chmod g+w vars", "vars/a: its folder is writable for group games"),
        ("chmod g+w keys/t", 'secrets.T.file: "/tmp/packages/keys/t" is writable for group games'),
        ("chmod g+w keys", "is in a folder that is writable for group games"),
        (
            "mv keys/t in; ln -s ../in keys/t; chown -h 5 keys/t; chmod 3775 keys",
            "leads through /tmp/packages/keys/t, which belongs to user games",
        ),
        (
            "mv vars in; ln -s in vars; chown -h 5 vars",
            "leads through /tmp/packages/vars, which belongs to user games",
        ),
        ("true", ""),
    ):
        prepare = (
            "rm -rf vars keys in; mkdir vars keys; touch vars/a keys/t; chgrp -R games vars keys\n"
        )
        lab.run("sh", "-ec", prepare + change, cwd=HOME)
        if words:
            assert words in refused(lab, "activate", "--dry-run", folder)
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
