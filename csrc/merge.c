/* Ended flows that wait for a batch. While the server is away nothing is sealed, and connections end all the same:
 * what waits gives up resolution, then its place, and no byte goes uncounted. Merged entries are ended flows like any
 * other but for their identity, which no flow of the kernel has. */
#include <string.h>

#include "ledger.h"
#include "transaction.h"

/* flow_key.start of a merged entry: no flow began in the first nanoseconds of 1970. */
enum merged { NOT_MERGED = 0, BY_PORT = 1, BY_ADDRESSES = 2 };

/* How finely the next one to wait may be told from others. */
static enum merged resolution(const struct ledger *ledger)
{
	uint64_t waiting = ledger->header->totals.waiting_flows;
	return waiting < ledger->limits.whole ? NOT_MERGED : waiting < ledger->limits.by_port ? BY_PORT : BY_ADDRESSES;
}

/* Gives up what the merged entry does not tell. The client is the source: it sent the first packet. */
static void generalise(struct flow_key *key, struct reply_tuple *reply, enum merged merged, uint64_t seed)
{
	key->start = merged;
	key->source_port = reply->destination_port = 0;
	if (merged == BY_ADDRESSES)
		key->destination_port = reply->source_port = 0;
	key->zone = 0;
	key->zone_direction = ZONE_BOTH;
	/* Those whose replies come from elsewhere are others: each has a hash, though not an identity, of its own. */
	key->id = (uint32_t)bytes_checksum(reply, sizeof *reply, seed);
}

static uint32_t find_merged(const struct ledger *ledger, const struct flow_key *key,
			    const struct reply_tuple *reply, uint32_t hash)
{
	size_t position = hash;
	for (uint32_t number; (number = index_next(&ledger->index, hash, &position)) != NO_ENTRY;) {
		const struct entry *found = entry_at(ledger, number);
		if (same_identity(&found->key, key) && memcmp(&found->reply, reply, sizeof *reply) == 0)
			return number;
	}
	return NO_ENTRY;
}

static void unlink_pending(struct ledger *ledger, uint32_t number)
{
	struct ledger_header *header = ledger->header;
	struct entry *entry = entry_at(ledger, number);
	bool first = number == header->pending_head;
	ledger_touch(ledger, number);
	if (first) {
		header->pending_head = entry->next_pending;
	} else {
		ledger_touch(ledger, entry->previous_pending);
		entry_at(ledger, entry->previous_pending)->next_pending = entry->next_pending;
	}
	if (number == header->pending_tail) {
		header->pending_tail = first ? NO_ENTRY : entry->previous_pending;
	} else if (!first) {
		ledger_touch(ledger, entry->next_pending);
		entry_at(ledger, entry->next_pending)->previous_pending = entry->previous_pending;
	}
	entry->key.flags &= (uint8_t)~FLAG_PENDING;
	header->totals.pending_flows--;
}

/* Nobody will report this. */
static void overflow(struct ledger *ledger, uint32_t number)
{
	struct meter_totals *totals = &ledger->header->totals;
	const struct entry *entry = entry_at(ledger, number);
	uint64_t packets = pending_packets(entry), bytes = pending_bytes(entry);
	unlink_pending(ledger, number);
	totals->pending_packets -= packets;
	totals->pending_bytes -= bytes;
	totals->ignored_overflow_packets += packets;
	totals->ignored_overflow_bytes += bytes;
	ledger_free(ledger, number);
}

static void merge(struct ledger *ledger, uint32_t number, uint32_t into)
{
	const struct entry *entry = entry_at(ledger, number);
	struct entry *merged = entry_at(ledger, into);
	ledger_touch(ledger, into);
	for (int i = 0; i < COUNTERS; i++)
		merged->last[i] += entry->last[i] - entry->reported[i];
	unlink_pending(ledger, number);
	ledger_free(ledger, number);
}

/* The first of its kind: the entry itself becomes the merged one. */
static void become_merged(struct ledger *ledger, uint32_t number, const struct flow_key *key,
			  const struct reply_tuple *reply, uint32_t hash)
{
	struct entry *entry = entry_at(ledger, number);
	index_remove(&ledger->index, entry->hash, number);
	entry->key = *key;
	entry->key.flags |= FLAG_EXPIRED | FLAG_SUPERSEDED; /* no sighting is its */
	entry->reply = *reply;
	entry->hash = hash;
	(void)index_add(&ledger->index, hash, number); /* into the room of the one removed */
	ledger->header->totals.waiting_flows++;
}

void ledger_wait(struct ledger *ledger, uint32_t number)
{
	struct meter_totals *totals = &ledger->header->totals;
	struct entry *entry = entry_at(ledger, number);
	enum merged merged = resolution(ledger);
	ledger_touch(ledger, number);
	if (merged == NOT_MERGED) {
		entry->key.flags |= FLAG_EXPIRED;
		totals->waiting_flows++;
		return;
	}
	struct flow_key key = entry->key;
	struct reply_tuple reply = entry->reply;
	generalise(&key, &reply, merged, ledger->header->seed);
	uint32_t hash = key_hash(&key, ledger->header->seed);
	uint32_t into = find_merged(ledger, &key, &reply, hash);
	if (into == NO_ENTRY && merged == BY_ADDRESSES && totals->waiting_flows >= ledger->limits.by_addresses) {
		overflow(ledger, number);
		return;
	}
	totals->merged_flows++;
	if (into == NO_ENTRY)
		become_merged(ledger, number, &key, &reply, hash);
	else
		merge(ledger, number, into);
}
