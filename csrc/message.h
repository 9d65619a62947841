/* Reading ctnetlink messages. Pure: no allocation, no state; any bytes are safe to hand in. */
#ifndef KUBENETMON_MESSAGE_H
#define KUBENETMON_MESSAGE_H

#include <linux/netlink.h>
#include <stddef.h>

#include "flow.h"

/* The next whole message of `bytes`, which are aligned as a nlmsghdr is; NULL at the end, or where a length is
 * absurd: then *position stays below `length`. */
const struct nlmsghdr *message_next(const uint8_t *bytes, size_t length, size_t *position);

/* Reads one message of type IPCTNL_MSG_CT_NEW or _DELETE whose nlmsg_len bytes are all there. False when it
 * is malformed or of an address family that conntrack does not have. `sighting->reply` points into it. */
bool message_read(const struct nlmsghdr *message, struct sighting *sighting);

/* Reads the reply tuple that message_read() found; false when it is missing or malformed. */
bool message_read_reply(const struct sighting *sighting, struct reply_tuple *reply);

#endif
