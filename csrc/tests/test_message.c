/* Parsing against libnetfilter_conntrack: both must read the same from the same message. */
#include <libnetfilter_conntrack/libnetfilter_conntrack.h>

#include "message.h"
#include "messages.h"

static const struct test_flow FLOWS[] = {
	{.original = {"192.0.2.1", "198.51.100.9", 40000, 443},
	 .reply = {"10.1.2.3", "192.0.2.1", 8443, 40000},
	 .protocol = IPPROTO_TCP,
	 .id = 0xdeadbeef,
	 .status = 0x18e,
	 .start = 1700000000123456789,
	 .counters = {1, 40, UINT64_MAX, UINT64_MAX - 1}},
	{.original = {"2001:db8::1", "2001:db8::2", 1, 65535},
	 .reply = {"2001:db8::2", "2001:db8::1", 65535, 1},
	 .protocol = IPPROTO_UDP,
	 .zone = 42,
	 .id = 1,
	 .counters = {5, 6, 7, 8}},
	{.original = {"192.0.2.1", "192.0.2.2", 77, 0x0800},
	 .reply = {"192.0.2.2", "192.0.2.1", 77, 0},
	 .protocol = IPPROTO_ICMP,
	 .counters = {3, 252, 3, 252}},
	{.original = {"192.0.2.1", "192.0.2.2", 5, 6},
	 .reply = {"192.0.2.2", "192.0.2.1", 6, 5},
	 .protocol = IPPROTO_UDP,
	 .original_zone = 9,
	 .without_counters = true},
};

static void compare_addresses(const struct nf_conntrack *oracle, const struct sighting *sighting,
			      const struct reply_tuple *reply)
{
	bool ipv6 = sighting->key.family == FAMILY_IPV6;
	size_t width = ipv6 ? 16 : 4;
	CHECK(nfct_get_attr_u8(oracle, ATTR_ORIG_L3PROTO) == (ipv6 ? AF_INET6 : AF_INET));
	const struct {
		enum nf_conntrack_attr attribute;
		const uint8_t *address;
	} pairs[] = {
		{ipv6 ? ATTR_ORIG_IPV6_SRC : ATTR_ORIG_IPV4_SRC, sighting->key.source},
		{ipv6 ? ATTR_ORIG_IPV6_DST : ATTR_ORIG_IPV4_DST, sighting->key.destination},
		{ipv6 ? ATTR_REPL_IPV6_SRC : ATTR_REPL_IPV4_SRC, reply->source},
		{ipv6 ? ATTR_REPL_IPV6_DST : ATTR_REPL_IPV4_DST, reply->destination},
	};
	for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
		CHECK(memcmp(nfct_get_attr(oracle, pairs[i].attribute), pairs[i].address, width) == 0);
}

static void compare_ports(const struct nf_conntrack *oracle, const struct sighting *sighting,
			  const struct reply_tuple *reply)
{
	const struct flow_key *key = &sighting->key;
	if (key->protocol == IPPROTO_ICMP) {
		CHECK(ntohs(nfct_get_attr_u16(oracle, ATTR_ICMP_ID)) == key->source_port);
		CHECK(nfct_get_attr_u8(oracle, ATTR_ICMP_TYPE) == key->destination_port >> 8);
		return;
	}
	CHECK(ntohs(nfct_get_attr_u16(oracle, ATTR_ORIG_PORT_SRC)) == key->source_port);
	CHECK(ntohs(nfct_get_attr_u16(oracle, ATTR_ORIG_PORT_DST)) == key->destination_port);
	CHECK(ntohs(nfct_get_attr_u16(oracle, ATTR_REPL_PORT_SRC)) == reply->source_port);
	CHECK(ntohs(nfct_get_attr_u16(oracle, ATTR_REPL_PORT_DST)) == reply->destination_port);
}

static void test_agrees_with_libnetfilter_conntrack(const struct test_flow *flow)
{
	_Alignas(8) uint8_t buffer[1024];
	const struct nlmsghdr *message = make_message(buffer, flow);
	struct nf_conntrack *oracle = nfct_new();
	CHECK(oracle && nfct_nlmsg_parse(message, oracle) == 0);
	struct sighting sighting;
	struct reply_tuple reply;
	CHECK(message_read(message, &sighting));
	CHECK(message_read_reply(&sighting, &reply));
	compare_addresses(oracle, &sighting, &reply);
	compare_ports(oracle, &sighting, &reply);
	CHECK(nfct_get_attr_u8(oracle, ATTR_ORIG_L4PROTO) == sighting.key.protocol);
	CHECK(nfct_get_attr_u32(oracle, ATTR_ID) == sighting.key.id);
	CHECK(nfct_get_attr_u32(oracle, ATTR_STATUS) == sighting.status);
	CHECK((nfct_attr_is_set(oracle, ATTR_ORIG_COUNTER_BYTES) > 0) == sighting.has_counters);
	CHECK(nfct_get_attr_u64(oracle, ATTR_TIMESTAMP_START) == sighting.key.start);
	if (flow->zone)
		CHECK(nfct_get_attr_u16(oracle, ATTR_ZONE) == sighting.key.zone);
	if (flow->original_zone) {
		CHECK(nfct_get_attr_u16(oracle, ATTR_ORIG_ZONE) == sighting.key.zone);
		CHECK(sighting.key.zone_direction == ZONE_ORIGINAL);
	}
	if (sighting.has_counters) {
		CHECK(nfct_get_attr_u64(oracle, ATTR_ORIG_COUNTER_PACKETS) == sighting.counters[ORIGINAL_PACKETS]);
		CHECK(nfct_get_attr_u64(oracle, ATTR_ORIG_COUNTER_BYTES) == sighting.counters[ORIGINAL_BYTES]);
		CHECK(nfct_get_attr_u64(oracle, ATTR_REPL_COUNTER_PACKETS) == sighting.counters[REPLY_PACKETS]);
		CHECK(nfct_get_attr_u64(oracle, ATTR_REPL_COUNTER_BYTES) == sighting.counters[REPLY_BYTES]);
	}
	nfct_destroy(oracle);
}

/* Every truncation of a message is refused or read within its bounds (the copy ends where the heap does). */
static void test_truncated_messages_are_read_within_bounds(const struct test_flow *flow)
{
	_Alignas(8) uint8_t buffer[1024];
	uint32_t whole = make_message(buffer, flow)->nlmsg_len;
	for (uint32_t length = sizeof(struct nlmsghdr); length < whole; length++) {
		struct nlmsghdr *copy = malloc(length);
		CHECK(copy != NULL);
		memcpy(copy, buffer, length);
		copy->nlmsg_len = length;
		struct sighting sighting;
		struct reply_tuple reply;
		if (message_read(copy, &sighting))
			(void)message_read_reply(&sighting, &reply);
		free(copy);
	}
}

static void test_unknown_family_is_refused(void)
{
	_Alignas(8) uint8_t buffer[1024];
	struct nlmsghdr *message = make_message(buffer, &FLOWS[0]);
	((struct nfgenmsg *)NLMSG_DATA(message))->nfgen_family = AF_UNIX;
	struct sighting sighting;
	CHECK(!message_read(message, &sighting));
}

/* The sound messages as files: what the fuzzer starts from. */
static int write_seeds(const char *directory)
{
	for (size_t i = 0; i < sizeof FLOWS / sizeof FLOWS[0]; i++) {
		_Alignas(8) uint8_t buffer[1024];
		char path[4096];
		const struct nlmsghdr *message = make_message(buffer, &FLOWS[i]);
		CHECK(snprintf(path, sizeof path, "%s/flow%zu", directory, i) < (int)sizeof path);
		FILE *file = fopen(path, "wb");
		CHECK(file && fwrite(message, message->nlmsg_len, 1, file) == 1 && fclose(file) == 0);
	}
	return 0;
}

int main(int count, char **arguments)
{
	if (count == 2)
		return write_seeds(arguments[1]);
	for (size_t i = 0; i < sizeof FLOWS / sizeof FLOWS[0]; i++) {
		test_agrees_with_libnetfilter_conntrack(&FLOWS[i]);
		test_truncated_messages_are_read_within_bounds(&FLOWS[i]);
	}
	test_unknown_family_is_refused();
	puts("message: ok");
	return 0;
}
