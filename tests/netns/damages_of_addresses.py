"""List damages of addresses, routes, neighbours and routing rules."""

from __future__ import annotations

from damage import FIXED, Damage, damage
from damage_world import INSIDE

ADDRESSES: dict[str, Damage] = {
    # --- addresses, routes, neighbours
    "address inside gone": damage(
        "Address missing",
        lambda w: w.run(*INSIDE, "address", "delete", "10.99.2.2/24", "dev", "eth1"),
        missing=r"^address 10\.99\.2\.2/24 on eth1 in niso-api$",
    ),
    "IPv6 address inside gone": damage(
        "Address missing",
        lambda w: w.run(*INSIDE, "address", "delete", "fd00:2::2/64", "dev", "eth1"),
        missing=r"^address fd00:2::2/64 on eth1 in niso-api$",
        stack="dual",
    ),
    "address inside too many": damage(
        "Address foreign",
        lambda w: w.run(*INSIDE, "address", "add", "10.99.1.99/24", "dev", "eth0"),
        foreign=r"^address 10\.99\.1\.99/24 on eth0 in niso-api$",
    ),
    "IPv6 address inside too many": damage(
        "Address foreign",
        lambda w: w.ip("-n niso-api address add fd00:1::99/64 dev eth0 nodad noprefixroute"),
        foreign=r"^address fd00:1::99/64 on eth0 in niso-api$",
        stack="dual",
    ),
    "bridge address gone": damage(
        "Address missing",
        lambda w: w.ip("address delete 10.99.2.1/24 dev niso-extra"),
        missing=r"^address 10\.99\.2\.1/24 on niso-extra$",
    ),
    "IPv6 bridge address gone": damage(
        "Address missing",
        lambda w: w.ip("address delete fd00:2::1/64 dev niso-extra"),
        missing=r"^address fd00:2::1/64 on niso-extra$",
        stack="dual",
    ),
    "bridge's link-local address gone": damage(
        "Address missing",
        lambda w: w.ip("address delete fe80::1/64 dev niso-extra"),
        missing=r"^address fe80::1/64 on niso-extra$",
        stack="dual",
    ),
    "bridge address too many": damage(
        "Address foreign",
        lambda w: w.ip("address add 10.5.5.5/24 dev niso-backend"),
        foreign=r"^address 10\.5\.5\.5/24 on niso-backend$",
    ),
    "route of a bridge gone": damage(
        "Address.routed",
        lambda w: w.ip("route delete 10.99.2.0/24 dev niso-extra"),
        different=r"^address 10\.99\.2\.1/24 on niso-extra$",
    ),
    "IPv6 route of a bridge gone": damage(
        "Address.routed",
        lambda w: w.ip("-6 route delete fd00:2::/64 dev niso-extra"),
        different=r"^address fd00:2::1/64 on niso-extra$",
        stack="dual",
    ),
    "route of a network gone inside": damage(
        "Route missing",
        lambda w: w.ip("-n niso-api route delete 10.99.2.0/24"),
        missing=r"^route 10\.99\.2\.0/24 via 10\.99\.2\.1 on eth1 in niso-api$",
    ),
    "network without its gateway": damage(
        "Address.routed",
        lambda w: w.ip("-n niso-api route add 10.99.2.0/24 dev eth1 proto kernel metric 1"),
        different=r"^address 10\.99\.2\.2/24 on eth1 in niso-api$",
    ),
    "route to a gateway gone": damage(
        "Route missing",
        lambda w: w.ip("-n niso-api route delete 10.99.2.1"),
        missing=r"^route 10\.99\.2\.1/32 on eth1 in niso-api$",
    ),
    "IPv6 network without its gateway": damage(
        "Address.routed",
        lambda w: w.ip("-n niso-api -6 route add fd00:1::/64 dev eth0 proto kernel metric 1"),
        different=r"^address fd00:1::2/64 on eth0 in niso-api$",
        stack="dual",
    ),
    "IPv6 route of a network gone inside": damage(
        "Route missing",
        lambda w: w.ip("-n niso-api -6 route delete fd00:2::/64"),
        missing=r"^route fd00:2::/64 via fd00:2::1 on eth1 in niso-api$",
        stack="dual",
    ),
    "address that ends": damage(
        "Address.lasting",
        lambda w: w.ip(
            "-n niso-api address change 10.99.1.2/24 dev eth0 valid_lft 1000 preferred_lft 1000"
        ),
        different=r"^address 10\.99\.1\.2/24 on eth0 in niso-api$",
    ),
    "IPv6 address that ends": damage(
        "Address.lasting",
        lambda w: w.ip(
            "-n niso-api address change fd00:1::2/64 dev eth0 valid_lft 1000 preferred_lft 1000"
        ),
        different=r"^address fd00:1::2/64 on eth0 in niso-api$",
        stack="dual",
    ),
    "address of a bridge that ends": damage(
        "Address.lasting",
        lambda w: w.ip(
            "address change 10.99.2.1/24 dev niso-extra valid_lft 1000 preferred_lft 1000"
        ),
        different=r"^address 10\.99\.2\.1/24 on niso-extra$",
    ),
    "deprecated address": damage(
        "Address.lasting",
        lambda w: w.ip("-n niso-api address change fd00:2::2/64 dev eth1 preferred_lft 0"),
        different=r"^address fd00:2::2/64 on eth1 in niso-api$",
        stack="dual",
    ),
    "route to nowhere": damage(
        "Route foreign",
        lambda w: w.ip("-n niso-api route add blackhole 10.99.1.3"),
        foreign=r"^route blackhole 10\.99\.1\.3/32 in niso-api$",
    ),
    "routes to nowhere of other types": damage(
        "Route foreign",
        lambda w: w.ip(
            "-n niso-api route add unreachable 10.99.7.0/24",
            "-n niso-api route add prohibit default metric 7",
            "-n niso-api route add prohibit default metric 8",
            "-n niso-api -6 route add blackhole default metric 7",
        ),
        foreign=[
            r"^route unreachable 10\.99\.7\.0/24 in niso-api$",
            r"^route prohibit 0\.0\.0\.0/0 in niso-api$",
            r"^route blackhole ::/0 in niso-api$",
        ],
        stack="dual",
    ),
    "default route gone": damage(
        "Route missing",
        lambda w: w.ip("-n niso-api route delete default"),
        missing=r"^route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api$",
    ),
    "IPv6 default route gone": damage(
        "Route missing",
        lambda w: w.ip("-n niso-api -6 route delete default"),
        missing=r"^route ::/0 via fd00:1::1 on eth0 in niso-api$",
        stack="dual",
    ),
    "default route before the right one": damage(
        "Route foreign",
        lambda w: w.ip(
            "-n niso-api route add default via 10.99.1.3 dev eth0 onlink metric 5",
            "-n niso-api route add default via 10.99.1.3 dev eth0 onlink metric 8",
            "-n niso-api route add default via 10.99.2.3 dev eth1 onlink metric 7",
            "-n niso-api route add default via 10.99.2.4 dev eth1 onlink metric 6",
        ),
        foreign=[
            r"^route 0\.0\.0\.0/0 via 10\.99\.1\.3 on eth0 in niso-api$",
            r"^route 0\.0\.0\.0/0 via 10\.99\.2\.3 on eth1 in niso-api$",
            r"^route 0\.0\.0\.0/0 via 10\.99\.2\.4 on eth1 in niso-api$",
        ],
    ),
    "default route elsewhere": damage(
        "Route.gateway",
        lambda w: w.ip("-n niso-api route replace default via 10.99.1.3 dev eth0 onlink"),
        different=r"^route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api$",
    ),
    "default route by another link": damage(
        "Route.link",
        lambda w: w.ip("-n niso-api route replace default via 10.99.2.1 dev eth1"),
        different=r"^route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api$",
    ),
    "routes that ask for neighbours": damage(
        "Route foreign",
        lambda w: w.ip(
            "-n niso-api route add 198.51.100.0/24 dev eth0 proto kernel",
            "-n niso-api route add 10.99.2.3 dev eth1 proto static",
            "-n niso-api -6 route add fd00:1::3 dev eth0 proto kernel",
        ),
        foreign=[
            r"^route 198\.51\.100\.0/24 on eth0 in niso-api$",
            r"^route 10\.99\.2\.3/32 on eth1 in niso-api$",
            r"^route fd00:1::3/128 on eth0 in niso-api$",
        ],
        stack="dual",
    ),
    "route too many": damage(
        "Route foreign",
        lambda w: w.ip("-n niso-api route add 10.77.0.0/16 via 10.99.2.1"),
        foreign=r"^route 10\.77\.0\.0/16 via 10\.99\.2\.1 on eth1 in niso-api$",
    ),
    "neighbour on the bridge": damage(
        "PermanentNeighbour foreign",
        lambda w: w.ip(f"neighbour replace 10.99.1.77 {FIXED} dev niso-backend nud permanent"),
        foreign=r"^neighbour entry 10\.99\.1\.77 on niso-backend$",
    ),
    "IPv6 neighbour on the bridge gone": damage(
        "PermanentNeighbour missing",
        lambda w: w.ip("neighbour delete fd00:1::2 dev niso-backend"),
        missing=r"^neighbour entry fd00:1::2 on niso-backend$",
        stack="dual",
    ),
    "neighbour inside": damage(
        "PermanentNeighbour.mac",
        lambda w: w.ip(f"-n niso-api neighbour replace 10.99.1.1 {FIXED} dev eth0 nud permanent"),
        different=r"^neighbour entry 10\.99\.1\.1 on eth0 in niso-api$",
    ),
    "another neighbour inside": damage(
        "PermanentNeighbour foreign",
        lambda w: w.ip(f"-n niso-api neighbour replace 10.99.1.77 {FIXED} dev eth0 nud permanent"),
        foreign=r"^neighbour entry 10\.99\.1\.77 on eth0 in niso-api$",
    ),
    "entry in the bridge's table": damage(
        "Neighbour foreign",
        lambda w: w.run(
            "bridge", "fdb", "add", "02:00:00:00:00:01", "dev", w.port, "master", "static"
        ),
        foreign=r"^forwarding entry 02:00:00:00:00:01 of bridge port niapi-\S+$",
    ),
    "routing rule too many": damage(
        "RoutingRule foreign",
        lambda w: w.ip("rule add iif niso-extra priority 1 prohibit protocol 78"),
        foreign=r"^IPv4 routing rule of bridge niso-extra$",
    ),
}
