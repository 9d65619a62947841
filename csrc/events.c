#define _GNU_SOURCE
#include "events.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "message.h"
#include "meter.h"
#include "netlink.h"

#define SPOOL_MAGIC UINT64_C(0x316c6f6f70736b6b) /* "kkspool1" */

enum {
	PAGE_BYTES = 4096,
	REGION_BYTES = PAGE_BYTES + 2 * SPOOL_BYTES,
	KEEP_BYTES = 1024 * 1024, /* pages that an emptied spool keeps */
	LOCKED_EVENTS = 256,      /* how many are received before the owner gets its chance */
	RETRY_MILLISECONDS = 50,
	BEAT_MILLISECONDS = 1000, /* how old `listened_until` gets while no event comes */
};

_Static_assert(offsetof(struct spool_header, listened_until) == 24, "where a waiting agent looks for it");

static uint8_t *messages_of(const struct events *events, uint32_t spool)
{
	return (uint8_t *)events->spools + PAGE_BYTES + (size_t)spool * SPOOL_BYTES;
}

const uint8_t *events_messages(const struct events *events, uint32_t spool, uint64_t *used)
{
	*used = events->spools->used[spool];
	return messages_of(events, spool);
}

static int map_file(struct events *events, int descriptor, bool anew)
{
	struct stat status;
	if (anew && (ftruncate(descriptor, 0) < 0 || fallocate(descriptor, 0, 0, REGION_BYTES) < 0))
		return -errno;
	if (fstat(descriptor, &status) < 0)
		return -errno;
	if (status.st_size != REGION_BYTES)
		return -EUCLEAN;
	void *region = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
	if (region == MAP_FAILED)
		return -ENOMEM;
	events->spools = region;
	return 0;
}

int events_map(struct events *events, int descriptor, bool anew, const uint8_t *epoch)
{
	if (descriptor < 0) {
		void *region = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (region == MAP_FAILED)
			return -ENOMEM;
		events->spools = region;
	} else {
		int error = map_file(events, descriptor, anew);
		if (error)
			return error;
	}
	struct spool_header *spools = events->spools;
	if (descriptor < 0 || anew) {
		memcpy(spools->epoch, epoch, sizeof spools->epoch);
		atomic_signal_fence(memory_order_seq_cst);
		spools->magic = SPOOL_MAGIC;
	}
	bool ours = spools->magic == SPOOL_MAGIC && memcmp(spools->epoch, epoch, sizeof spools->epoch) == 0 &&
		    spools->used[0] <= SPOOL_BYTES && spools->used[1] <= SPOOL_BYTES &&
		    spools->used[0] % NLMSG_ALIGNTO == 0 && spools->used[1] % NLMSG_ALIGNTO == 0;
	return ours ? 0 : -EUCLEAN;
}

void events_resume(struct events *events, uint32_t draining)
{
	events->filling = !draining;
	uint64_t *used = &events->spools->used[events->filling];
	uint8_t *behind = messages_of(events, events->filling) + *used;
	size_t room = SPOOL_BYTES - *used, position = 0;
	if (room > EVENT_BYTES)
		room = EVENT_BYTES;
	if (message_next(behind, room, &position))
		*used += position;
	else
		memset(behind, 0, room);
}

int events_open(struct events *events, const struct listening *listening, void (*full)(void *), void *owner,
		const char **step)
{
	*events = (struct events){.wake = -1, .full = full, .owner = owner};
	pthread_mutex_init(&events->lock, NULL);
	int error = events_socket_open(&events->socket, listening->buffer_bytes, step);
	if (error)
		return error;
	events->listening_since = nanoseconds(CLOCK_BOOTTIME);
	*step = "make an eventfd";
	events->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (events->wake < 0)
		return -errno;
	return watchdog_start(&events->watchdog, listening->watchdog, events->socket,
			      listening->patience_milliseconds, step);
}

int events_join(struct events *events)
{
	int group = NFNLGRP_CONNTRACK_DESTROY;
	int joined = mnl_socket_setsockopt(events->socket, NETLINK_ADD_MEMBERSHIP, &group, sizeof group);
	return joined < 0 ? -errno : 0;
}

bool events_place(struct events *events, const struct nlmsghdr *message)
{
	uint64_t *used = &events->spools->used[events->filling];
	size_t bytes = NLMSG_ALIGN(message->nlmsg_len);
	if (SPOOL_BYTES - *used < bytes)
		return false;
	memcpy(messages_of(events, events->filling) + *used, message, message->nlmsg_len);
	*used += bytes;
	return true;
}

/* With the lock: what the watchdog saved when it let go comes behind what was queued then, and we listen again. False:
 * the spool is full. */
static bool listen_again(struct events *events)
{
	const struct watch *watch = events->watchdog.watch;
	const struct nlmsghdr *message;
	int64_t since;
	if (!events->drained || !watchdog_let_go(&events->watchdog, &since))
		return true;
	for (size_t position = events->saved_read;
	     (message = message_next(watch->saved, watch->saved_bytes, &position)); events->saved_read = position)
		if (!events_place(events, message))
			return false;
	if (events_join(events) < 0)
		return true; /* for want of memory; the next look tries again */
	int64_t now = nanoseconds(CLOCK_BOOTTIME);
	watchdog_again(&events->watchdog, now);
	events->gap += now - since;
	events->saved_read = 0;
	return true;
}

/* So that the kernel finds every page there and writable: a fault on the way could fail in a process that is being
 * killed, with the event already off the socket. The bytes are zero and stay so. */
static void prepare(uint8_t *behind)
{
	for (size_t offset = 0; offset < EVENT_BYTES; offset += PAGE_BYTES)
		((volatile uint8_t *)behind)[offset] = 0;
	((volatile uint8_t *)behind)[EVENT_BYTES - 1] = 0;
}

/* With the lock: receives at most so many of the events that the kernel has queued; true when the spool is full. */
static bool receive(struct events *events, size_t limit)
{
	int descriptor = mnl_socket_get_fd(events->socket);
	uint64_t *used = &events->spools->used[events->filling];
	int64_t now = nanoseconds(CLOCK_BOOTTIME), since;
	bool listening = !watchdog_let_go(&events->watchdog, &since);
	events->drained = false;
	for (size_t i = 0; i < limit; i++) {
		if (SPOOL_BYTES - *used < EVENT_BYTES)
			return true;
		uint8_t *behind = messages_of(events, events->filling) + *used;
		prepare(behind);
		ssize_t received = recv(descriptor, behind, EVENT_BYTES, MSG_TRUNC);
		if (received < 0 && errno == EINTR)
			continue;
		watchdog_feed(&events->watchdog, now);
		if (received <= 0) {
			events->drained = true;
			if (listening)
				events->spools->listened_until = now;
			return false;
		}
		if (received > EVENT_BYTES) {
			events->truncated++;
			memset(behind, 0, EVENT_BYTES);
		} else {
			*used += NLMSG_ALIGN((size_t)received);
		}
	}
	return false;
}

static bool receive_some(struct events *events)
{
	pthread_mutex_lock(&events->lock);
	bool full = receive(events, LOCKED_EVENTS) || !listen_again(events);
	pthread_mutex_unlock(&events->lock);
	return full;
}

static bool stopping(struct events *events)
{
	pthread_mutex_lock(&events->lock);
	bool answer = events->stopping;
	pthread_mutex_unlock(&events->lock);
	return answer;
}

static void *run(void *argument)
{
	struct events *events = argument;
	bool full = false;
	while (!stopping(events)) {
		struct pollfd waits[2] = {
			{.fd = events->wake, .events = POLLIN},
			{.fd = mnl_socket_get_fd(events->socket), .events = POLLIN},
		};
		/* Full even though the owner was asked: memory is short; the kernel keeps the events. */
		(void)poll(waits, full ? 1 : 2, full ? RETRY_MILLISECONDS : BEAT_MILLISECONDS);
		full = receive_some(events);
		if (full) {
			events->full(events->owner);
			full = receive_some(events);
		}
	}
	return NULL;
}

int events_start(struct events *events)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are Python's main thread's */
	int error = pthread_create(&events->thread, NULL, run, events);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	events->started = error == 0;
	return -error;
}

static void empty(struct events *events, uint32_t spool)
{
	uint64_t used = events->spools->used[spool];
	memset(messages_of(events, spool), 0, used);
	if (used > KEEP_BYTES)
		(void)madvise(messages_of(events, spool), SPOOL_BYTES, MADV_DONTNEED);
	atomic_signal_fence(memory_order_seq_cst);
	events->spools->used[spool] = 0;
}

void events_hand_over(struct events *events, void (*turn)(void *owner))
{
	pthread_mutex_lock(&events->lock);
	(void)receive(events, SIZE_MAX);
	empty(events, !events->filling);
	turn(events->owner);
	events->filling = !events->filling;
	pthread_mutex_unlock(&events->lock);
}

void events_losses(struct events *events, uint64_t *truncated, int64_t *gap)
{
	pthread_mutex_lock(&events->lock);
	*truncated = events->truncated;
	*gap = events->gap;
	pthread_mutex_unlock(&events->lock);
}

void events_unmap(struct events *events)
{
	if (events->spools)
		munmap(events->spools, REGION_BYTES);
	events->spools = NULL;
}

void events_stop(struct events *events)
{
	if (!events->started)
		return;
	pthread_mutex_lock(&events->lock);
	events->stopping = true;
	pthread_mutex_unlock(&events->lock);
	const uint64_t one = 1;
	(void)!write(events->wake, &one, sizeof one);
	pthread_join(events->thread, NULL);
	events->started = false;
}

void events_close(struct events *events)
{
	events_stop(events);
	watchdog_stop(&events->watchdog);
	if (events->socket)
		mnl_socket_close(events->socket);
	if (events->wake >= 0)
		close(events->wake);
	events_unmap(events);
	free(events->early);
	pthread_mutex_destroy(&events->lock);
}
