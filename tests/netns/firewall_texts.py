"""Forwarding rules as other firewalls create them, for iptables-restore (IPTABLES) and nft (NFT)."""

from __future__ import annotations

DOCKER_26 = """\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""

DOCKER_28 = """\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
"""

UFW = """\
*filter
:FORWARD DROP [0:0]
:ufw-after-forward - [0:0]
:ufw-after-logging-forward - [0:0]
:ufw-before-forward - [0:0]
:ufw-before-logging-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-track-forward - [0:0]
:ufw-user-forward - [0:0]
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-after-logging-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
COMMIT
"""

PLAIN_IPTABLES = """\
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "replies" -j ACCEPT
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -s 172.20.0.0/16 -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""

MANGLE = """\
*mangle
:FORWARD ACCEPT [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -i niso-backend -m conntrack --ctstate NEW --ctdir ORIGINAL -j DROP
COMMIT
"""

BRIDGED = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -m physdev --physdev-is-bridged -j ACCEPT
COMMIT
"""

FIREWALLD = """\
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24, 2002:a9fe::/32, 2002:c0a8::/32 } reject with icmpv6 addr-unreachable
		jump filter_FORWARD_POLICIES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_POLICIES {
		jump filter_FWD_public
		reject with icmpx admin-prohibited
	}
	chain filter_FWD_public {
		jump filter_FWD_public_allow
	}
	chain filter_FWD_public_allow {
	}
}
"""

NIXOS = """\
table inet filter {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state vmap { invalid : drop, established : accept, related : accept, new : jump forward-allow, untracked : jump forward-allow }
	}
	chain forward-allow {
		icmpv6 type != { router-renumbering, 139 } accept comment "accept all ICMPv6 but renumbering"
		ct status dnat accept comment "allow port forward"
	}
}
"""

PLAIN = """\
table inet filter {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
"""

BLOCKLIST = """\
table inet crowdsec {
	set bad { type ipv4_addr; flags timeout, interval; elements = { 198.51.100.0/24 timeout 1h } }
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		ip saddr @bad counter drop
		meter flood { ip saddr limit rate over 10000/second } drop
	}
}
"""

ALLOWED = """\
table inet filter {
	set trusted { type ifname; flags interval; elements = { "niso-*", "wg0" } }
	set subnets { type ipv4_addr; flags interval; elements = { 10.99.0.0/16 } }
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname @trusted goto out
		oifname @trusted ct status & dnat != 0 meta mark set 7 accept
		ct state established,related accept
	}
	chain out {
		ip saddr & 255.255.0.0 == 10.99.0.0 accept
		ip saddr 10.99.0.0-10.99.255.255 accept
	}
}
"""

CATCH_ALL = """\
table inet filter {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state vmap { invalid : drop, * : accept }
	}
}
"""

SWITCHES = """\
table bridge filter {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ether type arp accept
		iifname "vnet*" accept
	}
}
"""

REPLIES = """\
table ip odd {
	chain fw {
		type filter hook forward priority filter; policy drop;
		ct direction original accept
	}
}
"""
