/* Any bytes as netlink messages, through the parser and into a ledger; afterwards the sums must still hold. */
#include <linux/netlink.h>

#include "ledger.h"
#include "message.h"
#include "messages.h"
#include "sealing.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_identity(const struct meter_totals *totals)
{
	CHECK(totals->observed_bytes == totals->reported_bytes + totals->ignored_protocol_bytes +
						totals->ignored_loopback_bytes + totals->ignored_baseline_bytes +
						totals->ignored_overflow_bytes + totals->pending_bytes);
	CHECK(totals->observed_packets == totals->reported_packets + totals->ignored_protocol_packets +
						  totals->ignored_loopback_packets +
						  totals->ignored_baseline_packets +
						  totals->ignored_overflow_packets + totals->pending_packets);
}

static void book(struct ledger *ledger, const struct nlmsghdr *message)
{
	struct sighting sighting;
	if (!message_read(message, &sighting))
		return;
	/* The flags, of no meaning in an answer, choose what the message is taken for. */
	if (message->nlmsg_flags & 1)
		CHECK(ledger_destroy(ledger, &sighting) == 0);
	else
		CHECK(ledger_sight(ledger, &sighting) == 0);
	if (message->nlmsg_flags & 2) {
		ledger_end_dump(ledger, !(message->nlmsg_flags & 4));
		ledger_begin_dump(ledger);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ledger ledger;
	static uint8_t sealed_bytes[64 * 1024];
	CHECK(ledger_open(&ledger, true) == 0);
	ledger.limits = (struct waiting_limits){1, 2, 3};
	ledger_begin_dump(&ledger);
	/* The copy is aligned as the kernel's buffers are and ends where the heap does. */
	uint8_t *copy = malloc(size ? size : 1);
	CHECK(copy != NULL);
	memcpy(copy, data, size);
	const struct nlmsghdr *message;
	for (size_t position = 0; (message = message_next(copy, size, &position));)
		book(&ledger, message);
	ledger_end_dump(&ledger, true);
	check_identity(&ledger.header->totals);
	struct meter_sealed sealed;
	do {
		CHECK(seal_into(&ledger, sealed_bytes, sizeof sealed_bytes, &sealed) == 0);
	} while (sealed.buffer_bytes != 0);
	check_identity(&ledger.header->totals);
	CHECK(ledger.header->totals.pending_bytes == 0 && ledger.header->totals.pending_flows == 0);
	free(copy);
	ledger_close(&ledger);
	return 0;
}
