"""Judge a CNI plugin by the specification (containernetworking/cni, SPEC.md 1.1.0), whoever wrote it.

`Plugin.call` runs it as a runtime does: CNI_* variables, the configuration on stdin, JSON on stdout. Each function of `CASES`
is a demand of the specification on a main plugin; it raises AssertionError where the plugin does not meet it.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from conftest import Lab

_numbers = count()


class Answer:
    """What a call printed: ``status`` is the exit status, ``data`` the JSON of stdout or None."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err
        self.data: Any = json.loads(out) if out.strip() else None

    def error(self, version: str) -> int:
        """The code of an error in its form: exit status not 0, JSON with code and msg on stdout."""
        assert self.status != 0, self.out
        assert isinstance(self.data, dict), (self.out, self.err)
        assert self.data.get("msg"), self.data
        assert self.data.get("cniVersion") == version, self.data
        code = self.data["code"]
        assert isinstance(code, int)
        return code


class Plugin:
    """A plugin with a network's configuration, but for its version."""

    def __init__(
        self, lab: Lab, path: str, config: dict[str, Any], versions: tuple[str, ...]
    ) -> None:
        self.lab, self.path, self.config, self.versions = lab, path, config, versions

    def call(
        self, command: str, version: str = "1.0.0", stdin: str | None = None, **given: Any
    ) -> Answer:
        """Run it. Words in capitals are variables without CNI_; ``extra`` is laid over the configuration."""
        extra = given.pop("extra", {})
        text = (
            stdin
            if stdin is not None
            else json.dumps({"cniVersion": version, **self.config, **extra})
        )
        variables = {"COMMAND": command, "PATH": self.path.rpartition("/")[0], **given}
        env = {f"CNI_{name}": value for name, value in variables.items() if value is not None}
        env["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        if self.path.endswith("/niso-cni") and command != "VERSION":  # without Python's start
            alone = dict.fromkeys(self.lab.environment) | env
            done = self.lab.run("niso-cni", input=text, check=False, env=alone, inside=True)
        else:
            words = [f"{name}={value}" for name, value in env.items()]
            done = self.lab.run("env", "-i", *words, self.path, input=text, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    def has(self, command: str) -> str | None:
        """The newest version that the plugin supports and that has this command."""
        first = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}.get(command, "0.3.0")
        return max((v for v in self.versions if v >= first), default=None)


@contextmanager
def namespace(plugin: Plugin) -> Iterator[dict[str, str]]:
    """A network namespace, with the variables of a container in it."""
    name = f"cni-{next(_numbers)}"
    plugin.lab.run("ip", "netns", "add", name)
    try:
        yield {"CONTAINERID": f"id_{name}", "NETNS": f"/run/netns/{name}", "IFNAME": "eth0"}
    finally:
        plugin.lab.run("ip", "netns", "delete", name)


def links(plugin: Plugin, given: dict[str, str]) -> dict[str, Any]:
    """The links in the container but lo, by name."""
    name = given["NETNS"].rpartition("/")[2]
    return {
        x["ifname"]: x
        for x in plugin.lab.ip_json("address", "show", netns=name)
        if x["ifname"] != "lo"
    }


def judge_result(plugin: Plugin, given: dict[str, str], answer: Answer, version: str) -> None:
    """The result of ADD is in the form of its version, and is what the kernel has."""
    assert answer.status == 0, (answer.out, answer.err)
    result = answer.data
    assert result["cniVersion"] == version
    inner = [x for x in result["interfaces"] if x.get("sandbox")]
    assert [(x["name"], x["sandbox"]) for x in inner] == [(given["IFNAME"], given["NETNS"])]
    there = links(plugin, given)[given["IFNAME"]]
    assert inner[0]["mac"] == there["address"] and "UP" in there["flags"]
    own = {f"{x['local']}/{x['prefixlen']}" for x in there["addr_info"] if x["scope"] == "global"}
    assert {ip["address"] for ip in result["ips"]} == own and own
    for ip in result["ips"]:
        assert result["interfaces"][ip["interface"]] == inner[0]
        assert ("version" in ip) == (version < "1.0.0")
        if "gateway" in ip:
            assert (
                ipaddress.ip_address(ip["gateway"]) in ipaddress.ip_interface(ip["address"]).network
            )
    for route in result.get("routes", ()):
        ipaddress.ip_network(route["dst"])


class List:
    """A list of plugins, called as a runtime does: ADD and CHECK in order, DEL in reverse order."""

    def __init__(self, *plugins: Plugin) -> None:
        self.plugins, self.result = plugins, None

    def add(self, **given: Any) -> Any:
        """The result of each plugin, which has all of that of the plugins before it."""
        self.result = None
        for plugin in self.plugins:
            before = self.result
            answer = plugin.call("ADD", extra=self._extra(), **given)
            assert answer.status == 0, (plugin.path, answer.out, answer.err)
            self.result = answer.data
            for key in ("interfaces", "ips", "routes") if before else ():
                missing = [x for x in before.get(key) or () if x not in self.result[key]]
                assert not missing, (plugin.path, missing)
        return self.result

    def check(self, **given: Any) -> list[str]:
        """The errors."""
        answers = [plugin.call("CHECK", extra=self._extra(), **given) for plugin in self.plugins]
        return [answer.out for answer in answers if answer.status != 0]

    def delete(self, **given: Any) -> None:
        for plugin in reversed(self.plugins):
            answer = plugin.call("DEL", extra=self._extra(), **given)
            assert (answer.status, answer.out) == (0, ""), (plugin.path, answer.out, answer.err)

    def _extra(self) -> dict[str, Any]:
        return {"prevResult": self.result} if self.result else {}


# --- what the specification demands -------------------------------------------------------------------------------------


def version_tells_what_is_supported(plugin: Plugin) -> None:
    for version in plugin.versions:
        answer = plugin.call("VERSION", stdin=json.dumps({"cniVersion": version}))
        assert answer.status == 0 and answer.data["cniVersion"] == version
        assert set(plugin.versions) <= set(answer.data["supportedVersions"])


def unknown_version_is_error_1(plugin: Plugin) -> None:
    with namespace(plugin) as given:
        answer = plugin.call("ADD", "9.9.9", **given)
        assert answer.status != 0 and answer.data["code"] == 1
        assert not links(plugin, given)


def missing_variables_are_error_4(plugin: Plugin) -> None:
    with namespace(plugin) as given:
        for command, missing in (
            ("ADD", "CONTAINERID"),
            ("ADD", "NETNS"),
            ("ADD", "IFNAME"),
            ("DEL", "CONTAINERID"),
        ):
            assert plugin.call(command, **{**given, missing: None}).error("1.0.0") == 4, missing
        for wrong in ("with/slash", "x" * 16, ".."):
            assert plugin.call("ADD", **{**given, "IFNAME": wrong}).error("1.0.0") == 4, wrong
        assert plugin.call("ADD", **{**given, "CONTAINERID": "/etc"}).error("1.0.0") == 4
        assert not links(plugin, given)


def stdin_that_is_no_configuration_is_an_error(plugin: Plugin) -> None:
    with namespace(plugin) as given:
        for text in ("", "{", "[]", "\x00"):
            assert plugin.call("ADD", stdin=text, **given).status != 0
        assert not links(plugin, given)


def add_and_delete_in_every_version(plugin: Plugin) -> None:
    for version in plugin.versions:
        with namespace(plugin) as given:
            answer = plugin.call("ADD", version, **given)
            judge_result(plugin, given, answer, version)
            gone = plugin.call("DEL", version, extra={"prevResult": answer.data}, **given)
            assert gone.status == 0 and gone.out == "", (gone.out, gone.err)
            assert not links(plugin, given)


def delete_of_what_is_gone_is_no_error(plugin: Plugin) -> None:
    with namespace(plugin) as given:
        plugin.call("ADD", **given)
        assert plugin.call("DEL", **given).status == 0
        assert plugin.call("DEL", **given).status == 0
        assert plugin.call("DEL", **{**given, "NETNS": "", "CONTAINERID": "never"}).status == 0
    assert plugin.call("DEL", **given).status == 0  # the namespace has ended


def interface_that_exists_is_an_error(plugin: Plugin) -> None:
    with namespace(plugin) as given:
        name = given["NETNS"].rpartition("/")[2]
        plugin.lab.run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "x")
        before = links(plugin, given)
        assert plugin.call("ADD", **given).status != 0
        assert links(plugin, given) == before
        plugin.call("DEL", **{**given, "NETNS": ""})


def interface_that_the_plugin_made_is_an_error(plugin: Plugin) -> None:
    with namespace(plugin) as given:
        plugin.call("ADD", **given)
        before = links(plugin, given)
        assert plugin.call("ADD", **given).status != 0
        assert links(plugin, given) == before
        plugin.call("DEL", **given)
        assert plugin.call("ADD", **given).status == 0
        plugin.call("DEL", **given)


def check_without_a_result_is_an_error(plugin: Plugin) -> None:
    version = plugin.has("CHECK")
    assert version
    with namespace(plugin) as given:
        plugin.call("ADD", version, **given)
        assert plugin.call("CHECK", version, **given).status != 0
        plugin.call("DEL", version, **given)


def missing_namespace_is_error_4(plugin: Plugin) -> None:
    with namespace(plugin) as given:
        pass
    for path in (given["NETNS"], "/etc/hostname"):
        answer = plugin.call("ADD", **{**given, "NETNS": path})
        assert answer.error("1.0.0") == 4 and "CNI_NETNS" in answer.data["msg"]
    plugin.call("DEL", **{**given, "NETNS": ""})


def check_finds_a_lost_address(plugin: Plugin) -> None:
    version = plugin.has("CHECK")
    assert version
    with namespace(plugin) as given:
        result = plugin.call("ADD", version, **given).data
        extra = {"prevResult": result}
        assert plugin.call("CHECK", version, extra=extra, **given).status == 0
        name = given["NETNS"].rpartition("/")[2]
        plugin.lab.run("ip", "-n", name, "address", "flush", "dev", "eth0")
        assert plugin.call("CHECK", version, extra=extra, **given).error(version) > 0
        plugin.call("DEL", version, extra=extra, **given)
        if plugin.versions[0] < "0.4.0":
            assert plugin.call("CHECK", plugin.versions[0], extra=extra, **given).status != 0


def containers_reach_each_other(plugin: Plugin) -> None:
    with namespace(plugin) as one, namespace(plugin) as other:
        plugin.call("ADD", **one)
        to = plugin.call("ADD", **other).data["ips"][0]["address"].partition("/")[0]
        plugin.lab.run("ping", "-c1", "-W2", to, netns=one["NETNS"].rpartition("/")[2])
        for given in (one, other):
            plugin.call("DEL", **given)


CASES: dict[str, Callable[[Plugin], None]] = {
    each.__name__: each
    for each in (
        version_tells_what_is_supported,
        unknown_version_is_error_1,
        missing_variables_are_error_4,
        stdin_that_is_no_configuration_is_an_error,
        add_and_delete_in_every_version,
        delete_of_what_is_gone_is_no_error,
        interface_that_exists_is_an_error,
        interface_that_the_plugin_made_is_an_error,
        missing_namespace_is_error_4,
        check_without_a_result_is_an_error,
        check_finds_a_lost_address,
        containers_reach_each_other,
    )
}
