#include <linux/netfilter/nf_conntrack_common.h>
#include <string.h>

#include "ledger.h"
#include "transaction.h"

enum {
	TOMBSTONE_DUMPS = 2, /* full dumps that a flow booked dead may still turn up in */
	ABSENT_DUMPS = 2,    /* full dumps in a row that must miss a flow before the kernel is asked for it */
};

static bool any_fell(const struct entry *entry, const uint64_t *counters)
{
	return counters[ORIGINAL_PACKETS] < entry->last[ORIGINAL_PACKETS] ||
	       counters[ORIGINAL_BYTES] < entry->last[ORIGINAL_BYTES] ||
	       counters[REPLY_PACKETS] < entry->last[REPLY_PACKETS] ||
	       counters[REPLY_BYTES] < entry->last[REPLY_BYTES];
}

static bool any_moved(const struct entry *entry, const uint64_t *counters)
{
	return ((counters[0] ^ entry->last[0]) | (counters[1] ^ entry->last[1]) |
		(counters[2] ^ entry->last[2]) | (counters[3] ^ entry->last[3])) != 0;
}

static void link_pending(struct ledger *ledger, uint32_t tail, uint32_t number)
{
	ledger_touch(ledger, tail);
	entry_at(ledger, tail)->next_pending = number;
}

/* Moves `last` to these counters, none of which fell, and books the difference. */
static void advance(struct ledger *ledger, uint32_t number, const uint64_t *counters)
{
	struct entry *entry = entry_at(ledger, number);
	if (!any_moved(entry, counters))
		return;
	struct ledger_header *header = ledger->header;
	struct meter_totals *totals = &header->totals;
	uint64_t packets = counters[ORIGINAL_PACKETS] - entry->last[ORIGINAL_PACKETS] +
			   counters[REPLY_PACKETS] - entry->last[REPLY_PACKETS];
	uint64_t bytes = counters[ORIGINAL_BYTES] - entry->last[ORIGINAL_BYTES] + counters[REPLY_BYTES] -
			 entry->last[REPLY_BYTES];
	ledger_touch(ledger, number);
	memcpy(entry->last, counters, sizeof entry->last);
	header->changes++;
	totals->observed_packets += packets;
	totals->observed_bytes += bytes;
	if (entry->key.flags & FLAG_PROTOCOL) {
		totals->ignored_protocol_packets += packets;
		totals->ignored_protocol_bytes += bytes;
	} else if (entry->key.flags & FLAG_LOOPBACK) {
		totals->ignored_loopback_packets += packets;
		totals->ignored_loopback_bytes += bytes;
	} else {
		totals->pending_packets += packets;
		totals->pending_bytes += bytes;
		if (entry->key.flags & FLAG_PENDING)
			return;
		entry->key.flags |= FLAG_PENDING;
		entry->next_pending = NO_ENTRY;
		entry->previous_pending = header->pending_tail;
		if (header->pending_tail == NO_ENTRY)
			header->pending_head = number;
		else
			link_pending(ledger, header->pending_tail, number);
		header->pending_tail = number;
		totals->pending_flows++;
		return;
	}
	memcpy(entry->reported, counters, sizeof entry->reported);
}

/* Another process set the counters to zero: what is pending stays, `last` starts at zero again. */
static void rebase(struct ledger *ledger, uint32_t number)
{
	struct entry *entry = entry_at(ledger, number);
	ledger_touch(ledger, number);
	for (int i = 0; i < COUNTERS; i++) {
		entry->reported[i] -= entry->last[i]; /* modulo 2^64: last - reported stays what it was */
		entry->last[i] = 0;
	}
	ledger->header->totals.foreign_resets++;
}

/* Whether a flow that the ledger does not know began before we listened, and so belongs to the baseline.
 * Without a start time, all that comes before the first full dump has ended does. */
static bool is_baseline(struct ledger_header *header, uint64_t start)
{
	if (header->count_existing)
		return false;
	if (start == 0)
		return header->full_dumps == 0;
	if ((int64_t)start >= header->born_after + header->least_offset)
		return false;
	ledger_sample_clock(header);
	return (int64_t)start < header->born_after + header->least_offset;
}

/* Counts towards ignored_baseline what the flow had counted before we came. */
static void take_as_baseline(struct ledger *ledger, struct entry *entry, const uint64_t *counters)
{
	struct meter_totals *totals = &ledger->header->totals;
	uint64_t packets = counters[ORIGINAL_PACKETS] + counters[REPLY_PACKETS];
	uint64_t bytes = counters[ORIGINAL_BYTES] + counters[REPLY_BYTES];
	memcpy(entry->last, counters, sizeof entry->last);
	memcpy(entry->reported, counters, sizeof entry->reported);
	totals->observed_packets += packets;
	totals->observed_bytes += bytes;
	totals->ignored_baseline_packets += packets;
	totals->ignored_baseline_bytes += bytes;
}

/* A new entry with its counters booked. *number: NO_ENTRY when the message has no reply tuple. */
static int create(struct ledger *ledger, const struct sighting *sighting, uint32_t hash, bool baseline,
		  uint32_t *number)
{
	int error = ledger_make(ledger, sighting, hash, number);
	if (error || *number == NO_ENTRY)
		return error;
	if (baseline)
		take_as_baseline(ledger, entry_at(ledger, *number), sighting->counters);
	else
		advance(ledger, *number, sighting->counters);
	return 0;
}

static void append_dead(struct ledger *ledger, uint32_t number)
{
	struct ledger_header *header = ledger->header;
	ledger_touch(ledger, number);
	entry_at(ledger, number)->next_dead = NO_ENTRY;
	if (header->dead_tail == NO_ENTRY) {
		header->dead_head = number;
	} else {
		ledger_touch(ledger, header->dead_tail);
		entry_at(ledger, header->dead_tail)->next_dead = number;
	}
	header->dead_tail = number;
}

static void bury(struct ledger *ledger, uint32_t number, uint8_t flags)
{
	struct ledger_header *header = ledger->header;
	struct entry *entry = entry_at(ledger, number);
	ledger_touch(ledger, number);
	entry->key.flags |= FLAG_DEAD | flags;
	entry->died = header->full_dumps;
	append_dead(ledger, number);
	header->totals.flows--;
	if (entry->seen == header->dump)
		header->seen_live--;
}

static void renew(struct ledger *ledger, uint32_t number)
{
	struct entry *entry = entry_at(ledger, number);
	ledger_touch(ledger, number);
	entry->died = ledger->header->full_dumps;
	entry->key.flags |= FLAG_RENEWED;
}

static void mark_seen(struct ledger *ledger, uint32_t number)
{
	struct ledger_header *header = ledger->header;
	struct entry *entry = entry_at(ledger, number);
	if (entry->seen != header->dump) {
		entry->seen = header->dump;
		header->seen_flows++;
		if (!(entry->key.flags & FLAG_DEAD))
			header->seen_live++;
	}
	if (!ledger->dumping)
		return;
	if (ledger->previous == NO_ENTRY)
		header->first_seen = number;
	else
		entry_at(ledger, ledger->previous)->followed = number;
	ledger->previous = number;
	if (entry->followed < header->used) {
		__builtin_prefetch(entry_at(ledger, entry->followed));
		__builtin_prefetch(entry_at(ledger, entry->followed)->last);
	}
}

/* The living or just buried flow of this identity. Dumps keep their order: the guess spares the hash table. */
static uint32_t find_for_sighting(const struct ledger *ledger, const struct flow_key *key, uint32_t *hash)
{
	const struct ledger_header *header = ledger->header;
	uint32_t guess = ledger->previous == NO_ENTRY ? header->first_seen
						      : entry_at(ledger, ledger->previous)->followed;
	if (ledger->dumping && guess < header->used) {
		const struct flow_key *found = &entry_at(ledger, guess)->key;
		if (!(found->flags & FLAG_SUPERSEDED) && same_identity(found, key))
			return guess;
	}
	*hash = key_hash(key, header->seed);
	return ledger_find(ledger, key, *hash, 0, FLAG_SUPERSEDED);
}

/* In a transaction: books the sighting of the flow that has, or has not, this entry. */
static int sight(struct ledger *ledger, const struct sighting *sighting, uint32_t hash, uint32_t *found)
{
	uint32_t number = *found;
	bool baseline = false;
	if (number == NO_ENTRY) {
		baseline = is_baseline(ledger->header, sighting->key.start);
	} else {
		struct entry *entry = entry_at(ledger, number);
		bool fell = any_fell(entry, sighting->counters);
		bool moved = any_moved(entry, sighting->counters);
		if (sighting->key.start != 0 && fell) {
			rebase(ledger, number);
		} else if (sighting->key.start == 0 && (fell || (moved && entry->key.flags & FLAG_DEAD))) {
			/* Another life, as far as one can tell: the old one waits for its DESTROY event. */
			ledger->header->totals.ambiguous_identity++;
			hash = entry->hash;
			ledger_touch(ledger, number);
			entry->key.flags |= FLAG_SUPERSEDED;
			number = NO_ENTRY;
		}
	}
	if (number == NO_ENTRY) {
		*found = NO_ENTRY;
		return create(ledger, sighting, hash, baseline, found);
	}
	advance(ledger, number, sighting->counters);
	if (entry_at(ledger, number)->key.flags & FLAG_DEAD)
		renew(ledger, number); /* as long as dumps show it */
	return 0;
}

int ledger_sight(struct ledger *ledger, const struct sighting *sighting)
{
	struct meter_totals *totals = &ledger->header->totals;
	if (sighting->status & (IPS_OFFLOAD | IPS_HW_OFFLOAD))
		totals->offloaded++;
	if (!sighting->has_counters) {
		totals->without_counters++;
		return 0;
	}
	totals->with_counters++;
	uint32_t hash = 0;
	uint32_t number = find_for_sighting(ledger, &sighting->key, &hash);
	const struct entry *entry = number == NO_ENTRY ? NULL : entry_at(ledger, number);
	if (!entry || entry->key.flags & FLAG_DEAD || any_moved(entry, sighting->counters)) {
		ledger_begin(ledger);
		int error = sight(ledger, sighting, hash, &number);
		if (error) {
			ledger_rollback(ledger);
			return error;
		}
		ledger_commit(ledger);
	}
	if (number != NO_ENTRY)
		mark_seen(ledger, number);
	return 0;
}

/* The entry whose end this event is; NO_ENTRY when it is that of a life not known so far, which may be one
 * *before a known one. */
static uint32_t find_for_destroy(struct ledger *ledger, const struct sighting *sighting, uint32_t hash,
				 bool *before)
{
	*before = false;
	const struct flow_key *key = &sighting->key;
	if (key->start != 0)
		return ledger_find(ledger, key, hash, 0, FLAG_SUPERSEDED);
	/* Lives that only their counters tell apart: the one that was superseded ended first, unless a
	 * vanished one was taken for it. */
	uint32_t number = ledger_find(ledger, key, hash, FLAG_SUPERSEDED, FLAG_DEAD);
	if (number == NO_ENTRY)
		number = ledger_find(ledger, key, hash, 0, FLAG_SUPERSEDED);
	if (number == NO_ENTRY)
		return NO_ENTRY;
	struct entry *entry = entry_at(ledger, number);
	bool known_end = (entry->key.flags & FLAG_DEAD) && !(entry->key.flags & FLAG_VANISHED);
	if (!known_end && !any_fell(entry, sighting->counters))
		return number;
	ledger->header->totals.ambiguous_identity++;
	if (known_end) {
		ledger_touch(ledger, number);
		entry->key.flags |= FLAG_SUPERSEDED;
	}
	*before = !known_end;
	return NO_ENTRY;
}

/* In a transaction. */
static int destroy(struct ledger *ledger, const struct sighting *sighting)
{
	struct meter_totals *totals = &ledger->header->totals;
	if (!sighting->has_counters) {
		totals->destroy_events++;
		totals->destroy_without_counters++;
		return 0;
	}
	uint32_t hash = key_hash(&sighting->key, ledger->header->seed);
	bool before;
	uint32_t number = find_for_destroy(ledger, sighting, hash, &before);
	if (number == NO_ENTRY) {
		bool baseline = is_baseline(ledger->header, sighting->key.start);
		int error = create(ledger, sighting, hash, baseline, &number);
		if (error)
			return error;
		ledger->header->totals.destroy_events++;
		if (number != NO_ENTRY)
			bury(ledger, number, before ? FLAG_SUPERSEDED : 0);
		return 0;
	}
	totals->destroy_events++;
	/* A packet between the event and the flow's removal, and a dump that shows it, make a sighting stand
	 * above the final counters: it stays. Where a neighbour is known to reset counters, that was it. */
	bool fell = any_fell(entry_at(ledger, number), sighting->counters);
	if (fell && totals->foreign_resets > 0)
		rebase(ledger, number);
	if (!fell || totals->foreign_resets > 0)
		advance(ledger, number, sighting->counters);
	struct entry *entry = entry_at(ledger, number);
	if (entry->key.flags & FLAG_DEAD) {
		ledger_touch(ledger, number);
		entry->key.flags &= (uint8_t)~FLAG_VANISHED;
		renew(ledger, number);
	} else {
		bury(ledger, number, 0);
	}
	return 0;
}

static int take(struct ledger *ledger, const struct sighting *sighting, uint64_t taken)
{
	ledger_begin(ledger);
	ledger->header->taken = taken;
	int error = destroy(ledger, sighting);
	if (error)
		ledger_rollback(ledger);
	else
		ledger_commit(ledger);
	return error;
}

int ledger_destroy(struct ledger *ledger, const struct sighting *sighting)
{
	return take(ledger, sighting, ledger->header->taken);
}

int ledger_take_event(struct ledger *ledger, const struct sighting *sighting, uint64_t taken)
{
	if (sighting)
		return take(ledger, sighting, taken);
	ledger->header->totals.malformed++;
	ledger_begin(ledger);
	ledger->header->taken = taken;
	ledger_commit(ledger);
	return 0;
}

void ledger_next_spool(struct ledger *ledger)
{
	ledger_begin(ledger);
	ledger->header->draining = !ledger->header->draining;
	ledger->header->taken = 0;
	ledger_commit(ledger);
}

void ledger_renew(struct ledger *ledger, const struct flow_key *key)
{
	uint32_t number = ledger_find(ledger, key, key_hash(key, ledger->header->seed), FLAG_DEAD, FLAG_SUPERSEDED);
	if (number == NO_ENTRY)
		return;
	ledger_begin(ledger);
	renew(ledger, number);
	ledger_commit(ledger);
}

void ledger_begin_dump(struct ledger *ledger)
{
	struct ledger_header *header = ledger->header;
	struct meter_totals *totals = &header->totals;
	totals->offloaded = totals->without_counters = totals->with_counters = 0;
	ledger->previous = NO_ENTRY;
	ledger->dumping = true;
	bool anew = header->dump != header->full_dumps + 1; /* else the last one broke off: what it saw counts */
	ledger_begin(ledger);
	ledger_sample_clock(header);
	header->dump = header->full_dumps + 1;
	ledger_commit(ledger);
	if (anew)
		header->seen_flows = header->seen_live = 0;
}

/* Takes the first tombstone off the list, for good or to its end. */
static void expire(struct ledger *ledger, uint32_t number, bool serves)
{
	struct ledger_header *header = ledger->header;
	struct entry *entry = entry_at(ledger, number);
	ledger_touch(ledger, number);
	header->dead_head = entry->next_dead;
	if (header->dead_head == NO_ENTRY)
		header->dead_tail = NO_ENTRY;
	if (serves) {
		entry->key.flags &= (uint8_t)~FLAG_RENEWED;
		append_dead(ledger, number);
		return;
	}
	if (entry->key.flags & FLAG_VANISHED)
		header->totals.vanished++;
	if (entry->key.flags & FLAG_PENDING)
		ledger_wait(ledger, number);
	else
		ledger_free(ledger, number);
}

static void expire_tombstones(struct ledger *ledger)
{
	const struct ledger_header *header = ledger->header;
	for (uint32_t number; (number = header->dead_head) != NO_ENTRY;) {
		const struct entry *entry = entry_at(ledger, number);
		bool serves = header->full_dumps - entry->died < TOMBSTONE_DUMPS;
		if (serves && !(entry->key.flags & FLAG_RENEWED))
			return;
		ledger_begin(ledger);
		expire(ledger, number, serves);
		ledger_commit(ledger);
	}
}

void ledger_end_dump(struct ledger *ledger, bool complete)
{
	ledger->dumping = false;
	if (!complete)
		return;
	ledger_begin(ledger);
	ledger->header->full_dumps++;
	ledger->header->totals.dumps++;
	ledger_commit(ledger);
	if (!ledger->tombstones_stay)
		expire_tombstones(ledger);
}

uint32_t ledger_next_absent(struct ledger *ledger, uint32_t *number)
{
	const struct ledger_header *header = ledger->header;
	if (header->seen_live >= header->totals.flows)
		return NO_ENTRY;
	while (*number < header->used) {
		const struct entry *entry = entry_at(ledger, (*number)++);
		if (entry->key.family == FAMILY_NONE || entry->key.flags & FLAG_DEAD ||
		    header->dump - entry->seen < ABSENT_DUMPS)
			continue;
		if (!(entry->key.flags & FLAG_SUPERSEDED))
			return *number - 1;
		ledger_vanish(ledger, *number - 1);
	}
	return NO_ENTRY;
}

void ledger_vanish(struct ledger *ledger, uint32_t number)
{
	ledger_begin(ledger);
	bury(ledger, number, FLAG_VANISHED);
	ledger_commit(ledger);
}
