"""Run Kubernetes on one node with niso as its network, and its end-to-end tests; in a lab, as its command.

``cluster.py BIN OUT [--workers N] [--shell] [FOCUS SKIP]...``: BIN has the programs of ``build``. Results and logs go to OUT.
Each pair of FOCUS and SKIP is a set of cases by their names, which N processes run beside each other.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

CLONE = pathlib.Path(__file__).resolve().parents[2]
PEERS = CLONE / ".cache/bench"
NODE = "192.0.2.1"
TOKEN, NISO = "e2e", "niso-e2e"
"""Of the administrator, and of `niso kubernetes`."""
SERVICES, PODS = "10.96.0.0/16", "10.99.64.0/22"
AGAIN = "passed at the second try"
PAUSE = "k8s.gcr.io/pause:3.2"
AGNHOST = "k8s.gcr.io/e2e-test-images/agnhost:2.21"
HERE = pathlib.Path("/tmp/kubernetes")
POLICIES = (r"\[Feature:NetworkPolicy\]", "SCTPConnectivity")
"""All cases of network policies but those that need sockets of SCTP, which not every kernel has."""
SERVICES_AND_PORTS = (
    r"\[sig-network\] (Networking|Services|Conntrack|EndpointSlice|Proxy|SCTP)|\[sig-scheduling\].*hostPort",
    "SCTPConnectivity|SCTP HostPort|[lL]oad ?[bB]alancer|LB health|Internet connection|IPerf|Disruptive|ExternalName",
)
"""What one node can run without a cloud, the Internet and SSH to the node. The case of SCTP host ports reads rules of iptables."""
INSIDE = {"dash": "sh", "curl": "curl", "nc.openbsd": "nc"}
"""Programs of this machine in the image of the tests. The shell of busybox would take its own nc."""
WANTED = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
}
"""What the kubelet would set for the whole machine; here it only sees it so."""


def run(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    options.setdefault("capture_output", True)
    done = subprocess.run(words, text=True, check=False, **options)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def with_libraries(*programs: str) -> dict[str, str]:
    """Return the files of programs of this machine, and of the libraries that they need: path in the image -> path here."""
    files = {}
    for program in programs:
        files[f"bin/{INSIDE[pathlib.Path(program).name]}"] = os.path.realpath(program)
        for line in run("ldd", program).stdout.splitlines():
            for path in re.findall(r"(/\S+) \(", line):
                files[path.removeprefix("/").removeprefix("usr/")] = os.path.realpath(path)
    return files


def image(name: str, command: list[str], entrypoint: list[str], files: dict[str, str]) -> bytes:
    """An image as ``docker save`` writes it, of static programs: path in it -> path here."""
    layer, whole = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for inside, path in files.items():
            tar.add(path, inside)
        for applet in run("/usr/bin/busybox", "--list").stdout.split():
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if f"bin/{applet}" not in files:
                tar.addfile(link)
        for folder in ("tmp", "etc", "root"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(entry)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Cmd": command,
            "Entrypoint": entrypoint,
            "Env": ["PATH=/bin:/:/usr/bin:/usr/sbin:/sbin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    parts = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(
            [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        ).encode(),
    }
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for part, data in parts.items():
            info = tarfile.TarInfo(part)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return whole.getvalue()


class Node:
    """The programs of a cluster with one node."""

    def __init__(self, programs: pathlib.Path, out: pathlib.Path) -> None:
        self.programs, self.out = programs, out
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        HERE.mkdir()
        (out / "logs").mkdir(exist_ok=True)
        path = (programs, PEERS / "containerd/usr/bin", PEERS / "runc/usr/sbin")
        os.environ["PATH"] = ":".join(
            [*map(str, path), f"{sys.prefix}/bin", "/usr/sbin:/usr/bin:/sbin:/bin"]
        )
        os.environ["KUBECONFIG"] = str(HERE / "kubeconfig")

    def start(self, name: str, *words: str) -> None:
        with open(self.out / "logs" / name, "wb") as log:
            self.started[name] = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait(self, what: str, holds: Callable[[], bool], seconds: int = 120) -> None:
        end = time.monotonic() + seconds
        while not holds():
            for name, process in self.started.items():
                if process.poll() is not None:
                    log = (self.out / "logs" / name).read_text(errors="replace")
                    raise SystemExit(f"{name} has ended: {log[-3000:]}")
            if time.monotonic() > end:
                raise SystemExit(f"no {what} after {seconds} s; see {self.out}/logs")
            time.sleep(0.3)

    def certificates(self) -> None:
        names = f"subjectAltName=IP:127.0.0.1,IP:{NODE},IP:10.96.0.1,DNS:kubernetes"
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *(
                "-subj",
                "/CN=kubernetes",
                "-addext",
                names,
                "-addext",
                "keyUsage=digitalSignature,keyCertSign",
            ),
            *("-keyout", f"{HERE}/server.key", "-out", f"{HERE}/server.crt"),
        )
        run("openssl", "genrsa", "-out", f"{HERE}/accounts.key", "2048")
        (HERE / "tokens").write_text(f'{TOKEN},admin,1,"system:masters"\n{NISO},niso,2\n')
        (HERE / "token").write_text(f"{NISO}\n")
        for name, user in (("kubeconfig", {"token": TOKEN}), ("niso", {"tokenFile": "token"})):
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "e2e",
                "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
                "clusters": [
                    {
                        "name": "e2e",
                        "cluster": {
                            "server": f"https://{NODE}:6443",
                            "certificate-authority": str(HERE / "server.crt"),
                        },
                    }
                ],
                "users": [{"name": "e2e", "user": user}],
            }
            (HERE / name).write_text(json.dumps(config))

    def mounts(self) -> None:
        """Give engines folders that are not an overlay, and show the kubelet the sysctls that it wants."""
        for folder in ("/var/lib/kubelet", "/var/lib/cni", "/var/lib/etcd", "/opt"):
            os.makedirs(folder, exist_ok=True)
            run("mount", "-t", "tmpfs", "tmpfs", folder)
        run("mount", "--make-rshared", "/")
        os.makedirs("/opt/cni/bin")
        os.makedirs("/etc/cni/net.d", exist_ok=True)
        os.symlink(f"{sys.prefix}/bin/niso-cni", "/opt/cni/bin/niso-cni")
        os.symlink(
            PEERS / "containernetworking-plugins/usr/lib/cni/loopback", "/opt/cni/bin/loopback"
        )
        for name, value in WANTED.items():
            file = HERE / name.replace("/", "-")
            file.write_text(f"{value}\n")
            run("mount", "--bind", str(file), f"/proc/sys/{name}")

    def internet(self) -> None:
        """Answer what the tests of networking ask for before they begin, as there is no Internet."""
        with open("/etc/hosts", "a", encoding="ascii") as hosts:
            hosts.write("127.0.0.1 google.com\n")
        (HERE / "www").mkdir()
        (HERE / "www/index.html").write_text("here\n")
        words = ("/usr/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:80", "-h", f"{HERE}/www")
        self.start("internet", *words)

    def names(self) -> None:
        """Answer the names of Services, in place of CoreDNS, which Debian does not have."""
        folder = HERE / "names"
        folder.mkdir()
        self.start(
            *("dns", str(CLONE / ".cache/dnsmasq/usr/sbin/dnsmasq"), "--keep-in-foreground"),
            *("--no-resolv", "--no-hosts", "--user=root", f"--hostsdir={folder}", "--pid-file="),
            *("--bind-interfaces", f"--listen-address={NODE}", "--local=/cluster.local/"),
        )

        def follow() -> None:
            form = "{range .items[*]}{.spec.clusterIP} {.metadata.name}.{.metadata.namespace}{'\\n'}{end}"
            while True:
                done = run(
                    "kubectl", "get", "services", "-A", "-o", f"jsonpath={form}", check=False
                )
                for line in done.stdout.splitlines():
                    address, _, name = line.partition(" ")
                    if address[:1].isdigit() and not (folder / name).exists():
                        (folder / f".{name}").write_text(f"{address} {name}.svc.cluster.local\n")
                        (folder / f".{name}").rename(folder / name)
                time.sleep(1)

        threading.Thread(target=follow, daemon=True).start()

    def control_plane(self) -> None:
        self.start(
            "etcd",
            str(CLONE / ".cache/etcd/usr/bin/etcd"),
            "--data-dir",
            "/var/lib/etcd",
            "--unsafe-no-fsync",
        )
        self.start(
            *("apiserver", "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379"),
            *(
                f"--service-cluster-ip-range={SERVICES}",
                f"--advertise-address={NODE}",
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
            ),
            *(f"--tls-cert-file={HERE}/server.crt", f"--tls-private-key-file={HERE}/server.key"),
            *(f"--token-auth-file={HERE}/tokens", "--authorization-mode=RBAC"),
            *(
                f"--service-account-key-file={HERE}/accounts.key",
                "--service-account-issuer=https://kubernetes",
            ),
            *(
                f"--service-account-signing-key-file={HERE}/accounts.key",
                "--cert-dir=/tmp/kubernetes/certs",
            ),
            "--disable-admission-plugins=ServiceAccount",
            "--service-node-port-range=30000-32767",
        )
        self.wait(
            "API server", lambda: run("kubectl", "get", "--raw=/readyz", check=False).stdout == "ok"
        )
        self.start(
            *("controllers", "kube-controller-manager", f"--kubeconfig={HERE}/kubeconfig"),
            *(
                f"--service-account-private-key-file={HERE}/accounts.key",
                f"--root-ca-file={HERE}/server.crt",
            ),
            *("--leader-elect=false", "--use-service-account-credentials=false", "--port=0"),
        )
        self.start(
            "scheduler",
            "kube-scheduler",
            f"--kubeconfig={HERE}/kubeconfig",
            "--leader-elect=false",
            "--port=0",
        )

    def runtime(self) -> None:
        conflist = {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "niso-cni",
                    "subnets": [PODS],
                    "kubernetes": {"wait_policy_s": 20},
                    "capabilities": {
                        "portMappings": True,
                        "io.kubernetes.cri.pod-annotations": True,
                    },
                }
            ],
        }
        pathlib.Path("/etc/cni/net.d/10-niso.conflist").write_text(json.dumps(conflist))
        (HERE / "containerd.toml").write_text(
            'version = 2\nroot = "/tmp/containerd/root"\nstate = "/run/containerd"\n'
            '[grpc]\naddress = "/run/containerd/containerd.sock"\n'
            '[plugins."io.containerd.grpc.v1.cri"]\n'
            f'sandbox_image = "{PAUSE}"\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n'
            '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/opt/cni/bin"\n'
        )
        self.start("containerd", "containerd", "--config", str(HERE / "containerd.toml"))
        self.wait("containerd", lambda: run("ctr", "version", check=False).returncode == 0)
        busybox = {"bin/busybox": "/usr/bin/busybox"}
        images = (
            image(PAUSE, ["/bin/busybox", "sleep", "100000000"], [], busybox),
            image(
                AGNHOST,
                ["pause"],
                ["/agnhost"],
                {
                    **busybox,
                    **with_libraries("/usr/bin/dash", "/usr/bin/curl", "/usr/bin/nc.openbsd"),
                    **{
                        name: str(self.programs / name)
                        for name in ("agnhost", "localhost.crt", "localhost.key")
                    },
                },
            ),
        )
        for data in images:
            (HERE / "image.tar").write_bytes(data)
            run("ctr", "-n", "k8s.io", "image", "import", str(HERE / "image.tar"))
        (HERE / "image.tar").unlink()

    def node(self) -> None:
        config = {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "imagefs.available": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "/etc/resolv.conf",
            "registryPullQPS": 0,
            "clusterDNS": [NODE],
            "clusterDomain": "cluster.local",
            "eventRecordQPS": 0,
        }
        (HERE / "kubelet.json").write_text(json.dumps(config))
        # with the rights that docs/guide/cni.md names
        rights = (
            "--verb=get,list,watch",
            "--resource=pods,namespaces,networkpolicies.networking.k8s.io",
        )
        run("kubectl", "create", "clusterrole", "niso", *rights)
        run("kubectl", "create", "clusterrolebinding", "niso", "--clusterrole=niso", "--user=niso")
        self.start("niso", "niso", "kubernetes", "run", "run", "--kubeconfig", str(HERE / "niso"))
        self.start(
            *(
                "kubelet",
                "kubelet",
                f"--config={HERE}/kubelet.json",
                f"--kubeconfig={HERE}/kubeconfig",
            ),
            *(
                "--container-runtime=remote",
                "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
            ),
            *("--hostname-override=node", f"--node-ip={NODE}", "--v=2"),
        )
        self.start(
            *("proxy", "kube-proxy", f"--kubeconfig={HERE}/kubeconfig", "--proxy-mode=iptables"),
            *("--hostname-override=node", f"--cluster-cidr={PODS}", "--conntrack-max-per-core=0"),
        )
        ready = (
            "kubectl",
            "get",
            "nodes",
            "-o",
            "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
        )
        self.wait("node", lambda: run(*ready, check=False).stdout == "True")
        run("kubectl", "taint", "nodes", "--all", "node.kubernetes.io/not-ready-", check=False)


# --- the tests ------------------------------------------------------------------------------------


def e2e(out: pathlib.Path, name: str, *words: str) -> None:
    """Run e2e.test, which writes what it found into a folder of its own."""
    folder = out / name
    folder.mkdir(exist_ok=True)
    options = (
        *(f"--kubeconfig={HERE}/kubeconfig", "--provider=skeleton", f"--report-dir={folder}"),
        *("--dump-logs-on-failure=false", "--minStartupPods=0", "--node-os-distro=debian"),
        *("--num-nodes=1", f"--kubectl-path={run('which', 'kubectl').stdout.strip()}"),
    )
    with open(out / "logs" / f"e2e-{name}", "w", encoding="utf-8") as log:
        subprocess.run(("e2e.test", *options, *words), stdout=log, stderr=log, check=False)


def cases(folder: pathlib.Path) -> dict[str, str]:
    """{name: passed, failed or skipped} of all cases that a folder has a report of."""
    found = {}
    for report in folder.glob("**/junit_*.xml"):
        for case in ET.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            state = (
                "failed" if "failure" in kinds else "skipped" if "skipped" in kinds else "passed"
            )
            found[case.attrib["name"]] = state
    return found


def chosen(out: pathlib.Path, focus: str, skip: str) -> list[str]:
    e2e(
        out,
        "list",
        "--ginkgo.dryRun",
        f"--ginkgo.focus={focus}",
        *((f"--ginkgo.skip={skip}",) if skip else ()),
    )
    names = [name for name, state in cases(out / "list").items() if state == "passed"]
    for report in (out / "list").glob("junit_*.xml"):
        report.unlink()
    return sorted(names)


def tests(out: pathlib.Path, sets: list[tuple[str, str]], workers: int) -> dict[str, str]:
    names = sorted({name for focus, skip in sets for name in chosen(out, focus, skip)})
    alone = [name for name in names if "[Serial]" in name or "[Disruptive]" in name]
    beside = [name for name in names if name not in alone]
    print(f"{len(names)} cases", flush=True)

    numbers = {name: number for number, name in enumerate(names)}

    def one(name: str, again: str = "") -> str:
        begun = time.monotonic()
        folder = f"case{numbers[name]}{again}"
        e2e(out, folder, f"--ginkgo.focus={re.escape(name)}$")
        state = cases(out / folder).get(name, "failed")  # without a report
        print(f"{state}{again} {time.monotonic() - begun:.0f}s {name}", flush=True)
        return state

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = dict(zip(beside, pool.map(one, beside), strict=True))
    found |= {name: one(name) for name in alone}
    # their timeouts are of a second, and the machine may be busy: without the others
    for name in [name for name, state in found.items() if state == "failed"]:
        if one(name, "-again") == "passed":
            found[name] = AGAIN
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--shell", action="store_true")
    args = parser.parse_args()
    node = Node(args.programs.resolve(), args.out.resolve())
    node.mounts()
    node.certificates()
    node.internet()
    node.control_plane()
    node.names()
    node.runtime()
    node.node()
    print("the node is ready", flush=True)
    if args.shell:
        return subprocess.run(["bash"], check=False).returncode
    sets = list(zip(args.sets[::2], args.sets[1::2], strict=True)) or [POLICIES, SERVICES_AND_PORTS]
    found = tests(node.out, sets, args.workers)
    (node.out / "results.json").write_text(json.dumps(found, indent=1))
    counts = {
        state: sum(s == state for s in found.values())
        for state in ("passed", AGAIN, "failed", "skipped")
    }
    checked = run("niso", "net", "check", check=False)
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    print(checked.stdout + checked.stderr)
    return 1 if counts["failed"] or checked.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
