"""Test the calls of Docker's network driver that need no kernel, and the server around them."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_world import World
from refusals import refuses

from niso.base.errors import Error, InvalidInput
from niso.change import attach, networks
from niso.engines import docker, plugin

ID = "49619180c636582d0dcf0c64a6aab759d2739efcebb4755f6ebea40be1285c56"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NISO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NISO_RUN_DIR", str(tmp_path / "run"))


def options(**own: str) -> dict[str, Any]:
    return {"Options": {f"niso.{key}": value for key, value in own.items()}}


def test_ports_are_those_of_the_call() -> None:
    """As Docker 26.1 sends them for ``-p 8080:80 -p 127.0.0.1:53:53/udp -p 81``."""
    sent = [
        {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080},
        {"Proto": 17, "IP": "", "Port": 53, "HostIP": "127.0.0.1", "HostPort": 53},
        {"Proto": 6, "IP": "", "Port": 81, "HostIP": "", "HostPort": 0, "HostPortEnd": 0},
    ]
    ports = docker._ports({"Options": {"com.docker.network.portmap": sent}})
    assert [(p.host_ip, p.host_port, p.container_port, p.proto) for p in ports] == [
        ("", 8080, 80, "tcp"),
        ("127.0.0.1", 53, 53, "udp"),
        ("", 0, 81, "tcp"),
    ]
    assert docker._ports({"Options": None}) == docker._ports({}) == ()
    for wrong in ({"HostPortEnd": 8090}, {"HostIP": "127.0.0.1", "HostPort": 0, "HostPortEnd": 0}):
        with pytest.raises(InvalidInput):
            docker._ports({"Options": {"com.docker.network.portmap": [sent[0] | wrong]}})


def test_endpoint_is_kept_for_its_join_and_wrong_options_are_refused_before() -> None:
    endpoint = {"NetworkID": ID, "EndpointID": "ab", **options(allow_from="web:80", name="api")}
    with refuses(Error, hint="docker network rm, and create it again"):
        docker.answer_call("CreateEndpoint", endpoint)
    plugin.save(docker._file(os.environ["NISO_STATE_DIR"], ID), {"options": {}})
    assert docker.answer_call("CreateEndpoint", endpoint) == {"Interface": {}}
    kept = plugin.load(docker._file(os.environ["NISO_RUN_DIR"], "ab"))
    assert kept == {"endpoint": endpoint}
    for wrong in (options(allow_form="web"), options(allow_from="we?b")):
        with pytest.raises(InvalidInput):
            docker.answer_call("CreateEndpoint", {**endpoint, "EndpointID": "cd", **wrong})
    assert not os.path.lexists(docker._file(os.environ["NISO_RUN_DIR"], "cd"))


HINT = "label niso.name=NAME, or driver-opt niso.name=NAME (Compose: from 2.27.1 on)"


def test_name_may_be_required_in_an_option_or_a_label(tmp_path: Path) -> None:
    """Without a name, a policy may have been dropped too."""
    nameless = {"NetworkID": ID, "EndpointID": "ee"} | options(allow_from="web:80")
    with World(tmp_path) as world:
        for named, marked, name in (
            ("false", {}, "c-ee"),
            ("true", {"name": "api", "aliases": "db, www"}, "api"),
        ):
            network = {"network": "shop", "options": {"named": named}}
            request = docker._request(world.machine, network, nameless, "ee", marked)
            assert (request.name, request.aliases) == (name, ("db", "www") if marked else ())
        with refuses(InvalidInput, hint=HINT):
            docker._request(world.machine, network, nameless, "ee", {})


def test_labels_of_an_image_are_read_in_both_stores(tmp_path: Path) -> None:
    """As Docker 26.1 keeps images, in its own store and in that of containerd."""
    data, config = str(tmp_path), {"config": {"Labels": {"niso.name": "evil"}}}
    own, empty = {"Image": "sha256:ab"}, {"Image": "sha256:cd", "ImageManifest": None}
    plugin.save(f"{data}/image/overlay2/imagedb/content/sha256/ab", config)
    plugin.save(f"{data}/image/overlay2/imagedb/content/sha256/cd", {"config": {"Labels": None}})
    blobs = f"{data}/containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
    of_containerd = {"Image": "sha256:12", "ImageManifest": {"digest": "sha256:34"}}
    plugin.save(f"{blobs}/34", {"config": {"digest": "sha256:56"}})
    assert docker._image_labels(data, of_containerd) is None
    plugin.save(f"{blobs}/56", config)
    for record in (own, of_containerd):
        assert docker._image_labels(data, record) == {"niso.name": "evil"}
    assert docker._image_labels(data, empty) == {}
    for unknown in ({}, {"Image": "sha256:ff"}, {"Image": "sha256:../ab"}, {"Image": "*"}):
        assert docker._image_labels(data, unknown) is None


OF_IMAGE = {"niso.name": "evil", "niso.log": "true", "maintainer": "x"}


@pytest.mark.parametrize(
    ("labels", "image", "own", "why"),
    [
        ({"niso.allow_form": "x"}, {}, {}, "niso does not know this option"),
        ({"niso.io/allow-from": "x"}, {}, {}, "niso does not know this option"),
        ({"niso.name": "api"}, None, {}, "the labels of the image cannot be read"),
        (OF_IMAGE, OF_IMAGE, {}, "is one of the image"),
        (OF_IMAGE | {"niso.name": "api"}, OF_IMAGE, {}, "label niso.log is one of the image"),
        ({"niso.name": "api"}, {}, {"name": "web"}, "label niso.name and opt.name differ"),
    ],
)
def test_labels_that_may_not_be_options_are_refused(
    labels: dict[str, str], image: dict[str, str] | None, own: dict[str, str], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        plugin.labels(labels, lambda: image, own, "opt.")


def test_labels_are_options_that_no_other_option_contradicts() -> None:
    labels = {"niso.allow_from": "api:80, web", "niso.name": "db", "maintainer": "x"}
    own = {"allow_from": "api:80 web", "log": "true"}
    assert plugin.labels(labels, lambda: {"niso.name": "evil"}, own, "opt.") == {"name": "db"}
    assert plugin.labels({"maintainer": "x"}, lambda: None, own, "opt.") == {}
    assert plugin.labels(None, lambda: None, own, "opt.") == {}


@pytest.mark.parametrize("id", ["", "../x", "AB", "a/b", "a" * 65, None, 5.0])
def test_what_is_not_an_id_of_docker_is_no_path(id: object) -> None:
    for call in ("CreateNetwork", "CreateEndpoint", "Join", "DeleteEndpoint", "DeleteNetwork"):
        with pytest.raises((InvalidInput, Error)):
            docker.answer_call(call, {"NetworkID": id, "EndpointID": id, "SandboxKey": "/x"})


def test_network_that_a_killed_driver_made_goes_with_docker_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker repeats a call that was not answered."""
    with World(tmp_path) as world:
        monkeypatch.setattr(plugin, "machine", lambda: world.machine)
        create = docker._create_network
        data = [{"Pool": "10.99.7.0/24", "Gateway": "10.99.7.1/24"}]
        given = {"NetworkID": ID, "IPv4Data": data}
        with monkeypatch.context() as patch:
            made = networks.create
            patch.setattr(networks, "create", lambda *given: (made(*given), die()))
            with pytest.raises(KeyboardInterrupt):
                create(given)
        create(given)
        assert world.store.network(f"docker-{ID[:12]}") is not None
        wrong = [{"Pool": "10.99.7.0/23", "Gateway": "10.99.7.1/24"}]
        for id in (ID, "ab"):
            with pytest.raises(Error):
                create({"NetworkID": id, "IPv4Data": wrong})
        assert plugin.load(docker._file(os.environ["NISO_STATE_DIR"], "ab")) is None
        docker.answer_call("DeleteNetwork", {"NetworkID": ID})
        assert world.store.network(f"docker-{ID[:12]}") is None


def test_mac_address_of_docker_is_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(tmp_path) as world:
        monkeypatch.setattr(plugin, "machine", lambda: world.machine)
        docker._create_network(
            {
                "NetworkID": ID,
                "IPv4Data": [{"Pool": "10.99.7.0/24", "Gateway": "10.99.7.1/24"}],
                "Options": {"com.docker.network.generic": {"network": "shop"}},
            }
        )
        network = {"network": "shop", "options": {}}

        def join(id: str, mac: str) -> None:
            endpoint = {"NetworkID": ID, "EndpointID": id, "Interface": {"MacAddress": mac}}
            request = docker._request(world.machine, network, endpoint, id, {})
            world.kernel.begin_engine(request.netns)
            attach.attach(world.machine, request)

        join("ab", "02:42:00:00:00:01")
        bridge = world.kernel.bridges["niso-shop"].mac
        for mac, why in (
            ("02:42:00:00:00:01", "already has the MAC address"),
            (world.store.derived_mac("db", "shop"), "are those of niso's"),
            (bridge, "are those of niso's"),
            ("01:00:5e:00:00:01", "not a MAC address of one station"),
        ):
            with pytest.raises(Error, match=why):
                join("cd", mac)
        # Docker sends what it has seen at the container's last start
        join("ef", world.store.derived_mac("c-ef", "shop"))
        wrong = {"Interface": {"MacAddress": "01:00:5e:00:00:01"}}
        with pytest.raises(InvalidInput, match="not a MAC address of one station"):
            call = {"NetworkID": ID, "EndpointID": "ee", **wrong}
            docker.answer_call("CreateEndpoint", call)
        world.assert_whole()


def die() -> None:
    raise KeyboardInterrupt


SERVER = """\
import os, sys
os.dup2(int(sys.argv.pop()), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
sys.path[:0] = [sys.argv.pop()]
from niso.engines import docker as docker_server
docker_server._IDLE_S = 0.3
docker_server.main()
"""


def test_server_answers_on_the_socket_of_systemd_and_ends_when_idle(tmp_path: Path) -> None:
    path = str(tmp_path / "niso.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        source = str(Path(docker.__file__).parents[2])
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, source, str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
        )

        def call(name: str, body: bytes) -> tuple[int, Any]:
            connection = http.client.HTTPConnection("plugin.moby.localhost", timeout=60)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(path)
            connection.request("POST", f"/{name}", body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        assert call("Plugin.Activate", b"") == (200, {"Implements": ["NetworkDriver"]})
        for body in (b"[]", b"{", b"{}", b"\xff"):
            status, answer = call("NetworkDriver.CreateEndpoint", body)
            assert status == 500 and answer["Err"].startswith("niso: "), body
            assert "Error(" not in answer["Err"]
        for name in ("Join", "DeleteNetwork"):  # repeated by Docker, after the driver was killed
            status, answer = call(f"NetworkDriver.{name}", b"")
            assert status == 500 and "killed during this call" in answer["Err"]
        assert call("NetworkDriver.GetCapabilities", b"{}")[1]["Scope"] == "local"
        assert server.wait(60) == 0
        assert b"Traceback" not in server.communicate()[1]


def test_server_without_a_usable_store_answers_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ended would be started again and again until systemd gives up its socket."""
    state = Path(os.environ["NISO_STATE_DIR"])
    state.mkdir(0o700)
    (state / "state.db").write_bytes(b"nonsense" * 1000)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert docker.resume_pending() is False and docker.complete_pending() is False
    with pytest.raises(Error, match="not a database"):
        docker.answer_call("Leave", {"NetworkID": ID, "EndpointID": ID})
