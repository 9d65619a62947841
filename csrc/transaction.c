#include "transaction.h"

#include <stdatomic.h>
#include <string.h>

_Static_assert(offsetof(struct entry, last) == 64 && offsetof(struct entry, checksum) == 184, "what is summed");

static inline uint64_t fold(uint64_t left, uint64_t right)
{
	__extension__ typedef unsigned __int128 wide;
	wide product = (wide)(left ^ UINT64_C(0x9e3779b97f4a7c15)) * (right ^ UINT64_C(0xc2b2ae3d27d4eb4f));
	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The compiler keeps stores on their side; the processor retires them in order (see transaction.h). */
static inline void in_order(void)
{
	atomic_signal_fence(memory_order_seq_cst);
}

uint64_t bytes_checksum(const void *bytes, size_t length, uint64_t seed)
{
	const uint8_t *next = bytes;
	uint64_t even = seed ^ length, odd = UINT64_C(0xd6e8feb86659fd93), words[4];
	for (; length >= sizeof words; length -= sizeof words, next += sizeof words) {
		memcpy(words, next, sizeof words);
		even = fold(even ^ words[0], words[1]) + words[0];
		odd = fold(odd ^ words[2], words[3]) + words[2];
	}
	memset(words, 0, sizeof words);
	memcpy(words, next, length);
	even = fold(even ^ words[0], words[1]) + words[0];
	odd = fold(odd ^ words[2], words[3]) + words[2];
	return fold(even, odd);
}

uint32_t entry_checksum(const struct entry *entry, uint32_t number)
{
	uint64_t words[7 + 15];
	memcpy(words, &entry->key, 7 * sizeof *words);
	memcpy(words + 7, entry->last, 15 * sizeof *words);
	uint64_t even = fold(words[21], number), odd = words[0];
	for (int i = 1; i < 21; i += 4) {
		even = fold(even ^ words[i], words[i + 1]) + words[i];
		odd = fold(odd ^ words[i + 2], words[i + 3]) + words[i + 2];
	}
	uint64_t sum = fold(even, odd);
	return (uint32_t)(sum ^ sum >> 32);
}

uint64_t header_checksum(const struct ledger_header *header)
{
	return bytes_checksum(&header->seed, PROTECTED_BYTES, 0);
}

void ledger_begin(struct ledger *ledger)
{
	struct ledger_header *header = ledger->header;
	struct undo *undo = &header->undo;
	memcpy(undo->header, &header->seed, PROTECTED_BYTES);
	undo->checksum = header->checksum;
	undo->entries = 0;
	in_order();
	undo->active = 1;
	in_order();
}

void ledger_touch(struct ledger *ledger, uint32_t number)
{
	struct undo *undo = &ledger->header->undo;
	uint32_t saved = undo->entries;
	for (uint32_t i = 0; i < saved; i++)
		if (undo->numbers[i] == number)
			return;
	undo->numbers[saved] = number;
	memcpy(&undo->saved[saved], entry_at(ledger, number), sizeof *undo->saved);
	in_order();
	undo->entries = saved + 1;
	in_order();
}

void ledger_commit(struct ledger *ledger)
{
	struct ledger_header *header = ledger->header;
	struct undo *undo = &header->undo;
	for (uint32_t i = 0; i < undo->entries; i++) {
		struct entry *entry = entry_at(ledger, undo->numbers[i]);
		entry->checksum = entry_checksum(entry, undo->numbers[i]);
	}
	header->checksum = header_checksum(header);
	in_order();
	undo->active = 0;
	in_order();
}

void ledger_rollback(struct ledger *ledger)
{
	struct ledger_header *header = ledger->header;
	struct undo *undo = &header->undo;
	for (uint32_t i = 0; i < undo->entries; i++)
		memcpy(entry_at(ledger, undo->numbers[i]), &undo->saved[i], sizeof *undo->saved);
	memcpy(&header->seed, undo->header, PROTECTED_BYTES);
	header->checksum = undo->checksum;
	in_order();
	undo->active = 0;
	in_order();
}
