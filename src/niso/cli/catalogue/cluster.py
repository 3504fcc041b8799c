"""Describe niso cluster."""

from __future__ import annotations

from niso.cli.command import JSON, VERBOSE, Argument, Command, Group, Option

_ENCRYPT = Option(
    "encrypt",
    ("--encrypt",),
    "encrypt packets between hosts; HOW is kernel (default) or userspace",
    "HOW",
    implied="kernel",
)
_MEMBER_ADD = Command(
    "cluster member add",
    "run a member of etcd on this host",
    (Argument("host", "HOST", "this host's name, as a check", "?", "nothing"),),
    (VERBOSE,),
    "The first three hosts that join are members by themselves. After the loss of one, another "
    "host takes its place. The host needs the key that members have: it comes with an invitation.",
    (("niso cluster member add", ""),),
)
_MEMBER_REMOVE = Command(
    "cluster member remove",
    "stop running a member on this host, or drop that of a lost host",
    (Argument("host", "HOST", "a lost host (default: this one)", "?", "nothing"),),
    (VERBOSE,),
    "Deletes the member's data. The host stays in the cluster.",
    (("niso cluster member remove", ""), ("niso cluster member remove c", "c is lost")),
    ends=True,
)
_MEMBER_ALONE = Command(
    "cluster member alone",
    "continue with this host's member alone, after most were lost for good",
    (),
    (VERBOSE,),
    "Without most members of etcd, nothing can be claimed. This one then forgets the others, and "
    "keeps its data: all but changes of the last moment. Stop all other members first: two halves "
    "that both continue would lease the same addresses. On a host that was a member, niso "
    "cluster member remove and then add make it one again.",
    (("niso cluster member alone", ""),),
    aside=True,
)

GROUP = Group(
    "cluster",
    "let several hosts share networks",
    (
        Command(
            "cluster init",
            "create a cluster with this host as its first one",
            (),
            (
                Option(
                    "address",
                    ("--address",),
                    "address of this host for the others (default: that of the default route)",
                    "ADDRESS",
                ),
                Option("name", ("--name",), "name of this host (default: the hostname)", "HOST"),
                _ENCRYPT,
                Option(
                    "etcd",
                    ("--etcd",),
                    "use an existing etcd, at URLs separated by commas",
                    "URLS",
                ),
                Option("cacert", ("--cacert",), "the authority of its certificates (PEM)", "FILE"),
                Option("cert", ("--cert",), "the certificate for it (PEM)", "FILE"),
                Option("key", ("--key",), "the key of that certificate (PEM)", "FILE"),
                Option(
                    "user",
                    ("--user",),
                    "etcd's user: a file with one line, NAME:PASSWORD",
                    "FILE",
                ),
                Option(
                    "prefix",
                    ("--prefix",),
                    "prefix of the cluster's keys in etcd (default: /niso/v1/)",
                    "PREFIX",
                ),
                Option(
                    "restore",
                    ("--restore",),
                    "write the cluster's data again, after etcd has lost them",
                ),
                VERBOSE,
                JSON,
            ),
            "Hosts agree through etcd on names and addresses. Without --etcd this host runs it, "
            "with certificates of the cluster's own: niso-etcd.service, in /var/lib/niso-etcd. "
            "niso-agent.service follows what other hosts have. Without systemd, etcd is started "
            "in the background, and you have to run niso agent yourself. Hosts need TCP ports 2379 "
            "and 2380 for etcd. Packets of services between them are VXLAN, UDP port 4799. With "
            "--encrypt these packets go through the kernel's WireGuard, UDP port 4800. On a host "
            "whose kernel lacks it, --encrypt=userspace uses the process wireguard-go, at a tenth "
            "of the speed. All hosts encrypt, or none. --restore writes the cluster's hosts, "
            "networks, names and addresses again, as far as this host knows them; the agents of "
            "the others add what they know. "
            "If no member of etcd answers, this host runs the first one. A backup has more, so "
            "restore that if there is one.",
            (
                ("niso cluster init --address 198.51.100.1", ""),
                ("niso cluster init --encrypt --address 198.51.100.1", ""),
                ("niso cluster init --etcd https://e:2379 --cacert c --cert h --key k", ""),
                ("niso cluster init --restore", "etcd has lost its data"),
            ),
        ),
        Command(
            "cluster invite",
            "print the invitation of a host, a secret",
            (Argument("host", "HOST", "name of the host", "", "nothing"),),
            (
                Option(
                    "address",
                    ("--address",),
                    "address of HOST for the others; needed without --renew",
                    "ADDRESS",
                ),
                Option(
                    "renew",
                    ("--renew",),
                    "new certificates and keys for a host that is in the cluster",
                ),
                Option("member", ("--member",), "the host may run a member of etcd"),
            ),
            "The invitation has a certificate and its key, valid for ten years. Whoever has it can "
            "join as that host, so it is never printed on a terminal. "
            "`| ssh b niso cluster join -` keeps it off the disk. Any member of etcd can make it. "
            "With --member, and for the first three hosts, it also has the key that signs "
            "certificates.",
            (
                ("niso cluster invite b --address 198.51.100.2 > b.join", ""),
                ("niso cluster invite b --renew > b.join", ""),
            ),
        ),
        Command(
            "cluster join",
            "join a cluster with an invitation",
            (Argument("file", "FILE", "the invitation, or - for stdin", "", "folder"),),
            (
                Option("member", ("--member",), "run a member of etcd", group="member", means=1),
                Option("member", ("--no-member",), "run none", group="member", means=2),
                _ENCRYPT,
                VERBOSE,
                JSON,
            ),
            "The first three hosts run a member of etcd: with three, the loss of one changes "
            "nothing. A host of an encrypted cluster encrypts as the first host does. "
            "--encrypt=HOW chooses another way for this host.",
            (("niso cluster join b.join", ""),),
        ),
        Command(
            "cluster status",
            "show the hosts and the members of etcd",
            (),
            (JSON,),
            "SERVICES counts the services of a host, whether they run or not. BEHIND is how long a "
            "host's agent has had changes to read or apply. If etcd does not answer, hosts are "
            "shown as this one last knew them.",
            (("niso cluster status", ""),),
            (("0", "etcd answers"), ("1", "it does not, or this host is in no cluster")),
        ),
        Command(
            "cluster leave",
            "take this host out of its cluster",
            (),
            (
                Option(
                    "force",
                    ("--force",),
                    "also if the cluster does not answer; it then still lists this host",
                ),
                VERBOSE,
            ),
            "Fails if services are on networks of the cluster. The member of etcd ends, and its "
            "data are deleted.",
            (("niso cluster leave", ""),),
            ends=True,
        ),
        Command(
            "cluster forget",
            "remove a lost host from the cluster for good",
            (Argument("host", "HOST", "a host that is gone", "", "nothing"),),
            (),
            "Its services' names and addresses become free, and its member of etcd is dropped. A "
            "service that should continue elsewhere must be taken over first. Members of etcd "
            "refuse the host's certificate. HOST can also have left, or never have used its "
            "invitation.",
            (("niso cluster forget c", ""),),
            ends=True,
        ),
        _MEMBER_ADD,
        _MEMBER_REMOVE,
        _MEMBER_ALONE,
        Command(
            "cluster backup",
            "write etcd's data to a file",
            (Argument("file", "FILE", "the file to write; replaced as a whole", "", "folder"),),
            (),
            "The file is a snapshot, for etcdctl snapshot restore.",
            (("niso cluster backup /root/cluster.db", ""),),
        ),
        Command(
            "cluster etcd",
            "run this host's member of etcd in the foreground",
            (),
            (),
            "niso-etcd.service runs this command. Without systemd, run it at boot.",
            (("niso cluster etcd", ""),),
            aside=True,
        ),
    ),
)
