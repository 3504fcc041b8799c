"""List damages of every kind of object, each with how it is done and the expected findings.

``tests/unit/test_damages.py`` holds this table to the kinds of `niso.kernel.kinds.order`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from damage_world import INSIDE, World
from services import BUSYBOX

Found = list[tuple[str, str]]


class Damage(NamedTuple):
    """``of`` says what it is a case of: ``Veth missing``, ``Veth foreign``, ``Veth.mtu``, or a word of `OTHERS`.

    ``found`` is (problem, pattern of what), no more and no fewer. ``anew``: what is lost is made again, so the kernel's own
    facts of it differ afterwards. ``quiet``: no packet may come while the rules are away: the kernel itself would end the
    connection. ``stack``: where it can be done, "dual" or "single".
    """

    of: tuple[str, ...]
    do: Callable[[World], object]
    found: Found
    anew: bool = False
    quiet: bool = False
    stack: str = ""


API = r"veth niapi-\S+ to niso-api eth0"
SHAPED = "^bandwidth of niso-api eth0$"
API1 = r"veth niapi-\S+ to niso-api eth1"
OWN_MAC = "mac=$(ip -n niso-api -br link show eth0 | awk '{print $3}');"
FIXED = "lladdr 02:00:00:00:00:01"

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
    "Bridge.alias": "a link without the mark is somebody else's: a conflict",
    "Veth.alias": "the same",
    "Netns.alias": "the same",
    "Named missing": "of an attachment: in test_attach",
    "Named foreign": "one that no row has is a sweep's, in test_attach",
    "Named.target": "the same",
    "Named.cookie": "another namespace is a finding of its own, in test_attach",
    "Attached missing": "none is wanted",
    "Neighbour missing": "none is wanted",
    "HostsLeftover missing": "none is wanted",
    "Vxlan.alias": "as of a bridge",
    "WireGuard.alias": "the same",
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

DAMAGES: dict[str, Damage] = {
    # --- nftables
    "map element gone": Damage(
        ("Element missing",),
        lambda w: w.nft("delete element inet niso publish_any4 { tcp . 8080 }"),
        [
            (
                "missing",
                r"map element inet niso publish_any4 \{ tcp \. 8080 : 10\.99\.1\.2 \. 80 \} of 'api'",
            )
        ],
    ),
    "IPv6 map element gone": Damage(
        ("Element missing",),
        lambda w: w.nft("delete element inet niso publish_any6 { tcp . 8080 }"),
        [
            (
                "missing",
                r"map element inet niso publish_any6 \{ tcp \. 8080 : fd00:1::2 \. 80 \} of 'api'",
            )
        ],
        stack="dual",
    ),
    "map element changed": Damage(
        ("Element.value",),
        lambda w: w.nft(
            "delete element inet niso publish_any4 { tcp . 8080 }\n"
            'add element inet niso publish_any4 { tcp . 8080 comment "api" : 10.99.1.3 . 80 }'
        ),
        [("different", r"map element inet niso publish_any4 .*8080")],
    ),
    "limit changed": Damage(
        ("Element.value",),
        lambda w: w.nft(
            f'delete element bridge niso arp_nd {{ "{w.port}" }}\n'
            f'add element bridge niso arp_nd {{ "{w.port}" limit rate over 9/second comment "api" }}'
        ),
        [("different", r"set element bridge niso arp_nd \{ \"niapi\S+\" limit rate over ")],
    ),
    "element with another's comment": Damage(
        ("Element.comment",),
        lambda w: w.nft(
            "delete element inet niso publish_any4 { tcp . 8080 }\n"
            'add element inet niso publish_any4 { tcp . 8080 comment "peer" : 10.99.1.2 . 80 }'
        ),
        [("different", r"map element inet niso publish_any4 .*8080")],
    ),
    "map element too many": Damage(
        ("Element foreign",),
        lambda w: w.nft("add element inet niso publish_any4 { tcp . 9999 : 10.99.1.2 . 80 }"),
        [("foreign", r"map element inet niso publish_any4 .*9999")],
    ),
    "set element gone": Damage(
        ("Element missing",),
        lambda w: w.nft(f'delete element bridge niso ports {{ "{w.port}" }}'),
        [("missing", r"set element bridge niso ports \{ \"niapi\S+\" \} of 'api'")],
    ),
    "set element too many": Damage(
        ("Element foreign",),
        lambda w: w.nft('add element inet niso same_bridge { "niso-backend" . "niso-extra" }'),
        [("foreign", r"set element inet niso same_bridge")],
    ),
    "subnet gone": Damage(
        ("Element missing",),
        lambda w: w.nft("delete element inet niso subnets4 { 10.99.2.0/24 }"),
        [("missing", r"set element inet niso subnets4 \{ 10\.99\.2\.0/24 \} of 'extra'")],
    ),
    "IPv6 subnet gone": Damage(
        ("Element missing",),
        lambda w: w.nft("delete element inet niso subnets6 { fd00:2::/64 }"),
        [("missing", r"set element inet niso subnets6 \{ fd00:2::/64 \} of 'extra'")],
        stack="dual",
    ),
    "chain emptied": Damage(
        ("chain", "Ruleset.wrong"),
        lambda w: w.nft("flush chain inet niso publish"),
        [("different", r"^nftables chain inet niso publish$")],
    ),
    "chain gone": Damage(
        ("chain",),
        lambda w: w.nft("delete chain inet niso postrouting"),
        [("missing", r"^nftables chain inet niso postrouting$")],
    ),
    "chain too many": Damage(
        ("chain",),
        lambda w: w.nft("add chain inet niso evil"),
        [("foreign", r"^nftables chain inet niso evil$")],
    ),
    "rule gone": Damage(
        ("rule",),
        lambda w: w.nft(f"delete rule inet niso forward handle {w.rule('inet', 'forward')}"),
        [("different", r"^nftables chain inet niso forward$")],
    ),
    "rule too many": Damage(
        ("rule",),
        lambda w: w.nft("insert rule inet niso raw accept"),
        [("different", r"^nftables chain inet niso raw$")],
    ),
    "set gone": Damage(
        ("set",),
        lambda w: w.nft("delete set bridge niso owner"),
        [("missing", r"^nftables set bridge niso owner$")],
    ),
    "set too many": Damage(
        ("set",),
        lambda w: w.nft("add set inet niso evil { type ifname; }"),
        [("foreign", r"^nftables set inet niso evil$")],
    ),
    "set of another form": Damage(
        ("set",),
        lambda w: w.nft("delete set inet niso before\nadd set inet niso before { type ifname; }"),
        [("different", r"^nftables set inet niso before$")],
    ),
    "bridge table gone": Damage(
        ("table",),
        lambda w: w.nft("delete table bridge niso"),
        [("missing", r"^nftables table bridge niso$")],
    ),
    "inet table gone": Damage(
        ("table",),
        lambda w: w.nft("delete table inet niso"),
        [("missing", r"^nftables table inet niso$")],
        quiet=True,
    ),
    "table dormant": Damage(
        ("table",),
        lambda w: w.nft("add table bridge niso { flags dormant; }"),
        [("different", r"^nftables table bridge niso$")],
    ),
    "all rules flushed": Damage(
        ("Ruleset missing", "table"),
        lambda w: w.nft("flush ruleset"),
        [("missing", r"^nftables tables inet niso and bridge niso$")],
        quiet=True,
    ),
    # --- addresses, routes, neighbours
    "address inside gone": Damage(
        ("Address missing",),
        lambda w: w.run(*INSIDE, "address", "delete", "10.99.2.2/24", "dev", "eth1"),
        [("missing", r"^address 10\.99\.2\.2/24 on eth1 in niso-api$")],
    ),
    "IPv6 address inside gone": Damage(
        ("Address missing",),
        lambda w: w.run(*INSIDE, "address", "delete", "fd00:2::2/64", "dev", "eth1"),
        [("missing", r"^address fd00:2::2/64 on eth1 in niso-api$")],
        stack="dual",
    ),
    "address inside too many": Damage(
        ("Address foreign",),
        lambda w: w.run(*INSIDE, "address", "add", "10.99.1.99/24", "dev", "eth0"),
        [("foreign", r"^address 10\.99\.1\.99/24 on eth0 in niso-api$")],
    ),
    "IPv6 address inside too many": Damage(
        ("Address foreign",),
        lambda w: w.run(*INSIDE, "address", "add", "fd00:1::99/64", "dev", "eth0", "nodad"),
        [("foreign", r"^address fd00:1::99/64 on eth0 in niso-api$")],
        stack="dual",
    ),
    "bridge address gone": Damage(
        ("Address missing",),
        lambda w: w.ip("address delete 10.99.2.1/24 dev niso-extra"),
        [("missing", r"^address 10\.99\.2\.1/24 on niso-extra$")],
    ),
    "IPv6 bridge address gone": Damage(
        ("Address missing",),
        lambda w: w.ip("address delete fd00:2::1/64 dev niso-extra"),
        [("missing", r"^address fd00:2::1/64 on niso-extra$")],
        stack="dual",
    ),
    "bridge's link-local address gone": Damage(
        ("Address missing",),
        lambda w: w.ip("address delete fe80::1/64 dev niso-extra"),
        [("missing", r"^address fe80::1/64 on niso-extra$")],
        stack="dual",
    ),
    "bridge address too many": Damage(
        ("Address foreign",),
        lambda w: w.ip("address add 10.5.5.5/24 dev niso-backend"),
        [("foreign", r"^address 10\.5\.5\.5/24 on niso-backend$")],
    ),
    "route of a bridge gone": Damage(
        ("Address.routed",),
        lambda w: w.ip("route delete 10.99.2.0/24 dev niso-extra"),
        [("different", r"^address 10\.99\.2\.1/24 on niso-extra$")],
    ),
    "IPv6 route of a bridge gone": Damage(
        ("Address.routed",),
        lambda w: w.ip("-6 route delete fd00:2::/64 dev niso-extra"),
        [("different", r"^address fd00:2::1/64 on niso-extra$")],
        stack="dual",
    ),
    "route of a network gone inside": Damage(
        ("Address.routed",),
        lambda w: w.ip("-n niso-api route delete 10.99.2.0/24"),
        [("different", r"^address 10\.99\.2\.2/24 on eth1 in niso-api$")],
    ),
    "address that ends": Damage(
        ("Address.lasting",),
        lambda w: w.ip(
            "-n niso-api address change 10.99.1.2/24 dev eth0 valid_lft 1000 preferred_lft 1000"
        ),
        [("different", r"^address 10\.99\.1\.2/24 on eth0 in niso-api$")],
    ),
    "IPv6 address that ends": Damage(
        ("Address.lasting",),
        lambda w: w.ip(
            "-n niso-api address change fd00:1::2/64 dev eth0 valid_lft 1000 preferred_lft 1000"
        ),
        [("different", r"^address fd00:1::2/64 on eth0 in niso-api$")],
        stack="dual",
    ),
    "address of a bridge that ends": Damage(
        ("Address.lasting",),
        lambda w: w.ip(
            "address change 10.99.2.1/24 dev niso-extra valid_lft 1000 preferred_lft 1000"
        ),
        [("different", r"^address 10\.99\.2\.1/24 on niso-extra$")],
    ),
    "deprecated address": Damage(
        ("Address.lasting",),
        lambda w: w.ip("-n niso-api address change fd00:2::2/64 dev eth1 preferred_lft 0"),
        [("different", r"^address fd00:2::2/64 on eth1 in niso-api$")],
        stack="dual",
    ),
    "route to nowhere": Damage(
        ("Route foreign",),
        lambda w: w.ip("-n niso-api route add blackhole 10.99.1.3"),
        [("foreign", r"^route blackhole 10\.99\.1\.3/32 in niso-api$")],
    ),
    "routes to nowhere of other types": Damage(
        ("Route foreign",),
        lambda w: w.ip(
            "-n niso-api route add unreachable 10.99.7.0/24",
            "-n niso-api route add prohibit default metric 7",
            "-n niso-api route add prohibit default metric 8",
            "-n niso-api -6 route add blackhole default metric 7",
        ),
        [
            ("foreign", r"^route unreachable 10\.99\.7\.0/24 in niso-api$"),
            ("foreign", r"^route prohibit 0\.0\.0\.0/0 in niso-api$"),
            ("foreign", r"^route blackhole ::/0 in niso-api$"),
        ],
        stack="dual",
    ),
    "default route gone": Damage(
        ("Route missing",),
        lambda w: w.ip("-n niso-api route delete default"),
        [("missing", r"^route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api$")],
    ),
    "IPv6 default route gone": Damage(
        ("Route missing",),
        lambda w: w.ip("-n niso-api -6 route delete default"),
        [("missing", r"^route ::/0 via fd00:1::1 on eth0 in niso-api$")],
        stack="dual",
    ),
    "default route before the right one": Damage(
        ("Route foreign",),
        lambda w: w.ip(
            "-n niso-api route add default via 10.99.1.3 metric 5",
            "-n niso-api route add default via 10.99.1.3 metric 8",
            "-n niso-api route add default via 10.99.2.3 metric 7",
            "-n niso-api route add default via 10.99.2.4 metric 6",
        ),
        [
            ("foreign", r"^route 0\.0\.0\.0/0 via 10\.99\.1\.3 on eth0 in niso-api$"),
            ("foreign", r"^route 0\.0\.0\.0/0 via 10\.99\.2\.3 on eth1 in niso-api$"),
            ("foreign", r"^route 0\.0\.0\.0/0 via 10\.99\.2\.4 on eth1 in niso-api$"),
        ],
    ),
    "default route elsewhere": Damage(
        ("Route.gateway",),
        lambda w: w.ip("-n niso-api route replace default via 10.99.1.3"),
        [("different", r"^route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api$")],
    ),
    "default route by another link": Damage(
        ("Route.link",),
        lambda w: w.ip("-n niso-api route replace default via 10.99.2.1 dev eth1"),
        [("different", r"^route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api$")],
    ),
    "route too many": Damage(
        ("Route foreign",),
        lambda w: w.ip("-n niso-api route add 10.77.0.0/16 via 10.99.2.1"),
        [("foreign", r"^route 10\.77\.0\.0/16 via 10\.99\.2\.1 on eth1 in niso-api$")],
    ),
    "neighbour on the bridge": Damage(
        ("Peer foreign",),
        lambda w: w.ip(f"neighbour replace 10.99.1.77 {FIXED} dev niso-backend nud permanent"),
        [("foreign", r"^neighbour entry 10\.99\.1\.77 on niso-backend$")],
    ),
    "IPv6 neighbour on the bridge gone": Damage(
        ("Peer missing",),
        lambda w: w.ip("neighbour delete fd00:1::2 dev niso-backend"),
        [("missing", r"^neighbour entry fd00:1::2 on niso-backend$")],
        stack="dual",
    ),
    "neighbour inside": Damage(
        ("Peer.mac",),
        lambda w: w.ip(f"-n niso-api neighbour replace 10.99.1.1 {FIXED} dev eth0 nud permanent"),
        [("different", r"^neighbour entry 10\.99\.1\.1 on eth0 in niso-api$")],
    ),
    "another neighbour inside": Damage(
        ("Peer foreign",),
        lambda w: w.ip(f"-n niso-api neighbour replace 10.99.1.77 {FIXED} dev eth0 nud permanent"),
        [("foreign", r"^neighbour entry 10\.99\.1\.77 on eth0 in niso-api$")],
    ),
    "entry in the bridge's table": Damage(
        ("Neighbour foreign",),
        lambda w: w.run(
            "bridge", "fdb", "add", "02:00:00:00:00:01", "dev", w.port, "master", "static"
        ),
        [("foreign", r"^forwarding entry 02:00:00:00:00:01 of bridge port niapi-\S+$")],
    ),
    # --- routing rules of internal networks
    "routing rule gone": Damage(
        ("RoutingRule missing",),
        lambda w: w.ip("rule delete priority 1"),
        [("missing", r"^IPv4 routing rule of bridge niso-inner$")],
    ),
    "IPv6 routing rule gone": Damage(
        ("RoutingRule missing",),
        lambda w: w.ip("-6 rule delete priority 1"),
        [("missing", r"^IPv6 routing rule of bridge niso-inner$")],
        stack="dual",
    ),
    "routing rules that do not hold": Damage(
        ("RoutingRule.drift",),
        lambda w: w.ip(
            "rule delete priority 1",
            "rule add iif niso-inner priority 40000 fwmark 0/0x40000000 prohibit protocol 78",
            "-6 rule delete priority 1",
            "-6 rule add iif niso-inner to fd00:9::/64 priority 1 table 9 protocol 78",
        ),
        [
            ("different", r"^IPv4 routing rule of bridge niso-inner$"),
            ("different", r"^IPv6 routing rule of bridge niso-inner$"),
        ],
        stack="dual",
    ),
    "routing rule too many": Damage(
        ("RoutingRule foreign",),
        lambda w: w.ip("rule add iif niso-extra priority 1 prohibit protocol 78"),
        [("foreign", r"^IPv4 routing rule of bridge niso-extra$")],
    ),
    # --- veth pairs and ports
    "veth gone": Damage(
        ("Veth missing",), lambda w: w.ip(f"link delete {w.port}"), [("missing", API)], anew=True
    ),
    "veth moved inside": Damage(
        ("Veth.netns",),
        lambda w: w.ip("-n niso-api link set eth1 netns client"),
        [("different", r"^veth niapi-\S+ to niso-api eth1$")],
        anew=True,
    ),
    "veth renamed inside": Damage(
        ("Veth.peer",),
        lambda w: w.ip("-n niso-api link set eth1 down", "-n niso-api link set eth1 name other"),
        [("different", API1), ("foreign", r"^address 10\.99\.2\.2/24 on other in niso-api$")],
        anew=True,
    ),
    "MAC inside": Damage(
        ("Veth.mac",),
        lambda w: w.ip("-n niso-api link set eth1 address 02:12:34:56:78:9a"),
        [("different", API1)],
        anew=True,
    ),
    "stray veth": Damage(
        ("Veth foreign",),
        lambda w: w.ip("link add stray type veth peer name stray2", f"link set stray alias {w.id}"),
        [("foreign", r"^veth stray$")],
    ),
    "port off its bridge": Damage(
        ("Veth.bridge",), lambda w: w.ip(f"link set {w.port} nomaster"), [("different", API)]
    ),
    "port on another bridge": Damage(
        ("Veth.bridge",),
        lambda w: w.ip(f"link set {w.port} master niso-extra"),
        [("different", API)],
    ),
    "port down": Damage(
        ("Veth.up",), lambda w: w.ip(f"link set {w.port} down"), [("different", API)]
    ),
    "link inside down": Damage(
        ("Veth.up",), lambda w: w.ip("-n niso-api link set eth0 down"), [("different", API)]
    ),
    "mtu of the port": Damage(
        ("Veth.mtu",),
        # a bridge that never had another MTU follows the least of its ports (linux/net/bridge/br_if.c)
        lambda w: w.ip(f"link set {w.port} mtu 1280"),
        [("different", API), ("different", r"^bridge niso-backend$")],
    ),
    "bandwidth unlimited": Damage(
        ("Shaper missing",),
        lambda w: w.sh(
            'tc qdisc del dev "$1" root; tc -n niso-api qdisc del dev eth0 root', w.port
        ),
        [("missing", SHAPED)],
    ),
    "bandwidth out unlimited": Damage(
        ("Shaper.outward",),
        lambda w: w.run("tc", "-n", "niso-api", "qdisc", "del", "dev", "eth0", "root"),
        [("different", SHAPED)],
    ),
    "bandwidth in changed, with another queue": Damage(
        ("Shaper.inward", "Shaper.drift"),
        lambda w: w.sh('tc qdisc replace dev "$1" root tbf rate 2gbit burst 1mb limit 3mb', w.port),
        [("different", SHAPED)],
    ),
    "bandwidth of who has no limit": Damage(
        ("Shaper foreign",),
        lambda w: w.sh(
            "tc -n niso-peer qdisc add dev eth0 root tbf rate 1gbit burst 1mb limit 3mb"
        ),
        [("foreign", "^bandwidth of niso-peer eth0$")],
    ),
    "mtu inside": Damage(
        ("Veth.mtu",), lambda w: w.ip("-n niso-api link set eth0 mtu 1280"), [("different", API)]
    ),
    "hairpin off": Damage(
        ("Veth.hairpin",),
        lambda w: w.run("bridge", "link", "set", "dev", w.port, "hairpin", "off"),
        [("different", API)],
    ),
    "port isolated": Damage(
        ("Veth.drift",),
        lambda w: w.run("bridge", "link", "set", "dev", w.port, "isolated", "on"),
        [("different", API)],
    ),
    "port learns and floods, but no broadcasts": Damage(
        ("Veth.drift",),
        lambda w: w.sh('bridge link set dev "$1" learning on flood on bcast_flood off', w.port),
        [("different", API)],
    ),
    "forwarding entry gone": Damage(
        ("Veth.fixed",),
        lambda w: w.sh(f'{OWN_MAC} bridge fdb delete "$mac" dev "$1" master', w.port),
        [("different", API)],
    ),
    "forwarding entry learned": Damage(
        ("Veth.fixed",),
        lambda w: w.sh(f'{OWN_MAC} bridge fdb replace "$mac" dev "$1" master dynamic', w.port),
        [("different", API)],
    ),
    "forwarding entry of another port": Damage(
        ("Veth.fixed",),
        lambda w: w.sh(
            f"{OWN_MAC} other=$(ip -o link | grep -o 'nipeer-[0-9a-f]*' | head -n 1);"
            ' bridge fdb replace "$mac" dev "$other" master static'
        ),
        [
            ("different", API),
            ("foreign", r"^forwarding entry \S+ of bridge port nipeer-\S+$"),
        ],
    ),
    "port disabled": Damage(
        ("Veth.drift",),
        lambda w: w.run("bridge", "link", "set", "dev", w.port, "state", "0"),
        [("different", API)],
    ),
    "ARP off inside": Damage(
        ("Veth.drift",), lambda w: w.ip("-n niso-api link set eth0 arp off"), [("different", API)]
    ),
    "ARP off of the port": Damage(
        ("Veth.drift",), lambda w: w.ip(f"link set {w.port} arp off"), [("different", API)]
    ),
    "ARP off and port isolated": Damage(
        ("Veth.drift",),
        lambda w: w.sh(
            'ip -n niso-api link set eth0 arp off; ip link set "$1" arp off down; bridge link set dev "$1" isolated on',
            w.port,
        ),
        [("different", API)],
    ),
    # --- bridges
    "ARP off of the bridge": Damage(
        ("Bridge.drift",),
        lambda w: w.ip("link set niso-extra arp off"),
        [("different", r"^bridge niso-extra$")],
    ),
    "ARP off of a bridge with STP": Damage(
        ("Bridge.drift",),
        lambda w: w.ip(
            "link set niso-extra arp off", "link set niso-extra type bridge stp_state 1"
        ),
        [("different", r"^bridge niso-extra$")],
    ),
    "bridge gone": Damage(
        ("Bridge missing",),
        lambda w: w.ip("link delete niso-extra"),
        [("missing", r"^bridge niso-extra$")],
        anew=True,
    ),
    "bridge down": Damage(
        ("Bridge.up",),
        lambda w: w.ip("link set niso-extra down"),
        [("different", r"^bridge niso-extra$")],
    ),
    "mtu of the bridge": Damage(
        ("Bridge.mtu",),
        lambda w: w.ip("link set niso-extra mtu 1280"),
        [("different", r"^bridge niso-extra$")],
    ),
    "MAC of the bridge": Damage(
        ("Bridge.mac",),
        lambda w: w.ip("link set niso-extra address 02:12:34:56:78:9a"),
        [("different", r"^bridge niso-extra$")],
    ),
    "bridge not tracked": Damage(
        ("Bridge.tracked4",),
        lambda w: w.ip("link set niso-extra type bridge nf_call_iptables 0"),
        [("different", r"^bridge niso-extra$")],
    ),
    "bridge not tracked for IPv6": Damage(
        ("Bridge.tracked6",),
        lambda w: w.ip("link set niso-extra type bridge nf_call_ip6tables 0"),
        [("different", r"^bridge niso-extra$")],
        stack="dual",
    ),
    "bridge with STP": Damage(
        ("Bridge.drift",),
        lambda w: w.ip("link set niso-extra type bridge stp_state 1"),
        [("different", r"^bridge niso-extra$")],
    ),
    "stray bridge": Damage(
        ("Bridge foreign",),
        lambda w: w.ip("link add niso-stray type bridge", f"link set niso-stray alias {w.id}"),
        [("foreign", r"^bridge niso-stray$")],
    ),
    "foreign link on a bridge": Damage(
        ("Attached foreign",),
        lambda w: w.ip(
            "link add tap0 type veth peer name tap1", "link set tap0 master niso-backend"
        ),
        [("foreign", r"^link tap0 on bridge niso-backend$")],
        anew=True,
    ),
    # --- sysctls
    "forwarding off": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv4.ip_forward=0"),
        [("different", r"^sysctl net/ipv4/ip_forward='1'$")],
    ),
    "IPv6 forwarding of a link off": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv6.conf.uplink0.force_forwarding=0"),
        [("different", r"^sysctl net/ipv6/conf/uplink0/force_forwarding='1'$")],
        stack="dual",
    ),
    "route_localnet off": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv4.conf.niso-backend.route_localnet=0"),
        [("different", r"^sysctl net/ipv4/conf/niso-backend/route_localnet='1'$")],
    ),
    "IPv6 on": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv6.conf.niso-backend.disable_ipv6=0"),
        [("different", r"^sysctl net/ipv6/conf/niso-backend/disable_ipv6='1'$")],
        stack="single",
    ),
    "IPv6 off": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv6.conf.niso-extra.disable_ipv6=1"),
        [("different", r"^sysctl net/ipv6/conf/niso-extra/disable_ipv6='0'$")],
        stack="dual",
    ),
    "IPv6 off inside": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv6.conf.eth0.disable_ipv6=1", "niso-api"),
        [("different", r"^sysctl net/ipv6/conf/eth0/disable_ipv6='0' in niso-api$")],
        stack="dual",
    ),
    "IPv6 off of all inside": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv6.conf.all.disable_ipv6=1", "niso-api"),
        [("different", r"^sysctl net/ipv6/conf/all/disable_ipv6='0' in niso-api$")],
        stack="dual",
    ),
    "forwarding of a bridge off": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv4.conf.niso-backend.forwarding=0"),
        [("different", r"^sysctl net/ipv4/conf/niso-backend/forwarding='1'$")],
    ),
    "sysctl inside": Damage(
        ("Sysctl.value",),
        lambda w: w.sysctl("net.ipv4.ip_unprivileged_port_start=1024", "niso-api"),
        [("different", r"^sysctl net/ipv4/ip_unprivileged_port_start='0' in niso-api$")],
    ),
    # --- namespaces
    "namespace's name gone": Damage(
        ("Netns missing", "namespace mount"),
        lambda w: w.ip("netns delete niso-api"),
        [("missing", r"^network namespace niso-api$")],
    ),
    "namespace unmounted": Damage(
        ("Netns missing", "namespace mount"),
        lambda w: w.run(BUSYBOX, "umount", "/run/netns/niso-api"),
        [("missing", r"^network namespace niso-api$")],
    ),
    "lo down": Damage(
        ("Netns.up",),
        lambda w: w.ip("-n niso-api link set lo down"),
        [("different", r"^network namespace niso-api$")],
    ),
    "stray namespace": Damage(
        ("Netns foreign",),
        lambda w: w.ip("netns add niso-stray", f"-n niso-stray link set lo alias {w.id}"),
        [("foreign", r"^network namespace niso-stray$")],
    ),
    # --- hosts files
    "hosts file gone": Damage(
        ("HostsFile missing",),
        lambda w: w.run("rm", "/run/niso/hosts/backend/hosts"),
        [("missing", r"^hosts file /run/niso/hosts/backend/hosts$")],
    ),
    "line of somebody else's in a hosts file": Damage(
        ("HostsFile missing",),
        lambda w: w.sh("echo '192.0.2.9 zz' >> /run/niso/hosts/backend/hosts"),
        [("different", r"^hosts file /run/niso/hosts/backend/hosts$")],
    ),
    "hosts file overwritten": Damage(
        ("HostsFile missing",),
        lambda w: w.run("cp", "/dev/null", "/run/niso/hosts/backend+extra/hosts"),
        [("different", r"^hosts file /run/niso/hosts/backend\+extra/hosts$")],
    ),
    "hosts file that services may not read": Damage(
        ("HostsFile missing",),
        lambda w: w.run("chmod", "000", "/run/niso/hosts/backend/hosts"),
        [("different", r"^hosts file /run/niso/hosts/backend/hosts$")],
    ),
    "hosts folder that services may not enter": Damage(
        ("HostsFile missing",),
        lambda w: w.run("chmod", "700", "/run/niso/hosts/backend"),
        [("different", r"^hosts file /run/niso/hosts/backend/hosts$")],
    ),
    "FIFO in place of a hosts file": Damage(
        ("HostsFile missing",),
        lambda w: w.sh(
            "rm /run/niso/hosts/backend/hosts; mkfifo /run/niso/hosts/backend/hosts /run/niso/hosts/backend/hosts.new"
        ),
        [("different", r"^hosts file /run/niso/hosts/backend/hosts$")],
    ),
    "link in place of a hosts file": Damage(
        ("HostsFile missing",),
        lambda w: w.sh(
            "mv /run/niso/hosts/backend/hosts /tmp/moved; ln -s /tmp/moved /run/niso/hosts/backend/hosts"
        ),
        [("different", r"^hosts file /run/niso/hosts/backend/hosts$")],
    ),
    "folder in place of a hosts file": Damage(
        ("HostsFile missing",),
        lambda w: w.sh(
            "rm /run/niso/hosts/backend/hosts; mkdir /run/niso/hosts/backend/hosts /run/niso/hosts/backend/hosts.new"
        ),
        [("different", r"^hosts file /run/niso/hosts/backend/hosts$")],
    ),
    "hosts file too many": Damage(
        ("HostsFile foreign",),
        lambda w: w.sh("cp -r /run/niso/hosts/backend /run/niso/hosts/evil"),
        [("foreign", r"^hosts file /run/niso/hosts/evil/hosts$")],
    ),
    "hosts file of a killed command": Damage(
        ("HostsLeftover foreign",),
        lambda w: w.sh("mkdir /run/niso/hosts/evil; touch /run/niso/hosts/evil/hosts.new"),
        [("foreign", r"^hosts file /run/niso/hosts/evil/hosts$")],
    ),
    "hosts line gone": Damage(
        ("HostsLine missing",),
        lambda w: w.run("sed", "-i", "/^10.*api/d", "/run/niso/hosts/backend/hosts"),
        [("missing", r"^line 10\.99\.1\.2 api\.niso\.local api in hosts file of backend$")],
    ),
    "IPv6 hosts line gone": Damage(
        ("HostsLine missing",),
        lambda w: w.run("sed", "-i", "/^fd.*api/d", "/run/niso/hosts/backend/hosts"),
        [("missing", r"^line fd00:1::2 api\.niso\.local api in hosts file of backend$")],
        stack="dual",
    ),
    "hosts line too many": Damage(
        ("HostsLine foreign",),
        lambda w: w.run(
            "sed", "-i", "$a10.6.6.6  evil.niso.local evil", "/run/niso/hosts/backend/hosts"
        ),
        [("foreign", r"^line 10\.6\.6\.6 evil")],
    ),
    "hosts folder gone": Damage(
        ("hosts folder",),
        lambda w: w.run("rm", "-r", "/run/niso/hosts/backend+extra"),
        [("missing", r"^hosts file /run/niso/hosts/backend\+extra/hosts$")],
    ),
    # --- the process
    "conmon killed": Damage(
        ("conmon",),
        lambda w: w.kill_conmon(),
        [("missing", r"^conmon of service 'api'$")],
        anew=True,
    ),
    "conmon and process killed": Damage(
        ("process",),
        lambda w: w.kill_conmon(process=True),
        [("missing", r"^process of service 'api'$")],
        anew=True,
    ),
    "FIFO in place of the process's record": Damage(
        ("process",),
        lambda w: w.sh(
            "cd /run/niso/services/api; rm state.json; mkfifo state.json state.json.new"
        ),
        [("missing", r"^process of service 'api'$")],
        anew=True,
    ),
    "conmon stopped and process killed": Damage(
        ("process",),
        lambda w: w.stop_conmon(),
        [("missing", r"^process of service 'api'$")],
        anew=True,
    ),
    "spec gone": Damage(
        ("process",),
        lambda w: w.run("rm", "/run/niso/services/api/spec.json"),
        [("missing", r"^spec\.json of service 'api'$")],
    ),
    "spec cut short": Damage(
        ("process",),
        lambda w: w.run("truncate", "-s", "100", "/run/niso/services/api/spec.json"),
        [("missing", r"^spec\.json of service 'api'$")],
    ),
    "package copy gone": Damage(
        ("process",),
        lambda w: w.sh("rm -r /var/lib/niso/packages/api/*"),
        [("missing", r"^package copy /var/lib/niso/packages/api/[0-9a-f]{64} of service 'api'$")],
        anew=True,
    ),
    "package copy and spec gone": Damage(
        ("process",),
        lambda w: w.sh("rm -r /var/lib/niso/packages/api /run/niso/services/api/spec.json"),
        [
            ("missing", r"^package copy /var/lib/niso/packages/api/[0-9a-f]{64} of service 'api'$"),
            ("missing", r"^spec\.json of service 'api'$"),
        ],
        anew=True,
    ),
    "crun's state gone": Damage(
        ("crun",),
        lambda w: w.run("rm", "-r", "/run/niso/crun/niso-service-api"),
        [("missing", r"^crun's state of service 'api'$")],
        anew=True,
    ),
    "cgroup gone": Damage(
        ("cgroup",),
        lambda w: w.leave_cgroup(),
        [("different", r"^cgroup of service 'api'$")],
        anew=True,
    ),
    # --- the store
    "lease gone": Damage(
        ("store row",),
        lambda w: w.sql("DELETE FROM lease WHERE service='api' AND network='extra' AND family=4"),
        [("missing", r"^store: lease of service 'api'$")],
    ),
    "IPv6 lease gone": Damage(
        ("store row",),
        lambda w: w.sql("DELETE FROM lease WHERE service='api' AND network='backend' AND family=6"),
        [("missing", r"^store: lease of service 'api'$")],
        stack="dual",
    ),
    "name gone": Damage(
        ("store row",),
        lambda w: w.sql("DELETE FROM host_name WHERE service='api'"),
        [("missing", r"^store: host_name of service 'api'$")],
    ),
    "port gone": Damage(
        ("store row",),
        lambda w: w.sql("DELETE FROM port WHERE service='api'"),
        [("missing", r"^store: port of service 'api'$")],
    ),
    "chosen port gone": Damage(
        ("store row",),
        lambda w: w.sql("DELETE FROM port WHERE service='api' AND origin='chosen'"),
        [("missing", r"^store: port of service 'api'$")],
    ),
    "network of a service gone": Damage(
        ("store row",),
        lambda w: w.sql("DELETE FROM endpoint WHERE service='api' AND position=1"),
        [("missing", r"^store: endpoint of service 'api'$")],
    ),
    "what is published gone": Damage(
        ("store row",),
        lambda w: w.sql("DELETE FROM published WHERE service='api'"),
        [("missing", r"^store: published of service 'api'$")],
    ),
    "row of nobody": Damage(
        ("store row",),
        lambda w: w.sql("INSERT INTO host_name VALUES ('ghost', 'ghost', 0)"),
        [("foreign", r"^store: host_name of service 'ghost'$")],
    ),
}
