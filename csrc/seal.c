#include <endian.h>
#include <errno.h>
#include <string.h>

#include "ledger.h"
#include "transaction.h"

/* The columns of kubenetmon.proto's FlowArrays, in the order of its fields. */
enum column {
	PROTOCOL,
	ORIGINAL_SOURCE_ADDRESS,
	ORIGINAL_DESTINATION_ADDRESS,
	REPLY_SOURCE_ADDRESS,
	REPLY_DESTINATION_ADDRESS,
	ORIGINAL_SOURCE_PORT,
	ORIGINAL_DESTINATION_PORT,
	REPLY_SOURCE_PORT,
	REPLY_DESTINATION_PORT,
	FIRST_COUNTER,
	START_TIME = FIRST_COUNTER + COUNTERS,
	COLUMNS,
};

enum { PORT_WIDTH = 2, COUNTER_WIDTH = 8, TIME_WIDTH = 4 };

/* Where the next item of each column goes. */
struct columns {
	uint8_t *next[COLUMNS];
	size_t address_width;
};

static size_t address_width(uint8_t family)
{
	return family == FAMILY_IPV4 ? 4 : 16;
}

static size_t record_width(uint8_t family)
{
	return 1 + 4 * address_width(family) + 4 * PORT_WIDTH + COUNTERS * COUNTER_WIDTH + TIME_WIDTH;
}

static struct columns columns_at(uint8_t *start, uint8_t family, size_t records)
{
	struct columns columns = {.address_width = address_width(family)};
	for (int column = 0; column < COLUMNS; column++) {
		columns.next[column] = start;
		size_t width = column == PROTOCOL		 ? 1
			       : column < ORIGINAL_SOURCE_PORT	 ? columns.address_width
			       : column < FIRST_COUNTER		 ? PORT_WIDTH
			       : column < START_TIME		 ? COUNTER_WIDTH
								 : TIME_WIDTH;
		start += records * width;
	}
	return columns;
}

/* IPv4 as a little-endian number, IPv6 in network order. */
static void put_address(struct columns *columns, enum column column, const uint8_t *address)
{
	if (columns->address_width == 4) {
		uint32_t number;
		memcpy(&number, address, sizeof number);
		number = htole32(be32toh(number));
		memcpy(columns->next[column], &number, sizeof number);
	} else {
		memcpy(columns->next[column], address, 16);
	}
	columns->next[column] += columns->address_width;
}

static void put_port(struct columns *columns, enum column column, uint16_t port)
{
	port = htole16(port);
	memcpy(columns->next[column], &port, PORT_WIDTH);
	columns->next[column] += PORT_WIDTH;
}

/* In whole seconds; 0 where the kernel gave no time, and for entries merged from several flows. */
static void put_start(struct columns *columns, uint64_t nanoseconds)
{
	uint64_t seconds = nanoseconds / 1000000000;
	uint32_t start = htole32(seconds > UINT32_MAX ? 0 : (uint32_t)seconds);
	memcpy(columns->next[START_TIME], &start, TIME_WIDTH);
	columns->next[START_TIME] += TIME_WIDTH;
}

static void put_record(struct columns *columns, const struct entry *entry)
{
	*columns->next[PROTOCOL]++ = entry->key.protocol;
	put_address(columns, ORIGINAL_SOURCE_ADDRESS, entry->key.source);
	put_address(columns, ORIGINAL_DESTINATION_ADDRESS, entry->key.destination);
	put_address(columns, REPLY_SOURCE_ADDRESS, entry->reply.source);
	put_address(columns, REPLY_DESTINATION_ADDRESS, entry->reply.destination);
	put_port(columns, ORIGINAL_SOURCE_PORT, entry->key.source_port);
	put_port(columns, ORIGINAL_DESTINATION_PORT, entry->key.destination_port);
	put_port(columns, REPLY_SOURCE_PORT, entry->reply.source_port);
	put_port(columns, REPLY_DESTINATION_PORT, entry->reply.destination_port);
	for (int i = 0; i < COUNTERS; i++) {
		uint64_t difference = htole64(entry->last[i] - entry->reported[i]);
		memcpy(columns->next[FIRST_COUNTER + i], &difference, COUNTER_WIDTH);
		columns->next[FIRST_COUNTER + i] += COUNTER_WIDTH;
	}
	put_start(columns, entry->key.start);
}

/* What the first pending entry has pending is in the last batch. */
static void settle_first(struct ledger *ledger)
{
	struct ledger_header *header = ledger->header;
	struct meter_totals *totals = &header->totals;
	uint32_t number = header->pending_head;
	struct entry *entry = entry_at(ledger, number);
	ledger_begin(ledger);
	ledger_touch(ledger, number);
	header->pending_head = entry->next_pending;
	if (header->pending_head == NO_ENTRY)
		header->pending_tail = NO_ENTRY;
	else
		__builtin_prefetch(entry_at(ledger, header->pending_head));
	uint64_t packets = pending_packets(entry), bytes = pending_bytes(entry);
	memcpy(entry->reported, entry->last, sizeof entry->reported);
	entry->key.flags &= (uint8_t)~FLAG_PENDING;
	totals->pending_packets -= packets;
	totals->pending_bytes -= bytes;
	totals->reported_packets += packets;
	totals->reported_bytes += bytes;
	totals->pending_flows--;
	totals->reported_flows++;
	header->settling--;
	bool expired = entry->key.flags & FLAG_EXPIRED;
	if (expired) {
		totals->waiting_flows--;
		ledger_free(ledger, number);
	}
	ledger_commit(ledger);
}

void ledger_settle(struct ledger *ledger)
{
	while (ledger->header->settling > 0)
		settle_first(ledger);
}

void ledger_sealed(struct ledger *ledger, const struct meter_sealed *sealed,
		   const struct meter_interval *interval)
{
	struct ledger_header *header = ledger->header;
	uint32_t records = sealed->ipv4_records + sealed->ipv6_records;
	ledger_begin(ledger);
	header->settling = records;
	if (records > 0)
		header->next_sequence++;
	if (records == header->totals.pending_flows) {
		header->next_report++;
		header->unsealed_from = interval->end;
		header->unsealed_from_monotonic = interval->end_monotonic;
	}
	ledger_commit(ledger);
	ledger_settle(ledger);
}

/* How many of the oldest pending records fit. */
static void choose(const struct ledger *ledger, uint64_t capacity, struct meter_sealed *sealed)
{
	for (uint32_t number = ledger->header->pending_head; number != NO_ENTRY;) {
		const struct entry *entry = entry_at(ledger, number);
		size_t width = record_width(entry->key.family);
		if (sealed->buffer_bytes + width > capacity)
			return;
		sealed->buffer_bytes += width;
		if (entry->key.family == FAMILY_IPV4)
			sealed->ipv4_records++;
		else
			sealed->ipv6_records++;
		number = entry->next_pending;
		if (number != NO_ENTRY)
			__builtin_prefetch(entry_at(ledger, number));
	}
}

int ledger_prepare(struct ledger *ledger, uint8_t *buffer, uint64_t capacity, struct meter_sealed *sealed)
{
	*sealed = (struct meter_sealed){0};
	choose(ledger, capacity, sealed);
	if (ledger->header->pending_head != NO_ENTRY && sealed->buffer_bytes == 0)
		return -ENOBUFS;
	struct columns ipv4 = columns_at(buffer, FAMILY_IPV4, sealed->ipv4_records);
	struct columns ipv6 = columns_at(buffer + sealed->ipv4_records * record_width(FAMILY_IPV4),
					 FAMILY_IPV6, sealed->ipv6_records);
	uint32_t number = ledger->header->pending_head;
	for (uint32_t left = sealed->ipv4_records + sealed->ipv6_records; left > 0; left--) {
		const struct entry *entry = entry_at(ledger, number);
		number = entry->next_pending;
		if (number != NO_ENTRY)
			__builtin_prefetch(entry_at(ledger, number));
		put_record(entry->key.family == FAMILY_IPV4 ? &ipv4 : &ipv6, entry);
		sealed->metered_packets += pending_packets(entry);
		sealed->metered_bytes += pending_bytes(entry);
	}
	return 0;
}

void ledger_number_from(struct ledger *ledger, uint64_t sequence)
{
	ledger_begin(ledger);
	ledger->header->next_sequence = sequence;
	ledger_commit(ledger);
}
