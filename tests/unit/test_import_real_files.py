"""Test niso import on compose files of the forms that well-known projects have."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import niso
from niso.manifest.json_schema import stack_schema

FILES = sorted((Path(__file__).parent / "compose").glob("*.yaml"))

GAPS = {
    "blog": {
        "proxy": {"build", "command"},
        "backend": {"build", "command"},
        "db": {"image", "entrypoint", "restart"},
    },
    "wordpress": {
        "db": {"image", "entrypoint", "restart"},
        "wordpress": {"image", "command", "restart"},
        "": {"${DB_PASSWORD}", "${ROOT_PASSWORD}"},
    },
    "monitoring": {
        "prometheus": {"image", "logging", "restart"},
        "grafana": {"image", "command"},
        "node-exporter": {"image", "entrypoint", "pid", "restart", "volumes"},
        "cadvisor": {"image", "command", "privileged", "volumes"},
    },
    "gitea": {
        "server": {"image", "command", "restart"},
        "db": {"image", "command", "restart", "environment"},
    },
    "nextcloud": {
        "db": {"image", "command", "restart"},
        "redis": {"image", "entrypoint", "restart"},
        "app": {"image", "command", "restart", "volumes"},
        "cron": {"image", "restart", "volumes"},
        "": {"${REDIS_PASSWORD}", "volumes.nextcloud"},
    },
    "mern": {
        "frontend": {"build", "entrypoint", "restart", "volumes"},
        "backend": {"build", "entrypoint", "restart"},
        "mongo": {
            "image",
            "command",
            "restart",
            "healthcheck.timeout",
            "healthcheck.start_interval",
        },
    },
    "elk": {
        "Elastic_Search": {"", "image", "command", "environment"},
        "setup": {"image"},
        "logstash": {"image", "entrypoint", "healthcheck"},
        "kibana": {"profiles"},
    },
    "traefik": {
        "traefik": {"image", "entrypoint", "ports", "volumes"},
        "whoami": {"image", "command", "scale"},
        "": {"networks.proxy"},
    },
    "kafka": {
        "zookeeper": {"image", "command", "healthcheck.start_period"},
        "broker": {"image", "command"},
        "init-topics": {"image"},
        "ui": {"image", "command", "depends_on", "restart"},
    },
    "minecraft": {
        "mc": {"image", "command", "restart", "environment"},
        "backup": {"image", "command"},
    },
}
"""File -> service -> the keys that are reported as not taken over."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_real_files_become_valid_stacks_and_say_what_is_missing(file: Path, tmp_path: Path) -> None:
    made = niso.import_compose(file, tmp_path)
    found: dict[str, set[str]] = {}
    for gap in made.missing:
        found.setdefault(gap.service, set()).add(gap.key)
    assert found == GAPS[file.stem]
    data = tomllib.loads(made.text)
    Draft202012Validator(stack_schema()).validate(data)
    unset = [gap.key[2:-1] for gap in made.missing if gap.key.startswith("${")]
    (tmp_path / ".env").write_text("".join(f"{name}=x\n" for name in unset))
    (valid,) = niso.validate(tmp_path)
    assert sum("the rootfs" in hint for hint in valid.hints) == len(made.services)
    for name in made.services:
        (tmp_path / "rootfs" / name).mkdir(parents=True)
    (valid,) = niso.validate(tmp_path)
    prefix = f"{data['stack']['name']}-"
    assert sorted(valid.services) == sorted(prefix + name for name in made.services)
    assert made.file is not None
    assert os.stat(made.file).st_mode & 0o777 == 0o600
    for gap in made.missing:
        assert f"# {gap.key}: " in made.text or gap.key in ("", "profiles") or not gap.service


def test_what_niso_has_keys_for_is_taken_over() -> None:
    made = {file.stem: tomllib.loads(niso.import_compose(file).text) for file in FILES}
    blog, elk, traefik = made["blog"]["services"], made["elk"]["services"], made["traefik"]
    assert made["blog"]["stack"] == {"name": "compose", "prefix": True}
    assert made["blog"]["networks"] == {"edge": {}, "inner": {"internal": True}}
    assert blog["backend"]["depends_on"] == {"db": "healthy"}
    assert blog["db"]["healthcheck"] == {
        "command": ["pg_isready"],
        "interval": "3s",
        "start_period": "30s",
        "retries": 5,
    }
    assert blog["db"]["service"] == {
        "restart": "always",
        "stop_signal": "INT",
        "user": "postgres",
    }
    assert blog["backend"]["service"]["stop_signal"] == "INT"
    assert elk["setup"]["service"] == {"kind": "job"}
    assert elk["logstash"]["depends_on"] == {"setup": "completed"}
    assert elk["logstash"]["isolation"]["resources"] == {
        "memory_max": "1536M",
        "cpu_max": "150%",
        "pids_limit": 500,
    }
    assert elk["logstash"]["network"]["ports"] == [
        "5000:5000",
        "5000:5000/udp",
        "12201:12201/udp",
        ":9600",
    ]
    assert elk["elastic-search"]["isolation"]["capabilities"] == ["IPC_LOCK"]
    assert "kibana" not in elk
    assert traefik.get("networks") is None  # the only one is another's
    assert traefik["services"]["whoami"]["network"] == {
        "networks": ["web-proxy"],
        "ip": {"web-proxy": "10.99.77.9"},
        "extra_hosts": {"registry.example.com": "192.0.2.7", "docker": "host-gateway"},
        "dns": ["192.0.2.53"],
    }
    assert "read_only" not in traefik["services"]["traefik"].get("isolation", {})
    assert made["minecraft"]["services"]["backup"]["network"] == {"mode": "share", "share": "mc"}
    assert made["monitoring"]["services"]["node-exporter"]["network"] == {"mode": "host"}
    # a volume of two services is a folder of the host, since named volumes are one service's
    nextcloud = made["nextcloud"]["services"]
    assert (
        nextcloud["app"]["volumes"]
        == nextcloud["cron"]["volumes"]
        == {"nextcloud": {"mount": "/var/www/html", "host": "/srv/next-cloud/nextcloud"}}
    )
    kafka = made["kafka"]["services"]["init-topics"]
    assert kafka["environment"]["EXTRA"] == "50$"
    assert kafka["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "true"
    mongo = made["mern"]["services"]["mongo"]["healthcheck"]
    assert mongo["command"] == ["/bin/sh", "-c", "mongosh --eval \"db.adminCommand('ping')\""]
