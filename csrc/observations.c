/* Bulk decoder of the original's Submit stream.
 *
 * Contract: observation_decode() takes concatenated gRPC frames (1 byte flag, 4 bytes big-endian length,
 * message) and appends one row per Observation to the caller's column arrays. It allocates nothing, reads
 * only inside [frames, frames + length), writes only below `capacity`, and keeps no pointer into its input. A
 * frame is decoded as a whole or not at all, so that after FULL the same bytes can be given again from
 * `consumed` on. After an error the frames before the bad one are decoded and `consumed` points at the bad
 * one.
 *
 * Protobuf as the official parsers read proto3: fields in any order, the last value of a scalar wins,
 * submessages given twice are merged, setting one member of a oneof clears the other, unknown fields and
 * known fields with another wire type are skipped, groups too; varints have at most ten bytes and lose their
 * upper bits; a field number of 0, a tag above 32 bits, an unbalanced group, a length beyond its message and
 * a string that is not UTF-8 are errors.
 *
 * Addresses: 16 bytes in ::ffff:0:0/96 are IPv4, as Go's net.IP has it. Ports keep their low 16 bits, as
 * there. */
#include "observations.h"

#include <string.h>

enum { MAX_GROUP_DEPTH = 100, FRAME_PREFIX = 5, HTTP2_HEADER = 9 };
enum { PROTOCOL_TCP = 6, PROTOCOL_UDP = 17 };
enum wire_type { VARINT = 0, FIXED64 = 1, DELIMITED = 2, GROUP_START = 3, GROUP_END = 4, FIXED32 = 5 };
enum address_kind { ADDRESS_NONE = 0, ADDRESS_V4, ADDRESS_V6, ADDRESS_BAD };

struct reader {
	const uint8_t *at;
	const uint8_t *end;
};

struct tag {
	uint32_t number;
	uint32_t type;
};

struct endpoint {
	enum address_kind kind;
	uint32_t v4;
	uint64_t v6[2];
	uint32_t port;
};

struct tuple {
	struct endpoint source;
	struct endpoint destination;
	uint64_t packets;
	uint64_t bytes;
};

struct observation {
	uint32_t protocol;
	struct tuple original;
	struct tuple reply;
	const uint8_t *name;
	size_t name_length;
	uint64_t timestamp;
};

static int read_varint(struct reader *reader, uint64_t *value)
{
	uint64_t result = 0;
	for (unsigned int shift = 0; shift < 70; shift += 7) {
		if (reader->at == reader->end)
			return -1;
		uint8_t byte = *reader->at++;
		result |= (uint64_t)(byte & 0x7F) << shift; /* the tenth byte's upper bits fall off */
		if (!(byte & 0x80)) {
			*value = result;
			return 0;
		}
	}
	return -1;
}

static int read_any_tag(struct reader *reader, struct tag *tag)
{
	const uint8_t *start = reader->at;
	uint64_t value;
	if (read_varint(reader, &value) || value > UINT32_MAX || reader->at - start > 5)
		return -1;
	tag->number = (uint32_t)value >> 3;
	tag->type = (uint32_t)value & 7;
	return 0;
}

static int read_tag(struct reader *reader, struct tag *tag)
{
	return read_any_tag(reader, tag) || tag->number == 0 ? -1 : 0;
}

static int read_delimited(struct reader *reader, struct reader *inner)
{
	uint64_t length;
	if (read_varint(reader, &length) || length > (uint64_t)(reader->end - reader->at))
		return -1;
	inner->at = reader->at;
	inner->end = reader->at + length;
	reader->at += length;
	return 0;
}

static int skip_bytes(struct reader *reader, size_t count)
{
	if ((size_t)(reader->end - reader->at) < count)
		return -1;
	reader->at += count;
	return 0;
}

/* The fields of a group up to its end, groups within it included; no recursion. Field number 0 passes here,
 * as with the official parser. */
static int skip_group(struct reader *reader, uint32_t number)
{
	uint32_t open[MAX_GROUP_DEPTH];
	size_t depth = 0;
	struct reader inner;
	struct tag tag;
	uint64_t ignored;
	open[depth++] = number;
	while (depth) {
		if (read_any_tag(reader, &tag))
			return -1;
		int failed = 0;
		switch (tag.type) {
		case VARINT: failed = read_varint(reader, &ignored); break;
		case FIXED64: failed = skip_bytes(reader, 8); break;
		case DELIMITED: failed = read_delimited(reader, &inner); break;
		case FIXED32: failed = skip_bytes(reader, 4); break;
		case GROUP_START:
			if (depth == MAX_GROUP_DEPTH)
				return -1;
			open[depth++] = tag.number;
			break;
		case GROUP_END:
			if (open[--depth] != tag.number)
				return -1;
			break;
		default: return -1;
		}
		if (failed)
			return -1;
	}
	return 0;
}

static int skip_field(struct reader *reader, struct tag tag)
{
	struct reader inner;
	uint64_t ignored;
	switch (tag.type) {
	case VARINT: return read_varint(reader, &ignored);
	case FIXED64: return skip_bytes(reader, 8);
	case DELIMITED: return read_delimited(reader, &inner);
	case GROUP_START: return skip_group(reader, tag.number);
	case FIXED32: return skip_bytes(reader, 4);
	default: return -1; /* an end without a start, or a type that does not exist */
	}
}

static uint64_t big_endian64(const uint8_t *bytes)
{
	uint64_t value = 0;
	for (size_t i = 0; i < 8; i++)
		value = value << 8 | bytes[i];
	return value;
}

static void set_v6(struct endpoint *endpoint, const uint8_t *bytes, size_t length)
{
	if (length != 16) {
		endpoint->kind = ADDRESS_BAD;
		return;
	}
	uint64_t high = big_endian64(bytes), low = big_endian64(bytes + 8);
	if (high == 0 && low >> 32 == 0xFFFF) {
		endpoint->kind = ADDRESS_V4;
		endpoint->v4 = (uint32_t)low;
		return;
	}
	endpoint->kind = ADDRESS_V6;
	endpoint->v6[0] = high;
	endpoint->v6[1] = low;
}

static int parse_endpoint(struct reader reader, struct endpoint *endpoint)
{
	struct tag tag;
	struct reader inner;
	uint64_t value;
	while (reader.at < reader.end) {
		if (read_tag(&reader, &tag))
			return -1;
		if (tag.number == 1 && tag.type == FIXED32) {
			const uint8_t *at = reader.at;
			if (skip_bytes(&reader, 4))
				return -1;
			endpoint->kind = ADDRESS_V4;
			endpoint->v4 = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
				       (uint32_t)at[3] << 24;
		} else if (tag.number == 2 && tag.type == DELIMITED) {
			if (read_delimited(&reader, &inner))
				return -1;
			set_v6(endpoint, inner.at, (size_t)(inner.end - inner.at));
		} else if (tag.number == 3 && tag.type == VARINT) {
			if (read_varint(&reader, &value))
				return -1;
			endpoint->port = (uint32_t)value;
		} else if (skip_field(&reader, tag)) {
			return -1;
		}
	}
	return 0;
}

static int parse_tuple(struct reader reader, struct tuple *tuple)
{
	struct tag tag;
	struct reader inner;
	while (reader.at < reader.end) {
		if (read_tag(&reader, &tag))
			return -1;
		if ((tag.number == 1 || tag.number == 2) && tag.type == DELIMITED) {
			if (read_delimited(&reader, &inner) ||
			    parse_endpoint(inner, tag.number == 1 ? &tuple->source : &tuple->destination))
				return -1;
		} else if ((tag.number == 3 || tag.number == 4) && tag.type == VARINT) {
			if (read_varint(&reader, tag.number == 3 ? &tuple->packets : &tuple->bytes))
				return -1;
		} else if (skip_field(&reader, tag)) {
			return -1;
		}
	}
	return 0;
}

static int parse_flow(struct reader reader, struct observation *observation)
{
	struct tag tag;
	struct reader inner;
	uint64_t value;
	while (reader.at < reader.end) {
		if (read_tag(&reader, &tag))
			return -1;
		if (tag.number == 1 && tag.type == VARINT) {
			if (read_varint(&reader, &value))
				return -1;
			observation->protocol = (uint32_t)value;
		} else if ((tag.number == 2 || tag.number == 3) && tag.type == DELIMITED) {
			if (read_delimited(&reader, &inner) ||
			    parse_tuple(inner,
					tag.number == 2 ? &observation->original : &observation->reply))
				return -1;
		} else if (skip_field(&reader, tag)) {
			return -1;
		}
	}
	return 0;
}

/* RFC 3629: shortest form only, no surrogates, nothing above U+10FFFF. */
static int is_utf8(const uint8_t *text, size_t length)
{
	size_t i = 0;
	while (i < length) {
		uint8_t lead = text[i];
		size_t more;
		uint8_t low = 0x80, high = 0xBF;
		if (lead < 0x80) {
			i++;
			continue;
		}
		if (lead >= 0xC2 && lead <= 0xDF) {
			more = 1;
		} else if (lead >= 0xE0 && lead <= 0xEF) {
			more = 2;
			low = lead == 0xE0 ? 0xA0 : 0x80;
			high = lead == 0xED ? 0x9F : 0xBF;
		} else if (lead >= 0xF0 && lead <= 0xF4) {
			more = 3;
			low = lead == 0xF0 ? 0x90 : 0x80;
			high = lead == 0xF4 ? 0x8F : 0xBF;
		} else {
			return 0;
		}
		if (length - i <= more || text[i + 1] < low || text[i + 1] > high)
			return 0;
		for (size_t k = 2; k <= more; k++)
			if (text[i + k] < 0x80 || text[i + k] > 0xBF)
				return 0;
		i += more + 1;
	}
	return 1;
}

static int is_node(const struct observation_decoder *decoder, uint32_t node, const uint8_t *name,
		   size_t length)
{
	return decoder->name_length[node] == length &&
	       memcmp(decoder->arena + decoder->name_offset[node], name, length) == 0;
}

static int parse_observation(struct reader reader, struct observation *observation,
			     const struct observation_decoder *decoder)
{
	struct tag tag;
	struct reader inner;
	while (reader.at < reader.end) {
		if (read_tag(&reader, &tag))
			return OBSERVATION_MALFORMED;
		if (tag.number == 1 && tag.type == DELIMITED) {
			if (read_delimited(&reader, &inner) || parse_flow(inner, observation))
				return OBSERVATION_MALFORMED;
		} else if (tag.number == 2 && tag.type == DELIMITED) {
			if (read_delimited(&reader, &inner))
				return OBSERVATION_MALFORMED;
			observation->name = inner.at;
			observation->name_length = (size_t)(inner.end - inner.at);
			int known = decoder->nodes && is_node(decoder, decoder->last_node, observation->name,
							      observation->name_length);
			if (!known && !is_utf8(observation->name, observation->name_length))
				return OBSERVATION_NODE_NAME;
		} else if (tag.number == 3 && tag.type == VARINT) {
			if (read_varint(&reader, &observation->timestamp))
				return OBSERVATION_MALFORMED;
		} else if (skip_field(&reader, tag)) {
			return OBSERVATION_MALFORMED;
		}
	}
	return OBSERVATION_OK;
}

/* The number of a name, given to it now if it is new. */
static int intern(struct observation_decoder *decoder, const uint8_t *name, size_t length, uint32_t *node)
{
	if (decoder->nodes && is_node(decoder, decoder->last_node, name, length)) {
		*node = decoder->last_node;
		return OBSERVATION_OK;
	}
	if (length > OBSERVATION_NAME_BYTES)
		return OBSERVATION_NODE_NAME;
	uint32_t hash = 2166136261U; /* FNV-1a */
	for (size_t i = 0; i < length; i++) {
		if (name[i] < 0x20 || name[i] == 0x7F)
			return OBSERVATION_NODE_NAME;
		hash = (hash ^ name[i]) * 16777619U;
	}
	uint32_t slot = hash & (OBSERVATION_NODE_SLOTS - 1);
	while (decoder->slot[slot]) {
		uint32_t known = decoder->slot[slot] - 1U;
		if (is_node(decoder, known, name, length)) {
			*node = decoder->last_node = known;
			return OBSERVATION_OK;
		}
		slot = (slot + 1) & (OBSERVATION_NODE_SLOTS - 1);
	}
	if (decoder->nodes == OBSERVATION_NODES || OBSERVATION_ARENA - decoder->arena_used < length)
		return OBSERVATION_FULL;
	uint32_t added = decoder->nodes++;
	decoder->name_offset[added] = decoder->arena_used;
	decoder->name_length[added] = (uint8_t)length;
	if (length)
		memcpy(decoder->arena + decoder->arena_used, name, length);
	decoder->arena_used += (uint32_t)length;
	decoder->slot[slot] = (uint16_t)(added + 1);
	*node = decoder->last_node = added;
	return OBSERVATION_OK;
}

static uint64_t add_saturating(uint64_t a, uint64_t b)
{
	return a + b < a ? UINT64_MAX : a + b;
}

static void lose(struct observation_losses *losses, const struct observation *observation)
{
	losses->observations++;
	losses->packets = add_saturating(losses->packets, observation->original.packets);
	losses->packets = add_saturating(losses->packets, observation->reply.packets);
	losses->bytes = add_saturating(losses->bytes, observation->original.bytes);
	losses->bytes = add_saturating(losses->bytes, observation->reply.bytes);
}

static void append(struct observation_rows *rows, const struct observation *observation, uint32_t node,
		   const struct endpoint *const endpoints[4], int family)
{
	size_t row = rows->count++;
	rows->protocol[row] = (uint8_t)observation->protocol;
	rows->node[row] = node;
	rows->timestamp[row] = observation->timestamp;
	for (size_t i = 0; i < 4; i++) {
		if (family == 4) {
			rows->address4[i][row] = endpoints[i]->v4;
		} else {
			rows->address6[i][2 * row] = endpoints[i]->v6[0];
			rows->address6[i][2 * row + 1] = endpoints[i]->v6[1];
		}
		rows->port[i][row] = (uint16_t)endpoints[i]->port;
	}
	rows->counter[0][row] = observation->original.packets;
	rows->counter[1][row] = observation->original.bytes;
	rows->counter[2][row] = observation->reply.packets;
	rows->counter[3][row] = observation->reply.bytes;
}

/* One Observation without its frame. */
int observation_decode_message(struct observation_decoder *decoder, const uint8_t *message, size_t length)
{
	if (decoder->observations >= decoder->capacity)
		return OBSERVATION_FULL;
	struct observation observation;
	memset(&observation, 0, sizeof observation);
	observation.name = message; /* any valid pointer: its length is 0 until the field is seen */
	struct reader reader = {message, message + length};
	uint32_t node;
	int status = parse_observation(reader, &observation, decoder);
	if (status != OBSERVATION_OK)
		return status;
	status = intern(decoder, observation.name, observation.name_length, &node);
	if (status != OBSERVATION_OK)
		return status;
	const struct endpoint *const endpoints[4] = {
		&observation.original.source, &observation.original.destination, &observation.reply.source,
		&observation.reply.destination};
	enum address_kind kind = endpoints[0]->kind;
	int same = kind == endpoints[1]->kind && kind == endpoints[2]->kind && kind == endpoints[3]->kind;
	decoder->observations++;
	if (observation.protocol != PROTOCOL_TCP && observation.protocol != PROTOCOL_UDP)
		lose(&decoder->bad_protocol, &observation);
	else if (same && kind == ADDRESS_V4)
		append(&decoder->rows4, &observation, node, endpoints, 4);
	else if (same && kind == ADDRESS_V6)
		append(&decoder->rows6, &observation, node, endpoints, 6);
	else
		lose(&decoder->bad_address, &observation);
	return OBSERVATION_OK;
}

int observation_decode(struct observation_decoder *decoder, const uint8_t *frames, size_t length,
		       size_t *consumed)
{
	size_t at = 0;
	int status = OBSERVATION_OK;
	while (length - at >= FRAME_PREFIX) {
		const uint8_t *frame = frames + at;
		size_t size = (size_t)frame[1] << 24 | (size_t)frame[2] << 16 | (size_t)frame[3] << 8 |
			      (size_t)frame[4];
		if (frame[0]) {
			status = OBSERVATION_COMPRESSED;
			break;
		}
		if (size > decoder->max_message) {
			status = OBSERVATION_TOO_LARGE;
			break;
		}
		if (length - at - FRAME_PREFIX < size)
			break;
		status = observation_decode_message(decoder, frame + FRAME_PREFIX, size);
		if (status != OBSERVATION_OK)
			break;
		at += FRAME_PREFIX + size;
	}
	*consumed = at;
	return status;
}

/* Forget the slice: rows, losses and names. */
void observation_reset(struct observation_decoder *decoder)
{
	decoder->rows4.count = decoder->rows6.count = 0;
	memset(&decoder->bad_address, 0, sizeof decoder->bad_address);
	memset(&decoder->bad_protocol, 0, sizeof decoder->bad_protocol);
	memset(decoder->slot, 0, sizeof decoder->slot);
	decoder->observations = 0;
	decoder->nodes = decoder->last_node = decoder->arena_used = 0;
}

/* Rewrite whole HTTP/2 frames (RFC 9113 section 4.1) so that neighbouring DATA frames of one stream without
 * flags become one of up to max_frame bytes; all else is copied as it is. A Go gRPC client sends a DATA frame
 * per message, and a Python HTTP/2 stack pays per frame. Flow control counts payload bytes, which stay the
 * same. An empty DATA frame without flags means nothing and is left out.
 *
 * `output` holds `length` bytes. Returns the bytes written; *consumed is where the first incomplete frame
 * begins, or `length` if that frame is longer than max_frame: then all is copied, and the HTTP/2 stack
 * refuses it. *others is how many frames there were that cannot be joined. */
size_t http2_join_data(const uint8_t *input, size_t length, uint8_t *output, size_t max_frame,
		       size_t *consumed, uint32_t *others)
{
	size_t at = 0, written = 0, open_at = 0, open_size = 0;
	uint32_t open_stream = 0; /* 0: the last frame written cannot take more */
	*others = 0;
	while (length - at >= HTTP2_HEADER) {
		const uint8_t *header = input + at;
		size_t size = (size_t)header[0] << 16 | (size_t)header[1] << 8 | (size_t)header[2];
		if (size > max_frame) {
			memcpy(output + written, header, length - at);
			*consumed = length;
			++*others;
			return written + (length - at);
		}
		if (length - at - HTTP2_HEADER < size)
			break;
		at += HTTP2_HEADER + size;
		uint32_t stream = (uint32_t)(header[5] & 0x7F) << 24 | (uint32_t)header[6] << 16 |
				  (uint32_t)header[7] << 8 | (uint32_t)header[8];
		int plain_data = header[3] == 0 && header[4] == 0 && stream != 0;
		if (!plain_data || size == 0)
			++*others;
		if (plain_data && size == 0)
			continue;
		if (plain_data && stream == open_stream && open_size + size <= max_frame) {
			memcpy(output + written, header + HTTP2_HEADER, size);
			written += size;
			open_size += size;
			output[open_at] = (uint8_t)(open_size >> 16);
			output[open_at + 1] = (uint8_t)(open_size >> 8);
			output[open_at + 2] = (uint8_t)open_size;
			continue;
		}
		memcpy(output + written, header, HTTP2_HEADER + size);
		open_stream = plain_data ? stream : 0;
		open_at = written;
		open_size = size;
		written += HTTP2_HEADER + size;
	}
	*consumed = at;
	return written;
}
