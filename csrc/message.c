#include "message.h"

#include <endian.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

/* NLA_ALIGNTO and NLA_TYPE_MASK, unsigned. */
#define ALIGNMENT ((size_t)4)
#define TYPE_MASK UINT16_C(0x3fff)

const struct nlmsghdr *message_next(const uint8_t *bytes, size_t length, size_t *position)
{
	size_t left = length - *position;
	if (left < sizeof(struct nlmsghdr))
		return NULL;
	const struct nlmsghdr *message = (const struct nlmsghdr *)(const void *)(bytes + *position);
	if (message->nlmsg_len < sizeof(struct nlmsghdr) || message->nlmsg_len > left)
		return NULL;
	size_t step = ((size_t)message->nlmsg_len + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	*position += step < left ? step : left;
	return message;
}

/* A walk over attributes, inlined: 48 ns a flow, against 272 by libmnl's calls and 676 by nfct_nlmsg_parse(), where
 * receiving takes some 1,400. */
struct walk {
	const uint8_t *position;
	size_t left;
	bool malformed;
};

static inline struct walk walk_bytes(const void *bytes, size_t length)
{
	return (struct walk){.position = bytes, .left = length, .malformed = false};
}

static inline const struct nlattr *next_attribute(struct walk *walk)
{
	if (walk->left < sizeof(struct nlattr))
		return NULL;
	const struct nlattr *attribute = (const struct nlattr *)(const void *)walk->position;
	size_t length = attribute->nla_len;
	if (length < sizeof(struct nlattr) || length > walk->left) {
		walk->malformed = true;
		return NULL;
	}
	size_t step = (length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	if (step > walk->left)
		step = walk->left;
	walk->position += step;
	walk->left -= step;
	return attribute;
}

static inline uint16_t type_of(const struct nlattr *attribute)
{
	return attribute->nla_type & TYPE_MASK;
}

static inline const void *payload_of(const struct nlattr *attribute)
{
	return (const uint8_t *)attribute + sizeof(struct nlattr);
}

static inline size_t length_of(const struct nlattr *attribute)
{
	return (size_t)attribute->nla_len - sizeof(struct nlattr);
}

static inline struct walk walk_nested(const struct nlattr *attribute)
{
	return walk_bytes(payload_of(attribute), length_of(attribute));
}

/* The readers of fixed widths: false leaves `value` alone. */
static inline bool read_u8(const struct nlattr *attribute, uint8_t *value)
{
	if (length_of(attribute) < sizeof *value)
		return false;
	memcpy(value, payload_of(attribute), sizeof *value);
	return true;
}

static inline bool read_be16(const struct nlattr *attribute, uint16_t *value)
{
	if (length_of(attribute) < sizeof *value)
		return false;
	memcpy(value, payload_of(attribute), sizeof *value);
	*value = be16toh(*value);
	return true;
}

static inline bool read_be32(const struct nlattr *attribute, uint32_t *value)
{
	if (length_of(attribute) < sizeof *value)
		return false;
	memcpy(value, payload_of(attribute), sizeof *value);
	*value = be32toh(*value);
	return true;
}

static inline bool read_be64(const struct nlattr *attribute, uint64_t *value)
{
	if (length_of(attribute) < sizeof *value)
		return false;
	memcpy(value, payload_of(attribute), sizeof *value);
	*value = be64toh(*value);
	return true;
}

static inline bool read_bytes(const struct nlattr *attribute, uint8_t *bytes, size_t length)
{
	if (length_of(attribute) != length)
		return false;
	memcpy(bytes, payload_of(attribute), length);
	return true;
}

struct tuple {
	uint8_t *source;
	uint8_t *destination;
	uint16_t source_port;
	uint16_t destination_port;
	uint16_t zone;
	uint8_t protocol;
	bool has_zone;
};

static inline bool read_addresses(const struct nlattr *nest, uint8_t family, struct tuple *tuple)
{
	size_t width = family == FAMILY_IPV4 ? 4 : 16;
	uint16_t source_type = family == FAMILY_IPV4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC;
	uint16_t destination_type = family == FAMILY_IPV4 ? CTA_IP_V4_DST : CTA_IP_V6_DST;
	bool has_source = false, has_destination = false;
	struct walk walk = walk_nested(nest);
	for (const struct nlattr *attribute; (attribute = next_attribute(&walk));) {
		if (type_of(attribute) == source_type)
			has_source = read_bytes(attribute, tuple->source, width);
		else if (type_of(attribute) == destination_type)
			has_destination = read_bytes(attribute, tuple->destination, width);
	}
	return has_source && has_destination && !walk.malformed;
}

static inline bool read_protocol(const struct nlattr *nest, struct tuple *tuple)
{
	bool has_number = false, sound = true;
	uint8_t icmp_type = 0, icmp_code = 0;
	struct walk walk = walk_nested(nest);
	for (const struct nlattr *attribute; (attribute = next_attribute(&walk));) {
		switch (type_of(attribute)) {
		case CTA_PROTO_NUM:
			has_number = read_u8(attribute, &tuple->protocol);
			break;
		case CTA_PROTO_SRC_PORT:
		case CTA_PROTO_ICMP_ID:
		case CTA_PROTO_ICMPV6_ID:
			sound &= read_be16(attribute, &tuple->source_port);
			break;
		case CTA_PROTO_DST_PORT:
			sound &= read_be16(attribute, &tuple->destination_port);
			break;
		case CTA_PROTO_ICMP_TYPE:
		case CTA_PROTO_ICMPV6_TYPE:
			sound &= read_u8(attribute, &icmp_type);
			break;
		case CTA_PROTO_ICMP_CODE:
		case CTA_PROTO_ICMPV6_CODE:
			sound &= read_u8(attribute, &icmp_code);
			break;
		default:
			break;
		}
	}
	if (tuple->protocol == IPPROTO_ICMP || tuple->protocol == IPPROTO_ICMPV6)
		tuple->destination_port = (uint16_t)(icmp_type << 8 | icmp_code);
	return has_number && sound && !walk.malformed;
}

static inline bool read_tuple(const struct nlattr *nest, uint8_t family, struct tuple *tuple)
{
	bool has_addresses = false, has_protocol = false;
	struct walk walk = walk_nested(nest);
	for (const struct nlattr *attribute; (attribute = next_attribute(&walk));) {
		switch (type_of(attribute)) {
		case CTA_TUPLE_IP:
			has_addresses = read_addresses(attribute, family, tuple);
			break;
		case CTA_TUPLE_PROTO:
			has_protocol = read_protocol(attribute, tuple);
			break;
		case CTA_TUPLE_ZONE:
			tuple->has_zone = read_be16(attribute, &tuple->zone);
			break;
		default:
			break;
		}
	}
	return has_addresses && has_protocol && !walk.malformed;
}

/* Packets and bytes of one direction, side by side as in `enum counter`. */
static inline bool read_counters(const struct nlattr *nest, uint64_t *packets_and_bytes)
{
	bool has_packets = false, has_bytes = false;
	struct walk walk = walk_nested(nest);
	for (const struct nlattr *attribute; (attribute = next_attribute(&walk));) {
		if (type_of(attribute) == CTA_COUNTERS_PACKETS)
			has_packets = read_be64(attribute, &packets_and_bytes[0]);
		else if (type_of(attribute) == CTA_COUNTERS_BYTES)
			has_bytes = read_be64(attribute, &packets_and_bytes[1]);
	}
	return has_packets && has_bytes && !walk.malformed;
}

static inline bool read_start(const struct nlattr *nest, uint64_t *start)
{
	bool sound = true;
	struct walk walk = walk_nested(nest);
	for (const struct nlattr *attribute; (attribute = next_attribute(&walk));)
		if (type_of(attribute) == CTA_TIMESTAMP_START)
			sound = read_be64(attribute, start);
	return sound && !walk.malformed;
}

static inline uint8_t family_of(const struct nfgenmsg *header)
{
	if (header->nfgen_family == AF_INET)
		return FAMILY_IPV4;
	return header->nfgen_family == AF_INET6 ? FAMILY_IPV6 : FAMILY_NONE;
}

bool message_read(const struct nlmsghdr *message, struct sighting *sighting)
{
	const size_t headers = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(struct nfgenmsg));
	if (message->nlmsg_len < headers)
		return false;
	memset(sighting, 0, sizeof *sighting);
	struct flow_key *key = &sighting->key;
	key->family = family_of((const struct nfgenmsg *)NLMSG_DATA(message));
	if (key->family == FAMILY_NONE)
		return false;
	struct tuple tuple = {.source = key->source, .destination = key->destination};
	bool has_tuple = false, has_original = false, has_reply = false, sound = true;
	struct walk walk = walk_bytes((const uint8_t *)message + headers, message->nlmsg_len - headers);
	for (const struct nlattr *attribute; (attribute = next_attribute(&walk));) {
		switch (type_of(attribute)) {
		case CTA_TUPLE_ORIG:
			has_tuple = read_tuple(attribute, key->family, &tuple);
			break;
		case CTA_TUPLE_REPLY:
			sighting->reply = attribute;
			break;
		case CTA_ZONE:
			sound &= read_be16(attribute, &key->zone);
			break;
		case CTA_STATUS:
			sound &= read_be32(attribute, &sighting->status);
			break;
		case CTA_COUNTERS_ORIG:
			has_original = read_counters(attribute, &sighting->counters[ORIGINAL_PACKETS]);
			sound &= has_original;
			break;
		case CTA_COUNTERS_REPLY:
			has_reply = read_counters(attribute, &sighting->counters[REPLY_PACKETS]);
			sound &= has_reply;
			break;
		case CTA_TIMESTAMP:
			sound &= read_start(attribute, &key->start);
			break;
		case CTA_ID:
			sound &= read_be32(attribute, &key->id);
			break;
		default:
			break;
		}
	}
	if (!has_tuple || !sound || walk.malformed)
		return false;
	if (tuple.has_zone) {
		key->zone = tuple.zone;
		key->zone_direction = ZONE_ORIGINAL;
	}
	key->source_port = tuple.source_port;
	key->destination_port = tuple.destination_port;
	key->protocol = tuple.protocol;
	sighting->has_counters = has_original && has_reply;
	return true;
}

bool message_read_reply(const struct sighting *sighting, struct reply_tuple *reply)
{
	memset(reply, 0, sizeof *reply);
	if (!sighting->reply)
		return false;
	struct tuple tuple = {.source = reply->source, .destination = reply->destination};
	if (!read_tuple(sighting->reply, sighting->key.family, &tuple))
		return false;
	reply->source_port = tuple.source_port;
	reply->destination_port = tuple.destination_port;
	return true;
}
