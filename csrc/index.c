#define _GNU_SOURCE
#include "index.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

static struct index_slot *map_slots(size_t capacity)
{
	void *slots = mmap(NULL, capacity * sizeof(struct index_slot), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return slots == MAP_FAILED ? NULL : slots;
}

int index_open(struct index *index, size_t capacity)
{
	*index = (struct index){.slots = map_slots(capacity), .capacity = capacity, .used = 0};
	return index->slots ? 0 : -ENOMEM;
}

void index_close(struct index *index)
{
	if (index->slots)
		munmap(index->slots, index->capacity * sizeof(struct index_slot));
	*index = (struct index){0};
}

static void put(struct index_slot *slots, size_t mask, struct index_slot slot)
{
	size_t position = slot.hash & mask;
	while (slots[position].number != 0)
		position = (position + 1) & mask;
	slots[position] = slot;
}

static int grow(struct index *index)
{
	size_t capacity = index->capacity * 2;
	struct index_slot *slots = map_slots(capacity);
	if (!slots)
		return -ENOMEM;
	for (size_t i = 0; i < index->capacity; i++)
		if (index->slots[i].number != 0)
			put(slots, capacity - 1, index->slots[i]);
	munmap(index->slots, index->capacity * sizeof(struct index_slot));
	index->slots = slots;
	index->capacity = capacity;
	return 0;
}

int index_add(struct index *index, uint32_t hash, uint32_t number)
{
	if (index->used + 1 > index->capacity / 4 * 3) {
		int error = grow(index);
		if (error)
			return error;
	}
	put(index->slots, index->capacity - 1, (struct index_slot){.hash = hash, .number = number + 1});
	index->used++;
	return 0;
}

/* Whether `home` lies cyclically in (hole, position]: then what stands at position may not move to the hole. */
static bool between(size_t hole, size_t home, size_t position)
{
	if (hole <= position)
		return hole < home && home <= position;
	return hole < home || home <= position;
}

void index_remove(struct index *index, uint32_t hash, uint32_t number)
{
	const size_t mask = index->capacity - 1;
	size_t hole = hash & mask;
	while (index->slots[hole].number != number + 1) {
		if (index->slots[hole].number == 0)
			return;
		hole = (hole + 1) & mask;
	}
	for (size_t position = (hole + 1) & mask; index->slots[position].number != 0;
	     position = (position + 1) & mask) {
		if (between(hole, index->slots[position].hash & mask, position))
			continue;
		index->slots[hole] = index->slots[position];
		hole = position;
	}
	index->slots[hole] = (struct index_slot){0};
	index->used--;
}

static inline uint64_t fold(uint64_t left, uint64_t right)
{
	__extension__ typedef unsigned __int128 wide;
	wide product = (wide)left * right;
	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint32_t key_hash(const struct flow_key *key, uint64_t seed)
{
	uint64_t words[6];
	memcpy(words, key, sizeof words); /* addresses, start, id and ports */
	uint64_t rest = (uint64_t)key->zone << 24 | (uint64_t)key->protocol << 16 | (uint64_t)key->family << 8 |
			key->zone_direction;
	uint64_t hash = fold(words[0] ^ seed, words[2] ^ UINT64_C(0x9e3779b97f4a7c15));
	hash = fold(words[1] ^ hash, words[3] ^ UINT64_C(0xc2b2ae3d27d4eb4f) ^ seed);
	hash = fold(words[4] ^ hash, words[5] ^ UINT64_C(0x165667b19e3779f9) ^ seed);
	hash = fold(rest ^ hash, UINT64_C(0xd6e8feb86659fd93) ^ seed);
	return (uint32_t)(hash >> 32) ^ (uint32_t)hash;
}
