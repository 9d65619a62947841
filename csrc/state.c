#include "state.h"

#include <errno.h>
#include <string.h>

#include "transaction.h"

/* What the entries add up to. */
struct census {
	uint64_t flows, entries, free, pending, waiting, dead, pending_bytes, pending_packets;
};

uint64_t identity_checksum(const struct ledger_identity *identity)
{
	return bytes_checksum(identity, offsetof(struct ledger_identity, checksum), 1);
}

static enum meter_state_fault check_identity(const struct ledger_identity *found,
					     const struct ledger_identity *wanted)
{
	if (found->magic != wanted->magic)
		return STATE_CORRUPT;
	if (found->version != wanted->version || found->entry_bytes != wanted->entry_bytes)
		return STATE_VERSION;
	if (found->checksum != identity_checksum(found))
		return STATE_CORRUPT;
	if (memcmp(found->boot, wanted->boot, sizeof found->boot) != 0)
		return STATE_OTHER_BOOT;
	return memcmp(found->place, wanted->place, sizeof found->place) != 0 ? STATE_FOREIGN : STATE_OK;
}

static bool undo(struct ledger *ledger, uint64_t room)
{
	const struct undo *undo = &ledger->header->undo;
	if (!undo->active)
		return true;
	if (undo->entries > UNDO_ENTRIES)
		return false;
	for (uint32_t i = 0; i < undo->entries; i++)
		if (undo->numbers[i] >= room)
			return false;
	ledger_rollback(ledger);
	return true;
}

static bool check_entries(struct ledger *ledger, struct census *census, int *error)
{
	struct ledger_header *header = ledger->header;
	header->seen_flows = header->seen_live = 0;
	for (uint32_t number = 0; number < header->used; number++) {
		const struct entry *entry = entry_at(ledger, number);
		const struct flow_key *key = &entry->key;
		if (entry->checksum != entry_checksum(entry, number))
			return false;
		if (key->family == FAMILY_NONE) {
			census->free++;
			continue;
		}
		if ((key->family != FAMILY_IPV4 && key->family != FAMILY_IPV6) ||
		    entry->hash != key_hash(key, header->seed))
			return false;
		census->entries++;
		census->flows += !(key->flags & FLAG_DEAD);
		census->dead += (key->flags & (FLAG_DEAD | FLAG_EXPIRED)) == FLAG_DEAD;
		census->pending += (key->flags & FLAG_PENDING) != 0;
		census->waiting += (key->flags & FLAG_EXPIRED) != 0;
		census->pending_bytes += pending_bytes(entry);
		census->pending_packets += pending_packets(entry);
		if (entry->seen == header->dump) {
			header->seen_flows++;
			header->seen_live += !(key->flags & FLAG_DEAD);
		}
		*error = index_add(&ledger->index, entry->hash, number);
		if (*error)
			return true;
	}
	return true;
}

/* A list is whole when it has as many members as there are entries that belong in it. */
static bool check_pending(const struct ledger *ledger, uint64_t members)
{
	uint32_t last = NO_ENTRY;
	uint64_t count = 0;
	for (uint32_t number = ledger->header->pending_head; number != NO_ENTRY && count <= members; count++) {
		if (number >= ledger->header->used || !(entry_at(ledger, number)->key.flags & FLAG_PENDING) ||
		    entry_at(ledger, number)->key.family == FAMILY_NONE ||
		    (count > 0 && entry_at(ledger, number)->previous_pending != last))
			return false;
		last = number;
		number = entry_at(ledger, number)->next_pending;
	}
	return count == members && ledger->header->pending_tail == last;
}

static bool check_dead(const struct ledger *ledger, uint64_t members)
{
	uint32_t last = NO_ENTRY;
	uint64_t count = 0;
	for (uint32_t number = ledger->header->dead_head; number != NO_ENTRY && count <= members; count++) {
		if (number >= ledger->header->used || entry_at(ledger, number)->key.family == FAMILY_NONE ||
		    (entry_at(ledger, number)->key.flags & (FLAG_DEAD | FLAG_EXPIRED)) != FLAG_DEAD)
			return false;
		last = number;
		number = entry_at(ledger, number)->next_dead;
	}
	return count == members && ledger->header->dead_tail == last;
}

static bool check_free(const struct ledger *ledger, uint64_t members)
{
	uint64_t count = 0;
	for (uint32_t number = ledger->header->free_head; number != NO_ENTRY && count <= members; count++) {
		if (number >= ledger->header->used || entry_at(ledger, number)->key.family != FAMILY_NONE)
			return false;
		number = entry_at(ledger, number)->next_dead;
	}
	return count == members;
}

static bool check_totals(const struct ledger_header *header, const struct census *census)
{
	const struct meter_totals *totals = &header->totals;
	return totals->flows == census->flows && totals->entries == census->entries &&
	       totals->pending_flows == census->pending && totals->waiting_flows == census->waiting &&
	       totals->pending_bytes == census->pending_bytes &&
	       totals->pending_packets == census->pending_packets &&
	       totals->observed_bytes == totals->reported_bytes + totals->ignored_protocol_bytes +
						 totals->ignored_loopback_bytes +
						 totals->ignored_baseline_bytes +
						 totals->ignored_overflow_bytes + totals->pending_bytes &&
	       totals->observed_packets == totals->reported_packets + totals->ignored_protocol_packets +
						   totals->ignored_loopback_packets +
						   totals->ignored_baseline_packets +
						   totals->ignored_overflow_packets + totals->pending_packets;
}

enum meter_state_fault state_take_up(struct ledger *ledger, const struct ledger_identity *identity, int *error)
{
	struct ledger_header *header = ledger->header;
	struct census census = {0};
	*error = 0;
	enum meter_state_fault fault = check_identity(&header->identity, identity);
	if (fault)
		return fault;
	uint64_t room = (ledger->region_bytes - HEADER_BYTES) / sizeof(struct entry);
	if (!undo(ledger, room) || header->checksum != header_checksum(header) || header->draining > 1 ||
	    header->used > header->capacity || header->next_sequence == 0)
		return STATE_CORRUPT;
	if (header->capacity > room)
		return STATE_TRUNCATED;
	if (!check_entries(ledger, &census, error))
		return STATE_CORRUPT;
	if (*error)
		return STATE_OK;
	bool whole = check_pending(ledger, census.pending) && check_dead(ledger, census.dead) &&
		     check_free(ledger, census.free) && check_totals(header, &census) &&
		     header->settling <= census.pending;
	return whole ? STATE_OK : STATE_CORRUPT;
}
