/* Sealed batches as files in the state directory. A file is written whole before the ledger counts its records as
 * reported, so that one whose sequence the ledger has not reached is none: its records are still pending. */
#ifndef KUBENETMON_BATCH_H
#define KUBENETMON_BATCH_H

#include <stdint.h>

#include "ledger.h"

/* Writes the batch that the ledger is about to seal. 0 or a negative errno; then there is no such file. */
int batch_write(int directory, const struct ledger_header *header, const struct meter_interval *interval,
		const struct meter_sealed *sealed, const uint8_t *arrays);

#endif
