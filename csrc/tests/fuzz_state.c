/* The state file, after anything has happened to it: it is taken up whole or not at all, and what was taken up can
 * be worked with. An input says whether the checksums are made to fit, then which bytes change: low and high byte
 * of where, and what is XORed there. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "ledger.h"
#include "message.h"
#include "messages.h"
#include "state.h"
#include "transaction.h"

enum { ENTRIES = 16, IMAGE_BYTES = HEADER_BYTES + ENTRIES * sizeof(struct entry), CHANGE_BYTES = 3 };

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

static const struct ledger_identity IDENTITY = {
	.magic = STATE_MAGIC,
	.version = STATE_VERSION_NUMBER,
	.entry_bytes = sizeof(struct entry),
	.boot = "a boot",
	.place = "a node",
};
static _Alignas(64) uint8_t whole[IMAGE_BYTES], image[IMAGE_BYTES];
static uint8_t arrays[1024];
static uint64_t now;

static void show(struct ledger *ledger, uint16_t port, uint64_t bytes, bool ended)
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	const struct test_flow flow = {
		.original = {"192.0.2.1", "198.51.100.9", port, 443},
		.reply = {"198.51.100.9", "192.0.2.1", 443, port},
		.protocol = IPPROTO_UDP,
		.start = now,
		.counters = {1, bytes, 1, bytes},
	};
	CHECK(message_read(make_message(buffer, &flow), &sighting));
	CHECK((ended ? ledger_destroy : ledger_sight)(ledger, &sighting) == 0);
}

static void work(struct ledger *ledger)
{
	const struct meter_interval interval = {.start = 1, .end = 2};
	for (uint16_t round = 1; round < 4; round++) {
		ledger_begin_dump(ledger);
		for (uint16_t port = 1; port < 6; port++)
			show(ledger, port, port * round * 10u, false);
		ledger_end_dump(ledger, true);
		show(ledger, round, 100, true);
		struct meter_sealed sealed;
		CHECK(ledger_prepare(ledger, arrays, 61 * 3, &sealed) <= 0);
		if (sealed.buffer_bytes > 0)
			ledger_sealed(ledger, &sealed, &interval);
	}
}

static void make_whole(void)
{
	struct ledger ledger;
	enum meter_state_fault fault;
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	now = ((uint64_t)time.tv_sec + 1) * 1000000000;
	int file = memfd_create("whole", 0);
	CHECK(ledger_open_file(&ledger, file, true, &IDENTITY, &fault) == 0);
	work(&ledger);
	ledger.header->capacity = ENTRIES;
	ledger.header->checksum = header_checksum(ledger.header);
	CHECK(ledger.header->used < ENTRIES);
	memcpy(whole, ledger.header, sizeof whole);
	ledger_close(&ledger);
	close(file);
}

static void make_sums_fit(void)
{
	struct ledger_header *header = (struct ledger_header *)(void *)image;
	struct entry *entries = (struct entry *)(void *)(image + HEADER_BYTES);
	for (uint32_t number = 0; number < ENTRIES; number++) {
		if (entries[number].key.family != FAMILY_NONE)
			entries[number].hash = key_hash(&entries[number].key, header->seed);
		entries[number].checksum = entry_checksum(&entries[number], number);
	}
	header->checksum = header_checksum(header);
	header->identity.checksum = identity_checksum(&header->identity);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length)
{
	if (now == 0)
		make_whole();
	if (length == 0)
		return 0;
	memcpy(image, whole, sizeof image);
	for (size_t at = 1; at + CHANGE_BYTES <= length; at += CHANGE_BYTES)
		image[(input[at] | (size_t)input[at + 1] << 8) % IMAGE_BYTES] ^= input[at + 2];
	if (input[0] & 1)
		make_sums_fit();
	struct ledger ledger;
	enum meter_state_fault fault;
	int file = memfd_create("state", 0);
	CHECK(file >= 0 && write(file, image, sizeof image) == sizeof image);
	int error = ledger_open_file(&ledger, file, true, &IDENTITY, &fault);
	CHECK(error == 0 || fault != STATE_OK);
	if (error == 0) {
		work(&ledger);
		ledger_close(&ledger);
	}
	close(file);
	return 0;
}
