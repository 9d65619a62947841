/* Netlink messages as the kernel makes them, for tests: one flow at a time, with what the test wants in it. */
#ifndef KUBENETMON_TESTS_MESSAGES_H
#define KUBENETMON_TESTS_MESSAGES_H

#include <arpa/inet.h>
#include <endian.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flow.h"

#define CHECK(condition)                                                                             \
	do {                                                                                         \
		if (!(condition)) {                                                                  \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);      \
			exit(1);                                                                     \
		}                                                                                    \
	} while (0)

struct test_tuple {
	const char *source, *destination; /* with a colon: IPv6 */
	uint16_t source_port, destination_port;
};

struct test_flow {
	struct test_tuple original, reply;
	uint8_t protocol;
	uint16_t zone;          /* CTA_ZONE when not 0 */
	uint16_t original_zone; /* CTA_TUPLE_ZONE of the original tuple when not 0 */
	uint32_t id;
	uint32_t status;
	uint64_t start; /* CTA_TIMESTAMP when not 0 */
	bool without_counters;
	uint64_t counters[COUNTERS];
};

static inline void put_tuple(struct nlmsghdr *message, uint16_t type, const struct test_tuple *tuple,
			     uint8_t protocol, uint16_t zone)
{
	uint8_t address[16];
	bool ipv6 = strchr(tuple->source, ':') != NULL;
	size_t width = ipv6 ? 16 : 4;
	struct nlattr *nest = mnl_attr_nest_start(message, type);
	struct nlattr *inner = mnl_attr_nest_start(message, CTA_TUPLE_IP);
	CHECK(inet_pton(ipv6 ? AF_INET6 : AF_INET, tuple->source, address) == 1);
	mnl_attr_put(message, ipv6 ? CTA_IP_V6_SRC : CTA_IP_V4_SRC, width, address);
	CHECK(inet_pton(ipv6 ? AF_INET6 : AF_INET, tuple->destination, address) == 1);
	mnl_attr_put(message, ipv6 ? CTA_IP_V6_DST : CTA_IP_V4_DST, width, address);
	mnl_attr_nest_end(message, inner);
	inner = mnl_attr_nest_start(message, CTA_TUPLE_PROTO);
	mnl_attr_put_u8(message, CTA_PROTO_NUM, protocol);
	if (protocol == IPPROTO_ICMP) {
		mnl_attr_put_u16(message, CTA_PROTO_ICMP_ID, htons(tuple->source_port));
		mnl_attr_put_u8(message, CTA_PROTO_ICMP_TYPE, (uint8_t)(tuple->destination_port >> 8));
		mnl_attr_put_u8(message, CTA_PROTO_ICMP_CODE, (uint8_t)tuple->destination_port);
	} else {
		mnl_attr_put_u16(message, CTA_PROTO_SRC_PORT, htons(tuple->source_port));
		mnl_attr_put_u16(message, CTA_PROTO_DST_PORT, htons(tuple->destination_port));
	}
	mnl_attr_nest_end(message, inner);
	if (zone)
		mnl_attr_put_u16(message, CTA_TUPLE_ZONE, htons(zone));
	mnl_attr_nest_end(message, nest);
}

static inline void put_counters(struct nlmsghdr *message, uint16_t type, const uint64_t *counters)
{
	struct nlattr *nest = mnl_attr_nest_start(message, type);
	mnl_attr_put_u64(message, CTA_COUNTERS_PACKETS, htobe64(counters[0]));
	mnl_attr_put_u64(message, CTA_COUNTERS_BYTES, htobe64(counters[1]));
	mnl_attr_nest_end(message, nest);
}

/* `buffer` takes any flow with 1024 bytes. */
static inline struct nlmsghdr *make_message(void *buffer, const struct test_flow *flow)
{
	struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
	message->nlmsg_type = (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_NEW;
	struct nfgenmsg *header = mnl_nlmsg_put_extra_header(message, sizeof *header);
	header->nfgen_family = strchr(flow->original.source, ':') ? AF_INET6 : AF_INET;
	put_tuple(message, CTA_TUPLE_ORIG, &flow->original, flow->protocol, flow->original_zone);
	put_tuple(message, CTA_TUPLE_REPLY, &flow->reply, flow->protocol, 0);
	if (flow->zone)
		mnl_attr_put_u16(message, CTA_ZONE, htons(flow->zone));
	mnl_attr_put_u32(message, CTA_STATUS, htonl(flow->status));
	mnl_attr_put_u32(message, CTA_TIMEOUT, htonl(120));
	if (!flow->without_counters) {
		put_counters(message, CTA_COUNTERS_ORIG, &flow->counters[ORIGINAL_PACKETS]);
		put_counters(message, CTA_COUNTERS_REPLY, &flow->counters[REPLY_PACKETS]);
	}
	if (flow->start) {
		struct nlattr *nest = mnl_attr_nest_start(message, CTA_TIMESTAMP);
		mnl_attr_put_u64(message, CTA_TIMESTAMP_START, htobe64(flow->start));
		mnl_attr_nest_end(message, nest);
	}
	mnl_attr_put_u32(message, CTA_MARK, htonl(7));
	mnl_attr_put_u32(message, CTA_ID, htonl(flow->id));
	return message;
}

#endif
