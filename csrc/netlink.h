/* The netlink sockets: one for requests and dumps, one that listens to DESTROY events. */
#ifndef KUBENETMON_NETLINK_H
#define KUBENETMON_NETLINK_H

#include <libmnl/libmnl.h>
#include <linux/netlink.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "flow.h"

enum {
	/* The kernel fills up to 32 KiB per message of a dump, if the reader's buffer is that large; small
	 * enough to stay in the cache between the kernel's write and our read. */
	DUMP_BUFFER_BYTES = 32 * 1024,
};

/* Called for every flow of a dump; not 0 ends the dump with that error. */
typedef int (*netlink_flow)(void *context, const struct nlmsghdr *message);

struct requests {
	struct mnl_socket *socket;
	uint32_t sequence;
	bool dirty; /* a reply was not read to its end: the socket is opened anew before the next request */
	uint8_t *buffer;
};

/* 0 or a negative errno, as all functions here. */
int requests_open(struct requests *requests);
void requests_close(struct requests *requests);

struct dump_size {
	uint64_t messages, bytes;
	size_t last; /* bytes of the last datagram that has flows */
};

/* Dumps all flows of both families with their counters left alone (IPCTNL_MSG_CT_GET). -ECANCELED when *stop
 * becomes true. -EINTR when the kernel says that the dump is inconsistent. */
int requests_dump(struct requests *requests, const atomic_bool *stop, netlink_flow flow, void *context,
		  struct dump_size *size);

/* Dumps the flows that have ended and whose DESTROY event some listener on this machine could not take: each
 * will be sent to all listeners again. *whole: false where the kernel may have left some out, as it does while it
 * sends such events. */
int requests_dump_dying(struct requests *requests, const atomic_bool *stop, netlink_flow flow, void *context,
			bool *whole);

/* Asks for the one flow that has this original tuple now; `flow` is called if there is one, whichever life
 * it is in. -ENOENT when there is none. Looking an expired flow up makes the kernel end it, event included. */
int requests_get(struct requests *requests, const struct flow_key *key, netlink_flow flow, void *context);

/* A socket in the group of DESTROY events that never loses one: a full queue makes the kernel try again. */
int events_socket_open(struct mnl_socket **socket, uint32_t buffer_bytes, const char **step);

#endif
