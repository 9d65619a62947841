/* The decoder of Observations and the joining of DATA frames, at their bounds. What protobuf means is tested
 * from Python against the official parser; here memory is looked at. Given a directory, writes what the
 * fuzzer starts from. */
#include "observations.h"
#include "messages.h"

enum { ROWS = 8, FRAME = 64 };

struct rig {
	struct observation_decoder decoder;
	uint8_t protocol[2][ROWS];
	uint32_t node[2][ROWS];
	uint64_t timestamp[2][ROWS];
	uint32_t address4[4][ROWS];
	uint64_t address6[4][2 * ROWS];
	uint16_t port[2][4][ROWS];
	uint64_t counter[2][4][ROWS];
};

/* On the heap, so that a write past any array of the last kind is seen. */
static struct rig *rig_new(size_t capacity)
{
	struct rig *rig = calloc(1, sizeof *rig);
	CHECK(rig != NULL);
	struct observation_rows *families[] = {&rig->decoder.rows4, &rig->decoder.rows6};
	rig->decoder.capacity = capacity;
	rig->decoder.max_message = 1000;
	for (size_t family = 0; family < 2; family++) {
		families[family]->protocol = rig->protocol[family];
		families[family]->node = rig->node[family];
		families[family]->timestamp = rig->timestamp[family];
		for (size_t i = 0; i < 4; i++) {
			families[family]->address4[i] = rig->address4[i];
			families[family]->address6[i] = rig->address6[i];
			families[family]->port[i] = rig->port[family][i];
			families[family]->counter[i] = rig->counter[family][i];
		}
	}
	observation_reset(&rig->decoder);
	return rig;
}

static size_t put_field(uint8_t *out, unsigned int number, const uint8_t *value, size_t length)
{
	CHECK(length < 128);
	out[0] = (uint8_t)(number << 3 | 2);
	out[1] = (uint8_t)length;
	if (length)
		memcpy(out + 2, value, length);
	return length + 2;
}

/* A framed TCP observation of 40 packets and 50 bytes each way; the address is `address_length` bytes of v6,
 * or v4. */
static size_t put_frame(uint8_t *out, size_t address_length, const char *name)
{
	uint8_t endpoint[40], tuple[100], flow[120], message[300];
	const uint8_t v6[20] = {0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7};
	const uint8_t v4[5] = {1 << 3 | 5, 4, 3, 2, 1};
	size_t size = address_length ? put_field(endpoint, 2, v6, address_length) : sizeof v4;
	if (!address_length)
		memcpy(endpoint, v4, sizeof v4);
	endpoint[size++] = 3 << 3;
	endpoint[size++] = 80;
	size_t tuple_size = put_field(tuple, 1, endpoint, size);
	tuple_size += put_field(tuple + tuple_size, 2, endpoint, size);
	const uint8_t counters[] = {3 << 3, 40, 4 << 3, 50};
	memcpy(tuple + tuple_size, counters, sizeof counters);
	tuple_size += sizeof counters;
	size_t flow_size = 0;
	flow[flow_size++] = 1 << 3;
	flow[flow_size++] = 6;
	flow_size += put_field(flow + flow_size, 2, tuple, tuple_size);
	uint8_t *whole = message;
	whole += put_field(whole, 2, (const uint8_t *)name, strlen(name));
	whole += put_field(whole, 1, flow, flow_size);
	/* The reply comes in a second part of the flow, which is merged with the first. */
	flow_size = put_field(flow, 3, tuple, tuple_size);
	whole += put_field(whole, 1, flow, flow_size);
	*whole++ = 3 << 3;
	*whole++ = 99;
	size_t length = (size_t)(whole - message);
	const uint8_t prefix[5] = {0, 0, 0, (uint8_t)(length >> 8), (uint8_t)length};
	memcpy(out, prefix, sizeof prefix);
	memcpy(out + sizeof prefix, message, length);
	return sizeof prefix + length;
}

/* Decode from a copy that ends where the heap does, so that a read beyond it is seen. */
static int decode_copy(struct rig *rig, const uint8_t *bytes, size_t length, size_t *consumed)
{
	uint8_t *copy = malloc(length ? length : 1);
	CHECK(copy != NULL);
	memcpy(copy, bytes, length);
	int status = observation_decode(&rig->decoder, copy, length, consumed);
	free(copy);
	return status;
}

static void test_rows(void)
{
	struct rig *rig = rig_new(ROWS);
	uint8_t bytes[1000];
	size_t size = put_frame(bytes, 0, "a"), consumed;
	size += put_frame(bytes + size, 16, "b");
	size += put_frame(bytes + size, 15, "a");
	CHECK(decode_copy(rig, bytes, size, &consumed) == OBSERVATION_OK && consumed == size);
	CHECK(rig->decoder.observations == 3 && rig->decoder.nodes == 2);
	CHECK(rig->decoder.rows4.count == 1 && rig->decoder.rows6.count == 1);
	CHECK(rig->decoder.bad_address.observations == 1 && rig->decoder.bad_address.bytes == 100);
	CHECK(rig->address4[3][0] == 0x01020304 && rig->port[0][2][0] == 80);
	CHECK(rig->address6[0][0] == 0x20010db800000000 && rig->address6[3][1] == 7);
	CHECK(rig->counter[0][2][0] == 40 && rig->counter[1][3][0] == 50 && rig->timestamp[1][0] == 99);
	CHECK(rig->node[0][0] == 0 && rig->node[1][0] == 1);
	free(rig);
}

static void test_every_cut_is_waited_for(void)
{
	uint8_t bytes[600];
	size_t first = put_frame(bytes, 16, "node-1");
	size_t size = first + put_frame(bytes + first, 0, "node-2");
	for (size_t length = 0; length <= size; length++) {
		struct rig *rig = rig_new(ROWS);
		size_t consumed;
		CHECK(decode_copy(rig, bytes, length, &consumed) == OBSERVATION_OK);
		CHECK(consumed == (length < first ? 0 : length < size ? first : size));
		free(rig);
	}
}

static void test_every_cut_of_a_message_is_safe(void)
{
	uint8_t bytes[300];
	size_t size = put_frame(bytes, 16, "node-1");
	for (size_t length = 5; length < size; length++) {
		struct rig *rig = rig_new(ROWS);
		size_t consumed;
		bytes[3] = (uint8_t)((length - 5) >> 8);
		bytes[4] = (uint8_t)(length - 5);
		int status = decode_copy(rig, bytes, length, &consumed);
		CHECK(status == OBSERVATION_OK || status == OBSERVATION_MALFORMED);
		free(rig);
	}
}

static void test_a_full_slice_takes_no_more(void)
{
	struct rig *rig = rig_new(2);
	uint8_t bytes[1000];
	size_t one = put_frame(bytes, 0, "a"), size = one, consumed;
	size += put_frame(bytes + size, 0, "a");
	size += put_frame(bytes + size, 0, "a");
	CHECK(decode_copy(rig, bytes, size, &consumed) == OBSERVATION_FULL && consumed == 2 * one);
	CHECK(rig->decoder.rows4.count == 2);
	observation_reset(&rig->decoder);
	CHECK(decode_copy(rig, bytes + consumed, one, &consumed) == OBSERVATION_OK && consumed == one);
	free(rig);
}

static void test_names_beyond_the_table_fill_the_slice(void)
{
	struct rig *rig = rig_new(OBSERVATION_NODES + 1);
	uint8_t bytes[300];
	size_t consumed;
	int status = OBSERVATION_OK;
	for (unsigned int i = 0; i < OBSERVATION_NODES + 1 && status == OBSERVATION_OK; i++) {
		char name[128];
		snprintf(name, sizeof name, "node-%0100u", i);
		/* Without usable addresses, so that no row is written. */
		size_t size = put_frame(bytes, 1, name);
		status = decode_copy(rig, bytes, size, &consumed);
	}
	CHECK(status == OBSERVATION_FULL && consumed == 0);
	CHECK(rig->decoder.nodes > 250 && rig->decoder.arena_used <= OBSERVATION_ARENA);
	free(rig);
}

static size_t put_http2(uint8_t *out, uint8_t type, uint8_t flags, uint8_t stream, size_t length)
{
	const uint8_t header[9] = {(uint8_t)(length >> 16),
				   (uint8_t)(length >> 8),
				   (uint8_t)length,
				   type,
				   flags,
				   0,
				   0,
				   0,
				   stream};
	memcpy(out, header, sizeof header);
	memset(out + sizeof header, stream, length);
	return sizeof header + length;
}

static void test_neighbouring_data_is_joined(void)
{
	uint8_t in[1000], out[1000], expected[1000];
	size_t size = 0, wanted = 0, consumed;
	uint32_t others;
	for (int i = 0; i < 5; i++)
		size += put_http2(in + size, 0, 0, 1, 20); /* 60 fit a frame */
	size += put_http2(in + size, 0, 0, 3, 20);
	size += put_http2(in + size, 0, 0, 3, 0); /* nothing */
	size += put_http2(in + size, 0, 0, 3, 1);
	size += put_http2(in + size, 0, 1, 3, 5); /* the end of the stream stays by itself */
	size += put_http2(in + size, 8, 0, 1, 4);
	size_t whole = size;
	size += put_http2(in + size, 0, 0, 1, 30) - 1; /* not whole yet */
	wanted += put_http2(expected + wanted, 0, 0, 1, 60);
	wanted += put_http2(expected + wanted, 0, 0, 1, 40);
	wanted += put_http2(expected + wanted, 0, 0, 3, 21);
	wanted += put_http2(expected + wanted, 0, 1, 3, 5);
	wanted += put_http2(expected + wanted, 8, 0, 1, 4);
	CHECK(http2_join_data(in, size, out, FRAME, &consumed, &others) == wanted);
	CHECK(consumed == whole && others == 3 && memcmp(out, expected, wanted) == 0);
	/* A frame that is too long is passed on for the HTTP/2 stack to refuse. */
	size = put_http2(in, 0, 0, 1, FRAME + 1);
	CHECK(http2_join_data(in, 20, out, FRAME, &consumed, &others) == 20 && consumed == 20);
	CHECK(memcmp(in, out, 20) == 0 && size > 20);
}

static void write_file(const char *directory, const char *name, const uint8_t *bytes, size_t length)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	FILE *file = fopen(path, "wb");
	CHECK(file != NULL && fwrite(bytes, 1, length, file) == length && fclose(file) == 0);
}

static void write_first_inputs(const char *directory)
{
	uint8_t bytes[1000];
	size_t size = put_frame(bytes, 0, "node-1");
	write_file(directory, "ipv4", bytes, size);
	size += put_frame(bytes + size, 16, "node-2");
	size += put_frame(bytes + size, 3, "node-1");
	write_file(directory, "mixed", bytes, size);
	size = put_http2(bytes, 0, 0, 1, 20);
	size += put_http2(bytes + size, 0, 0, 1, 20);
	size += put_http2(bytes + size, 1, 4, 3, 9);
	write_file(directory, "http2", bytes, size);
}

int main(int count, char **arguments)
{
	if (count > 1) {
		write_first_inputs(arguments[1]);
		return 0;
	}
	test_rows();
	test_every_cut_is_waited_for();
	test_every_cut_of_a_message_is_safe();
	test_a_full_slice_takes_no_more();
	test_names_beyond_the_table_fill_the_slice();
	test_neighbouring_data_is_joined();
	return 0;
}
