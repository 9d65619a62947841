/* The ledger's file as it is found: what speaks against it, and making whole what was being changed. */
#ifndef KUBENETMON_STATE_H
#define KUBENETMON_STATE_H

#include "ledger.h"

enum { HEADER_BYTES = 4096, STATE_VERSION_NUMBER = 2 };
#define STATE_MAGIC UINT64_C(0x3172656764656c6b) /* "kledger1" */

uint64_t identity_checksum(const struct ledger_identity *identity);

/* Undoes what was half done in a region of so many bytes and checks all of it. The ledger's pointers are set, its
 * index is empty and is filled. STATE_OK, or why it cannot be taken up; *error: -ENOMEM, then the region is fine. */
enum meter_state_fault state_take_up(struct ledger *ledger, const struct ledger_identity *identity, int *error);

#endif
