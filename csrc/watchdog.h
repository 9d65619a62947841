/* A second process that lets the event socket go while ours is stopped or stuck.
 *
 * An ended flow whose event nobody takes stays in the kernel's table (see netlink.h), so that a listener that stands
 * still fills the node's table. No thread of ours could help: SIGSTOP, or a debugger, stops them all. The watchdog
 * shares the socket and a page in which the reader says that it goes on. Once the reader has not for longer than the
 * patience and the queue is half full, the watchdog saves the kernel's list of dying flows, leaves the multicast group
 * for the socket, whose queue stays, and notes when. The reader, once it goes on, books the queue and what was saved
 * and joins the group again: what was missed in between is the gap.
 *
 * The watchdog (programs/watchdog.c) is started when the socket is there, and ends by itself when our end of its pipe
 * does, with us or before. */
#ifndef KUBENETMON_WATCHDOG_H
#define KUBENETMON_WATCHDOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct mnl_socket;

/* What the watchdog's descriptors are. */
enum { WATCHDOG_SOCKET, WATCHDOG_PIPE, WATCHDOG_MEMORY };

enum watch_state { WATCHING, LETTING_GO, LET_GO };

enum { SAVED_BYTES = 16 * 1024 * 1024 }; /* some 60,000 flows; memory that is not written to takes none up */

/* Between the two processes. */
struct watch {
	_Atomic int64_t alive;  /* boot time in nanoseconds when the reader last went on */
	_Atomic int64_t let_go; /* the same when the watchdog began to let go */
	_Atomic int state;
	uint64_t saved_bytes; /* the watchdog's until LET_GO, then the reader's */
	_Alignas(4096) uint8_t saved[SAVED_BYTES]; /* messages as of events, one behind the other */
};

struct watchdog {
	struct watch *watch;
	pid_t process;
	int pipe; /* our end */
};

/* `program`: the path of the watchdog. 0 or a negative errno with *step naming what failed. */
int watchdog_start(struct watchdog *watchdog, const char *program, const struct mnl_socket *events,
		   uint32_t patience_milliseconds, const char **step);

/* The reader goes on. */
void watchdog_feed(struct watchdog *watchdog, int64_t now);

/* Whether the socket was let go, and since when. */
bool watchdog_let_go(struct watchdog *watchdog, int64_t *since);

/* What was saved is booked and the socket is in its group again. */
void watchdog_again(struct watchdog *watchdog, int64_t now);

void watchdog_stop(struct watchdog *watchdog);

#endif
