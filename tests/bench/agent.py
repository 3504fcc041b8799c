"""Runs inside a lab: ``agent.py WORLD FLOWS``. Reads {"call": method, "args": [...]} by line, answers {"got"} or {"error"}."""

from __future__ import annotations

import importlib
import json
import os
import sys

WORLDS = {
    "niso": ("niso_world", "NisoWorld"),
    "niso-whole": ("niso_world", "NisoWhole"),
    "deploy-stop-first": ("deploy_worlds", "NisoDeploys"),
    "deploy-start-first": ("deploy_worlds", "NisoStartFirst"),
    "deploy-replicas": ("deploy_worlds", "NisoReplicas"),
    "deploy-podman": ("deploy_worlds", "PodmanDeploys"),
    "deploy-docker": ("deploy_worlds", "DockerDeploys"),
    "thousand": ("thousand_world", "Thousand"),
    "thousand-rebooted": ("thousand_world", "Rebooted"),
    "batch": ("bare_worlds", "Batch"),
    "plain": ("bare_worlds", "Plain"),
    "netavark": ("peer_worlds", "Netavark"),
    "cni": ("peer_worlds", "Cni"),
    "docker": ("engine_worlds", "Docker"),
    "docker-proxy": ("engine_worlds", "DockerWithProxy"),
    "podman": ("engine_worlds", "Podman"),
    "podman-niso": ("engine_worlds", "PodmanOnNiso"),
    "policies": ("bridge_worlds", "Policies"),
    "switched": ("bridge_worlds", "Switched"),
    "tracked": ("bridge_worlds", "Tracked"),
    "no-policy": ("bridge_worlds", "NoPolicy"),
    "policed": ("bridge_worlds", "Policed"),
    "unlimited": ("bridge_worlds", "Unlimited"),
    "niso-unlimited": ("bridge_worlds", "PortUnlimited"),
    "attacked-niso": ("attack_worlds", "NisoAttacked"),
    "attacked-unlimited": ("attack_worlds", "NisoUnlimited"),
    "attacked-netavark": ("attack_worlds", "NetavarkAttacked"),
    "attacked-podman": ("attack_worlds", "PodmanAttacked"),
    "attacked-docker": ("attack_worlds", "DockerAttacked"),
    "no-policy-forgets": ("bridge_worlds", "Forgets"),
    "policed-forgets": ("bridge_worlds", "PolicedForgets"),
    "swarm": ("engine_worlds", "Swarm"),
    "span-host": ("span_worlds", "SpanHost"),
    "span-bare": ("span_worlds", "Bare"),
    "span-tunnel": ("span_worlds", "Tunnelled"),
    "span-crowd": ("span_worlds", "Crowd"),
}


def main(kind: str, flows: str) -> None:
    if os.environ.get("NISO_LAB") != "1":
        sys.exit("this changes links and rules: only in a lab")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what commands print is no answer
    world = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if world is None:
                module, name = WORLDS[kind]
                world = getattr(importlib.import_module(module), name)(flows)
            answer = {"got": getattr(world, request["call"])(*request["args"])}
        except Exception as error:  # whatever it is, the driver must hear of it
            answer = {
                "error": f"{'' if isinstance(error, RuntimeError) else f'{type(error).__name__}: '}{error}"
            }
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
