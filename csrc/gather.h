/* The rows of a column of strings, out of its dictionary; see gather.c. */
#ifndef KUBENETMON_GATHER_H
#define KUBENETMON_GATHER_H

#include <stddef.h>
#include <stdint.h>

size_t gather_strings(const uint8_t *entries, const uint64_t *ends, size_t entry_count,
		      const uint32_t *numbers, size_t rows, uint8_t *output, size_t room);

#endif
