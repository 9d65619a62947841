/* The hash index of the ledger: identity -> entry number. Derived data: it can be made again from the entries
 * at any time. Open addressing with linear probing; several entries may have the same hash. */
#ifndef KUBENETMON_INDEX_H
#define KUBENETMON_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "flow.h"

enum { NO_ENTRY = UINT32_MAX };

struct index_slot {
	uint32_t hash;
	uint32_t number; /* entry number + 1; 0: free */
};

struct index {
	struct index_slot *slots;
	size_t capacity; /* a power of two */
	size_t used;
};

/* Both return 0 or -ENOMEM; after -ENOMEM the index is as it was. */
int index_open(struct index *index, size_t capacity);
int index_add(struct index *index, uint32_t hash, uint32_t number);

void index_remove(struct index *index, uint32_t hash, uint32_t number);
void index_close(struct index *index);

/* A walk over all entries that may have this hash: `position` starts as `hash`; NO_ENTRY at the end. */
static inline uint32_t index_next(const struct index *index, uint32_t hash, size_t *position)
{
	const size_t mask = index->capacity - 1;
	for (;;) {
		const struct index_slot *slot = &index->slots[*position & mask];
		if (slot->number == 0)
			return NO_ENTRY;
		++*position;
		if (slot->hash == hash)
			return slot->number - 1;
	}
}

/* A keyed hash of the whole identity: who chooses addresses and ports cannot choose collisions. */
uint32_t key_hash(const struct flow_key *key, uint64_t seed);

#endif
