/* Rows of strings at the bounds of their arrays: each array has its own place on the heap and not a byte more,
 * so that whatever is read or written beside it is seen. */
#include "gather.h"
#include "messages.h"

enum { ENTRIES = 6, ROWS = 500 };

static const size_t SIZES[ENTRIES] = {3, 0, 64, 127, 128, 20000};

static void *new_block(size_t size)
{
	void *block = calloc(1, size);
	CHECK(block != NULL);
	return block;
}

/* The varint and the bytes of one string, as plainly as can be; how many bytes these are. */
static size_t put_plainly(uint8_t *out, const uint8_t *string, size_t size)
{
	size_t at = 0, rest = size;
	while (rest >= 0x80) {
		out[at++] = (uint8_t)(0x80 | (rest & 0x7F));
		rest >>= 7;
	}
	out[at++] = (uint8_t)rest;
	for (size_t i = 0; i < size; i++)
		out[at++] = string[i];
	return at;
}

struct rig {
	uint8_t *entries;
	uint64_t *ends;
	uint32_t *numbers;
	uint8_t *expected;
	size_t whole;          /* bytes that all rows take */
	size_t row_ends[ROWS]; /* bytes up to the end of each */
};

static struct rig rig_new(size_t entry_count, size_t rows)
{
	size_t all = 0, room = 0;
	struct rig rig = {.ends = new_block(entry_count * sizeof *rig.ends),
			  .numbers = new_block(rows * sizeof *rig.numbers)};
	for (size_t i = 0; i < entry_count; i++)
		rig.ends[i] = all += SIZES[i];
	rig.entries = new_block(all);
	for (size_t i = 0; i < all; i++)
		rig.entries[i] = (uint8_t)(i * 7 + i / 251);
	for (size_t row = 0; row < rows; row++) {
		rig.numbers[row] = (uint32_t)((row * row + row / 3) % entry_count);
		room += SIZES[rig.numbers[row]] + 10;
	}
	rig.expected = new_block(room);
	for (size_t row = 0; row < rows; row++) {
		uint32_t number = rig.numbers[row];
		size_t start = number ? (size_t)rig.ends[number - 1] : 0;
		rig.whole += put_plainly(rig.expected + rig.whole, rig.entries + start, SIZES[number]);
		rig.row_ends[row] = rig.whole;
	}
	return rig;
}

static void rig_free(struct rig *rig)
{
	free(rig->entries);
	free(rig->ends);
	free(rig->numbers);
	free(rig->expected);
}

static void test_rows_are_their_strings(void)
{
	for (size_t entry_count = 1; entry_count <= ENTRIES; entry_count++) {
		struct rig rig = rig_new(entry_count, ROWS);
		uint8_t *output = new_block(rig.whole);
		CHECK(gather_strings(rig.entries, rig.ends, entry_count, rig.numbers, ROWS, output,
				     rig.whole) == rig.whole);
		CHECK(memcmp(output, rig.expected, rig.whole) == 0);
		free(output);
		rig_free(&rig);
	}
}

static void test_no_room_writes_whole_rows_only(void)
{
	enum { FEW = 12 };
	struct rig rig = rig_new(5, FEW);
	for (size_t room = 0; room < rig.whole; room++) {
		uint8_t *output = new_block(room);
		size_t written = gather_strings(rig.entries, rig.ends, 5, rig.numbers, FEW, output, room);
		size_t fitting = 0;
		for (size_t row = 0; row < FEW && rig.row_ends[row] <= room; row++)
			fitting = rig.row_ends[row];
		CHECK(written == fitting);
		CHECK(memcmp(output, rig.expected, written) == 0);
		free(output);
	}
	rig_free(&rig);
}

static void test_a_number_beyond_the_dictionary_ends_it(void)
{
	struct rig rig = rig_new(3, 4);
	uint8_t *output = new_block(rig.whole);
	rig.numbers[0] = 0;
	rig.numbers[1] = 3;
	CHECK(gather_strings(rig.entries, rig.ends, 3, rig.numbers, 4, output, rig.whole) == SIZES[0] + 1);
	CHECK(gather_strings(rig.entries, rig.ends, 0, rig.numbers, 4, output, rig.whole) == 0);
	free(output);
	rig_free(&rig);
}

int main(void)
{
	test_rows_are_their_strings();
	test_no_room_writes_whole_rows_only();
	test_a_number_beyond_the_dictionary_ends_it();
	puts("gather: ok");
	return 0;
}
