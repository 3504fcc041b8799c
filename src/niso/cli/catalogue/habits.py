"""List the commands of other tools, each with the niso command that does the same.

`niso.cli.parse.unknown_command` prints the niso command as a hint. docs/guide/coming-from-docker.md
has the list as a table, which ``./dev docs`` writes.
"""

from __future__ import annotations

HABITS = {
    "run, create": "niso activate ./FOLDER: ports, volumes and the rest are in the folder's"
    " manifest.toml",
    "start": "niso activate NAME: a known service, with the manifest of its last activation",
    "update, reload, daemon-reload, apply, wait": "niso activate ./FOLDER: applies the changes of"
    " its manifest, and waits until it is healthy",
    "rename": "another name in a manifest is another service, with addresses and volumes of its"
    " own",
    "stop": "niso deactivate NAME: its address and logs are kept",
    "rm, delete, container rm": "niso remove NAME: named volumes are kept; --volumes deletes them",
    "ls, list, status, is-active, list-units, container ls, container list, get": "niso ps: lists"
    " inactive services too",
    "show, describe, container inspect, is-enabled": "niso inspect NAME",
    "attach, journalctl, log": "niso logs NAME -f",
    "sh, shell, enter": "niso exec NAME -- sh: uses a terminal if there is one",
    "cp": "niso exec NAME -- cat FILE: or mount a host folder as a volume",
    "port": "niso net ports: --exposed shows from where each is reachable",
    "ss, netstat, lsof": "niso ps --listening: where the programs of each service listen",
    "stats": "niso net stats: network counters only",
    "expose": "niso port-forward NAME 8081:80: no restart",
    "up, compose up, compose start, compose create, stack start, stack deploy": "niso stack up:"
    " reads ./stack.toml",
    "down, compose down, compose stop, stack stop, stack rm": "niso stack down",
    "compose ps, compose ls, stack ls": "niso stack ps",
    "compose logs": "niso stack logs",
    "compose restart": "niso stack restart",
    "compose exec, stack exec": "niso exec NAME -- CMD",
    "compose config, stack config": "niso stack up --dry-run: shows the steps",
    "compose, docker-compose": "niso stack up: niso help stack lists the actions",
    "network ls, network list, net ls": "niso net list",
    "network inspect, net show": "niso net inspect NAME",
    "network create, net add": "niso net create NAME: with --subnet, --internal and --ipv6 as in"
    " docker",
    "network rm, network remove, net rm, net delete": "niso net remove NAME",
    "network connect, network disconnect, net connect, net disconnect": "niso activate ./FOLDER:"
    " after a change of networks in its manifest; the process keeps running",
    "network": "niso net list: niso help net lists the actions",
    "export, checkpoint, commit": "niso save NAME: the package, its volumes and networks",
    "volume import": "niso load FILE: loads an archive of niso save",
    "volumes, volume ls": "niso volume list: with sizes; a volume belongs to one service",
    "volume rm, volume prune": "niso volume remove SERVICE/NAME",
    "volume create": "niso activate ./FOLDER: creates the volumes of [volumes] in its manifest",
    "secret, secrets": "a secret is a file that [secrets] of a manifest names",
    "generate systemd, generate, quadlet": "niso enable NAME: starts the service at boot",
    "info, system info": "niso version",
    "build, pull, push, images, image, login": "there are no images: a service is a"
    " folder, and can have a root file system",
    "prune, system prune, network prune, net prune": "networks that a manifest made are removed"
    " with their last service",
    "compose scale, service scale": "niso scale NAME=N: the service has replicas in its manifest",
    "rollout, service update": "niso activate ./FOLDER: niso history NAME, niso rollback NAME",
    "service rollback": "niso rollback NAME",
}
"""Commands of docker, compose, podman, systemctl and kubectl, each with a hint.

Commands are without the tool's name. A hint is a remark, or the niso command with the same effect.
If several commands match a command line, the longest applies.
"""
_PROGRAMS = ("docker", "podman", "compose", "docker-compose", "systemctl", "kubectl")


def answer(words: list[str]) -> str:
    """Return the hint for a command line of another tool, or "".

    If ``words`` begin with several commands in the list, the longest command applies. The first
    word may be the other tool's name, such as ``docker``, unless the first two words are in the
    list.
    """
    meant = {word: hint for theirs, hint in HABITS.items() for word in theirs.split(", ")}
    typed = [word for word in words if not word.startswith("-")]
    for count in (2, 1):
        if count == 1 and typed and typed[0] in _PROGRAMS and (known := answer(typed[1:])):
            return known
        if len(typed) >= count and (known := meant.get(" ".join(typed[:count]), "")):
            return known
    return ""
