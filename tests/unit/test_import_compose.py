"""Test niso import: what it takes over, lists and refuses, and hostile files."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import images
import pytest
from compose_files import write
from refusals import refuses

import niso
from niso.base.errors import Conflict, Error, InvalidInput, NotFound
from niso.cli import main
from niso.compose import storage
from niso.manifest import stack


def tables(folder: Path, text: str) -> dict[str, Any]:
    """Return the stack of the services of a compose file."""
    return tomllib.loads(niso.import_compose(write(folder, text)).text)


def test_internal_networks_come_last_and_the_default_one_is_the_stacks(tmp_path: Path) -> None:
    text = "services: {a: {image: a, networks: [in, default]}, b: {image: b}}\n"
    data = tables(tmp_path, text + "networks: {in: {internal: true}}\n")
    assert data["services"]["a"]["network"]["networks"] == ["niso-default", "in"]
    assert "network" not in data["services"]["b"]
    data = tables(tmp_path, text + "networks: {in: , default: {internal: true}}\n")
    assert data["networks"] == {"main": {"internal": True}, "in": {}}
    assert data["services"]["b"]["network"]["networks"] == ["main"]


def test_networks_of_the_file_do_not_become_one(tmp_path: Path) -> None:
    """Where niso's names are fewer, and where an external one has the name of the file's own."""
    text = """
services:
  a: {image: a, networks: [a_b]}
  b: {image: b, networks: [A-B, out]}
  d: {image: d, networks: [again]}
  c: {image: c, networks: [n]}
networks:
  a_b: {internal: true}
  A-B:
  n: {name: shared_n}
  out: {external: true, name: n}
  again: {external: {name: n}}
  other: {external: true, name: N}
"""
    made = niso.import_compose(write(tmp_path, text))
    data = tomllib.loads(made.text)
    assert data["networks"] == {"a-b": {"internal": True}, "a-b-2": {}, "n-3": {}}
    on = {name: keys["network"]["networks"] for name, keys in data["services"].items()}
    assert on == {"a": ["a-b"], "b": ["a-b-2", "n"], "c": ["n-3"], "d": ["n"]}
    gaps = {gap.key: gap.text for gap in made.missing if not gap.service}
    assert gaps["networks.n.name"] == f"it is {made.stack}-n-3, for other stacks too"
    assert "niso net create n-2," in gaps["networks.other"]


def test_what_services_cannot_have_beside_each_other_is_left_out(tmp_path: Path) -> None:
    """Compose allows an alias of several services, and an alias that is the name of one."""
    text = r"""
services:
  a: {image: x, command: [sh], ports: ["80:80", "80:81", "81:81"], hostname: h,
    networks: {n: {aliases: [api]}}}
  b: {image: x, command: [sh], ports: ["127.0.0.1:80:80", "82:82", "$P:1"], hostname: h,
    networks: {n: {aliases: [api, a, own]}}}
  c: {image: x, command: [sh], ports: ["79-81:79-81"], network_mode: "service:a"}
  d: {image: x, command: [sh], networks: {m: {aliases: [api, a]}}, hostname: h,
    volumes: ["./x\n[services.y]:/y"], secrets: [s]}
  e: {image: x, command: [sh], networks: {m: {aliases: [a]}}, hostname: api}
networks: {n: , m: }
secrets: {s: {file: "/x\ny"}}
"""
    made = niso.import_compose(write(tmp_path, text), tmp_path)
    data = tomllib.loads(made.text)["services"]
    names = {name: data[name].get("network", {}) for name in data}
    assert [names["a"][key] for key in ("hostname", "aliases", "ports")] == [
        *("h", ["api"], ["80:80", "81:81"])
    ]
    assert (names["b"]["aliases"], names["b"]["ports"]) == (["own"], ["82:82", "${P}:1"])
    assert "hostname" not in names["b"] and "ports" not in names["c"]
    assert (names["d"]["hostname"], names["d"]["aliases"]) == ("h", ["api", "a"])
    assert names["e"] == {"networks": ["m"]}
    assert "volumes" not in data["d"] and "secrets" not in data["d"]
    gaps = {(gap.service, gap.text) for gap in made.missing}
    for gap in (
        ("a", "'80:81' has a host port of a: left out"),
        ("b", "'a' is a name of a on the same network: left out"),
        ("c", "'79-81:79-81' has a host port of a: left out"),
        ("e", "'api' is a name of d on the same network: left out"),
    ):
        assert gap in gaps
    for name in data:
        (tmp_path / "rootfs" / name).mkdir(parents=True)
    (tmp_path / "stack.toml").write_text(made.text)
    (tmp_path / ".env").write_text("P=8000\n")
    niso.validate(tmp_path / "stack.toml")


def test_paths_below_the_folder_are_its_own_also_in_a_copy(tmp_path: Path) -> None:
    text = """
services:
  a:
    image: x
    command: run
    volumes: ["./data:/data", "../other:/other", "/srv:/srv", ".:/all:ro", "./out:/out", "$D:/d"]
    env_file: [a.env]
    secrets: [key]
secrets: {key: {file: keys/key.txt}}
"""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "out").symlink_to("/usr")
    file = write(tmp_path / "app", text)
    service = tomllib.loads(niso.import_compose(file, tmp_path / "app").text)["services"]["a"]
    hosts = [volume["host"] for volume in service["volumes"].values()]
    # what a link leads out of the folder would be refused
    assert hosts == ["./data", f"{tmp_path}/other", "/srv", "./", f"{tmp_path}/app/out", "${D}"]
    assert service["service"]["env_file"] == ["./a.env"]
    assert service["secrets"] == {"key": {"file": "./keys/key.txt"}}
    service = tomllib.loads(niso.import_compose(file, tmp_path / "other").text)["services"]["a"]
    assert service["secrets"] == {"key": {"file": f"{tmp_path}/app/keys/key.txt"}}


def test_variables_stay_variables(tmp_path: Path) -> None:
    text = """
services:
  a:
    image: x
    command: [run, "$TAG-${E:-e}", "$$HOME", "$${HOME}", "${M:?why}"]
    ports: ["${PORT:-8080}:80"]
    volumes: ["${DATA:-/srv/a}:/data:ro"]
    env_file: [{path: ./a.env}]
    secrets: [key, {source: key, target: other}, nope]
secrets: {key: {file: ./key.txt}}
"""
    made = niso.import_compose(file := write(tmp_path, text))
    service = tomllib.loads(made.text)["services"]["a"]
    args = ["${TAG}-${E:-e}", "$HOME", "$${HOME}", "${M:?why}"]
    assert service["binary"]["args"] == args
    assert service["network"]["ports"] == ["${PORT:-8080}:80"]
    assert service["volumes"]["data"]["host"] == "${DATA:-/srv/a}"
    assert service["service"]["env_file"] == [f"{tmp_path}/a.env"]
    assert service["secrets"] == {
        name: {"file": f"{tmp_path}/key.txt"} for name in ("key", "other")
    }
    told = {gap.key: gap.text for gap in made.missing if not gap.service}
    assert told == {
        "${TAG}": "it must be set, in .env next to the stack.toml",
        "${M}": "it must be set, in .env next to the stack.toml",
    }
    (tmp_path / ".env").write_text("TAG=3\nPORT=80\nOTHER=x\n")
    told = {gap.key: gap.text for gap in niso.import_compose(file).missing if not gap.service}
    assert told == {
        "${M}": "it must be set, in .env next to the stack.toml",
        ".env": "copy it next to the stack.toml: it sets PORT, TAG",
    }
    told = {gap.key for gap in niso.import_compose(file, tmp_path).missing if not gap.service}
    assert told == {"${M}"}
    (tmp_path / "stack.toml").unlink()
    for file in ("a.env", "key.txt"):
        (tmp_path / file).write_text("A=1\n")
    (tmp_path / ".env").write_text("TAG=3\nM=4\n")
    (tmp_path / "rootfs" / "a").mkdir(parents=True)
    (tmp_path / "stack.toml").write_text(made.text)
    spec = stack.load(str(tmp_path), None).members[0].loaded.spec
    assert spec.program.args == ("3-e", "$HOME", "${HOME}", "4")
    assert (spec.network.ports[0].port.text, spec.program.environment) == ("8080:80", {"A": "1"})


def test_command_prints_or_writes_and_never_overwrites(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "services: {a: {image: busybox, command: httpd -f}}\n")
    assert main.run(["import", str(file)]) == 0
    out, err = capfd.readouterr()
    assert tomllib.loads(out)["services"]["a"]["binary"]["entrypoint"] == "httpd"
    assert "not taken over:\n  a: image: put the files of busybox into rootfs/a" in err
    assert "podman export $(podman create busybox) | tar -x -C rootfs/a" in err
    to = tmp_path / "to"
    assert main.run(["import", str(file), "--output", str(to)]) == 0
    assert capfd.readouterr().out.startswith(f"{to}/stack.toml: stack ")
    before = (to / "stack.toml").read_bytes()
    assert main.run(["import", str(file), "-o", str(to)]) == 1
    assert capfd.readouterr().err.startswith(f"niso: {to}/stack.toml: already exists\n")
    assert (to / "stack.toml").read_bytes() == before
    assert main.run(["import", str(file), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["services"] == ["a"]


def test_scalars_keep_their_text(tmp_path: Path) -> None:
    """By YAML 1.1 they would be numbers of base 60, octal ones, booleans and dates."""
    values = ("22:22", "yes", "off", "12:30:45", "0777", "1_000", "1.10", "1e3", "2024-01-01")
    variables = ", ".join(f"V{number}: {value}" for number, value in enumerate(values))
    made = tables(
        tmp_path,
        "services: {a: {image: a, restart: no, ports: [22:22], cpus: 1.5, command: [a, yes, 0o17],"
        f" read_only: true, environment: {{{variables}, T: true}}}}}}\n",
    )["services"]["a"]
    assert tuple(made["environment"].values()) == (*values, "true")
    assert made["network"]["ports"] == ["22:22"]
    assert made["binary"] == {"entrypoint": "a", "args": ["yes", "0o17"], "working_dir": "/"}
    assert made["isolation"]["resources"] == {"cpu_max": "150%"}
    assert made["service"] == {"restart": "no"}
    assert "read_only" not in made["isolation"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("command", "it's", '"it\'s" is not a list of words: not taken over'),
        ("entrypoint", "5", "5 is not a list of words: not taken over"),
        ("ports", "80", "80 is not a list: not taken over"),
        ("environment", "5", "5 is not a list or a mapping: not taken over"),
        ("volumes", "{a: b}", "{'a': 'b'} is not a list: not taken over"),
        ("healthcheck", "curl", "'curl' is not a mapping: not taken over"),
        ("restart", "on-failure:3", "the number of times (3) is not limited"),
        ("tmpfs", "/x:size=huge", "/x: size=huge is not taken over"),
        ("tmpfs", "/x:mode=1777", "/x: mode=1777 is not taken over"),
        ("volumes", "[{type: tmpfs, target: /x, tmpfs: {size: x}}]", "/x: 'x' is not a size"),
        (
            "volumes",
            "[{type: bind, target: /x, source: /y, bind: {}}]",
            "/x: bind is not taken over",
        ),
        ("stop_grace_period", "soon", "'soon' is not a duration"),
        (
            "deploy",
            "{resources: {reservations: {memory: 1g}}}",
            "niso has no such key",
        ),
        (
            "deploy",
            "{resources: {limits: {memory: 1g, devices: [x]}}}",
            "niso has no such key",
        ),
        (
            "volumes",
            "[v:/one, v:/two]",
            "v is mounted several times, here as the folder /srv/s/v: make it",
        ),
        ("pids_limit", "many", "'many' is not a limit of niso: the default applies"),
    ],
)
def test_value_that_is_not_taken_over_is_listed(
    tmp_path: Path, key: str, value: str, reason: str
) -> None:
    made = niso.import_compose(
        write(tmp_path, f"name: s\nservices: {{a: {{image: a, {key}: {value}}}}}")
    )
    assert (key, reason) in [
        (gap.key.partition(".resources.")[0], gap.text)
        for gap in made.missing
        if gap.service == "a"
    ]


def test_restart_by_a_dependency_is_listed(tmp_path: Path) -> None:
    text = "services: {a: {image: a, depends_on: {b: {restart: true}}}, b: {image: b}}"
    made = niso.import_compose(write(tmp_path, text))
    listed = [(gap.service, gap.key, gap.text) for gap in made.missing]
    assert ("a", "depends_on", "a restart of 'b' does not restart it") in listed


@pytest.mark.parametrize(
    ("policy", "restart"),
    [
        ("{condition: on-failure, max_attempts: 3, delay: 5s}", "on-failure"),
        ("{condition: any}", "always"),
        ("{max_attempts: 3}", "always"),
        ("{condition: none}", "no"),
        ("{}", "always"),  # that of the service applies
    ],
)
def test_restart_policy_of_deploy_comes_first(tmp_path: Path, policy: str, restart: str) -> None:
    text = f"services: {{a: {{restart: always, command: x, deploy: {{restart_policy: {policy}}}}}}}"
    made = niso.import_compose(write(tmp_path, text))
    assert tomllib.loads(made.text)["services"]["a"]["service"] == {"restart": restart}
    gaps = {(gap.key, gap.text) for gap in made.missing}
    assert (("restart", "the number of times (3) is not limited") in gaps) == ("3" in policy)
    assert (("deploy.restart_policy.delay", "niso has no such key") in gaps) == ("5s" in policy)


@pytest.mark.parametrize(
    ("keys", "word", "gap"),
    [
        ("image: x, stop_signal: SIGQUIT", "QUIT", False),
        ("image: x, stop_signal: 28", "WINCH", False),
        ("image: x, stop_signal: SIGRTMIN+3", None, True),
        ("image: x, stop_signal: '${stop}'", "${stop}", False),
        ("image: x", None, False),
        ("image: 'postgres:17-alpine'", "INT", False),
        ("image: 'postgres:17', stop_signal: SIGTERM", "TERM", False),
        ("image: 'docker.io/library/nginx@sha256:0'", "QUIT", False),
        ("image: 'wordpress:6-php8.3-fpm-alpine'", "QUIT", False),
        ("image: 'httpd:2.4'", "WINCH", False),
    ],
)
def test_stop_signal_is_that_of_the_file_or_the_image(
    tmp_path: Path, keys: str, word: str | None, gap: bool
) -> None:
    made = niso.import_compose(write(tmp_path, f"services: {{a: {{command: x, {keys}}}}}"))
    service = tomllib.loads(made.text)["services"]["a"].get("service", {})
    assert service.get("stop_signal") == word
    assert ("stop_signal" in {one.key for one in made.missing}) == gap


@pytest.mark.parametrize(
    ("keys", "expected", "gaps"),
    [
        ("ulimits: {nofile: 65536, nproc: 10}", {"limits": {"nofile": 65536, "nproc": 10}}, 0),
        (
            "ulimits: {nofile: {soft: 1024, hard: 4096}, memlock: {soft: -1, hard: -1}}",
            {"limits": {"nofile": "1024:4096", "memlock": "unlimited"}},
            0,
        ),
        (
            "ulimits: {files: 1, nofile: {soft: 9, hard: 1}, core: '${C}'}",
            {"limits": {"core": "${C}"}},
            2,
        ),
        (
            "sysctls: [net.core.somaxconn=1024, net.ipv4.tcp_rmem=1 2 3, kernel.shmmax=1]",
            {"sysctls": {"net.core.somaxconn": 1024, "net.ipv4.tcp_rmem": "1 2 3"}},
            1,
        ),
        ("sysctls: {net.ipv6.conf.all.disable_ipv6: 0}", {}, 1),
        ("network_mode: host, sysctls: {net.core.somaxconn: 1}", {}, 1),
        (
            "devices: ['/dev/fuse', '/dev/kmsg:/dev/log:r', '/dev/dri:/dev/dri:rwm']",
            {
                "isolation": {
                    "devices": ["/dev/fuse", "/dev/kmsg:/dev/log:r", "/dev/dri:/dev/dri:rwm"]
                }
            },
            0,
        ),
        (
            "devices: [{source: /dev/fuse, permissions: r}, vendor.com/gpu=all, '/srv/x:/dev/x']",
            {"isolation": {"devices": ["/dev/fuse:r"]}},
            2,
        ),
    ],
)
def test_ulimits_sysctls_and_devices_are_taken_over(
    tmp_path: Path, keys: str, expected: dict[str, Any], gaps: int
) -> None:
    made = niso.import_compose(
        write(tmp_path, f"services: {{a: {{image: x, command: x, read_only: true, {keys}}}}}")
    )
    service = tomllib.loads(made.text)["services"]["a"]
    tables = ("limits", "sysctls", "isolation")
    assert {table: service[table] for table in tables if table in service} == expected
    found = [one.key for one in made.missing if one.key in ("ulimits", "sysctls", "devices")]
    assert len(found) == gaps


def test_links_are_aliases_and_mount_points_lose_their_slashes(tmp_path: Path) -> None:
    text = """services:
  a: {command: x, links: ["b:db", b, "none:x"], volumes: ["./x/:/etc//x/", "./y/:/y/:ro"]}
  b: {command: y}
"""
    made = niso.import_compose(write(tmp_path, text))
    services = tomllib.loads(made.text)["services"]
    assert services["b"]["network"]["aliases"] == ["db"]
    assert [volume["mount"] for volume in services["a"]["volumes"].values()] == ["/etc/x", "/y"]
    assert not {"links", "volumes"} & {gap.key for gap in made.missing}


@pytest.mark.parametrize(
    ("keys", "service", "gap"),
    [
        (
            "deploy: {replicas: 0, labels: [swarm.cronjob.enable=true, 'swarm.cronjob.schedule=0 3 * * *']}",
            {"kind": "job", "schedule": "*-*-* 03:00"},
            "niso enable s-a starts its timer",
        ),
        (
            "labels: {swarm.cronjob.schedule: '0 0 1 * 1'}",
            {"kind": "job"},
            "swarm.cronjob.schedule: '0 0 1 * 1': set service.schedule (systemd.time(7))",
        ),
        (
            "labels: {ofelia.job-exec.x.schedule: '@daily'}",
            {"restart": "no"},
            'ofelia: write a service with this command, kind = "job" and schedule',
        ),
    ],
)
def test_times_of_a_job_are_taken_over(
    tmp_path: Path, keys: str, service: dict[str, str], gap: str
) -> None:
    made = niso.import_compose(
        write(tmp_path, f"name: s\nservices: {{a: {{image: x, command: x, {keys}}}}}")
    )
    assert tomllib.loads(made.text)["services"]["a"]["service"] == service
    assert gap in [one.text for one in made.missing if one.key == "labels"]


@pytest.mark.parametrize(
    ("keys", "binary", "program"),
    [
        ("", {}, ("entry", ("-x", "cmd"))),
        ("command: [a, b]", {"args": ["a", "b"]}, ("entry", ("-x", "a", "b"))),
        ("entrypoint: [e, f]", {"entrypoint": "e", "args": ["f"]}, ("e", ("f",))),
        (
            "entrypoint: e, command: a, working_dir: /w",
            {"entrypoint": "e", "args": ["a"], "working_dir": "/w"},
            ("e", ("a",)),
        ),
        ("command: []", {"args": []}, ("entry", ("-x",))),
        ("entrypoint: [], command: [a, b]", {"entrypoint": "a", "args": ["b"]}, ("a", ("b",))),
    ],
)
def test_words_of_an_image_come_from_its_layout(
    tmp_path: Path, keys: str, binary: dict[str, Any], program: tuple[str, tuple[str, ...]]
) -> None:
    config = {"Entrypoint": ["entry", "-x"], "Cmd": ["cmd"], "StopSignal": "SIGQUIT"}
    images.index(
        tmp_path / "images/a",
        images.image(tmp_path / "images/a", config, annotations={images.REF: "latest"}),
    )
    (tmp_path / "rootfs/a").mkdir(parents=True)
    made = niso.import_compose(
        write(tmp_path, f"services: {{a: {{image: postgres, {keys}}}}}"), tmp_path
    )
    service = tomllib.loads(made.text)["services"]["a"]
    assert service.get("binary", {}) == binary
    assert service["package"]["oci"] == "images/a:latest"
    assert not {one.key for one in made.missing} & {"command", "entrypoint", "image"}
    [member] = stack.load(str(tmp_path), None).members
    own = member.loaded.spec.program
    assert (own.entrypoint, own.args, own.stop_signal) == (*program, "QUIT")


def test_images_without_tag_bundles_and_damaged_images(tmp_path: Path) -> None:
    images.layout(tmp_path / "images/a", {"Cmd": ["x"]})
    images.bundle(tmp_path / "images/b", {"args": ["y"]})
    images.layout(tmp_path / "images/c", {"Cmd": "not an array"})
    file = write(tmp_path, "services: {a: {image: a}, b: {image: b}, c: {image: c}}")
    made = niso.import_compose(file, tmp_path)
    data = tomllib.loads(made.text)["services"]
    assert data["a"]["package"] == {"rootfs": "./rootfs/a", "oci": "images/a"}
    assert data["b"]["package"] == {"oci": "images/b"}
    assert "oci" not in data["c"]["package"]
    assert any("Cmd in the config" in one.text for one in made.missing if one.service == "c")
    names = [
        member.loaded.spec.program.entrypoint for member in stack.load(str(tmp_path), None).members
    ]
    assert names == ["x", "y", "SET-ME"]


FRONT = "image: a, command: [x], healthcheck: {test: [CMD, ok]}"


@pytest.mark.parametrize(
    ("keys", "expected", "gaps"),
    [
        ("deploy: {replicas: 3}", {"service": {"replicas": 3}}, set()),
        ("scale: 3", {"service": {"replicas": 3}}, set()),
        ("deploy: {replicas: 1}", {}, set()),
        (
            "deploy: {replicas: 4, update_config: {order: start-first, parallelism: 2}}",
            {"service": {"replicas": 4, "update": "start-first"}, "deploy": {"surge": 2}},
            set(),
        ),
        ("scale: 40", {"service": {"replicas": 16}}, {"scale"}),
        ("deploy: {replicas: '${N}'}", {}, {"deploy.replicas"}),
        (
            "stop_grace_period: 1m, deploy: {replicas: 2, update_config: {order: start-first,"
            " parallelism: 2, monitor: 20s, failure_action: pause, delay: 0s}}",
            {
                "service": {"stop_timeout": "60s", "replicas": 2, "update": "start-first"},
                "deploy": {"monitor": "20s", "on_failure": "keep"},
            },
            set(),
        ),
        (
            "deploy: {update_config: {order: start-first, failure_action: rollback}}",
            {
                "service": {"replicas": 1, "update": "start-first"},
                "deploy": {"on_failure": "rollback"},
            },
            set(),
        ),
        (
            "deploy: {replicas: 3, update_config: {parallelism: 1, delay: 5s, monitor: 9h,"
            " failure_action: continue, max_failure_ratio: 0.1}, rollback_config: {order: x}}",
            {"service": {"replicas": 3}, "deploy": {"monitor": "3600s", "surge": 1}},
            {
                "deploy.rollback_config",
                *(
                    f"deploy.update_config.{key}"
                    for key in (
                        *("delay", "monitor", "failure_action"),
                        "max_failure_ratio",
                    )
                ),
            },
        ),
        (
            "scale: 2, deploy: {update_config: {order: stop-first, parallelism: 2, monitor: 1s}}",
            {"service": {"replicas": 2, "update": "stop-first"}},
            {"deploy.update_config.parallelism", "deploy.update_config.monitor"},
        ),
        (
            "deploy: {update_config: {parallelism: 2, order: both}}",
            {},
            {"deploy.update_config.parallelism", "deploy.update_config.order"},
        ),
        (
            "scale: 2, volumes: [data:/data, './x:/x:ro', './y:/y', /own], tmpfs: /t",
            {
                "service": {"replicas": 2},
                "volumes": {
                    "data": {"mount": "/data", "shared": True},
                    "x": {"mount": "/x", "host": "./x", "mode": "ro"},
                    "y": {"mount": "/y", "host": "./y", "shared": True},
                    "own": {"mount": "/own", "shared": True},
                    "t": {"mount": "/t", "tmpfs": True},
                },
            },
            {"volumes"},
        ),
        ("scale: 2, network_mode: host", {"network": {"mode": "host"}}, {"scale"}),
        ("scale: 2, network_mode: none", {"network": {"mode": "none"}}, {"scale"}),
        (
            "scale: 2, network_mode: 'service:c'",
            {"network": {"mode": "share", "share": "c"}},
            {"scale"},
        ),
        (
            "scale: 2, ports: ['8080-8082:80', '127.0.0.1:90-92:90/udp', '100-120:100-120',"
            " '127.0.0.1:70:70', '192.0.2.1:70:71']",
            {
                "service": {"replicas": 2},
                "network": {"ports": ["8080:80", "127.0.0.1:90:90/udp", "127.0.0.1:70:70"]},
            },
            {"ports"},
        ),
    ],
)
def test_instances_and_updates(
    tmp_path: Path, keys: str, expected: dict[str, Any], gaps: set[str]
) -> None:
    text = f"services: {{a: {{{FRONT}, {keys}}}, c: {{image: c, command: [x]}}}}"
    for path in ("rootfs/a", "rootfs/c", "x", "y"):
        (tmp_path / path).mkdir(parents=True)
    made = niso.import_compose(write(tmp_path, text), tmp_path)
    data = tomllib.loads(made.text)["services"]["a"]
    listed = {gap.key for gap in made.missing if gap.service == "a"} - {"image", "entrypoint"}
    assert listed == gaps
    expected = {"service": {}} | expected
    expected["service"] = {"restart": "no"} | expected["service"]
    for table in ("service", "deploy", "network", "volumes"):
        assert data.get(table) == expected.get(table), table
    (tmp_path / "stack.toml").write_text(made.text)
    assert stack.load(str(tmp_path), None).members  # niso accepts all of it


@pytest.mark.parametrize(
    ("keys", "check", "why"),
    [
        ("ports: ['8080:80']", {"tcp": 80}, "a connection to port 80"),
        ("ports: ['53:53/udp'], expose: ['54/udp', 90]", {"tcp": 90}, "a connection to port 90"),
        ("ports: ['53:53/udp']", None, "each instance needs a health check"),
    ],
)
def test_instances_without_a_health_check(
    tmp_path: Path, keys: str, check: dict[str, int] | None, why: str
) -> None:
    text = f"services: {{a: {{image: a, command: [x], scale: 2, {keys}}}}}"
    made = niso.import_compose(write(tmp_path, text))
    data = tomllib.loads(made.text)["services"]["a"]
    assert data.get("healthcheck") == check
    assert data["service"].get("replicas") == (2 if check else None)
    assert any(why in gap.text for gap in made.missing)


def test_service_that_cannot_have_instances_or_has_none(tmp_path: Path) -> None:
    text = f"""services:
  job: {{{FRONT}, scale: 2}}
  net: {{{FRONT}, scale: 2}}
  side: {{image: a, command: [x], network_mode: "service:net"}}
  none: {{{FRONT}, deploy: {{replicas: 0}}}}
  off: {{{FRONT}, scale: 0}}
  last: {{image: a, command: [x],
    depends_on: {{job: {{condition: service_completed_successfully}}}}}}
"""
    made = niso.import_compose(write(tmp_path, text))
    data = tomllib.loads(made.text)["services"]
    assert data.keys() == {"job", "net", "side", "last"}
    assert not any("replicas" in service.get("service", {}) for service in data.values())
    gaps = {(gap.service, gap.key) for gap in made.missing}
    expected = {("job", "scale"), ("net", "scale"), ("none", "deploy.replicas"), ("off", "scale")}
    assert expected <= gaps


def test_list_has_the_order_of_the_file(tmp_path: Path) -> None:
    """So that importing it again changes nothing."""
    keys = ("pid", "ipc", "uts", "isolation", "runtime", "domainname", "cgroup")
    given_ = ", ".join(f"{key}: x" for key in keys)
    made = niso.import_compose(write(tmp_path, f"services: {{a: {{{given_}}}}}"))
    assert tuple(gap.key for gap in made.missing if gap.key in keys) == keys


def test_network_settings_that_are_not_taken_over_are_listed(tmp_path: Path) -> None:
    made = niso.import_compose(
        write(
            tmp_path,
            "services: {a: {image: a, networks: [n]}}\n"
            "networks: {n: {ipam: {config: [{subnet: 10.99.300.0/24, gateway: x, ip_range: y}]},"
            " driver_opts: {com.docker.network.bridge.name: br0}, enable_ipv4: true}}",
        )
    )
    assert tomllib.loads(made.text)["networks"] == {"n": {}}
    assert {gap.key: gap.text for gap in made.missing if not gap.service} == {
        "networks.n.subnet": "'10.99.300.0/24' is not one: not taken over",
        "networks.n.gateway": "'x' is not one: not taken over",
        "networks.n.ip_range": "niso has no such key",
        "networks.n.driver_opts": "com.docker.network.bridge.name is not taken over",
        "networks.n.enable_ipv4": "niso has no such key",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("services: [", "line 1, column 12"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("- a", "is not a mapping"),
        (
            "services: {a: {image: a,\n image: b}}",
            "line 2, column 2: the key 'image' is there twice",
        ),
        ("services: {}", "has no services"),
        ("services: {a: {profiles: [x], image: a}}", "has no service without a profile"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("x: " + "y" * (1 << 20), "larger than"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
            "too many",
        ),
    ],
)
def test_what_is_no_compose_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason.replace("(", r"\(")):
        niso.import_compose(write(tmp_path, text))


def test_missing_file_and_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        niso.import_compose(tmp_path / "compose.yaml")
    with refuses(Error, hint="pass the path of a compose.yaml") as caught:
        niso.import_compose(tmp_path)
    assert caught.value.hint == "pass the path of a compose.yaml"
    (tmp_path / "stack.toml").write_text("")
    with pytest.raises(Conflict):
        niso.import_compose(write(tmp_path, "services: {a: {image: a}}"), tmp_path)
    monkeypatch.setitem(sys.modules, "yaml", None)
    own = ["/srv/venv/lib/python3.13/site-packages"]
    for path, hint in (
        ([*own, "/usr/lib/python3/dist-packages"], "apt install python3-yaml"),
        (own, f"{sys.executable} -m pip install pyyaml"),
    ):
        monkeypatch.setattr(sys, "path", path)
        with refuses(Error, "PyYAML", hint=hint) as caught:
            niso.import_compose(tmp_path / "compose.yaml")
        assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("rule", "given_", "expected"),
    [
        (storage.seconds, "1m30s", 90.0),
        (storage.seconds, "1.5h", 5400.0),
        (storage.seconds, "500ms", 0.5),
        (storage.seconds, "1 m", None),
        (storage.parse_size, "1.5G", "1536M"),
        (storage.parse_size, "512mb", "512M"),
        (storage.parse_size, 1000, "1K"),
        (storage.parse_size, "50%", None),
        (storage.port, 3000, ":3000"),
        (storage.port, "3000-3005", ":3000-3005"),
        (storage.port, "127.0.0.1::80/udp", "127.0.0.1::80/udp"),
        (storage.port, {"target": 80, "host_ip": "::1", "published": 8080}, "[::1]:8080:80"),
        (storage.words, "sh -c 'a b'", ["sh", "-c", "a b"]),
        (storage.words, "it's", None),
    ],
)
def test_single_values(rule: Any, given_: object, expected: object) -> None:
    assert rule(given_) == expected
