#define _GNU_SOURCE
#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "message.h"
#include "state.h"
#include "transaction.h"

_Static_assert(sizeof(struct flow_key) == 56, "the first seven words of an entry");
_Static_assert(sizeof(struct entry) == 192, "three cache lines");

enum { FIRST_CAPACITY = 4096 }; /* entries; also the least that is added */

static const struct waiting_limits LIMITS = {WAIT_WHOLE, WAIT_BY_PORT, WAIT_BY_ADDRESSES};

_Static_assert(sizeof(struct ledger_header) <= HEADER_BYTES, "the header has a page");

static size_t region_bytes(uint32_t capacity)
{
	return HEADER_BYTES + (size_t)capacity * sizeof(struct entry);
}

static void measure(struct ledger *ledger)
{
	ledger->header->totals.memory_bytes =
		ledger->region_bytes + ledger->index.capacity * sizeof(struct index_slot);
}

/* Start times are wall clock, and the wall clock can be set: what began after us is recognised by the least
 * offset between it and the boot clock, so that a clock set back never makes new flows look old. */
void ledger_sample_clock(struct ledger_header *header)
{
	int64_t offset = nanoseconds(CLOCK_REALTIME) - nanoseconds(CLOCK_BOOTTIME);
	if (offset < header->least_offset)
		header->least_offset = offset;
}

static void set_region(struct ledger *ledger, void *region, size_t bytes)
{
	ledger->header = region;
	ledger->entries = (struct entry *)(void *)((uint8_t *)region + HEADER_BYTES);
	ledger->region_bytes = bytes;
}

static void *map_memory(size_t bytes)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Into a region of zeros. */
static int make_empty(struct ledger *ledger, bool count_existing, const struct ledger_identity *identity)
{
	struct ledger_header *header = ledger->header;
	*header = (struct ledger_header){
		.capacity = FIRST_CAPACITY,
		.free_head = NO_ENTRY,
		.pending_head = NO_ENTRY,
		.pending_tail = NO_ENTRY,
		.dead_head = NO_ENTRY,
		.dead_tail = NO_ENTRY,
		.first_seen = NO_ENTRY,
		.dump = 1,
		.next_sequence = 1,
		.next_report = 1,
		.count_existing = count_existing,
		.born_after = nanoseconds(CLOCK_BOOTTIME),
		.least_offset = INT64_MAX,
	};
	ledger_sample_clock(header);
	if (getrandom(&header->seed, sizeof header->seed, 0) != sizeof header->seed)
		return -ENOMEM;
	header->checksum = header_checksum(header);
	if (identity) {
		struct ledger_identity ours = *identity;
		ours.checksum = identity_checksum(&ours);
		ours.magic = 0;
		header->identity = ours;
		atomic_signal_fence(memory_order_seq_cst);
		header->identity.magic = identity->magic; /* from here on the file is a ledger */
	}
	return 0;
}

int ledger_open(struct ledger *ledger, bool count_existing)
{
	size_t bytes = region_bytes(FIRST_CAPACITY);
	*ledger = (struct ledger){.descriptor = -1, .previous = NO_ENTRY, .limits = LIMITS};
	void *region = map_memory(bytes);
	if (region == MAP_FAILED)
		return -ENOMEM;
	set_region(ledger, region, bytes);
	if (make_empty(ledger, count_existing, NULL) || index_open(&ledger->index, 2 * FIRST_CAPACITY)) {
		ledger_close(ledger);
		return -ENOMEM;
	}
	measure(ledger);
	return 0;
}

/* Whether the file was never made a ledger: it is empty, or was being made one. */
static bool is_blank(int descriptor, off_t bytes)
{
	uint64_t magic;
	return bytes == 0 || (pread(descriptor, &magic, sizeof magic, 0) == sizeof magic && magic == 0);
}

int ledger_open_file(struct ledger *ledger, int descriptor, bool count_existing,
		     const struct ledger_identity *identity, enum meter_state_fault *fault)
{
	struct stat status;
	*fault = STATE_OK;
	*ledger = (struct ledger){.descriptor = descriptor, .previous = NO_ENTRY, .limits = LIMITS};
	if (fstat(descriptor, &status) < 0)
		return -errno;
	bool blank = is_blank(descriptor, status.st_size);
	size_t bytes = blank ? region_bytes(FIRST_CAPACITY) : (size_t)status.st_size;
	if (blank && (ftruncate(descriptor, 0) < 0 || fallocate(descriptor, 0, 0, (off_t)bytes) < 0))
		return -errno;
	if (bytes < HEADER_BYTES) {
		*fault = STATE_TRUNCATED;
		return -EUCLEAN;
	}
	void *region = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
	if (region == MAP_FAILED)
		return -ENOMEM;
	set_region(ledger, region, bytes);
	int error = index_open(&ledger->index, 2 * FIRST_CAPACITY);
	if (!error && blank)
		error = make_empty(ledger, count_existing, identity);
	else if (!error)
		*fault = state_take_up(ledger, identity, &error);
	ledger->tombstones_stay = !blank;
	if (error || *fault) {
		ledger_close(ledger);
		return error ? error : -EUCLEAN;
	}
	ledger_settle(ledger);
	measure(ledger);
	return 0;
}

void ledger_close(struct ledger *ledger)
{
	index_close(&ledger->index);
	if (ledger->header)
		munmap(ledger->header, ledger->region_bytes);
	*ledger = (struct ledger){.descriptor = -1};
}

int ledger_leave_file(struct ledger *ledger)
{
	if (ledger->descriptor < 0)
		return 0;
	void *region = map_memory(ledger->region_bytes);
	if (region == MAP_FAILED)
		return -ENOMEM;
	memcpy(region, ledger->header, ledger->region_bytes);
	munmap(ledger->header, ledger->region_bytes);
	set_region(ledger, region, ledger->region_bytes);
	(void)!ftruncate(ledger->descriptor, 0);
	ledger->descriptor = -1;
	return 0;
}

static int grow(struct ledger *ledger)
{
	uint32_t capacity = ledger->header->capacity;
	if (capacity > (NO_ENTRY - 1) / 2)
		return -ENOMEM;
	capacity += capacity / 4 > FIRST_CAPACITY ? capacity / 4 : FIRST_CAPACITY; /* in a file all of it is taken up */
	size_t bytes = region_bytes(capacity);
	/* The pages are there before they are written to: a full tmpfs would be a SIGBUS otherwise. */
	if (ledger->descriptor >= 0 && fallocate(ledger->descriptor, 0, 0, (off_t)bytes) < 0) {
		int error = ledger_leave_file(ledger);
		if (error)
			return error;
	}
	void *region = mremap(ledger->header, ledger->region_bytes, bytes, MREMAP_MAYMOVE);
	if (region == MAP_FAILED)
		return -ENOMEM;
	set_region(ledger, region, bytes);
	ledger->header->capacity = capacity;
	return 0;
}

uint32_t ledger_find(const struct ledger *ledger, const struct flow_key *key, uint32_t hash, uint8_t with,
		     uint8_t without)
{
	size_t position = hash;
	for (uint32_t number; (number = index_next(&ledger->index, hash, &position)) != NO_ENTRY;) {
		const struct flow_key *found = &entry_at(ledger, number)->key;
		if ((found->flags & with) == with && !(found->flags & without) && same_identity(found, key))
			return number;
	}
	return NO_ENTRY;
}

static bool is_loopback(uint8_t family, const uint8_t *address)
{
	static const uint8_t loopback[16] = {[15] = 1};
	return family == FAMILY_IPV4 ? address[0] == 127 : memcmp(address, loopback, sizeof loopback) == 0;
}

static uint8_t not_metered(const struct flow_key *key, const struct reply_tuple *reply)
{
	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP)
		return FLAG_PROTOCOL;
	if (is_loopback(key->family, key->source) || is_loopback(key->family, key->destination) ||
	    is_loopback(key->family, reply->source) || is_loopback(key->family, reply->destination))
		return FLAG_LOOPBACK;
	return 0;
}

int ledger_make(struct ledger *ledger, const struct sighting *sighting, uint32_t hash, uint32_t *number)
{
	struct reply_tuple reply;
	*number = NO_ENTRY;
	if (!message_read_reply(sighting, &reply)) {
		ledger->header->totals.malformed++;
		return 0;
	}
	if (ledger->header->free_head == NO_ENTRY && ledger->header->used == ledger->header->capacity) {
		int error = grow(ledger);
		if (error)
			return error;
	}
	struct ledger_header *header = ledger->header;
	uint32_t free = header->free_head != NO_ENTRY ? header->free_head : header->used;
	int error = index_add(&ledger->index, hash, free);
	if (error)
		return error;
	ledger_touch(ledger, free);
	struct entry *entry = entry_at(ledger, free);
	if (free == header->free_head)
		header->free_head = entry->next_dead;
	else
		header->used++;
	*entry = (struct entry){
		.key = sighting->key,
		.followed = NO_ENTRY,
		.reply = reply,
		.next_pending = NO_ENTRY,
		.previous_pending = NO_ENTRY,
		.next_dead = NO_ENTRY,
		.hash = hash,
		.seen = header->dump - 1, /* not yet by this dump; not absent either */
	};
	entry->key.flags = not_metered(&entry->key, &entry->reply);
	measure(ledger);
	header->totals.flows++;
	header->totals.entries++;
	header->totals.ignored_flows += entry->key.flags != 0;
	*number = free;
	return 0;
}

void ledger_free(struct ledger *ledger, uint32_t number)
{
	struct entry *entry = entry_at(ledger, number);
	ledger_touch(ledger, number);
	index_remove(&ledger->index, entry->hash, number);
	entry->key.family = FAMILY_NONE;
	entry->next_dead = ledger->header->free_head;
	ledger->header->free_head = number;
	ledger->header->totals.entries--;
}
