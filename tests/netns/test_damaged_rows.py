"""Test damaged rows of the store: they are reported, affect only their service, and are repaired."""

from __future__ import annotations

import pytest
from conftest import Lab, assert_whole
from services import CLIENT, HOST, answer, echo, idle, on, ps, refused

DAMAGE = "import sqlite3, sys; c = sqlite3.connect('/var/lib/niso/state.db'); c.execute(f\"UPDATE service SET {sys.argv[1]}=? WHERE name='c'\", sys.argv[2:]); c.commit()"


@pytest.mark.first
def test_damaged_row_is_named_and_keeps_no_other_service_from_anything(lab: Lab) -> None:
    package = echo(lab, "c", network=on("back", ports=["8080:80"]))
    lab.niso("activate", idle(lab, "d"))
    damages = [("spec", text) for text in ("x", "{}", "[]")]
    for column, text in [*damages, ("manifest", "x"), ("manifest", "{}")]:
        lab.niso("activate", package)
        lab.run("python3", "-ISc", DAMAGE, column, text)
        named = lab.niso("net", "check", check=False)
        assert (named.returncode, named.stdout) == (1, "different: store: service of service 'c'\n")
        assert ps(lab, "c")["status"] == ps(lab, "d")["status"] == "running"
        others = (("restart", "d"), ("activate", idle(lab, "e")), ("net", "create", "more"))
        for command in (*others, ("remove", "e"), ("net", "remove", "more")):
            assert "defect" not in lab.niso(*command).stderr
        if (column, text) != ("manifest", "{}"):
            assert f"hint: niso activate {package}" in refused(lab, "inspect", "c")
        done = lab.niso("net", "repair", check=False)
        if column == "spec":  # the running service has it too
            assert (done.returncode, done.stdout) == (0, "repaired: 1 step\n")
        else:
            assert done.returncode == 1
            assert "service 'c': its record in the store is damaged" in done.stderr
            assert f"hint: niso activate {package}" in done.stderr
            lab.niso("activate", package)
        assert_whole(lab)
        assert answer(lab, HOST, 8080, "client") == f"c {CLIENT}"
        lab.run("python3", "-ISc", DAMAGE, column, text)
        lab.niso("deactivate", "c")
        lab.niso("remove", "c")
        assert_whole(lab)
