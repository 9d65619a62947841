/* DESTROY events: a thread receives them from the kernel into a spool, whatever Python does. The ledger's owner books
 * them between dumps. A full spool asks its owner to do it there and then.
 *
 * There are two spools, one that is filled and one that is booked; they may be a shared mapping of a file. Beyond
 * its used bytes a spool is all zeros, and the kernel receives straight into it: an event that was taken off the
 * socket by a process killed before it could count it shows as a message behind the used bytes, and is counted at
 * open. What of a spool is booked, the ledger says. */
#ifndef KUBENETMON_EVENTS_H
#define KUBENETMON_EVENTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "watchdog.h"

struct listening;
struct mnl_socket;
struct nlmsghdr;

enum {
	SPOOL_BYTES = 4 * 1024 * 1024, /* some 15,000 events */
	EVENT_BYTES = 16 * 1024,       /* room for the largest message of one event */
};

/* The start of the file; in memory of our own it is the same. */
struct spool_header {
	uint64_t magic;
	uint64_t used[2];       /* bytes of whole messages, one behind the other */
	int64_t listened_until; /* boot time in nanoseconds: every event up to then has been received */
	uint8_t epoch[16];      /* the ledger's */
};

struct events {
	struct mnl_socket *socket;
	int wake;
	bool stopping;
	bool started;
	pthread_t thread;
	pthread_mutex_t lock; /* guards the filled spool, `stopping` and all up to `gap`, never for long */
	struct spool_header *spools;
	uint32_t filling;
	uint64_t truncated;
	bool drained;      /* the last look found nothing queued */
	size_t saved_read; /* bytes of what the watchdog saved that are in the spool */
	int64_t gap;       /* nanoseconds for which the watchdog had let go */
	struct watchdog watchdog;
	int64_t listening_since; /* boot time in nanoseconds */
	uint8_t *early; /* what came while another agent metered: struct early_event, one behind the other */
	size_t early_used, early_placed;
	void (*full)(void *owner); /* called in the thread, without the lock */
	void *owner;
};

/* Listens. 0 or a negative errno; the thread does not run yet. */
int events_open(struct events *events, const struct listening *listening, void (*full)(void *), void *owner,
		const char **step);

/* While there are no spools: takes in what the kernel has queued and forgets what another listener has received, all
 * up to this boot time. 0 or -ENOMEM. */
int events_wait(struct events *events, int64_t listened_until);

/* Puts what events_wait() kept and the listener before did not receive behind the filled spool. False: it is full, and
 * the rest waits for the next call. */
bool events_place_early(struct events *events, int64_t listened_until);

/* The spools in memory, or with a descriptor of 0 and above in that file: those that a ledger of this epoch left,
 * or when `anew` empty ones. -EUCLEAN: the file is not that. */
int events_map(struct events *events, int descriptor, bool anew, const uint8_t *epoch);

/* The spool that the owner booked before a kill is `draining`. */
void events_resume(struct events *events, uint32_t draining);

int events_start(struct events *events);

/* The messages of a spool, and how many bytes they are; of the one that is not filled. */
const uint8_t *events_messages(const struct events *events, uint32_t spool, uint64_t *used);

/* Receives all that the kernel has queued until now, and empties the other spool, all of which is booked. The owner
 * makes the filled one the one it books, then lets the emptied one be filled. */
void events_hand_over(struct events *events, void (*turn)(void *owner));

void events_unmap(struct events *events);

/* Ends the thread; nothing is read afterwards. */
void events_stop(struct events *events);
void events_close(struct events *events);

/* Events that were cut short, and for how many nanoseconds the watchdog had let go. */
void events_losses(struct events *events, uint64_t *truncated, int64_t *gap);

/* From here on: between events.c and early.c.
 *
 * Puts one message behind the filled spool; false: it is full. */
bool events_place(struct events *events, const struct nlmsghdr *message);

/* Joins the group of DESTROY events again. 0 or a negative errno. */
int events_join(struct events *events);

#endif
