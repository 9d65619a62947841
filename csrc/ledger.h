/* The ledger: what the kernel counted per flow, and what of that has been reported.
 *
 * What is booked, and when:
 * - The identity of a flow is (zone, family, protocol, original tuple, id, start). A sighting moves the flow's
 *   counters to what the message says, so that repetitions within a dump and dumps read twice add nothing.
 * - A flow that began before we listened is the baseline: what it had counted when first seen is not metered,
 *   what it counts from then on is. Where the kernel gives start times they decide, in whatever message the
 *   flow turns up first; where not, what comes before the first full dump has ended is baseline.
 * - A DESTROY event carries final counters: what they have above the last ones is booked, and a tombstone stays
 *   for two full dumps and for as long as dumps show the flow or the kernel may send the event again, so
 *   that neither is taken for another life. Where a dump overtook the event the higher counters stand.
 * - A flow that two full dumps in a row did not show is asked for by its tuple, which also makes the kernel
 *   end it if it had expired. One that is not there becomes a tombstone; if no event comes while that
 *   stays, it is counted as vanished, and what it moved after its last sighting is what is lost.
 * - A counter that falls within one life (same start) was reset by another process: all four count from zero.
 *   Without start times it is another life: the old one waits for its DESTROY event, and the case is counted
 *   as ambiguous, as is every life that only the order of messages tells from the one before.
 * - Flows without counters are counted and have no entry.
 * - An ended flow that waits to be sealed after its tombstone has done its service is merged with others of its
 *   addresses when too many do (merge.c).
 *
 * One contiguous region, a header and entries of fixed size that refer to each other by number, grown by
 * mremap; nothing in it is a pointer. The hash index is derived and lives outside. Entries are freed when a
 * flow has ended, its tombstone has done its service and nothing of it is pending, so that the region is
 * bounded by the flows that lived at once and what may wait. Not locked: the meter serialises.
 *
 * Per flow `last` holds the counters read last and is written by reading alone, `reported` what went into
 * sealed batches and is written by sealing alone (but for a reset); their difference is pending.
 *
 * Every change is a transaction (transaction.h), so that the region is whole after a kill at any instruction:
 * - A sighting is booked or not; one that was not comes again with the next dump.
 * - An event is booked together with its place in the spool: never twice, and none is passed over.
 * - A batch is sealed at the commit that raises `next_sequence`; its bytes were stored before. Up to then it is no
 *   batch and its records are pending; from then on the first `settling` pending records are in it, and are settled
 *   one by one, by whoever opens the ledger next if need be, before anything else is booked.
 * - Entry and header carry checksums; a region whose sums, lists or totals disagree is not taken up. */
#ifndef KUBENETMON_LEDGER_H
#define KUBENETMON_LEDGER_H

#include <stddef.h>
#include <string.h>

#include "flow.h"
#include "index.h"
#include "meter.h"

/* flow_key.flags */
enum {
	FLAG_DEAD = 1,       /* booked: a DESTROY event, or gone from the kernel; a tombstone */
	FLAG_SUPERSEDED = 2, /* a later life has the same identity: sightings are the later one's */
	FLAG_PENDING = 4,    /* in the pending list */
	FLAG_EXPIRED = 8,    /* the tombstone has done its service: it waits, and is freed once sealed */
	FLAG_VANISHED = 16,  /* dead without a DESTROY event so far */
	FLAG_PROTOCOL = 32,  /* not metered: neither TCP nor UDP */
	FLAG_LOOPBACK = 64,  /* not metered: a loopback address in it */
	FLAG_RENEWED = 128,  /* its DESTROY event came again or will: the tombstone's time starts anew */
};

struct entry {
	/* First cache line: what finding a flow takes. */
	struct flow_key key;
	uint32_t seen;     /* number of the dump that showed it last */
	uint32_t followed; /* the entry that came after it in a dump: the guess for the next message */
	/* Second: what comparing takes. */
	uint64_t last[COUNTERS];
	uint64_t reported[COUNTERS];
	/* Third: what creating, sealing and ending take. */
	struct reply_tuple reply;
	uint32_t next_pending;
	uint32_t next_dead; /* also the list of free entries */
	uint32_t died;      /* full dumps that had been read when it was booked dead */
	uint32_t previous_pending; /* of all but the first in the list */
	uint32_t hash;
	uint32_t checksum; /* of all but `seen` and `followed` */
} __attribute__((aligned(64)));

enum {
	UNDO_ENTRIES = 8, /* more than any one change touches */
	BOOT_BYTES = 64,
	PLACE_BYTES = 320,
	EPOCH_BYTES = 16,
};

/* Whose ledger this is; written once. */
struct ledger_identity {
	uint64_t magic;
	uint32_t version, entry_bytes;
	char boot[BOOT_BYTES];   /* the boot that the kernel's counters belong to */
	char place[PLACE_BYTES]; /* node and network namespace */
	uint8_t epoch[EPOCH_BYTES];
	uint64_t checksum;
};

/* From `seed` up to `totals.malformed` is protected: it changes in transactions alone. */
#define PROTECTED_BYTES \
	(offsetof(struct ledger_header, totals) + offsetof(struct meter_totals, malformed) - \
	 offsetof(struct ledger_header, seed))
enum { PROTECTED_ROOM = 512 };

/* What a transaction that has not ended was before it began; see transaction.h. */
struct undo {
	uint32_t active, entries;
	uint32_t numbers[UNDO_ENTRIES];
	uint64_t checksum;
	uint8_t header[PROTECTED_ROOM];
	struct entry saved[UNDO_ENTRIES];
};

struct ledger_header {
	struct ledger_identity identity;
	uint64_t seed;
	uint32_t capacity, used; /* entries; [used, capacity) were never touched */
	uint32_t free_head;
	uint32_t pending_head, pending_tail;
	uint32_t dead_head, dead_tail;
	uint32_t full_dumps;
	uint32_t dump; /* number of the dump that runs, or of the last one */
	uint32_t count_existing;
	int64_t born_after; /* boot time in nanoseconds when the first listener was in place */
	int64_t least_offset; /* the least difference of wall clock and boot time seen since */
	uint64_t next_sequence; /* batches below are sealed; their records count as reported */
	uint64_t next_report;
	int64_t unsealed_from, unsealed_from_monotonic; /* Unix seconds, nanoseconds: where the next report begins */
	uint32_t settling; /* so many records from the head of the pending list are in the last batch */
	uint32_t draining; /* the spool that is being booked */
	uint64_t taken;    /* bytes of it that are booked */
	uint64_t changes;
	struct meter_totals totals;
	uint64_t checksum; /* of what is protected */
	uint64_t seen_flows, seen_live; /* distinct flows in this dump, and those of them that live */
	uint32_t first_seen; /* the entry that came first in a dump */
	int64_t listened_until; /* boot time in nanoseconds: all events up to then have been received */
	struct undo undo;
};
_Static_assert(PROTECTED_BYTES <= PROTECTED_ROOM, "the undo record takes all that is protected");

/* See enum meter_waiting. */
struct waiting_limits {
	uint64_t whole, by_port, by_addresses;
};

struct ledger {
	struct ledger_header *header;
	struct entry *entries;
	size_t region_bytes;
	int descriptor; /* of the file that the region is a shared mapping of; -1: it is memory of our own */
	struct index index;
	uint32_t previous; /* the entry of the message before, while a dump runs */
	bool dumping;
	bool tombstones_stay; /* what the kernel will send again is not known since the last full dump */
	struct waiting_limits limits;
};

/* Makes an empty ledger; flows that began before now are the baseline unless count_existing. 0 or -ENOMEM. */
int ledger_open(struct ledger *ledger, bool count_existing);

/* The same in a file: an empty one is made the ledger of this identity, any other is taken up where it was left,
 * whatever interrupted it. -EUCLEAN with *fault set: the file is not ours to use, and is as it was. -ENOSPC,
 * -ENOMEM. The descriptor stays the caller's and stays open. */
int ledger_open_file(struct ledger *ledger, int descriptor, bool count_existing,
		     const struct ledger_identity *identity, enum meter_state_fault *fault);

/* Goes on in memory of our own, from the same byte; the file is nobody's from now on. */
int ledger_leave_file(struct ledger *ledger);

void ledger_close(struct ledger *ledger);

/* Books one flow that a dump shows. 0 or -ENOMEM: nothing was booked, a later sighting can be. */
int ledger_sight(struct ledger *ledger, const struct sighting *sighting);

/* Books a DESTROY event, which carries final counters. 0 or -ENOMEM: nothing was booked, hand it in again. */
int ledger_destroy(struct ledger *ledger, const struct sighting *sighting);

/* A dump is sightings between these two; `complete`: it reached its end. */
void ledger_begin_dump(struct ledger *ledger);
void ledger_end_dump(struct ledger *ledger, bool complete);

/* The next live entry from `*number` on that two full dumps in a row did not show; NO_ENTRY when none is left.
 * The caller asks the kernel, and books what it says as a sighting or by ledger_vanish(). */
uint32_t ledger_next_absent(struct ledger *ledger, uint32_t *number);
void ledger_vanish(struct ledger *ledger, uint32_t number);

/* Keeps the tombstone of a flow whose DESTROY event will come again. */
void ledger_renew(struct ledger *ledger, const struct flow_key *key);

/* Writes the oldest pending records as columns into the buffer; see meter_seal(). The ledger stays as it is. */
int ledger_prepare(struct ledger *ledger, uint8_t *buffer, uint64_t capacity, struct meter_sealed *sealed);

/* What ledger_prepare() wrote is sealed, from one instant to the next. Nothing may come between the two. When no
 * more is pending, the next report begins where `interval` ends. */
void ledger_sealed(struct ledger *ledger, const struct meter_sealed *sealed,
		   const struct meter_interval *interval);

/* Of a ledger that has sealed nothing: the first batch will have this number. */
void ledger_number_from(struct ledger *ledger, uint64_t sequence);

/* The spool that was being booked is booked wholly: the other one's turn. */
void ledger_next_spool(struct ledger *ledger);

/* Books one message of the spool and that it is taken up to `taken`, in one. 0 or -ENOMEM. */
int ledger_take_event(struct ledger *ledger, const struct sighting *sighting, uint64_t taken);

/* From here on: between the ledger's own files.
 *
 * The entry of this identity that has all flags of `with` and none of `without`, or NO_ENTRY. */
uint32_t ledger_find(const struct ledger *ledger, const struct flow_key *key, uint32_t hash, uint8_t with,
		     uint8_t without);

/* Makes a live entry whose counters are zero. *number: NO_ENTRY when the message has no reply tuple, which is
 * counted. 0 or -ENOMEM; entries may have moved in memory. */
int ledger_make(struct ledger *ledger, const struct sighting *sighting, uint32_t hash, uint32_t *number);

/* Settles what the last batch holds; at open, for whom a kill kept from it. */
void ledger_settle(struct ledger *ledger);

/* Frees a dead entry that is not pending; in a transaction, as ledger_make(). */
void ledger_free(struct ledger *ledger, uint32_t number);

/* In a transaction: a dead entry whose tombstone has done its service and that is pending waits from now on, as it is
 * or merged; then the entry may be free. */
void ledger_wait(struct ledger *ledger, uint32_t number);

/* Takes the present offset of the wall clock into account. */
void ledger_sample_clock(struct ledger_header *header);

static inline bool same_identity(const struct flow_key *left, const struct flow_key *right)
{
	uint64_t a[6], b[6], difference = 0;
	memcpy(a, left, sizeof a);
	memcpy(b, right, sizeof b);
	for (int i = 0; i < 6; i++)
		difference |= a[i] ^ b[i];
	return difference == 0 && left->zone == right->zone && left->protocol == right->protocol &&
	       left->family == right->family && left->zone_direction == right->zone_direction;
}

static inline uint64_t pending_packets(const struct entry *entry)
{
	return entry->last[ORIGINAL_PACKETS] - entry->reported[ORIGINAL_PACKETS] +
	       entry->last[REPLY_PACKETS] - entry->reported[REPLY_PACKETS];
}

static inline uint64_t pending_bytes(const struct entry *entry)
{
	return entry->last[ORIGINAL_BYTES] - entry->reported[ORIGINAL_BYTES] + entry->last[REPLY_BYTES] -
	       entry->reported[REPLY_BYTES];
}

static inline struct entry *entry_at(const struct ledger *ledger, uint32_t number)
{
	return &ledger->entries[number];
}

#endif
