/* The rows of a column of strings, out of its dictionary, as ClickHouse's Native format has them: the length in
 * bytes as a varint, then the bytes.
 *
 * Contract: pure; reads only the arrays given, writes only below `room`, keeps no pointer. `entries` are the
 * dictionary's strings end to end, string i up to ends[i]; row r is a copy of string numbers[r]. Returns the
 * bytes written: fewer than the rows have where a number names no string or the room ends, and then the rows
 * before that one are whole.
 *
 * Why it is C: a node's batch has tens of thousands of such rows in each of eight columns, and Python makes an
 * object of each. */
#include "gather.h"

#include <string.h>

enum { SHORT = 64, MOST_LENGTH_BYTES = 10 };

size_t gather_strings(const uint8_t *entries, const uint64_t *ends, size_t entry_count,
		      const uint32_t *numbers, size_t rows, uint8_t *output, size_t room)
{
	size_t written = 0, all = entry_count ? (size_t)ends[entry_count - 1] : 0;
	for (size_t row = 0; row < rows; row++) {
		uint32_t number = numbers[row];
		if (number >= entry_count)
			break;
		size_t start = number ? (size_t)ends[number - 1] : 0;
		size_t size = (size_t)ends[number] - start;
		uint8_t length[MOST_LENGTH_BYTES];
		size_t length_bytes = 0, rest = size;
		for (; rest >= 0x80; rest >>= 7)
			length[length_bytes++] = (uint8_t)(rest | 0x80);
		length[length_bytes++] = (uint8_t)rest;
		size_t left = room - written;
		if (length_bytes > left || size > left - length_bytes)
			break;
		memcpy(output + written, length, length_bytes);
		written += length_bytes;
		/* A copy of fixed size is a few moves; what it leaves behind the row, the next one covers. */
		if (size <= SHORT && room - written >= SHORT && all - start >= SHORT)
			memcpy(output + written, entries + start, SHORT);
		else
			memcpy(output + written, entries + start, size);
		written += size;
	}
	return written;
}
