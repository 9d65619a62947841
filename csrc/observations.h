/* The original's Observation stream, decoded in bulk into columns; see observations.c for the contract. */
#ifndef KUBENETMON_OBSERVATIONS_H
#define KUBENETMON_OBSERVATIONS_H

#include <stddef.h>
#include <stdint.h>

/* Distinct node names one slice can hold; hash slots for them, a power of two; the longest name (a DNS
 * subdomain, "Object Names and IDs" of Kubernetes); bytes of all names. */
#define OBSERVATION_NODES 512
#define OBSERVATION_NODE_SLOTS 2048
#define OBSERVATION_NAME_BYTES 253
#define OBSERVATION_ARENA 32768

enum observation_status {
	OBSERVATION_OK = 0, /* every whole frame is decoded; what is left over is a frame's beginning */
	OBSERVATION_FULL = 1, /* rows or names are used up: take the slice, reset, call again */
	OBSERVATION_COMPRESSED = 2, /* a frame's compressed flag is set */
	OBSERVATION_TOO_LARGE = 3, /* a frame is longer than max_message */
	OBSERVATION_MALFORMED = 4, /* not protobuf */
	OBSERVATION_NODE_NAME = 5 /* not UTF-8, too long, or with control characters */
};

/* Rows of one address family. Addresses are one uint32_t a row (IPv4) or two uint64_t, high half first
 * (IPv6), in the order original source, original destination, reply source, reply destination; so are the
 * ports. Counters are original packets, original bytes, reply packets, reply bytes. The caller owns the
 * arrays. */
struct observation_rows {
	size_t count;
	uint8_t *protocol;
	uint32_t *node; /* index into the names */
	uint64_t *timestamp;
	uint32_t *address4[4];
	uint64_t *address6[4];
	uint16_t *port[4];
	uint64_t *counter[4];
};

/* What was read and makes no row. Sums saturate. */
struct observation_losses {
	uint64_t observations;
	uint64_t packets;
	uint64_t bytes;
};

struct observation_decoder {
	size_t capacity; /* rows each family's arrays can hold, and observations one slice takes */
	size_t max_message;
	struct observation_rows rows4;
	struct observation_rows rows6;
	struct observation_losses bad_address; /* missing, of wrong length, or of two families in one flow */
	struct observation_losses bad_protocol; /* neither TCP nor UDP */
	uint64_t observations; /* all of this slice: rows and losses */
	uint32_t nodes;
	uint32_t last_node;
	uint32_t arena_used;
	uint32_t name_offset[OBSERVATION_NODES];
	uint8_t name_length[OBSERVATION_NODES];
	uint16_t slot[OBSERVATION_NODE_SLOTS]; /* 0: free, else index + 1 */
	uint8_t arena[OBSERVATION_ARENA];
};

void observation_reset(struct observation_decoder *decoder);
int observation_decode(struct observation_decoder *decoder, const uint8_t *frames, size_t length,
		       size_t *consumed);
int observation_decode_message(struct observation_decoder *decoder, const uint8_t *message, size_t length);

/* HTTP/2: join neighbouring DATA frames. See observations.c. */
size_t http2_join_data(const uint8_t *input, size_t length, uint8_t *output, size_t max_frame,
		       size_t *consumed, uint32_t *others);

#endif
