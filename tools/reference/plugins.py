"""Generate the man pages of the programs that container engines call."""

from __future__ import annotations

from collections.abc import Iterator

from reference.commands import MANUALS
from reference.document import Block, Code, Heading, Page, Terms, Text

_POLICY = "`allow_from`, `deny_from`, `egress_allow`, `egress_deny`, `log`"
_ENTRIES = f"{_POLICY}: entries of a policy as in niso-manifest(5)"
_BLANKS = "separated by spaces or commas"
_BOTH = "A packet must be allowed by the network's policy, by the container's, and by the files of "
_LABELS = (
    "The options can also be labels of the container, with the prefix niso., such as "
    "`--label niso.allow_from=api:5432`. A label and an option of the same key must be equal."
)
_FILES = (
    ("/etc/niso/policies/*.toml", "policies of the administrator; only root may write them"),
    ("/var/lib/niso", "the store; the environment variable NISO_STATE_DIR names another folder"),
    ("/run/niso", "locks and hosts files; NISO_RUN_DIR names another folder"),
)


def manuals() -> Iterator[Page]:
    """Return niso-cni(1), niso-docker(1) and niso-netavark(1)."""
    yield _cni()
    yield _docker()
    yield _netavark()


def _page(name: str, does: str, blocks: list[Block], also: tuple[str, ...] = ()) -> Page:
    own = f"{name}(1)"
    others = tuple(other for other in MANUALS if other != own)
    return Page(name, 1, does, tuple(blocks), (*others, *also))


def _policy_text(container: str = "") -> Text:
    return Text(
        f"{_BOTH}`/etc/niso/policies`. {container}An option that niso does not know is an error, "
        "because it could be a misspelt policy."
    )


def _cni() -> Page:
    return _page(
        "niso-cni",
        "networks of niso for containerd, Kubernetes and Nomad (CNI plugin)",
        [
            Heading("Synopsis"),
            Code("CNI_COMMAND=... CNI_CONTAINERID=... CNI_IFNAME=... niso-cni"),
            Heading("Description"),
            Text(
                "A plugin of the container network interface (CNI), versions 0.3.0 to 1.1.0 of its "
                "specification. A container runtime calls it with CNI_ variables in the "
                "environment and the configuration of the network as JSON on stdin. The answer is "
                "JSON on stdout. The container becomes an attachment of niso, which `niso ps` "
                "shows."
            ),
            Text(
                "The commands are ADD, DEL, CHECK (from 0.4.0), GC and STATUS (from 1.1.0), and "
                "VERSION. ADD of an interface that exists is an error, and DEL does not fail for "
                "what is gone."
            ),
            Heading("Configuration"),
            Text("Keys of the plugin in /etc/cni/net.d/*.conflist. Others are refused:"),
            Terms(
                (
                    ("type", "niso-cni"),
                    (
                        "network",
                        "the name of the network in niso (default: the name of the list). It is "
                        "created with the first container if it does not exist",
                    ),
                    ("subnets", "list of prefixes of a network that is created"),
                    ("ipv6, internal", "true or false, of a network that is created"),
                    ("mtu", "in bytes, of a network that is created"),
                    (
                        "multicast",
                        "true: UDP multicasts and broadcasts pass between its containers, as their "
                        "policies allow; of a network that is created",
                    ),
                    ("policy", f"{_ENTRIES}, for every container"),
                    (
                        "kubernetes",
                        '{} or {"wait_policy_s": 10}: apply the network policies that '
                        "`niso kubernetes` reads, and wait at most so many seconds for them",
                    ),
                    ("names", "names of pods in niso (default: {pod}-{namespace})"),
                    (
                        "capabilities",
                        "portMappings, ips, mac, aliases, bandwidth and "
                        "io.kubernetes.cri.pod-annotations",
                    ),
                    ("dns", "returned as it is"),
                )
            ),
            Text(
                "`ipam` is refused: niso leases addresses itself. Other plugins of the list may "
                "come before and after niso-cni (prevResult), but none that makes the same "
                "interface."
            ),
            Heading("Policies of a container"),
            Terms(
                (
                    (
                        "annotations of a pod",
                        "niso.io/allow-from, deny-from, egress-allow, egress-deny, log, aliases "
                        f"and ip; entries are {_BLANKS}",
                    ),
                    (
                        "CNI_ARGS",
                        "NISO_ALLOW_FROM, NISO_DENY_FROM, NISO_EGRESS_ALLOW, NISO_EGRESS_DENY and "
                        "NISO_LOG; also IP and MAC",
                    ),
                )
            ),
            _policy_text(),
            Heading("Exit status"),
            Terms(
                (
                    ("0", "success"),
                    ("1", "failure; stdout has an error with code, msg and details"),
                )
            ),
            Text("Codes of errors:"),
            Terms(
                (
                    ("1", "the version is not supported"),
                    ("4", "a CNI_ variable is missing or wrong"),
                    ("5, 6", "stdin cannot be read, or is not JSON"),
                    ("7", "the configuration is wrong"),
                    ("11", "try again: the network policies of a pod are not applied yet"),
                    ("50", "STATUS: niso is not usable, or has no free address"),
                    ("100", "any other failure"),
                    ("101", "CHECK: what is set up differs; details has the findings"),
                )
            ),
            Heading("Files"),
            Terms(
                (
                    ("/usr/lib/cni/niso-cni", "where runtimes of Debian look for plugins"),
                    ("/opt/cni/bin", "where others do: make a link there"),
                    *_FILES,
                )
            ),
        ],
    )


def _docker() -> Page:
    return _page(
        "niso-docker",
        "networks of niso for Docker (network driver)",
        [
            Heading("Synopsis"),
            Code("niso-docker [SOCKET]"),
            Heading("Description"),
            Text(
                "Serves Docker's remote network driver `niso`. Docker calls it through a socket "
                "in /run/docker/plugins. systemd passes the socket (`niso-docker.socket`), and "
                "niso-docker ends after 30 s without a call. With an argument it makes the socket "
                "of that path and serves until it is stopped."
            ),
            Text("Each interface of a container is an attachment of niso, which `niso ps` shows."),
            Code(
                "docker network create -d niso -o network=backend backend\n"
                "docker run -d --network name=backend,driver-opt=niso.name=api -p 8080:80 IMAGE",
                "sh",
            ),
            Heading("Options of a network"),
            Text("With `-o` of `docker network create`, and `driver_opts` in a compose file:"),
            Terms(
                (
                    (
                        "network",
                        "the name of the network in niso (default: docker- and the start of its "
                        "id). A network that exists is used if subnet and gateway are the same",
                    ),
                    ("mtu", "in bytes"),
                    (
                        "multicast",
                        "true: UDP multicasts and broadcasts pass between its containers and "
                        "services, as their policies allow (default: false)",
                    ),
                    ("named", "true: containers without niso.name are refused"),
                    ("allow_from and the like", f"{_ENTRIES}, for all containers on it"),
                )
            ),
            Heading("Options of a container"),
            Text("With `--network name=NETWORK,driver-opt=KEY=VALUE`:"),
            Terms(
                (
                    ("niso.name", "the name in niso (default: c- and the start of an id)"),
                    ("niso.aliases", f"further names in niso, {_BLANKS}"),
                    (
                        "niso.allow_from, niso.deny_from, niso.egress_allow, niso.egress_deny, "
                        "niso.log",
                        f"entries of a policy, {_BLANKS}",
                    ),
                )
            ),
            Text(f"{_LABELS} A label of an image is refused."),
            _policy_text("A policy belongs to one interface. "),
            Heading("Exit status"),
            Terms((("0", "nothing was asked for 30 s"), ("1", "there is no socket to serve"))),
            Text("Errors of calls go to Docker, which prints them, and to stderr."),
            Heading("Files"),
            Terms((("/run/docker/plugins/niso.sock", "the socket"), *_FILES)),
        ],
        ("systemd.socket(5)",),
    )


def _netavark() -> Page:
    return _page(
        "niso-netavark",
        "networks of niso for Podman (plugin of netavark)",
        [
            Heading("Synopsis"),
            Code(
                "niso-netavark create\nniso-netavark setup NETNS\nniso-netavark teardown NETNS\n"
                "niso-netavark info"
            ),
            Heading("Description"),
            Text(
                "The driver `niso` of Podman's networks. Podman and its network program netavark "
                "call it, with JSON on stdin; the answer is JSON on stdout. Each container is an "
                "attachment of niso, which `niso ps` shows."
            ),
            Code(
                "podman network create -d niso backend\n"
                "podman run -d --name api --network backend -p 8080:80 IMAGE\n"
                "podman run -d --network backend:allow_from=api:5432 IMAGE",
                "sh",
            ),
            Heading("Options of a network"),
            Text("With `--opt` of `podman network create`, and `driver_opts` in a compose file:"),
            Terms(
                (
                    ("mtu", "in bytes"),
                    (
                        "multicast",
                        "true: UDP multicasts and broadcasts pass between its containers and "
                        "services, as their policies allow (default: false)",
                    ),
                    (
                        "dns",
                        "aardvark, the default, or none: whether containers find each other by "
                        "name, if aardvark-dns is installed",
                    ),
                    ("isolate", "accepted: networks of niso are always apart"),
                    ("allow_from and the like", f"{_ENTRIES}, for all containers on it"),
                )
            ),
            Text(
                "`--ip-range`, `--route`, `--interface-name` and `--dns` of `network create` "
                "are refused."
            ),
            Heading("Options of a container"),
            Text("With `--network NETWORK:KEY=VALUE`:"),
            Terms(
                (
                    ("name", "the name in niso (default: that of the container)"),
                    ("aliases", f"further names in niso, {_BLANKS}"),
                    (
                        "allow_from, deny_from, egress_allow, egress_deny, log",
                        f"entries of a policy, {_BLANKS}",
                    ),
                    ("ip, mac, interface_name, alias", "as with every driver"),
                )
            ),
            Text(f"{_LABELS} A label of an image is refused."),
            _policy_text(),
            Heading("Exit status"),
            Terms((("0", "success"), ("1", 'failure; stdout has {"error": MESSAGE}'))),
            Heading("Files"),
            Terms(
                (
                    ("/usr/libexec/netavark/niso", "where Podman looks for the driver niso"),
                    ("/usr/local/libexec/netavark", "where it looks too: make a link there"),
                    ("/run/niso/dns", "what aardvark-dns reads"),
                    *_FILES,
                )
            ),
        ],
        ("podman-network-create(1)",),
    )
