"""Runs inside services of the walk, and beside them: ``agent.py NAME PORT`` says who it is.

TCP: ``NAME PEER`` and a line end; each line that comes is answered with /etc/hosts as a line of
JSON. UDP: a datagram DATA is answered with ``NAME PEER DATA``.
"""

import json
import selectors
import socket
import struct
import sys

name, port = sys.argv[1], int(sys.argv[2])
selector = selectors.DefaultSelector()


def datagram(server: socket.socket) -> None:
    data, ((level, kind, info),), _, peer = server.recvmsg(2048, 64)
    # from the address that was asked: a host has several (ip(7), ipv6(7): struct in6_pktinfo)
    asked = struct.pack("=16si", info[:16], 0)
    if level == socket.IPPROTO_IP:
        asked = struct.pack("=i4s4s", 0, info[8:12], bytes(4))
    said = [(level, kind, asked)]
    server.sendmsg([f"{name} {peer[0]} ".encode() + data], said, 0, peer)


def accept(server: socket.socket) -> None:
    try:
        connection, peer = server.accept()
    except OSError:
        return
    connection.setblocking(False)
    connection.send(f"{name} {peer[0]}\n".encode())
    selector.register(connection, selectors.EVENT_READ, line)


def line(connection: socket.socket) -> None:
    try:
        if connection.recv(4096):
            with open("/etc/hosts", encoding="utf-8") as file:
                connection.send(json.dumps(file.read()).encode() + b"\n")
            return
    except OSError:
        pass
    selector.unregister(connection)
    connection.close()


INFO = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}
for kind, handler in ((socket.SOCK_STREAM, accept), (socket.SOCK_DGRAM, datagram)):
    for family, info in INFO.items():
        server = socket.socket(family, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(*info, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("", port))
        if kind == socket.SOCK_STREAM:
            server.listen(256)
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ, handler)
while True:
    for key, _ in selector.select():
        try:
            key.data(key.fileobj)
        except OSError:
            pass
