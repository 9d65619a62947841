#define _GNU_SOURCE
#include "events.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "netlink.h"

enum {
	SPOOL_BYTES = 8 * 1024 * 1024, /* some 30,000 events; its pages exist only while they are used */
	EVENT_BYTES = 16 * 1024,       /* room for the largest message of one event */
	KEEP_BYTES = 1024 * 1024,      /* pages that an emptied spool keeps */
	LOCKED_EVENTS = 256,           /* how many are received before the owner gets its chance */
	RETRY_MILLISECONDS = 50,
};

static int spool_open(struct spool *spool)
{
	void *messages =
		mmap(NULL, SPOOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*spool = (struct spool){.messages = messages == MAP_FAILED ? NULL : messages};
	return spool->messages ? 0 : -ENOMEM;
}

int events_open(struct events *events, uint32_t buffer_bytes, void (*full)(void *), void *owner,
		const char **step)
{
	*events = (struct events){.wake = -1, .full = full, .owner = owner};
	pthread_mutex_init(&events->lock, NULL);
	int error = events_socket_open(&events->socket, buffer_bytes, step);
	if (error)
		return error;
	*step = "make room for events";
	events->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (events->wake < 0)
		return -errno;
	error = spool_open(&events->filling);
	return error ? error : spool_open(&events->draining);
}

/* With the lock: receives at most so many of the events that the kernel has queued; true when the spool is full. */
static bool receive(struct events *events, size_t limit)
{
	int descriptor = mnl_socket_get_fd(events->socket);
	struct spool *spool = &events->filling;
	for (size_t i = 0; i < limit; i++) {
		if (SPOOL_BYTES - spool->used < EVENT_BYTES)
			return true;
		ssize_t received = recv(descriptor, spool->messages + spool->used, EVENT_BYTES, MSG_TRUNC);
		if (received < 0 && errno == EINTR)
			continue;
		if (received <= 0)
			return false;
		if (received > EVENT_BYTES)
			events->truncated++;
		else
			spool->used += NLMSG_ALIGN((size_t)received);
	}
	return false;
}

static bool receive_some(struct events *events)
{
	pthread_mutex_lock(&events->lock);
	bool full = receive(events, LOCKED_EVENTS);
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
		(void)poll(waits, full ? 1 : 2, full ? RETRY_MILLISECONDS : -1);
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

struct spool *events_take(struct events *events)
{
	struct spool *drained = &events->draining;
	if (drained->taken < drained->used)
		return drained;
	if (drained->used > KEEP_BYTES)
		(void)madvise(drained->messages, SPOOL_BYTES, MADV_DONTNEED);
	drained->used = drained->taken = 0;
	pthread_mutex_lock(&events->lock);
	(void)receive(events, SIZE_MAX);
	struct spool filled = events->filling;
	events->filling = *drained;
	*drained = filled;
	pthread_mutex_unlock(&events->lock);
	return drained;
}

uint64_t events_truncated(struct events *events)
{
	pthread_mutex_lock(&events->lock);
	uint64_t truncated = events->truncated;
	pthread_mutex_unlock(&events->lock);
	return truncated;
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
	if (events->socket)
		mnl_socket_close(events->socket);
	if (events->wake >= 0)
		close(events->wake);
	if (events->filling.messages)
		munmap(events->filling.messages, SPOOL_BYTES);
	if (events->draining.messages)
		munmap(events->draining.messages, SPOOL_BYTES);
	pthread_mutex_destroy(&events->lock);
}
