/* What is heard while another agent meters: kept until it is sure that the other one heard it too. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "clock.h"
#include "events.h"
#include "message.h"
#include "netlink.h"

struct early_event {
	int64_t received; /* boot time in nanoseconds */
	uint64_t bytes;
};

/* What the listener before received at the same moment may have reached us a little before it reached that one. */
#define OVERLAP_NANOSECONDS INT64_C(50000000)

static bool is_overdue(const struct early_event *event, int64_t listened_until)
{
	return event->received < listened_until - OVERLAP_NANOSECONDS;
}

static void forget_overdue(struct events *events, int64_t listened_until)
{
	size_t position = 0;
	struct early_event event;
	while (position < events->early_used) {
		memcpy(&event, events->early + position, sizeof event);
		if (!is_overdue(&event, listened_until))
			break;
		position += sizeof event + event.bytes;
	}
	events->early_used -= position;
	memmove(events->early, events->early + position, events->early_used);
}

int events_wait(struct events *events, int64_t listened_until)
{
	if (!events->early) {
		events->early = malloc(SPOOL_BYTES);
		if (!events->early)
			return -ENOMEM;
	}
	int64_t now = nanoseconds(CLOCK_BOOTTIME), since;
	watchdog_feed(&events->watchdog, now);
	forget_overdue(events, listened_until);
	struct early_event event;
	while (SPOOL_BYTES - events->early_used >= sizeof event + EVENT_BYTES) {
		uint8_t *next = events->early + events->early_used;
		ssize_t received = recv(mnl_socket_get_fd(events->socket), next + sizeof event, EVENT_BYTES,
					MSG_TRUNC);
		if (received < 0 && errno == EINTR)
			continue;
		if (received <= 0)
			break;
		if (received > EVENT_BYTES) {
			events->truncated++;
			continue;
		}
		event.received = nanoseconds(CLOCK_BOOTTIME);
		event.bytes = NLMSG_ALIGN((uint64_t)received) + 7;
		event.bytes -= event.bytes % 8; /* what follows is aligned */
		memcpy(next, &event, sizeof event);
		events->early_used += sizeof event + event.bytes;
	}
	/* Whoever meters was listening while we were not. */
	if (watchdog_let_go(&events->watchdog, &since) && events_join(events) == 0) {
		watchdog_again(&events->watchdog, now);
		events->listening_since = now;
	}
	return 0;
}

bool events_place_early(struct events *events, int64_t listened_until)
{
	while (events->early_placed < events->early_used) {
		struct early_event event;
		memcpy(&event, events->early + events->early_placed, sizeof event);
		const uint8_t *bytes = events->early + events->early_placed + sizeof event;
		size_t length = 0;
		const struct nlmsghdr *message = message_next(bytes, event.bytes, &length);
		if (message && !is_overdue(&event, listened_until) && !events_place(events, message))
			return false;
		events->early_placed += sizeof event + event.bytes;
	}
	free(events->early);
	events->early = NULL;
	events->early_used = events->early_placed = 0;
	return true;
}
