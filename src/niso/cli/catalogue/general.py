"""The words of what concerns the machine and niso itself: enable, disable, restore, schema, lab, completion, help, version."""

from __future__ import annotations

from niso.cli.command import JSON, TIMEOUT, VERBOSE, Argument, Command

COMMANDS = (
    Command(
        "enable",
        "have services come back after a reboot",
        (Argument("names", "NAME", "a known service", "+", "disabled"),),
        (VERBOSE, JSON),
        "Where systemd is the init, each service gets a unit niso-NAME.service, so that systemctl status, stop, start and "
        "restart work, and journalctl -u niso-NAME shows what it wrote. Elsewhere have niso restore run at boot.",
        (("niso enable api", ""), ("niso enable db api", "")),
    ),
    Command(
        "disable",
        "have services not come back after a reboot any more",
        (Argument("names", "NAME", "a known service", "+", "enabled"),),
        (VERBOSE, JSON),
        "A service that is active stays so.",
        (("niso disable api", ""),),
    ),
    Command(
        "restore",
        "activate all enabled services, at boot or by hand",
        (),
        (TIMEOUT, VERBOSE, JSON),
        "Each with the manifest of its last activation, its addresses, ports and forwards. One that cannot be activated does not "
        "keep the others from it.",
        (("niso restore", ""), ("@reboot /usr/local/bin/niso restore", "a line of root's crontab")),
        (("0", "all that are enabled are active"), ("1", "some are not, and are named")),
    ),
    Command(
        "lab",
        "open a throw-away host to try things in",
        (
            Argument(
                "command",
                "[-- CMD...]",
                "what runs in it; without it: your shell",
                "...",
                "command",
            ),
        ),
        (),
        "The host has 192.0.2.1 and 2001:db8::1 on uplink0; `ip netns exec client ...` is another machine (192.0.2.2), "
        "`ip netns exec neighbour ...` a third (192.0.2.3). There is no way out of it. All of it ends with the command.",
        (
            ("niso lab", ""),
            ("niso lab -- sh -c 'niso activate ./api && curl http://192.0.2.1:8080'", ""),
        ),
        (
            ("N", "the command's own"),
            ("125", "niso could not make the lab"),
            ("126", "it is not executable"),
            ("127", "it is not found"),
            ("128+N", "signal N ended it"),
        ),
    ),
    Command(
        "schema",
        "print the JSON Schema of manifest.toml",
        about="For an editor that checks TOML by JSON Schema.",
        examples=(("niso schema > manifest.schema.json", ""),),
        root=False,
    ),
    Command(
        "completion",
        "print a script by which bash or zsh completes niso's words",
        (Argument("shell", "SHELL", "bash or zsh", "", "shell"),),
        about="Commands, actions and options are completed for everybody, names and ports in a shell of root: nobody else can "
        "read niso's store.",
        examples=(
            ("source <(niso completion bash)", "in ~/.bashrc"),
            ("niso completion bash > /etc/bash_completion.d/niso", "for all users"),
            ("source <(niso completion zsh)", "in ~/.zshrc, after compinit"),
        ),
        root=False,
    ),
    Command(
        "help",
        "tell all of one command",
        (Argument("words", "COMMAND", "a command, and its action", "*", "help"),),
        root=False,
    ),
    Command("version", "print niso's version", root=False),
    Command(
        "complete",
        "print what can stand at the end of a line; the scripts of niso completion call it",
        (
            Argument("shell", "SHELL", "bash or zsh"),
            Argument("words", "-- WORD...", "the line, or its words", "..."),
        ),
        root=False,
    ),
)
