"""List damages of veth pairs, ports and bridges."""

from __future__ import annotations

from damage import API, API1, OWN_MAC, SHAPED, Damage

LINKS: dict[str, Damage] = {
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
}
