"""List damages of veth pairs, ports and bridges."""

from __future__ import annotations

import sys

from damage import API, API1, OWN_MAC, SHAPED, Damage, damage
from services import UNFILTER

from niso.base.names import BRIDGE_GROUP

BRIDGE_MAC = "mac=$(cat /sys/class/net/niso-backend/address);"

LINKS: dict[str, Damage] = {
    # --- veth pairs and ports
    "veth gone": damage(
        "Veth missing", lambda w: w.ip(f"link delete {w.port}"), missing=API, anew=True
    ),
    "veth moved inside": damage(
        "Veth.netns",
        lambda w: w.ip("-n niso-api link set eth1 netns client"),
        different=r"^veth niapi-\S+ to niso-api eth1$",
        anew=True,
    ),
    "veth renamed inside": damage(
        "Veth.peer",
        lambda w: w.ip("-n niso-api link set eth1 down", "-n niso-api link set eth1 name other"),
        different=API1,
        foreign=r"^address 10\.99\.2\.2/24 on other in niso-api$",
        anew=True,
    ),
    "MAC inside": damage(
        "Veth.mac",
        lambda w: w.ip("-n niso-api link set eth1 address 02:12:34:56:78:9a"),
        different=API1,
        anew=True,
    ),
    "stray veth": damage(
        "Veth foreign",
        lambda w: w.ip("link add stray type veth peer name stray2", f"link set stray alias {w.id}"),
        foreign=r"^veth stray$",
    ),
    "port off its bridge": damage(
        "Veth.bridge", lambda w: w.ip(f"link set {w.port} nomaster"), different=API
    ),
    "port on another bridge": damage(
        "Veth.bridge", lambda w: w.ip(f"link set {w.port} master niso-extra"), different=API
    ),
    "port down": damage("Veth.up", lambda w: w.ip(f"link set {w.port} down"), different=API),
    "link inside down": damage(
        "Veth.up", lambda w: w.ip("-n niso-api link set eth0 down"), different=API
    ),
    "mtu of the port": damage(
        "Veth.mtu", lambda w: w.ip(f"link set {w.port} mtu 1280"), different=API
    ),
    "bandwidth unlimited": damage(
        "Shaper missing",
        lambda w: w.sh(
            'tc qdisc del dev "$1" root; tc -n niso-api qdisc del dev eth0 root', w.port
        ),
        missing=SHAPED,
    ),
    "bandwidth out unlimited": damage(
        "Shaper.outward",
        lambda w: w.run("tc", "-n", "niso-api", "qdisc", "del", "dev", "eth0", "root"),
        different=SHAPED,
    ),
    "bandwidth in changed, with another queue": damage(
        ("Shaper.inward", "Shaper.drift"),
        lambda w: w.sh('tc qdisc replace dev "$1" root tbf rate 2gbit burst 1mb limit 3mb', w.port),
        different=SHAPED,
    ),
    "bandwidth of who has no limit": damage(
        "Shaper foreign",
        lambda w: w.sh(
            "tc -n niso-peer qdisc add dev eth0 root tbf rate 1gbit burst 1mb limit 3mb"
        ),
        foreign="^bandwidth of niso-peer eth0$",
    ),
    "mtu inside": damage(
        "Veth.mtu", lambda w: w.ip("-n niso-api link set eth0 mtu 1280"), different=API
    ),
    "hairpin off": damage(
        "Veth.hairpin",
        lambda w: w.run("bridge", "link", "set", "dev", w.port, "hairpin", "off"),
        different=API,
    ),
    "port isolated": damage(
        "Veth.drift",
        lambda w: w.run("bridge", "link", "set", "dev", w.port, "isolated", "on"),
        different=API,
    ),
    "port learns and floods, but no broadcasts": damage(
        "Veth.drift",
        lambda w: w.sh('bridge link set dev "$1" learning on flood on bcast_flood off', w.port),
        different=API,
    ),
    "forwarding entry gone": damage(
        "Veth.fixed",
        lambda w: w.sh(f'{OWN_MAC} bridge fdb delete "$mac" dev "$1" master', w.port),
        different=API,
    ),
    "forwarding entry learned": damage(
        "Veth.fixed",
        lambda w: w.sh(f'{OWN_MAC} bridge fdb replace "$mac" dev "$1" master dynamic', w.port),
        different=API,
    ),
    "forwarding entry of another port": damage(
        "Veth.fixed",
        lambda w: w.sh(
            f"{OWN_MAC} other=$(ip -o link | grep -o 'nipeer-[0-9a-f]*' | head -n 1);"
            ' bridge fdb replace "$mac" dev "$other" master static'
        ),
        different=API,
        foreign=r"^forwarding entry \S+ of bridge port nipeer-\S+$",
    ),
    "port disabled": damage(
        "Veth.drift",
        lambda w: w.run("bridge", "link", "set", "dev", w.port, "state", "0"),
        different=API,
    ),
    "ARP off inside": damage(
        "Veth.drift", lambda w: w.ip("-n niso-api link set eth0 arp off"), different=API
    ),
    "checksums left to other links": damage(
        "Veth.sums", lambda w: w.offload("niso-api", "eth0"), different=API
    ),
    "ARP off of the port": damage(
        "Veth.drift", lambda w: w.ip(f"link set {w.port} arp off"), different=API
    ),
    "port in another group": damage(
        "Veth.drift", lambda w: w.ip(f"link set {w.port} group 7"), different=API
    ),
    "ARP off and port isolated": damage(
        "Veth.drift",
        lambda w: w.sh(
            'ip -n niso-api link set eth0 arp off; ip link set "$1" arp off down; bridge link set dev "$1" isolated on',
            w.port,
        ),
        different=API,
    ),
    # --- bridges
    "ARP off of the bridge": damage(
        "Bridge.drift",
        lambda w: w.ip("link set niso-extra arp off"),
        different=r"^bridge niso-extra$",
    ),
    "ARP off of a bridge with STP": damage(
        "Bridge.drift",
        lambda w: w.ip(
            "link set niso-extra arp off", "link set niso-extra type bridge stp_state 1"
        ),
        different=r"^bridge niso-extra$",
    ),
    "bridge gone": damage(
        "Bridge missing",
        lambda w: w.ip("link delete niso-extra"),
        missing=r"^bridge niso-extra$",
        anew=True,
    ),
    "bridge in no group": damage(
        "Bridge.drift",
        lambda w: w.ip("link set niso-extra group default"),
        different=r"^bridge niso-extra$",
    ),
    "bridge down": damage(
        "Bridge.up", lambda w: w.ip("link set niso-extra down"), different=r"^bridge niso-extra$"
    ),
    "mtu of the bridge": damage(
        "Bridge.mtu",
        lambda w: w.ip("link set niso-extra mtu 1280"),
        different=r"^bridge niso-extra$",
    ),
    "MAC of the bridge": damage(
        "Bridge.mac",
        lambda w: w.ip("link set niso-extra address 02:12:34:56:78:9a"),
        different=r"^bridge niso-extra$",
    ),
    "bridge's own forwarding entry gone": damage(
        "Bridge.takes_own",
        lambda w: w.sh(f'{BRIDGE_MAC} bridge fdb delete "$mac" dev niso-backend self'),
        different=r"^bridge niso-backend$",
    ),
    "bridge's own forwarding entry leads to a port": damage(
        "Bridge.takes_own",
        lambda w: w.sh(f'{BRIDGE_MAC} bridge fdb replace "$mac" dev "$1" master static', w.port),
        different=r"^bridge niso-backend$",
        foreign=r"^forwarding entry \S+ of bridge port niapi-\S+$",
    ),
    "bridge without its filter": damage(
        "Bridge.filtered",
        lambda w: w.run(sys.executable, "-c", UNFILTER, "niso-backend", "47"),
        different=r"^bridge niso-backend$",
    ),
    "bridge of an internal network without its filter": damage(
        "Bridge.filtered",
        lambda w: w.run(sys.executable, "-c", UNFILTER, "niso-inner", "46"),
        different=r"^bridge niso-inner$",
    ),
    "bridge not tracked": damage(
        "Bridge.tracked4",
        lambda w: w.ip("link set niso-extra type bridge nf_call_iptables 0"),
        different=r"^bridge niso-extra$",
    ),
    "bridge not tracked for IPv6": damage(
        "Bridge.tracked6",
        lambda w: w.ip("link set niso-extra type bridge nf_call_ip6tables 0"),
        different=r"^bridge niso-extra$",
        stack="dual",
    ),
    "bridge with STP": damage(
        "Bridge.drift",
        lambda w: w.ip("link set niso-extra type bridge stp_state 1"),
        different=r"^bridge niso-extra$",
    ),
    "stray bridge": damage(
        "Bridge foreign",
        lambda w: w.ip("link add niso-stray type bridge", f"link set niso-stray alias {w.id}"),
        foreign=r"^bridge niso-stray$",
    ),
    "foreign link with a service's MAC on its bridge": damage(
        ("ForeignPort foreign", "Veth.fixed"),
        lambda w: w.sh(
            f"{OWN_MAC} ip link add tap0 type veth peer name tap1;"
            ' ip link set tap0 address "$mac" master niso-backend'
        ),
        different=API,
        foreign=r"^link tap0 on bridge niso-backend$",
        anew=True,
    ),
    "foreign link in a group of niso": damage(
        "ForeignPort foreign",
        lambda w: w.ip(f"link add tap0 group {BRIDGE_GROUP} type veth peer name tap1"),
        foreign=r"^link tap0 in a group of niso$",
        anew=True,
    ),
    "foreign link on a bridge": damage(
        "ForeignPort foreign",
        lambda w: w.ip(
            "link add tap0 type veth peer name tap1", "link set tap0 master niso-backend"
        ),
        foreign=r"^link tap0 on bridge niso-backend$",
        anew=True,
    ),
}
