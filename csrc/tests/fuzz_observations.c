/* Any bytes as gRPC frames through the decoder, and as HTTP/2 through the joining of DATA frames. */
#include "messages.h"
#include "observations.h"

enum { ROWS = 16, FRAME = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct columns {
	uint8_t protocol[ROWS];
	uint32_t node[ROWS];
	uint64_t timestamp[ROWS];
	uint32_t address4[4][ROWS];
	uint64_t address6[4][2 * ROWS];
	uint16_t port[4][ROWS];
	uint64_t counter[4][ROWS];
};

static void point(struct observation_rows *rows, struct columns *columns)
{
	rows->protocol = columns->protocol;
	rows->node = columns->node;
	rows->timestamp = columns->timestamp;
	for (size_t i = 0; i < 4; i++) {
		rows->address4[i] = columns->address4[i];
		rows->address6[i] = columns->address6[i];
		rows->port[i] = columns->port[i];
		rows->counter[i] = columns->counter[i];
	}
}

static void decode(const uint8_t *data, size_t size)
{
	static struct columns columns4, columns6;
	static struct observation_decoder decoder;
	point(&decoder.rows4, &columns4);
	point(&decoder.rows6, &columns6);
	decoder.capacity = ROWS;
	decoder.max_message = 1 << 16;
	observation_reset(&decoder);
	int status;
	do {
		size_t consumed;
		status = observation_decode(&decoder, data, size, &consumed);
		CHECK(consumed <= size);
		data += consumed;
		size -= consumed;
		CHECK(decoder.observations == decoder.rows4.count + decoder.rows6.count +
						      decoder.bad_address.observations +
						      decoder.bad_protocol.observations);
		CHECK(decoder.observations <= ROWS && decoder.nodes <= OBSERVATION_NODES);
		for (size_t i = 0; i < decoder.rows4.count; i++)
			CHECK(columns4.node[i] < decoder.nodes);
		for (size_t i = 0; i < decoder.rows6.count; i++)
			CHECK(columns6.node[i] < decoder.nodes);
		CHECK(status != OBSERVATION_FULL || decoder.observations > 0);
		observation_reset(&decoder);
	} while (status == OBSERVATION_FULL);
}

static void join(const uint8_t *data, size_t size)
{
	uint8_t *out = malloc(size ? size : 1), *again = malloc(size ? size : 1);
	CHECK(out != NULL && again != NULL);
	size_t consumed, consumed_again;
	uint32_t others, others_again;
	size_t written = http2_join_data(data, size, out, FRAME, &consumed, &others);
	CHECK(written <= consumed && consumed <= size);
	/* What is joined cannot be joined further. */
	CHECK(http2_join_data(out, written, again, FRAME, &consumed_again, &others_again) == written);
	CHECK(consumed_again == written && others_again <= others && memcmp(out, again, written) == 0);
	free(out);
	free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	decode(data, size);
	join(data, size);
	return 0;
}
