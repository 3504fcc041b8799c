"""Test [secrets]: who can read them, where their bytes are, and what a change of the file does."""

from __future__ import annotations

import uuid

from conftest import Lab
from services import idle, on, pid_of, refused

SECRET = f"correct-horse-{uuid.uuid4()}"
NEW = f"battery-staple-{uuid.uuid4()}"
"""Random, so that no file of a checkout below /tmp contains them."""


def lies_in(lab: Lab, word: str, *folders: str) -> list[str]:
    """Return the files below folders of the host that contain a word."""
    found = lab.run("grep", "-rlaF", "--", word, *folders, check=False).stdout
    return sorted(str(found).split())


def test_secret_is_in_memory_for_its_user_alone_and_follows_its_file(lab: Lab) -> None:
    folder = idle(lab, "api", secrets={"TOKEN": {"file": "token.txt"}}, network=on("one"))
    lab.write(f"{folder}/token.txt", SECRET, 0o600)
    other = idle(lab, "other", network=on("one"))
    said = [lab.niso("activate", folder, other)]

    def read(name: str = "api") -> str:
        done = lab.niso("exec", name, "--", "cat", "/run/secrets/TOKEN", check=False)
        return str(done.stdout)

    assert read() == SECRET and read("other") == ""
    uid = str(lab.niso("exec", "api", "--", "id", "-u").stdout).strip()
    shown = lab.niso("exec", "api", "--", "stat", "-c", "%a %u %F %n", "/run/secrets/TOKEN").stdout
    assert shown.split()[:2] == ["400", uid] and uid != "0"
    kind = lab.niso("exec", "api", "--", "stat", "-f", "-c", "%T", "/run/secrets").stdout
    assert kind.strip() == "tmpfs"
    tries = (
        "cd /run/secrets; chmod 644 TOKEN; echo x >TOKEN; touch y; mv TOKEN z; ls /app; echo end"
    )
    done = lab.niso("exec", "api", "--", "sh", "-c", tries)
    assert done.stdout.split() == ["manifest.toml", "end"]  # and it is no part of the package
    assert read() == SECRET
    # where its bytes are: in its own file, and in no mount of the host
    said += [
        lab.niso(*words)
        for words in (
            ["inspect", "api"],
            ["logs", "api"],
            ["validate", folder, "--json"],
            ["net", "check"],
        )
    ]
    assert not any(SECRET in one.stdout + one.stderr for one in said)
    state = ("/var/lib/niso", "/run/niso", "/tmp")
    assert lies_in(lab, SECRET, *state) == [f"{folder}/token.txt"]
    assert "/secrets" not in lab.run("cat", "/proc/mounts").stdout
    assert SECRET not in lab.run("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ").stdout

    # a changed file is a change of the service
    first = pid_of(lab, "api")
    assert "unchanged" in lab.niso("activate", folder).stdout
    assert "unchanged" in lab.niso("activate", "api").stdout
    assert pid_of(lab, "api") == first
    lab.write(f"{folder}/token.txt", NEW, 0o600)
    assert "unchanged" not in lab.niso("activate", folder).stdout
    assert read() == NEW and pid_of(lab, "api") != first
    # each start reads it again, also one by the restart policy
    lab.write(f"{folder}/token.txt", SECRET, 0o600)
    before = pid_of(lab, "api")
    lab.run("kill", "-KILL", str(before))
    lab.wait_for(lambda: read() == SECRET, 15, "the new content after a crash")

    # a link, or no file at all: nothing is stopped for it
    lab.run("mv", f"{folder}/token.txt", "/tmp/kept")
    lab.run("ln", "-s", "/etc/shadow", f"{folder}/token.txt")
    running = pid_of(lab, "api")
    said_ = refused(lab, "restart", "api")
    assert "secrets.TOKEN.file" in said_ and "leads through a symlink" in said_
    lab.run("rm", f"{folder}/token.txt")
    assert "is gone" in refused(lab, "restart", "api")
    assert "token.txt" in refused(lab, "activate", folder)
    assert pid_of(lab, "api") == running and read() == SECRET
    assert "secrets.TOKEN.file" in lab.niso("net", "check", check=False).stdout
    lab.run("mv", "/tmp/kept", f"{folder}/token.txt")
    lab.niso("restart", "api")
    lab.niso("remove", "api")
    assert lies_in(lab, SECRET, *state) == [f"{folder}/token.txt"]
