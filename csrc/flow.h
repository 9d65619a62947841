/* What a flow is: its identity, its reply tuple and its counters, as a netlink message carries them and as
 * the ledger keeps them. Addresses are in network order (IPv4 in the first four bytes, the rest zero), all
 * other numbers in host order. */
#ifndef KUBENETMON_FLOW_H
#define KUBENETMON_FLOW_H

#include <stdbool.h>
#include <stdint.h>

/* Address families as the ledger numbers them; 0 marks a free entry. */
enum { FAMILY_NONE = 0, FAMILY_IPV4 = 4, FAMILY_IPV6 = 6 };

/* Which directions a zone applies to. One of the reply direction alone is no part of the original tuple. */
enum { ZONE_BOTH = 0, ZONE_ORIGINAL = 1 };

enum counter { ORIGINAL_PACKETS, ORIGINAL_BYTES, REPLY_PACKETS, REPLY_BYTES, COUNTERS };

/* The identity of one life of a flow. ICMP has its id in source_port, type and code in destination_port.
 * `flags` is the ledger's own and no part of the identity: it lives in what is padding otherwise. */
struct flow_key {
	uint8_t source[16];
	uint8_t destination[16];
	uint64_t start; /* CTA_TIMESTAMP_START, nanoseconds of the wall clock; 0: the kernel gives none */
	uint32_t id;    /* CTA_ID: a 32-bit hash, nearly unique among the living */
	uint16_t source_port;
	uint16_t destination_port;
	uint16_t zone;
	uint8_t protocol;
	uint8_t family;
	uint8_t zone_direction;
	uint8_t flags;
	uint16_t unused;
};

struct reply_tuple {
	uint8_t source[16];
	uint8_t destination[16];
	uint16_t source_port;
	uint16_t destination_port;
};

/* One flow as one netlink message shows it. */
struct sighting {
	struct flow_key key;
	uint64_t counters[COUNTERS];
	const void *reply; /* the attribute CTA_TUPLE_REPLY inside the message, or NULL */
	uint32_t status;   /* IPS_* of nf_conntrack_common.h */
	bool has_counters;
};

#endif
