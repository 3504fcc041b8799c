"""List damages of every kind of object, each with how it is done and the expected findings.

``tests/unit/test_damages.py`` holds this table to the kinds of `niso.kernel.kinds.kind`.
"""

from __future__ import annotations

import os

from damage import Damage, damage, hosts_file, row, sysctl
from damages_of_addresses import ADDRESSES
from damages_of_links import LINKS
from damages_of_rules import RULES
from services import BUSYBOX

OTHERS = (
    "chain",
    "rule",
    "set",
    "table",
    "conmon",
    "process",
    "crun",
    "cgroup",
    "hosts folder",
    "namespace mount",
    "store row",
)
"""Kinds that are no kind of State, or more than one."""

NO_CASE = {
    "Ruleset foreign": "of tables with our names that are not ours: a conflict, in test_networks",
    "Ruleset.digest": "it is told by the elements of the set owner",
    "Sysctl missing": "a sysctl goes with its link only",
    "Sysctl foreign": "a sysctl of niso's has a value, and no other end",
    "Element.entry": "the comment of an element has it with its owner",
    "Bridge.alias": "a link without the mark is somebody else's: a conflict",
    "Veth.alias": "the same",
    "Netns.alias": "the same",
    "NetnsName missing": "of an attachment: in test_attach",
    "NetnsName foreign": "one that no row has is a sweep's, in test_attach",
    "NetnsName.target": "the same",
    "Route.last": "of an attachment: in test_attach",
    "NetnsName.cookie": "another namespace is a finding of its own, in test_attach",
    "ForeignPort missing": "none is wanted",
    "Neighbour missing": "none is wanted",
    "HostsLeftover missing": "none is wanted",
    "Vxlan.alias": "as of a bridge",
    "WireGuard.alias": "the same",
    "RoutingRule missing": "of kernels without bridge filters: in test_flushed",
    "RoutingRule.drift": "the same",
    "Bridge.internal": "a network stays internal",
    "WireGuard.form": "a kernel that gets WireGuard, or loses it: in test_encryption",
    "WireGuard foreign": "it has one name, and is wanted as long as a network spans hosts",
    "Shaper.netns": "of the pair, which is a finding of its own",
    "Shaper.peer": "the same",
}

OF_SPANS = {
    *(f"Vxlan {case}" for case in ("missing", "foreign")),
    *(
        f"Vxlan.{field}"
        for field in ("vni", "local", "port", "mtu", "bridge", "device", "up", "drift")
    ),
    *("Fdb missing", "Fdb foreign", "Fdb.host", "Fdb.fixed"),
}
"""Cases of networks that span hosts, which `test_span_kernel` has."""

OF_WIREGUARD = {
    "WireGuard missing",
    *(f"WireGuard.{field}" for field in ("address", "port", "mtu", "public", "others", "up")),
}
"""Cases of encrypted clusters, which `test_cluster_encryption` has."""

FORWARDING6 = "net/ipv6/conf/uplink0/force_forwarding"
"""The sysctl by which uplink0 forwards IPv6."""
if not os.path.exists("/proc/sys/net/ipv6/conf/default/force_forwarding"):  # before Linux 6.17
    FORWARDING6 = "net/ipv6/conf/all/forwarding"

DAMAGES: dict[str, Damage] = {
    **RULES,
    **ADDRESSES,
    **LINKS,
    # --- sysctls
    "forwarding off": sysctl("net.ipv4.ip_forward=0", "1"),
    "IPv6 forwarding of a link off": sysctl(f"{FORWARDING6}=0", "1", stack="dual"),
    "route_localnet off": sysctl("net.ipv4.conf.niso-backend.route_localnet=0", "1"),
    "IPv6 on": sysctl("net.ipv6.conf.niso-backend.disable_ipv6=0", "1", stack="single"),
    "IPv6 off": sysctl("net.ipv6.conf.niso-extra.disable_ipv6=1", "0", stack="dual"),
    "IPv6 off inside": sysctl("net.ipv6.conf.eth0.disable_ipv6=1", "0", "niso-api", stack="dual"),
    "IPv6 off of all inside": sysctl(
        "net.ipv6.conf.all.disable_ipv6=1", "0", "niso-api", stack="dual"
    ),
    "forwarding of a bridge off": sysctl("net.ipv4.conf.niso-backend.forwarding=0", "1"),
    "neighbours asked for": sysctl("net.ipv4.neigh.eth1.mcast_solicit=3", "0", "niso-api"),
    "sysctl inside": sysctl("net.ipv4.ip_unprivileged_port_start=1024", "0", "niso-api"),
    # --- namespaces
    "namespace's name gone": damage(
        ("Netns missing", "namespace mount"),
        lambda w: w.ip("netns delete niso-api"),
        missing=r"^network namespace niso-api$",
    ),
    "namespace unmounted": damage(
        ("Netns missing", "namespace mount"),
        lambda w: w.run(BUSYBOX, "umount", "/run/netns/niso-api"),
        missing=r"^network namespace niso-api$",
    ),
    "lo down": damage(
        "Netns.up",
        lambda w: w.ip("-n niso-api link set lo down"),
        different=r"^network namespace niso-api$",
    ),
    "stray namespace": damage(
        "Netns foreign",
        lambda w: w.ip("netns add niso-stray", f"-n niso-stray link set lo alias {w.id}"),
        foreign=r"^network namespace niso-stray$",
    ),
    # --- hosts files
    "hosts file gone": damage(
        "HostsFile missing",
        lambda w: w.run("rm", "/run/niso/hosts/backend/hosts"),
        missing=r"^hosts file /run/niso/hosts/backend/hosts$",
    ),
    "line of somebody else's in a hosts file": hosts_file(
        lambda w: w.sh("echo '192.0.2.9 zz' >> /run/niso/hosts/backend/hosts")
    ),
    "hosts file overwritten": damage(
        "HostsFile missing",
        lambda w: w.run("cp", "/dev/null", "/run/niso/hosts/backend+extra/hosts"),
        different=r"^hosts file /run/niso/hosts/backend\+extra/hosts$",
    ),
    "hosts file that services may not read": hosts_file(
        lambda w: w.run("chmod", "000", "/run/niso/hosts/backend/hosts")
    ),
    "hosts folder that services may not enter": hosts_file(
        lambda w: w.run("chmod", "700", "/run/niso/hosts/backend")
    ),
    "FIFO in place of a hosts file": hosts_file(
        lambda w: w.sh(
            "rm /run/niso/hosts/backend/hosts; mkfifo /run/niso/hosts/backend/hosts /run/niso/hosts/backend/hosts.new"
        )
    ),
    "link in place of a hosts file": hosts_file(
        lambda w: w.sh(
            "mv /run/niso/hosts/backend/hosts /tmp/moved; ln -s /tmp/moved /run/niso/hosts/backend/hosts"
        )
    ),
    "folder in place of a hosts file": hosts_file(
        lambda w: w.sh(
            "rm /run/niso/hosts/backend/hosts; mkdir /run/niso/hosts/backend/hosts /run/niso/hosts/backend/hosts.new"
        )
    ),
    "hosts file too many": damage(
        "HostsFile foreign",
        lambda w: w.sh("cp -r /run/niso/hosts/backend /run/niso/hosts/evil"),
        foreign=r"^hosts file /run/niso/hosts/evil/hosts$",
    ),
    "hosts file of a killed command": damage(
        "HostsLeftover foreign",
        lambda w: w.sh("mkdir /run/niso/hosts/evil; touch /run/niso/hosts/evil/hosts.new"),
        foreign=r"^hosts file /run/niso/hosts/evil/hosts$",
    ),
    "hosts line gone": damage(
        "HostsLine missing",
        lambda w: w.run("sed", "-i", "/^10.*api/d", "/run/niso/hosts/backend/hosts"),
        missing=r"^line 10\.99\.1\.2 api\.niso\.local api in hosts file of backend$",
    ),
    "IPv6 hosts line gone": damage(
        "HostsLine missing",
        lambda w: w.run("sed", "-i", "/^fd.*api/d", "/run/niso/hosts/backend/hosts"),
        missing=r"^line fd00:1::2 api\.niso\.local api in hosts file of backend$",
        stack="dual",
    ),
    "hosts line too many": damage(
        "HostsLine foreign",
        lambda w: w.run(
            "sed", "-i", "$a10.6.6.6  evil.niso.local evil", "/run/niso/hosts/backend/hosts"
        ),
        foreign=r"^line 10\.6\.6\.6 evil",
    ),
    "hosts folder gone": damage(
        "hosts folder",
        lambda w: w.run("rm", "-r", "/run/niso/hosts/backend+extra"),
        missing=r"^hosts file /run/niso/hosts/backend\+extra/hosts$",
    ),
    # --- the process
    "conmon killed": damage(
        "conmon", lambda w: w.kill_conmon(), missing=r"^conmon of service 'api'$", anew=True
    ),
    "conmon and process killed": damage(
        "process",
        lambda w: w.kill_conmon(process=True),
        missing=r"^process of service 'api'$",
        anew=True,
    ),
    "FIFO in place of the process's record": damage(
        "process",
        lambda w: w.sh(
            "cd /run/niso/services/api; rm state.json; mkfifo state.json state.json.new"
        ),
        missing=r"^process of service 'api'$",
        anew=True,
    ),
    "conmon stopped and process killed": damage(
        "process", lambda w: w.stop_conmon(), missing=r"^process of service 'api'$", anew=True
    ),
    "spec gone": damage(
        "process",
        lambda w: w.run("rm", "/run/niso/services/api/spec.json"),
        missing=r"^spec\.json of service 'api'$",
    ),
    "spec cut short": damage(
        "process",
        lambda w: w.run("truncate", "-s", "100", "/run/niso/services/api/spec.json"),
        missing=r"^spec\.json of service 'api'$",
    ),
    "package copy gone": damage(
        "process",
        lambda w: w.sh("rm -r /var/lib/niso/packages/api/*"),
        missing=r"^package copy /var/lib/niso/packages/api/[0-9a-f]{64} of service 'api'$",
        anew=True,
    ),
    "package copy and spec gone": damage(
        "process",
        lambda w: w.sh("rm -r /var/lib/niso/packages/api /run/niso/services/api/spec.json"),
        missing=[
            r"^package copy /var/lib/niso/packages/api/[0-9a-f]{64} of service 'api'$",
            r"^spec\.json of service 'api'$",
        ],
        anew=True,
    ),
    "crun's state gone": damage(
        "crun",
        lambda w: w.run("rm", "-r", "/run/niso/crun/niso-service-api"),
        missing=r"^crun's state of service 'api'$",
        anew=True,
    ),
    "cgroup gone": damage(
        "cgroup", lambda w: w.leave_cgroup(), different=r"^cgroup of service 'api'$", anew=True
    ),
    # --- the store
    "lease gone": row(
        "DELETE FROM lease WHERE service='api' AND network='extra' AND family=4",
        missing="lease of service 'api'",
    ),
    "IPv6 lease gone": row(
        "DELETE FROM lease WHERE service='api' AND network='backend' AND family=6",
        missing="lease of service 'api'",
        stack="dual",
    ),
    "name gone": row(
        "DELETE FROM host_name WHERE service='api'", missing="host_name of service 'api'"
    ),
    "port gone": row("DELETE FROM port WHERE service='api'", missing="port of service 'api'"),
    "chosen port gone": row(
        "DELETE FROM port WHERE service='api' AND origin='chosen'", missing="port of service 'api'"
    ),
    "network of a service gone": row(
        "DELETE FROM endpoint WHERE service='api' AND position=1",
        missing="endpoint of service 'api'",
    ),
    "what is published gone": row(
        "DELETE FROM published WHERE service='api'", missing="published of service 'api'"
    ),
    "row of nobody": row(
        "INSERT INTO host_name VALUES ('ghost', 'ghost', 0)", foreign="host_name of service 'ghost'"
    ),
}
