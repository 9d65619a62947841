#define _GNU_SOURCE
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#include "transaction.h"

#define BATCH_MAGIC UINT64_C(0x3168637461626b6b) /* "kkbatch1" */
enum { BATCH_VERSION = 2, NAME_BYTES = 32 };
_Static_assert(offsetof(struct meter_batch_file, sent) == sizeof(struct meter_batch_file) - 8, "the last word");
_Static_assert(sizeof(((struct meter_batch_file *)0)->place) == PLACE_BYTES, "as in the ledger");

static uint64_t checksum_of(const struct meter_batch_file *file, const uint8_t *arrays)
{
	return bytes_checksum(arrays, file->arrays_bytes,
			      bytes_checksum(file, offsetof(struct meter_batch_file, checksum), 2));
}

static int write_all(int file, struct iovec *parts, int count)
{
	while (count > 0) {
		ssize_t written = writev(file, parts, count);
		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			return written < 0 ? -errno : -ENOSPC;
		for (; count > 0 && (size_t)written >= parts->iov_len; count--)
			written -= (ssize_t)parts++->iov_len;
		if (count > 0) {
			parts->iov_base = (uint8_t *)parts->iov_base + written;
			parts->iov_len -= (size_t)written;
		}
	}
	return 0;
}

int batch_write(int directory, const struct ledger_header *header, const struct meter_interval *interval,
		const struct meter_sealed *sealed, const uint8_t *arrays)
{
	struct meter_batch_file batch = {
		.magic = BATCH_MAGIC,
		.version = BATCH_VERSION,
		.ipv4_records = sealed->ipv4_records,
		.ipv6_records = sealed->ipv6_records,
		.sequence = header->next_sequence,
		.report = header->next_report,
		.interval_start = interval->start,
		.interval_end = interval->end,
		.arrays_bytes = sealed->buffer_bytes,
		.metered_bytes = sealed->metered_bytes,
		.metered_packets = sealed->metered_packets,
	};
	memcpy(batch.epoch, header->identity.epoch, sizeof batch.epoch);
	memcpy(batch.place, header->identity.place, sizeof batch.place);
	batch.checksum = checksum_of(&batch, arrays);
	char name[NAME_BYTES];
	snprintf(name, sizeof name, "batch-%020" PRIu64, batch.sequence);
	int file = openat(directory, name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	if (file < 0)
		return -errno;
	struct iovec parts[2] = {
		{.iov_base = &batch, .iov_len = sizeof batch},
		{.iov_base = (void *)(uintptr_t)arrays, .iov_len = sealed->buffer_bytes},
	};
	int error = write_all(file, parts, 2);
	close(file);
	if (error)
		unlinkat(directory, name, 0);
	return error;
}

int meter_batch_valid(const uint8_t *bytes, uint64_t length)
{
	struct meter_batch_file batch;
	if (length < sizeof batch)
		return 0;
	memcpy(&batch, bytes, sizeof batch);
	return batch.magic == BATCH_MAGIC && batch.version == BATCH_VERSION && batch.sequence > 0 &&
	       batch.arrays_bytes == length - sizeof batch &&
	       batch.arrays_bytes == 61 * (uint64_t)batch.ipv4_records + 109 * (uint64_t)batch.ipv6_records &&
	       batch.checksum == checksum_of(&batch, bytes + sizeof batch);
}
