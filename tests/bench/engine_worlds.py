"""Worlds of peers that run whole services, in a lab: docker with its daemon, and podman, on tmpfs.

Both have their usual storage, overlayfs, or copies of the image ("vfs") where that cannot be had. Their one image is busybox.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable

from worlds import SPARE, Mapping, World, ports_of, run, timed

IMAGE = "bench:1"
ASK_NAMES = pathlib.Path(__file__).with_name("ask_names.py")
SLEEP = ("/bin/busybox", "sleep", "10000")


class Engine(World):
    PROGRAM = ""
    REMOVE: tuple[str, ...] = ()
    """Words that end a container at once, as `docker rm --force` does."""

    def start(self, name: str, mappings: list[Mapping], *more: str) -> None:
        words = []
        for mapping in mappings:
            host, container = (
                f"{n}-{n + mapping.length - 1}" if mapping.length > 1 else str(n)
                for n in mapping[:2]
            )
            words += ["-p", f"{host}:{container}/{mapping.proto}"]
        run(self.PROGRAM, "run", "-d", "--name", name, *more, *words, IMAGE, *SLEEP)

    def end(self, name: str) -> None:
        run(self.PROGRAM, *self.REMOVE, name)

    def image(self) -> None:
        os.makedirs("/tmp/image/bin")
        shutil.copy(
            "/usr/bin/busybox", "/tmp/image/bin/busybox"
        )  # linked statically: it needs nothing else
        run("tar", "-C", "/tmp/image", "-cf", "/tmp/image.tar", "bin")
        run(self.PROGRAM, "import", "/tmp/image.tar", IMAGE)

    def grow_by(self, numbers: list[int]) -> None:
        self.publish_all({f"s{number:04}": [Mapping(20_000 + number, 80)] for number in numbers})

    def publish_all(self, plan: dict[str, list[Mapping]]) -> None:
        for name, mappings in plan.items():
            self.start(name, mappings)

    def whole(self) -> dict[str, float]:
        return self._extra([Mapping(9_000, 80)], "start", "remove")

    def publish(self, way: str, count: int, each: bool) -> dict[str, float]:
        return self._extra(ports_of(count, each), "publish", "withdraw")

    def one_more(self, way: str) -> dict[str, float]:
        return self.publish("", 1, False)

    def floor(self) -> dict[str, float]:
        return {f"{self.PROGRAM} version": timed(lambda: run(self.PROGRAM, "version"))}

    def in_service(self, name: str) -> list[str]:
        pid = run(self.PROGRAM, "inspect", "--format", "{{.State.Pid}}", name).strip()
        return ["nsenter", f"--net=/proc/{pid}/ns/net"]

    def _extra(self, mappings: list[Mapping], added: str, taken: str) -> dict[str, float]:
        start = timed(lambda: self.start("extra", mappings))
        return {added: start, taken: timed(lambda: self.end("extra"))}


class Docker(Engine):
    """dockerd without its userland proxy, which would cost two processes for each port more."""

    PROGRAM = "docker"
    REMOVE = ("rm", "--force")
    SOCKET = "unix:///run/bench-docker.sock"
    PROXY = "--userland-proxy=false"

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        os.environ["DOCKER_HOST"] = self.SOCKET
        os.makedirs("/tmp/docker")
        self.storage = next(
            each for each in ("overlay2", "vfs") if self._runs_with(each, each == "vfs")
        )
        self.image()
        self._probe = False

    def _runs_with(self, storage: str, last: bool) -> bool:
        """Start the daemon. Where it does not run: False, or RuntimeError if this is the last way to try."""
        places = [
            "--data-root",
            f"/tmp/docker/{storage}",
            "--exec-root",
            "/run/docker",
            "--pidfile",
            "/run/docker.pid",
        ]
        with open("/tmp/docker/log", "w", encoding="utf-8") as log:
            daemon = subprocess.Popen(
                [
                    "dockerd",
                    *places,
                    "--host",
                    self.SOCKET,
                    "--storage-driver",
                    storage,
                    self.PROXY,
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                daemon.kill()
                daemon.wait()
                if not last:
                    return False
                with open("/tmp/docker/log", encoding="utf-8") as log:
                    raise RuntimeError(
                        f"dockerd does not run: {(log.read().splitlines() or ['it says nothing'])[-1][:300]}"
                    )
            time.sleep(0.05)
        return True

    def network(self) -> dict[str, float]:
        """A container that runs connected to the network that publishes its port, and disconnected."""
        if not self._probe:
            run("docker", "network", "create", "--internal", "inside")
            run("docker", "network", "create", "--subnet", "172.30.0.0/16", "outside")
            # no port is published by an internal network alone
            self.start("probe", [Mapping(SPARE + 9_000, 80)], "--network", "inside")
            self._probe = True
        added = timed(lambda: run("docker", "network", "connect", "outside", "probe"))
        return {
            "attach": added,
            "detach": timed(lambda: run("docker", "network", "disconnect", "outside", "probe")),
        }


class DockerWithProxy(Docker):
    """As docker is without any option."""

    PROXY = "--userland-proxy=true"


class Swarm(Docker):
    """A host of Docker Swarm, with containers on an overlay network that spans hosts."""

    OVERLAY = "over"

    def connect(self, address: str) -> None:
        run("ip", "link", "set", "under0", "up")
        run("ip", "address", "add", f"{address}/24", "dev", "under0")
        self._place = ("--advertise-addr", address, "--listen-addr", f"{address}:2377")
        self._manager = f"{address}:2377"

    def init(self) -> tuple[str, str]:
        """Make a swarm and its network; return what another host joins with."""
        run("docker", "swarm", "init", *self._place)
        words = ("--driver", "overlay", "--attachable", "--subnet", "10.89.0.0/24")
        run("docker", "network", "create", *words, self.OVERLAY)
        return run("docker", "swarm", "join-token", "-q", "worker").strip(), self._manager

    def join(self, token: str, manager: str) -> None:
        run("docker", "swarm", "join", *self._place, "--token", token, manager)

    def more(self, name: str) -> str:
        """Start a container on the overlay; return its address."""
        self.start(name, [], "--network", self.OVERLAY)
        shown = f"{{{{.NetworkSettings.Networks.{self.OVERLAY}.IPAddress}}}}"
        return run("docker", "inspect", "--format", shown, name).strip()

    def serve(self, names: Iterable[str] = ()) -> None:
        self.start_servers(names)

    def rate_from(
        self, name: str, proto: str, address: str, port: int, ms: int, source: str
    ) -> float:
        """As `load`, from a container."""
        return self.load(proto, address, port, ms, self._named(name), source)

    def command(self, name: str) -> float:
        """Connect a running container by that name; return when that began (monotonic clock, in s)."""
        if not self._probe:
            self.start("probe", [], "--network", "none")
            run("docker", "network", "disconnect", "none", "probe")
            self._probe = True
        began = time.monotonic()
        run("docker", "network", "connect", "--alias", name, self.OVERLAY, "probe")
        return began

    def vanish(self, name: str) -> None:
        run("docker", "network", "disconnect", self.OVERLAY, "probe")

    def until_named(self, name: str, there: bool, seconds: float) -> float:
        """Return when the container "client" could resolve a name, by Docker's name server."""
        enter = ("ip", "netns", "exec", self._named("client"), sys.executable, "-IS")
        return float(run(*enter, str(ASK_NAMES), "127.0.0.11", name, str(seconds)))

    def _named(self, container: str) -> str:
        """Return the name by which ip(8) enters a container."""
        named = f"container-{container}"
        if not os.path.exists(f"/run/netns/{named}"):
            pid = run("docker", "inspect", "--format", "{{.State.Pid}}", container).strip()
            run("ip", "netns", "attach", named, pid)
        return named


class Podman(Engine):
    """podman with netavark and crun, with log files as niso's; what it would look for in /etc is given to it."""

    PROGRAM = "podman"
    REMOVE = ("rm", "--force", "--time", "0")

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        peers = os.environ["BENCH_PEERS"]
        common = f"{peers}/golang-github-containers-common"
        home = pathlib.Path("/tmp/podman/home/.config/containers")
        home.mkdir(parents=True)
        policy = pathlib.Path(common, "etc/containers/policy.json")
        (home / "policy.json").write_text(
            policy.read_text()
            if policy.exists()
            else json.dumps({"default": [{"type": "insecureAcceptAnything"}]})
        )
        if os.path.isdir("/sys/fs/cgroup/unified"):  # crun refuses hybrid cgroups
            run("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup/unified")
        seccomp = f"{common}/usr/share/containers/seccomp.json"
        profile = f'seccomp_profile = "{seccomp}"\n' if os.path.exists(seccomp) else ""
        pathlib.Path("/tmp/podman/containers.conf").write_text(
            f'[containers]\nlog_driver = "k8s-file"\n{profile}'
            'default_sysctls = ["net.ipv4.ping_group_range=0 0"]\n'
            f'[network]\nnetwork_backend = "netavark"\nfirewall_driver = "nftables"\nnetwork_config_dir = "/tmp/podman/networks"\n{self.networks()}'
            '[engine]\nruntime = "crun"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\ntmp_dir = "/run/podman/libpod"\n'
            f'helper_binaries_dir = ["{peers}/netavark/usr/lib/podman"]\n'
        )
        os.environ |= {
            "HOME": "/tmp/podman/home",
            "CONTAINERS_CONF": "/tmp/podman/containers.conf",
            "CONTAINERS_STORAGE_CONF": "/tmp/podman/storage.conf",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }
        self.storage = next(
            each for each in ("overlay", "vfs") if self._runs_with(each, each == "vfs")
        )

    def networks(self) -> str:
        """What else is in ``[network]`` of containers.conf."""
        return ""

    def _runs_with(self, storage: str, last: bool) -> bool:
        pathlib.Path("/tmp/podman/storage.conf").write_text(
            f'[storage]\ndriver = "{storage}"\ngraphroot = "/tmp/podman/{storage}"\nrunroot = "/run/podman/{storage}"\n'
        )
        shutil.rmtree("/tmp/image", ignore_errors=True)
        try:
            self.image()
        except RuntimeError:
            if last:
                raise
            return False
        return True


class PodmanOnNiso(Podman):
    """podman with a network of niso instead of netavark's bridge; neither has a name server."""

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        create = ("network", "create", "-d", "niso", "--disable-dns", "--subnet", "10.99.0.0/16")
        run(self.PROGRAM, *create, "bench")

    def networks(self) -> str:
        plugins = pathlib.Path("/tmp/podman/plugins")
        plugins.mkdir()
        (plugins / "niso").symlink_to(f"{sys.prefix}/bin/niso-netavark")
        return f'netavark_plugin_dirs = ["{plugins}"]\n'

    def start(self, name: str, mappings: list[Mapping], *more: str) -> None:
        super().start(name, mappings, "--network", "bench", *more)
