"""A service of the soak: ``answer.py NAME PORT...`` tells each TCP client its name, then gives back what it is sent."""

from __future__ import annotations

import select
import socket
import sys

BACKLOG = 1024


def main(name: str, ports: list[int]) -> None:
    word = f"{name}\n".encode()
    poll = select.epoll()
    listeners: dict[int, socket.socket] = {}
    clients: dict[int, socket.socket] = {}
    for port in ports:
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
        )
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        poll.register(listener, select.EPOLLIN)
    print(f"{name} listens", flush=True)
    while True:
        for number, _ in poll.poll():
            try:
                if number in listeners:
                    while True:
                        client, _ = listeners[number].accept()
                        client.setblocking(False)
                        clients[client.fileno()] = client
                        poll.register(client, select.EPOLLIN)
                        client.send(word)
                elif data := clients[number].recv(4096):
                    clients[number].send(data)
                else:
                    clients.pop(number).close()
            except BlockingIOError:
                continue
            except OSError:  # the client ends it by a reset, so that nobody has a TIME_WAIT
                if number in clients:
                    clients.pop(number).close()


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]])
