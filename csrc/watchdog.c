#define _GNU_SOURCE
#include "watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "netlink.h"

enum { LOOK_MILLISECONDS = 100, MOST_DESCRIPTORS = 1024 };

/* SO_MEMINFO: socket(7) has it not; sk_get_meminfo() of the kernel, since 4.12. */
static bool is_half_full(int socket)
{
	uint32_t memory[SK_MEMINFO_VARS] = {0};
	socklen_t length = sizeof memory;
	if (getsockopt(socket, SOL_SOCKET, SO_MEMINFO, memory, &length) < 0)
		return true;
	return memory[SK_MEMINFO_RMEM_ALLOC] >= memory[SK_MEMINFO_RCVBUF] / 2;
}

static int save(void *context, const struct nlmsghdr *message)
{
	struct watch *watch = context;
	size_t bytes = NLMSG_ALIGN(message->nlmsg_len);
	if (SAVED_BYTES - watch->saved_bytes < bytes)
		return -ENOSPC;
	struct nlmsghdr *saved = (struct nlmsghdr *)(void *)(watch->saved + watch->saved_bytes);
	memcpy(saved, message, message->nlmsg_len);
	saved->nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
	watch->saved_bytes += bytes;
	return 0;
}

static void let_go(struct watch *watch, int socket)
{
	struct requests requests = {0};
	atomic_bool stop = false;
	int group = NFNLGRP_CONNTRACK_DESTROY;
	atomic_store(&watch->let_go, nanoseconds(CLOCK_BOOTTIME));
	atomic_store(&watch->state, LETTING_GO);
	if (requests_open(&requests) == 0)
		(void)requests_dump_dying(&requests, &stop, save, watch);
	(void)setsockopt(socket, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &group, sizeof group);
	atomic_store(&watch->state, LET_GO);
	requests_close(&requests);
}

/* Of all that was inherited (locks, listening sockets, the other end of our pipe) only these two stay open. */
static void keep_only(int first, int second)
{
	int low = first < second ? first : second, high = first < second ? second : first;
	if (close_range(0, (unsigned)low - 1, 0) == 0 && close_range((unsigned)low + 1, (unsigned)high - 1, 0) == 0 &&
	    close_range((unsigned)high + 1, ~0U, 0) == 0)
		return;
	for (int descriptor = 0; descriptor < MOST_DESCRIPTORS; descriptor++)
		if (descriptor != low && descriptor != high)
			close(descriptor);
}

static _Noreturn void watch_over(struct watch *watch, int socket, int pipe, int64_t patience)
{
	prctl(PR_SET_NAME, "netmon-watchdog");
	(void)setsid(); /* who stops our process group does not stop this process */
	keep_only(socket, pipe);
	for (;;) {
		struct pollfd end = {.fd = pipe, .events = POLLIN};
		if (poll(&end, 1, LOOK_MILLISECONDS) > 0)
			_exit(0);
		if (atomic_load(&watch->state) == WATCHING &&
		    nanoseconds(CLOCK_BOOTTIME) - atomic_load(&watch->alive) > patience && is_half_full(socket))
			let_go(watch, socket);
	}
}

int watchdog_start(struct watchdog *watchdog, const struct mnl_socket *events, uint32_t patience_milliseconds,
		   const char **step)
{
	int ends[2], socket = mnl_socket_get_fd(events);
	*step = "share memory with the watchdog";
	struct watch *watch = mmap(NULL, sizeof *watch, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (watch == MAP_FAILED)
		return -ENOMEM;
	*watchdog = (struct watchdog){.watch = watch, .pipe = -1};
	watchdog_feed(watchdog, nanoseconds(CLOCK_BOOTTIME));
	*step = "make the watchdog's pipe";
	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	*step = "start the watchdog";
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* our handlers are not for the watchdog */
	pid_t process = fork();
	int error = process < 0 ? -errno : 0;
	if (process == 0)
		watch_over(watch, socket, ends[0], (int64_t)patience_milliseconds * 1000000);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close(ends[0]);
	if (error) {
		close(ends[1]);
		return error;
	}
	watchdog->process = process;
	watchdog->pipe = ends[1];
	return 0;
}

void watchdog_feed(struct watchdog *watchdog, int64_t now)
{
	atomic_store_explicit(&watchdog->watch->alive, now, memory_order_relaxed);
}

/* A watchdog that was killed half-way will not get any further. */
static bool is_gone(struct watchdog *watchdog)
{
	if (watchdog->process > 0 && waitpid(watchdog->process, NULL, WNOHANG) != 0)
		watchdog->process = 0;
	return watchdog->process == 0;
}

bool watchdog_let_go(struct watchdog *watchdog, int64_t *since)
{
	int state = atomic_load(&watchdog->watch->state);
	*since = atomic_load(&watchdog->watch->let_go);
	return state == LET_GO || (state == LETTING_GO && is_gone(watchdog));
}

void watchdog_again(struct watchdog *watchdog, int64_t now)
{
	struct watch *watch = watchdog->watch;
	watch->saved_bytes = 0;
	(void)madvise(watch->saved, sizeof watch->saved, MADV_REMOVE);
	watchdog_feed(watchdog, now);
	atomic_store(&watch->state, WATCHING);
}

void watchdog_stop(struct watchdog *watchdog)
{
	if (!watchdog->watch)
		return;
	if (watchdog->pipe >= 0)
		close(watchdog->pipe);
	while (watchdog->process > 0 && waitpid(watchdog->process, NULL, 0) < 0 && errno == EINTR)
		;
	munmap(watchdog->watch, sizeof *watchdog->watch);
	*watchdog = (struct watchdog){0};
}
