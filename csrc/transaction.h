/* Changes of the ledger that a kill at any instruction leaves done or undone, never half done.
 *
 * The region may be a shared mapping of a file: when the process is killed, all stores of the instructions that
 * it had retired stay, in their order, and no others. So an undo record is enough. Between begin and commit
 * every protected byte that changes has been copied into the record before, and `active` says that the record
 * is to be applied; commit makes the checksums true and clears `active` with one store, which is the instant the
 * change happens at. Applying the record twice is applying it once. What is not protected (when a flow was seen
 * last, which came after which, gauges of the last dump) is made anew at open or corrects itself. */
#ifndef KUBENETMON_TRANSACTION_H
#define KUBENETMON_TRANSACTION_H

#include "ledger.h"

void ledger_begin(struct ledger *ledger);

/* Says that the entry will change; before each first change in a transaction. */
void ledger_touch(struct ledger *ledger, uint32_t number);

void ledger_commit(struct ledger *ledger);
void ledger_rollback(struct ledger *ledger);

/* The checksum that an entry of this number should have. */
uint32_t entry_checksum(const struct entry *entry, uint32_t number);

/* The checksum that the header's protected part should have. */
uint64_t header_checksum(const struct ledger_header *header);

/* Any bytes; `length` need be no multiple of anything. */
uint64_t bytes_checksum(const void *bytes, size_t length, uint64_t seed);

#endif
