/* DESTROY events: a thread reads them from the kernel into a spool in memory, whatever Python does. The
 * ledger's owner takes the spool between dumps. A full spool asks its owner to take it there and then. */
#ifndef KUBENETMON_EVENTS_H
#define KUBENETMON_EVENTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mnl_socket;

/* Netlink messages one behind the other, as received. */
struct spool {
	uint8_t *messages;
	size_t used, taken; /* bytes received; bytes of those that the ledger has booked */
};

struct events {
	struct mnl_socket *socket;
	int wake;
	bool stopping;
	bool started;
	pthread_t thread;
	pthread_mutex_t lock; /* guards `filling`, `stopping` and `truncated`, never for long */
	struct spool filling;
	struct spool draining; /* the owner's */
	uint64_t truncated;
	void (*full)(void *owner); /* called in the thread, without the lock */
	void *owner;
};

/* 0 or a negative errno; the thread does not run yet. */
int events_open(struct events *events, uint32_t buffer_bytes, void (*full)(void *), void *owner,
		const char **step);
int events_start(struct events *events);

/* The events to book now: what was left of the last lot, else all that the kernel has queued until now. */
struct spool *events_take(struct events *events);

/* Ends the thread; nothing is read afterwards. */
void events_stop(struct events *events);
void events_close(struct events *events);

uint64_t events_truncated(struct events *events);

#endif
