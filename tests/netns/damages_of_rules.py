"""List damages of the rules and their elements."""

from __future__ import annotations

from damage import Damage, damage

RULES: dict[str, Damage] = {
    # --- nftables
    "map element gone": damage(
        "Element missing",
        lambda w: w.nft("delete element inet niso publish_any4 { tcp . 8080 }"),
        missing=r"map element inet niso publish_any4 \{ tcp \. 8080 : 10\.99\.1\.2 \. 80 \} of 'api'",
    ),
    "IPv6 map element gone": damage(
        "Element missing",
        lambda w: w.nft("delete element inet niso publish_any6 { tcp . 8080 }"),
        missing=r"map element inet niso publish_any6 \{ tcp \. 8080 : fd00:1::2 \. 80 \} of 'api'",
        stack="dual",
    ),
    "map element changed": damage(
        "Element.value",
        lambda w: w.nft(
            "delete element inet niso publish_any4 { tcp . 8080 }\n"
            'add element inet niso publish_any4 { tcp . 8080 comment "api" : 10.99.1.3 . 80 }'
        ),
        different=r"map element inet niso publish_any4 .*8080",
    ),
    "limit changed": damage(
        "Element.value",
        lambda w: w.nft(
            f'delete element bridge niso arp_nd {{ "{w.port}" }}\n'
            f'add element bridge niso arp_nd {{ "{w.port}" limit rate over 9/second comment "api" }}'
        ),
        different=r"set element bridge niso arp_nd \{ \"niapi\S+\" limit rate over ",
    ),
    "element with another's comment": damage(
        "Element.owner",
        lambda w: w.nft(
            "delete element inet niso publish_any4 { tcp . 8080 }\n"
            'add element inet niso publish_any4 { tcp . 8080 comment "peer" : 10.99.1.2 . 80 }'
        ),
        different=r"map element inet niso publish_any4 .*8080",
    ),
    "map element too many": damage(
        "Element foreign",
        lambda w: w.nft("add element inet niso publish_any4 { tcp . 9999 : 10.99.1.2 . 80 }"),
        foreign=r"map element inet niso publish_any4 .*9999",
    ),
    "set element gone": damage(
        "Element missing",
        lambda w: w.nft(f'delete element bridge niso ports {{ "{w.port}" }}'),
        missing=r"set element bridge niso ports \{ \"niapi\S+\" \} of 'api'",
    ),
    "set element too many": damage(
        "Element foreign",
        lambda w: w.nft('add element inet niso same_bridge { "niso-backend" . "niso-extra" }'),
        foreign=r"set element inet niso same_bridge",
    ),
    "subnet gone": damage(
        "Element missing",
        lambda w: w.nft("delete element inet niso subnets4 { 10.99.2.0/24 }"),
        missing=r"set element inet niso subnets4 \{ 10\.99\.2\.0/24 \} of 'extra'",
    ),
    "IPv6 subnet gone": damage(
        "Element missing",
        lambda w: w.nft("delete element inet niso subnets6 { fd00:2::/64 }"),
        missing=r"set element inet niso subnets6 \{ fd00:2::/64 \} of 'extra'",
        stack="dual",
    ),
    "chain emptied": damage(
        ("chain", "Ruleset.wrong"),
        lambda w: w.nft("flush chain inet niso publish"),
        different=r"^nftables chain inet niso publish$",
    ),
    "chain gone": damage(
        "chain",
        lambda w: w.nft("delete chain inet niso postrouting"),
        missing=r"^nftables chain inet niso postrouting$",
    ),
    "chain too many": damage(
        "chain",
        lambda w: w.nft("add chain inet niso evil"),
        foreign=r"^nftables chain inet niso evil$",
    ),
    "rule gone": damage(
        "rule",
        lambda w: w.nft(f"delete rule inet niso forward handle {w.rule('inet', 'forward')}"),
        different=r"^nftables chain inet niso forward$",
    ),
    "rule too many": damage(
        "rule",
        lambda w: w.nft("insert rule inet niso raw accept"),
        different=r"^nftables chain inet niso raw$",
    ),
    "set gone": damage(
        "set",
        lambda w: w.nft("delete set bridge niso owner"),
        missing=r"^nftables set bridge niso owner$",
    ),
    "set too many": damage(
        "set",
        lambda w: w.nft("add set inet niso evil { type ifname; }"),
        foreign=r"^nftables set inet niso evil$",
    ),
    "set of another form": damage(
        "set",
        lambda w: w.nft("delete set inet niso before\nadd set inet niso before { type ifname; }"),
        different=r"^nftables set inet niso before$",
    ),
    "bridge table gone": damage(
        "table",
        lambda w: w.nft("delete table bridge niso"),
        missing=r"^nftables table bridge niso$",
    ),
    "inet table gone": damage(
        "table",
        lambda w: w.nft("delete table inet niso"),
        missing=r"^nftables table inet niso$",
        quiet=True,
    ),
    "table dormant": damage(
        "table",
        lambda w: w.nft("add table bridge niso { flags dormant; }"),
        different=r"^nftables table bridge niso$",
    ),
    "all rules flushed": damage(
        ("Ruleset missing", "table"),
        lambda w: w.nft("flush ruleset"),
        missing=r"^nftables tables inet niso and bridge niso$",
        quiet=True,
    ),
}
