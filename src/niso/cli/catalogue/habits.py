"""List the commands of other tools, each with the niso command that does the same.

`niso.cli.parse.unknown_command` prints the niso command as a hint. docs/guide/coming-from-docker.md
has the list as a table, which ``./dev docs`` writes.
"""

from __future__ import annotations

from niso.base.named_tuples import NamedTuple


class Habit(NamedTuple):
    """Commands of docker, compose, podman, systemctl or kubectl, and the niso command with the same
    effect.

    ``theirs`` are such commands without the tool's name. If several match a command line, the
    longest one applies. ``ours`` is the niso command; "" if there is none. ``remark`` is text to
    add to it.
    """

    theirs: tuple[str, ...]
    ours: str
    remark: str = ""


HABITS = (
    Habit(
        ("run", "create"),
        "niso activate ./FOLDER",
        "ports, volumes and the rest are in the folder's manifest.toml",
    ),
    Habit(
        ("start",),
        "niso activate NAME",
        "a known service, with the manifest of its last activation",
    ),
    Habit(
        ("update", "reload", "daemon-reload", "apply", "wait"),
        "niso activate ./FOLDER",
        "applies the changes of its manifest, and waits until it is healthy",
    ),
    Habit(
        ("rename",),
        "",
        "another name in a manifest is another service, with addresses and volumes of its own",
    ),
    Habit(("stop",), "niso deactivate NAME", "its address and logs are kept"),
    Habit(
        ("rm", "delete", "container rm"),
        "niso remove NAME",
        "named volumes are kept; --volumes deletes them",
    ),
    Habit(
        (
            "ls",
            "list",
            "status",
            "is-active",
            "list-units",
            "container ls",
            "container list",
            "get",
        ),
        "niso ps",
        "lists inactive services too",
    ),
    Habit(("show", "describe", "container inspect", "is-enabled"), "niso inspect NAME"),
    Habit(("attach", "journalctl", "log"), "niso logs NAME -f"),
    Habit(("sh", "shell", "enter"), "niso exec NAME -- sh", "uses a terminal if there is one"),
    Habit(("cp",), "niso exec NAME -- cat FILE", "or mount a host folder as a volume"),
    Habit(("port",), "niso net ports", "--exposed shows from where each is reachable"),
    Habit(("stats",), "niso net stats", "network counters only"),
    Habit(("expose",), "niso port-forward NAME 8081:80", "no restart"),
    Habit(
        ("up", "compose up", "compose start", "compose create", "stack start", "stack deploy"),
        "niso stack up",
        "reads ./stack.toml",
    ),
    Habit(("down", "compose down", "compose stop", "stack stop", "stack rm"), "niso stack down"),
    Habit(("compose ps", "compose ls", "stack ls"), "niso stack ps"),
    Habit(("compose logs",), "niso stack logs"),
    Habit(("compose restart",), "niso stack restart"),
    Habit(("compose exec", "stack exec"), "niso exec NAME -- CMD"),
    Habit(("compose config", "stack config"), "niso stack up --dry-run", "shows the steps"),
    Habit(("compose", "docker-compose"), "niso stack up", "niso help stack lists the actions"),
    Habit(("network ls", "network list", "net ls"), "niso net list"),
    Habit(("network inspect", "net show"), "niso net inspect NAME"),
    Habit(
        ("network create", "net add"),
        "niso net create NAME",
        "with --subnet, --internal and --ipv6 as in docker",
    ),
    Habit(("network rm", "network remove", "net rm", "net delete"), "niso net remove NAME"),
    Habit(
        ("network connect", "network disconnect", "net connect", "net disconnect"),
        "niso activate ./FOLDER",
        "after a change of networks in its manifest; the process keeps running",
    ),
    Habit(("network",), "niso net list", "niso help net lists the actions"),
    Habit(("volume", "volumes"), "niso inspect NAME", "lists the volumes of a service"),
    Habit(("secret", "secrets"), "", "a secret is a file that [secrets] of a manifest names"),
    Habit(
        ("generate systemd", "generate", "quadlet"),
        "niso enable NAME",
        "starts the service at boot",
    ),
    Habit(("info", "system info"), "niso version"),
    Habit(
        ("build", "pull", "push", "images", "image", "load", "save", "login"),
        "",
        "there are no images: a service is a folder, and can have a root file system",
    ),
    Habit(
        ("prune", "system prune", "network prune", "net prune"),
        "",
        "networks that a manifest made are removed with their last service",
    ),
    Habit(("scale",), "", "a service is one instance: write a manifest for each"),
)
_PROGRAMS = ("docker", "podman", "compose", "docker-compose", "systemctl", "kubectl")


def habit(words: list[str]) -> Habit | None:
    """Return the habit with the longest command that ``words`` begin with; None if there is none.

    The first word may be the other tool's name, such as ``docker``, unless it and the next word are
    themselves a command in the list.
    """
    meant = {theirs: habit for habit in HABITS for theirs in habit.theirs}
    typed = [word for word in words if not word.startswith("-")]
    for count in (2, 1):
        if count == 1 and typed and typed[0] in _PROGRAMS and (known := habit(typed[1:])):
            return known
        if len(typed) >= count and (known := meant.get(" ".join(typed[:count]))):
            return known
    return None


def answer(habit: Habit) -> str:
    """Return the hint for a command of another tool."""
    return ": ".join(part for part in (habit.ours, habit.remark) if part)
