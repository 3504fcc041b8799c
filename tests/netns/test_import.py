"""Test that an imported compose file runs: its order, names, networks and published ports."""

from __future__ import annotations

import json

from conftest import Lab
from services import CLIENT, HOST, address, busybox_rootfs, environment_of, pid_of, ps

COMPOSE = """
name: Shop
services:
  db:
    image: busybox
    command: [sh, -c, 'while :; do echo "rows of $$NAME" | nc -l -p 5432; done']
    environment: {NAME: "${DB_NAME:-shop}"}
    networks: [inner]
    healthcheck: {test: "nc -w 1 127.0.0.1 5432 </dev/null | busybox grep -q rows", interval: 200ms}
    volumes: [data:/var/lib/db]
  migrate:
    image: busybox
    command: [sh, -c, "nc -w 1 db 5432 </dev/null >/out/rows && sleep 0.2"]
    networks: [inner]
    volumes: [out:/out]
    depends_on: {db: {condition: service_healthy}}
  web:
    image: busybox
    command: [busybox, httpd, -f, -p, "8080", -h, /out]
    ports: ["8080-8081:8080"]
    networks: {inner: {aliases: [www]}, default: }
    volumes: ["out:/out:ro", "./etc:/etc/web:ro", "log:/log"]
    depends_on: {migrate: {condition: service_completed_successfully}}
    mem_limit: 64m
    deploy: {replicas: 2, update_config: {order: start-first, monitor: 1s, parallelism: 2}}
networks: {inner: {internal: true}}
volumes: {data: , out: , log: }
"""


def test_an_imported_stack_runs_as_its_compose_file_says(lab: Lab) -> None:
    lab.write("/tmp/shop/compose.yaml", COMPOSE)
    lab.write("/tmp/stack/.env", "DB_NAME=goods\n")
    lab.write("/tmp/shop/etc/motd", "hello\n")
    lab.run("install", "-d", "-m", "777", "/srv/shop/out")  # as the import asks for
    said = lab.niso("import", "/tmp/shop/compose.yaml", "--output", "/tmp/stack").stdout
    assert "out is used by several services, here as the folder /srv/shop/out: make it" in said
    assert "here a connection to port 8080" in said and "here '8080:8080'" in said
    for name in ("db", "migrate", "web"):
        busybox_rootfs(lab, f"/tmp/stack/rootfs/{name}")
    up = lab.niso("stack", "up", "/tmp/stack").stdout
    lines = [line.split(":")[0] for line in up.splitlines() if not line.startswith("network")]
    assert lines == ["shop-db", "shop-migrate", "shop-web"]
    assert [ps(lab, name)["status"] for name in lines] == [*("running", "completed", "2/2 running")]
    # a packet from outside, an answer that came from db through the job
    fetched = lab.client("curl", "-s", "--max-time", "5", f"http://{HOST}:8080/rows").stdout
    assert fetched == "rows of goods\n"
    assert "NAME=goods" in environment_of(lab, pid_of(lab, "shop-db"))
    assert ps(lab, "shop-web")["mode"] == "front"
    for instance in ("shop-web.1", "shop-web.2"):
        url = f"http://{address(lab, instance)}:8080/rows"
        assert lab.run("curl", "-s", "-m", "5", url).stdout == fetched
        lab.niso("exec", instance, "--", "sh", "-c", "hostname >>/log/names")
    names = lab.niso("exec", "shop-web", "--", "cat", "/log/names").stdout
    assert len(names.split()) == 2  # one volume for both
    web = ("exec", "shop-web", "--")
    assert lab.niso(*web, "cat", "/etc/web/motd").stdout == "hello\n"
    assert lab.niso(*web, "nc", "-w", "2", "db", "5432").stdout == "rows of goods\n"
    # only web has a way out
    db = ("exec", "shop-db", "--")
    out = ("wget", "-q", "-T", "1", "-O", "/dev/null", f"http://{CLIENT}:7000/")
    server = lab.popen("python3", "-m", "http.server", "7000", netns="client")
    lab.wait_for(lambda: lab.niso(*web, *out, check=False).returncode == 0)
    assert lab.niso(*db, *out, check=False).returncode != 0
    server.kill()
    assert "www" in lab.niso(*db, "cat", "/etc/hosts").stdout.split()
    networks = {row["name"] for row in json.loads(lab.niso("net", "list", "--json").stdout)}
    assert networks == {"shop-inner", "shop-default"}
    assert lab.niso("net", "check").returncode == 0
    # unchanged services go on, and the job runs again
    pids = [pid_of(lab, name) for name in ("shop-db", "shop-web.1", "shop-web.2")]
    lab.niso("stack", "up", "/tmp/stack")
    assert [pid_of(lab, name) for name in ("shop-db", "shop-web.1", "shop-web.2")] == pids
    # a new version: both instances next to the old ones
    text = lab.path("/tmp/stack/stack.toml").read_text()
    lab.write("/tmp/stack/stack.toml", text.replace('memory_max = "64M"', 'memory_max = "65M"'))
    lab.niso("stack", "up", "/tmp/stack")
    assert {pid_of(lab, name) for name in ("shop-web.3", "shop-web.4")}.isdisjoint(pids)
    fetched = lab.client("curl", "-s", "--max-time", "5", f"http://{HOST}:8080/rows").stdout
    assert fetched == "rows of goods\n"
    lab.niso("stack", "down", "/tmp/stack", "--volumes")
    assert ps(lab, "shop-web")["status"] == "inactive"
    assert not lab.path("/var/lib/niso/volumes/shop-web").exists()
