/* The watchdog process: see watchdog.h. Its descriptors are 0, the event socket, 1, the pipe whose other end is the
 * agent's, and 2, the memory that it shares with the agent; its argument is the patience in milliseconds. */
#define _GNU_SOURCE
#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../clock.h"
#include "../netlink.h"
#include "../watchdog.h"

enum {
	LOOK_MILLISECONDS = 100,
	ATTEMPTS = 5, /* to read the list of dying flows to its end */
};

/* SO_MEMINFO: sk_get_meminfo() of the kernel, since 4.12. */
static bool is_half_full(void)
{
	uint32_t memory[SK_MEMINFO_VARS] = {0};
	socklen_t length = sizeof memory;
	if (getsockopt(WATCHDOG_SOCKET, SOL_SOCKET, SO_MEMINFO, memory, &length) < 0)
		return true;
	return memory[SK_MEMINFO_RMEM_ALLOC] >= memory[SK_MEMINFO_RCVBUF] / 2;
}

static int save(void *context, const struct nlmsghdr *message)
{
	struct watch *watch = context;
	size_t bytes = NLMSG_ALIGN(message->nlmsg_len);
	if (SAVED_BYTES - watch->saved_bytes < bytes)
		return -1;
	struct nlmsghdr *saved = (struct nlmsghdr *)(void *)(watch->saved + watch->saved_bytes);
	memcpy(saved, message, message->nlmsg_len);
	saved->nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
	watch->saved_bytes += bytes;
	return 0;
}

static void let_go(struct watch *watch)
{
	struct requests requests = {0};
	atomic_bool stop = false;
	bool whole = false;
	int group = NFNLGRP_CONNTRACK_DESTROY;
	atomic_store(&watch->let_go, nanoseconds(CLOCK_BOOTTIME));
	atomic_store(&watch->state, LETTING_GO);
	int error = requests_open(&requests);
	for (int i = 0; i < ATTEMPTS && !error && !whole; i++) {
		watch->saved_bytes = 0; /* what was delivered since is in the queue */
		error = requests_dump_dying(&requests, &stop, save, watch, &whole);
	}
	(void)setsockopt(WATCHDOG_SOCKET, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &group, sizeof group);
	atomic_store(&watch->state, LET_GO);
	requests_close(&requests);
}

int main(int count, char **arguments)
{
	if (count != 2)
		return 2;
	int64_t patience = atoll(arguments[1]) * 1000000;
	struct watch *watch = mmap(NULL, sizeof *watch, PROT_READ | PROT_WRITE, MAP_SHARED, WATCHDOG_MEMORY, 0);
	if (watch == MAP_FAILED)
		return 1;
	for (;;) {
		struct pollfd end = {.fd = WATCHDOG_PIPE, .events = POLLIN};
		if (poll(&end, 1, LOOK_MILLISECONDS) > 0)
			return 0;
		if (atomic_load(&watch->state) == WATCHING &&
		    nanoseconds(CLOCK_BOOTTIME) - atomic_load(&watch->alive) > patience && is_half_full())
			let_go(watch);
	}
}
