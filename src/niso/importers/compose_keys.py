"""List the keys of a compose file's service that are converted, and the types of their values."""

from __future__ import annotations

HANDLED = frozenset(
    [
        "image",
        "build",
        "entrypoint",
        "command",
        "working_dir",
        "environment",
        "env_file",
        "ports",
        "expose",
        "networks",
        "network_mode",
        "hostname",
        "container_name",
        "depends_on",
        "secrets",
        "dns",
        "dns_search",
        "extra_hosts",
        "healthcheck",
        "restart",
        "stop_grace_period",
        "user",
        "cap_add",
        "cap_drop",
        "read_only",
        "tmpfs",
        "volumes",
        "mem_limit",
        "cpus",
        "pids_limit",
        "shm_size",
        "deploy",
        "init",
        "security_opt",
        "profiles",
        "stdin_open",
        "tty",
        "attach",
        "annotations",
        "labels",
        "pull_policy",
        "stop_signal",
    ]
)
OF_NETWORKS = {"aliases", "ipv4_address", "ipv6_address", "priority", "gw_priority"}
OF_CHECK = {"test", "interval", "timeout", "start_period", "retries", "disable"}
KINDS = {list: "a list", dict: "a mapping", str: "a text", int: "a number", float: "a number"}
SHAPES: dict[str, tuple[type, ...]] = {
    "depends_on": (list, dict),
    "environment": (list, dict),
    "env_file": (str, list),
    "ports": (list,),
    "networks": (list, dict),
    "network_mode": (str,),
    "secrets": (str, list),
    "dns": (str, list),
    "dns_search": (str, list),
    "extra_hosts": (list, dict),
    "healthcheck": (dict,),
    "cap_add": (str, list),
    "tmpfs": (str, list),
    "volumes": (list,),
    "security_opt": (str, list),
    "deploy": (dict,),
}
"""The accepted types of the values of keys; any other type is reported."""
ELSEWHERE = {
    "logging": "niso keeps the output itself: niso logs",
    "ulimits": "[isolation.resources] limits the service as a whole, and no single process",
    "privileged": "list the capabilities that it needs in isolation.capabilities",
    "devices": "a service has no devices but null, zero, random, tty",
    "configs": "mount the file as a volume, read-only",
    "links": "the name of the service works; add its alias to that service's network.aliases",
    "external_links": "the services must share a network",
    "scale": "a service is one instance; write it several times",
    "sysctls": "niso sets what it needs; others cannot be set",
    "extends": "copy the keys of the other service",
}
