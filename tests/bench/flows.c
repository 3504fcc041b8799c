/* New flows for the benchmarks of published ports and of policies: each is a TCP connection, or a UDP socket's first datagram, whose
 * server answers with one byte. And throughput: one TCP connection that the client fills.
 *
 *   flows serve CPU PORT                              answers TCP and UDP on PORT, says "ready", runs until killed
 *   flows load tcp|udp CPU ADDRESS PORT MS NUMBER     prints "flows, failed, microseconds"; the first flow is NUMBER
 *             [SOURCE]                                from this address alone
 *   flows load bulk CPU ADDRESS PORT MS NUMBER        prints "bytes, 0, microseconds", when the server has read them all
 *             [SOURCE]
 *   flows path tcp|udp|bulk|turn CPU ADDRESS PORT SOURCE CLIENT SERVER
 *                                                     prints nanoseconds for a flow, for BLOCK bytes of one connection, or
 *                                                     for one byte each way on one connection
 *
 * The client keeps WINDOW flows open at a time, for MS milliseconds, or longer until one is through. Flow n comes from
 * address source + n / PORTS and port LOW + n % PORTS, so that none is taken for an earlier one that connection tracking
 * still has. In "path" one thread is client and server, in these two network namespaces (files), so that all of
 * a packet's way is on one processor. The fastest of BATCHES batches counts: the load of others changes it little.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 64, LOW = 2048, PORTS = 63488, SOURCES = 16, EVENTS = 256, PATIENCE_US = 5000000, BLOCK = 256 << 10, BATCHES = 60, BATCH = 10 };
static char block[BLOCK];
static const char *source = "192.0.2.16";
static int sources = SOURCES;

static void pin(const char *cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(atoi(cpu), &set);
	if (sched_setaffinity(0, sizeof set, &set))
		err(1, "sched_setaffinity");
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t now_us(void)
{
	return now_ns() / 1000;
}

static void watch(int epoll, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll_ctl");
}

static int bound(int kind, struct sockaddr_in at)
{
	int one = 1, fd = socket(AF_INET, kind | SOCK_NONBLOCK, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) || bind(fd, (void *)&at, sizeof at))
		err(1, "bind to port %d", ntohs(at.sin_port));
	return fd;
}

static int serve(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
	int tcp = bound(SOCK_STREAM, at), udp = bound(SOCK_DGRAM, at), epoll = epoll_create1(0);
	if (listen(tcp, 4096))
		err(1, "listen");
	watch(epoll, tcp, EPOLLIN);
	watch(epoll, udp, EPOLLIN);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(epoll, events, EVENTS, -1);
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, connection;
			char data[16];
			if (fd == udp) {
				struct sockaddr_in from;
				socklen_t size = sizeof from;
				ssize_t length;
				while ((length = recvfrom(udp, data, sizeof data, 0, (void *)&from, &size)) >= 0)
					sendto(udp, data, length, 0, (void *)&from, size);
			} else if (fd == tcp) {
				while ((connection = accept4(tcp, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
					watch(epoll, connection, EPOLLIN | EPOLLRDHUP);
					if (write(connection, "x", 1) < 0 && errno != ECONNRESET && errno != EPIPE)
						err(1, "write");
				}
			} else if ((events[i].events & (EPOLLHUP | EPOLLERR)) || read(fd, block, BLOCK) <= 0) {
				close(fd); /* the client ends it, so that no TIME_WAIT stays here */
			}
		}
	}
}

static int begin(int kind, int epoll, const struct sockaddr_in *to, int64_t number)
{
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(LOW + number % PORTS)};
	inet_pton(AF_INET, source, &from.sin_addr);
	from.sin_addr.s_addr = htonl(ntohl(from.sin_addr.s_addr) + number / PORTS % sources);
	int fd = bound(kind, from);
	if (kind == SOCK_STREAM) {
		struct linger reset = {.l_onoff = 1, .l_linger = 0}; /* no TIME_WAIT here either */
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
	}
	if (connect(fd, (void *)to, sizeof *to) && errno != EINPROGRESS)
		err(1, "connect");
	if (kind == SOCK_DGRAM && send(fd, "x", 1, 0) != 1)
		err(1, "send");
	watch(epoll, fd, EPOLLIN);
	return fd;
}

static int load(int kind, const char *address, int port, int64_t duration_us, int64_t number)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	inet_pton(AF_INET, address, &to.sin_addr);
	int epoll = epoll_create1(0);
	int64_t done = 0, failed = 0, start = now_us(), end = start + duration_us, now = start;
	for (int i = 0; i < WINDOW; i++)
		begin(kind, epoll, &to, number++);
	while ((now = now_us()) < end || (!done && now < end + PATIENCE_US)) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(epoll, events, EVENTS, 100);
		for (int i = 0; i < n; i++) {
			char data[16];
			if (read(events[i].data.fd, data, sizeof data) == 1)
				done++;
			else
				failed++;
			close(events[i].data.fd);
			begin(kind, epoll, &to, number++);
		}
	}
	printf("%lld %lld %lld\n", (long long)done, (long long)failed, (long long)(now - start));
	return 0;
}

/* One connection, written to for as long; the server closes when it has read all. */
static int bulk(const char *address, int port, int64_t duration_us, int64_t number)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	inet_pton(AF_INET, address, &to.sin_addr);
	int fd = begin(SOCK_STREAM, epoll_create1(0), &to, number);
	struct linger gently = {0};
	struct timeval patience = {.tv_sec = PATIENCE_US / 1000000};
	char data;
	if (fcntl(fd, F_SETFL, 0) || setsockopt(fd, SOL_SOCKET, SO_LINGER, &gently, sizeof gently) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience))
		err(1, "setsockopt");
	if (read(fd, &data, 1) != 1)
		err(1, "no connection");
	int64_t bytes = 0, start = now_us();
	while (now_us() - start < duration_us) {
		ssize_t written = write(fd, block, BLOCK);
		if (written < 0)
			err(1, "write");
		bytes += written;
	}
	if (shutdown(fd, SHUT_WR) || read(fd, &data, 1) != 0)
		err(1, "the server has not read all");
	printf("%lld 0 %lld\n", (long long)bytes, (long long)(now_us() - start));
	return 0;
}

static void enter(const char *file)
{
	int fd = open(file, O_RDONLY);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		err(1, "%s", file);
	close(fd);
}

static void expect(ssize_t got, ssize_t wanted, const char *what)
{
	if (got != wanted)
		err(1, "%s: %zd of %zd", what, got, wanted);
}

/* A socket of the client that is connected to the server. */
static int joined(int kind, const struct sockaddr_in *to, int *number)
{
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(LOW + (*number)++ % PORTS)};
	struct linger reset = {.l_onoff = 1};
	int fd, buffer = 4 << 20;
	inet_pton(AF_INET, source, &from.sin_addr);
	fd = bound(kind, from);
	if (fcntl(fd, F_SETFL, 0) || setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer))
		err(1, "a socket");
	if (kind == SOCK_STREAM && setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset))
		err(1, "SO_LINGER");
	if (connect(fd, (void *)to, sizeof *to))
		err(1, "connect");
	return fd;
}

static void block_passes(int from, int to)
{
	expect(write(from, block, BLOCK), BLOCK, "write");
	for (ssize_t left = BLOCK, n; left > 0; left -= n)
		if ((n = read(to, block, left)) <= 0)
			err(1, "read");
}

static int path(const char *what, const char *address, int port, const char *client, const char *server)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)}, any = to, peer;
	int tcp, udp, fd = -1, end = -1, number = now_us() % PORTS, buffer = 4 << 20;
	int64_t least = INT64_MAX;
	char data[16];
	inet_pton(AF_INET, address, &to.sin_addr);
	enter(server);
	tcp = bound(SOCK_STREAM, any);
	udp = bound(SOCK_DGRAM, any);
	if (setsockopt(tcp, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) || fcntl(tcp, F_SETFL, 0) || fcntl(udp, F_SETFL, 0) ||
	    listen(tcp, 128))
		err(1, "a server");
	enter(client);
	if (!strcmp(what, "bulk") || !strcmp(what, "turn")) {
		fd = joined(SOCK_STREAM, &to, &number);
		end = accept(tcp, NULL, NULL);
	}
	for (int batch = 0; batch < BATCHES; batch++) {
		int64_t start = now_ns();
		for (int i = 0; i < BATCH; i++) {
			if (!strcmp(what, "bulk")) {
				block_passes(fd, end);
			} else if (!strcmp(what, "turn")) {
				expect(write(fd, "x", 1), 1, "write");
				expect(read(end, data, sizeof data), 1, "read");
				expect(write(end, "x", 1), 1, "write");
				expect(read(fd, data, sizeof data), 1, "read");
			} else if (!strcmp(what, "tcp")) {
				fd = joined(SOCK_STREAM, &to, &number);
				end = accept(tcp, NULL, NULL);
				expect(write(end, "x", 1), 1, "write");
				expect(read(fd, data, sizeof data), 1, "read");
				close(fd);
				close(end);
			} else {
				socklen_t size = sizeof peer;
				fd = joined(SOCK_DGRAM, &to, &number);
				expect(send(fd, "x", 1, 0), 1, "send");
				expect(recvfrom(udp, data, sizeof data, 0, (void *)&peer, &size), 1, "recvfrom");
				expect(sendto(udp, data, 1, 0, (void *)&peer, size), 1, "sendto");
				expect(recv(fd, data, sizeof data, 0), 1, "recv");
				close(fd);
			}
		}
		if (now_ns() - start < least)
			least = now_ns() - start;
	}
	printf("%lld\n", (long long)least / BATCH);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve")) {
		pin(argv[2]);
		return serve(atoi(argv[3]));
	}
	if ((argc == 8 || argc == 9) && !strcmp(argv[1], "load")) {
		if (argc == 9) {
			source = argv[8];
			sources = 1;
		}
		pin(argv[3]);
		if (!strcmp(argv[2], "bulk"))
			return bulk(argv[4], atoi(argv[5]), 1000 * atoll(argv[6]), atoll(argv[7]));
		return load(strcmp(argv[2], "udp") ? SOCK_STREAM : SOCK_DGRAM, argv[4], atoi(argv[5]), 1000 * atoll(argv[6]), atoll(argv[7]));
	}
	if (argc == 9 && !strcmp(argv[1], "path")) {
		source = argv[6];
		pin(argv[3]);
		return path(argv[2], argv[4], atoi(argv[5]), argv[7], argv[8]);
	}
	errx(2, "usage: flows serve CPU PORT | flows load tcp|udp|bulk CPU ADDRESS PORT MS NUMBER [SOURCE] | "
		"flows path tcp|udp|bulk|turn CPU ADDRESS PORT SOURCE CLIENT SERVER");
}
