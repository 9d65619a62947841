/* What the ledger promises, one promise a test: every byte once, whatever order messages come in. */
#include <errno.h>
#include <time.h>

#include "ledger.h"
#include "message.h"
#include "messages.h"
#include "sealing.h"

static struct ledger ledger;
static uint8_t sealed_bytes[1 << 20];

static const struct test_flow TCP_FLOW = {
	.original = {"192.0.2.1", "198.51.100.9", 40000, 443},
	.reply = {"10.1.2.3", "192.0.2.1", 8443, 40000},
	.protocol = IPPROTO_TCP,
	.id = 7,
};

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* The flow with these counters: packets 1 and 2, bytes as given. */
static struct test_flow with(struct test_flow flow, uint64_t original_bytes, uint64_t reply_bytes)
{
	flow.counters[ORIGINAL_PACKETS] = original_bytes / 10;
	flow.counters[ORIGINAL_BYTES] = original_bytes;
	flow.counters[REPLY_PACKETS] = reply_bytes / 10;
	flow.counters[REPLY_BYTES] = reply_bytes;
	return flow;
}

static struct test_flow born(struct test_flow flow, uint64_t start)
{
	flow.start = start;
	return flow;
}

static void read_flow(const struct test_flow *flow, void *buffer, struct sighting *sighting)
{
	CHECK(message_read(make_message(buffer, flow), sighting));
}

static void sight(struct test_flow flow)
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	read_flow(&flow, buffer, &sighting);
	CHECK(ledger_sight(&ledger, &sighting) == 0);
}

static void destroy(struct test_flow flow)
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	read_flow(&flow, buffer, &sighting);
	CHECK(ledger_destroy(&ledger, &sighting) == 0);
}

static const struct meter_totals *totals(void)
{
	const struct meter_totals *all = &ledger.header->totals;
	CHECK(all->observed_bytes == all->reported_bytes + all->ignored_protocol_bytes +
					     all->ignored_loopback_bytes + all->ignored_baseline_bytes +
					     all->ignored_overflow_bytes + all->pending_bytes);
	CHECK(all->observed_packets == all->reported_packets + all->ignored_protocol_packets +
					       all->ignored_loopback_packets + all->ignored_baseline_packets +
					       all->ignored_overflow_packets + all->pending_packets);
	return all;
}

static struct meter_sealed seal(uint64_t capacity)
{
	struct meter_sealed sealed;
	CHECK(seal_into(&ledger, sealed_bytes, capacity, &sealed) == 0);
	(void)totals();
	return sealed;
}

static void seal_all(void)
{
	while (seal(sizeof sealed_bytes).buffer_bytes != 0)
		;
	CHECK(totals()->pending_bytes == 0 && totals()->pending_flows == 0);
}

static void begin(bool count_existing)
{
	CHECK(ledger_open(&ledger, count_existing) == 0);
}

static void end(void)
{
	(void)totals();
	ledger_close(&ledger);
}

static void empty_dump(void)
{
	ledger_begin_dump(&ledger);
	ledger_end_dump(&ledger, true);
}

static void dump_of(struct test_flow flow)
{
	ledger_begin_dump(&ledger);
	sight(flow);
	ledger_end_dump(&ledger, true);
}

static void test_existing_flows_are_the_baseline(void)
{
	begin(false);
	dump_of(with(TCP_FLOW, 1000, 500));
	CHECK(totals()->ignored_baseline_bytes == 1500 && totals()->pending_bytes == 0);
	dump_of(with(TCP_FLOW, 1100, 500));
	CHECK(totals()->pending_bytes == 100);
	end();
}

static void test_existing_flows_count_when_asked(void)
{
	begin(true);
	dump_of(with(TCP_FLOW, 1000, 500));
	CHECK(totals()->pending_bytes == 1500 && totals()->ignored_baseline_bytes == 0);
	end();
}

static void test_flows_born_after_listening_count_from_zero_even_in_the_first_dump(void)
{
	begin(false);
	dump_of(born(with(TCP_FLOW, 1000, 500), now()));
	CHECK(totals()->pending_bytes == 1500 && totals()->ignored_baseline_bytes == 0);
	end();
}

static void test_an_old_flow_that_the_first_dump_missed_is_baseline(void)
{
	uint64_t long_ago = now() - 1000000000;
	begin(false);
	empty_dump();
	destroy(born(with(TCP_FLOW, 1000, 500), long_ago));
	CHECK(totals()->ignored_baseline_bytes == 1500 && totals()->pending_bytes == 0);
	end();
}

static void test_a_flow_shown_twice_by_a_dump_counts_once(void)
{
	begin(false);
	empty_dump();
	ledger_begin_dump(&ledger);
	sight(with(TCP_FLOW, 100, 50));
	sight(with(TCP_FLOW, 120, 50));
	sight(with(TCP_FLOW, 120, 50));
	CHECK(ledger.header->seen_flows == 1);
	ledger_end_dump(&ledger, true);
	CHECK(totals()->pending_bytes == 170 && totals()->flows == 1);
	end();
}

static void test_a_broken_dump_is_read_again_without_doubling(void)
{
	begin(false);
	empty_dump();
	ledger_begin_dump(&ledger);
	sight(with(TCP_FLOW, 100, 50));
	ledger_end_dump(&ledger, false);
	dump_of(with(TCP_FLOW, 130, 50));
	CHECK(ledger.header->seen_flows == 1 && totals()->pending_bytes == 180 && totals()->dumps == 2);
	end();
}

static void test_a_destroy_event_books_what_was_not_reported(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(TCP_FLOW, now());
	dump_of(with(flow, 100, 50));
	CHECK(seal(sizeof sealed_bytes).metered_bytes == 150);
	destroy(with(flow, 160, 70));
	CHECK(totals()->pending_bytes == 80 && totals()->flows == 0);
	destroy(with(flow, 160, 70)); /* sent again because another listener's queue was full */
	CHECK(totals()->pending_bytes == 80 && totals()->flows == 0);
	dump_of(with(flow, 160, 70)); /* a dump shows it once more before it is unlinked */
	CHECK(totals()->pending_bytes == 80 && totals()->entries == 1);
	seal_all();
	empty_dump();
	empty_dump();
	empty_dump();
	CHECK(totals()->entries == 0 && ledger.index.used == 0);
	end();
}

static void test_an_ended_flow_stays_until_it_is_sealed(void)
{
	begin(false);
	empty_dump();
	destroy(born(with(TCP_FLOW, 160, 70), now()));
	for (int i = 0; i < 5; i++)
		empty_dump();
	CHECK(totals()->entries == 1 && totals()->pending_bytes == 230);
	seal_all();
	CHECK(totals()->entries == 0 && totals()->reported_bytes == 230);
	end();
}

static void test_a_tombstone_stays_while_the_event_will_come_again(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(with(TCP_FLOW, 160, 70), now());
	destroy(flow);
	destroy(born(with(TCP_FLOW, 1, 1), now())); /* one that is not renewed, behind it */
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	read_flow(&flow, buffer, &sighting);
	for (int i = 0; i < 10; i++) {
		empty_dump();
		ledger_renew(&ledger, &sighting.key);
		seal_all();
	}
	CHECK(totals()->entries == 1);
	destroy(flow);
	CHECK(totals()->observed_bytes == 232);
	for (int i = 0; i < 3; i++)
		empty_dump();
	CHECK(totals()->entries == 0);
	end();
}

static void test_tombstones_stay_while_it_is_not_known_whose_events_will_come_again(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(with(TCP_FLOW, 160, 70), now());
	destroy(flow);
	seal_all();
	ledger.tombstones_stay = true;
	for (int i = 0; i < 10; i++)
		empty_dump();
	destroy(flow);
	CHECK(totals()->entries == 1 && totals()->observed_bytes == 230);
	ledger.tombstones_stay = false;
	empty_dump();
	CHECK(totals()->entries == 1);
	empty_dump();
	CHECK(totals()->entries == 0 && totals()->observed_bytes == 230);
	end();
}

static void test_lives_of_one_tuple_are_told_apart_by_start(void)
{
	begin(false);
	empty_dump();
	uint64_t start = now(), sum = 0;
	for (uint64_t life = 0; life < 1000; life++) {
		struct test_flow flow = born(TCP_FLOW, start + life);
		if (life % 3 == 0)
			dump_of(with(flow, 100, 50));
		if (life % 5 == 0)
			seal_all();
		destroy(with(flow, 100 + life, 50));
		sum += 150 + life;
	}
	CHECK(totals()->observed_bytes == sum && totals()->ambiguous_identity == 0);
	end();
}

static void test_lives_without_start_are_told_apart_by_order(void)
{
	begin(false);
	empty_dump();
	uint64_t sum = 0;
	for (uint64_t life = 0; life < 1000; life++) {
		if (life % 3 == 0)
			dump_of(with(TCP_FLOW, 10, 50));
		destroy(with(TCP_FLOW, 100 + life, 50));
		sum += 150 + life;
	}
	CHECK(totals()->observed_bytes == sum && totals()->ambiguous_identity > 0);
	end();
}

static void test_a_fall_without_start_is_a_new_life_and_the_old_one_still_ends(void)
{
	begin(false);
	empty_dump();
	dump_of(with(TCP_FLOW, 100, 50));
	dump_of(with(TCP_FLOW, 20, 10)); /* the next life shows before the last one's end is booked */
	destroy(with(TCP_FLOW, 110, 50));
	destroy(with(TCP_FLOW, 30, 10));
	CHECK(totals()->observed_bytes == 160 + 40 && totals()->foreign_resets == 0);
	CHECK(totals()->flows == 0);
	end();
}

static void test_a_fall_within_one_life_is_a_foreign_reset(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(TCP_FLOW, now());
	dump_of(with(flow, 100, 50));
	dump_of(with(flow, 20, 60)); /* one counter fell: all were reset */
	CHECK(totals()->foreign_resets == 1 && totals()->pending_bytes == 150 + 80);
	struct meter_sealed sealed = seal(sizeof sealed_bytes);
	CHECK(sealed.metered_bytes == 230 && sealed.ipv4_records == 1);
	destroy(with(flow, 5, 0));
	CHECK(totals()->foreign_resets == 2 && totals()->pending_bytes == 5);
	end();
}

static void test_a_dump_may_overtake_the_event(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(TCP_FLOW, now());
	dump_of(with(flow, 100, 50)); /* a packet came after the event below was made */
	destroy(with(flow, 90, 50));
	CHECK(totals()->pending_bytes == 150 && totals()->foreign_resets == 0 && totals()->flows == 0);
	end();
}

static void test_a_flow_given_up_and_shown_again_goes_on(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(TCP_FLOW, now());
	dump_of(with(flow, 100, 50));
	empty_dump();
	empty_dump();
	uint32_t position = 0;
	ledger_vanish(&ledger, ledger_next_absent(&ledger, &position));
	for (uint64_t bytes = 110; bytes < 200; bytes += 10) {
		dump_of(with(flow, bytes, 50));
		seal_all();
	}
	CHECK(totals()->reported_bytes == 240);
	destroy(with(flow, 210, 50));
	CHECK(totals()->observed_bytes == 260 && totals()->vanished == 0);
	end();
}

static void test_an_end_without_start_that_fits_no_known_life_is_an_earlier_one(void)
{
	begin(false);
	empty_dump();
	dump_of(with(TCP_FLOW, 100, 50));
	destroy(with(TCP_FLOW, 20, 10));
	dump_of(with(TCP_FLOW, 110, 50));
	destroy(with(TCP_FLOW, 120, 50));
	CHECK(totals()->observed_bytes == 30 + 170 && totals()->flows == 0);
	end();
}

static void test_same_id_and_different_ids_zones_and_families_are_different_flows(void)
{
	begin(false);
	empty_dump();
	struct test_flow other_port = TCP_FLOW, other_id = TCP_FLOW, zoned = TCP_FLOW, half_zoned = TCP_FLOW;
	other_port.original.source_port = 40001;
	other_id.id = 8;
	zoned.zone = 5;
	half_zoned.original_zone = 5;
	ledger_begin_dump(&ledger);
	sight(with(TCP_FLOW, 100, 0));
	sight(with(other_port, 90, 0));
	sight(with(other_id, 80, 0));
	sight(with(zoned, 70, 0));
	sight(with(half_zoned, 60, 0));
	ledger_end_dump(&ledger, true);
	CHECK(totals()->flows == 5 && totals()->pending_bytes == 400 && totals()->ambiguous_identity == 0);
	end();
}

static void test_what_is_not_metered_is_counted_by_reason(void)
{
	begin(false);
	empty_dump();
	struct test_flow icmp = {.original = {"192.0.2.1", "192.0.2.2", 77, 0x0800},
				 .reply = {"192.0.2.2", "192.0.2.1", 77, 0},
				 .protocol = IPPROTO_ICMP};
	struct test_flow ipv6 = {.original = {"::1", "2001:db8::1", 1, 2},
				 .reply = {"2001:db8::1", "::1", 2, 1},
				 .protocol = IPPROTO_TCP};
	struct test_flow ipv4 = TCP_FLOW;
	ipv4.reply.source = "127.9.9.9";
	ledger_begin_dump(&ledger);
	sight(with(icmp, 10, 0));
	sight(with(ipv6, 20, 0));
	sight(with(ipv4, 30, 0));
	struct test_flow blind = TCP_FLOW;
	blind.id = 9;
	blind.without_counters = true;
	sight(blind);
	ledger_end_dump(&ledger, true);
	CHECK(totals()->ignored_protocol_bytes == 10 && totals()->ignored_loopback_bytes == 50);
	CHECK(totals()->pending_bytes == 0 && totals()->ignored_flows == 3 && totals()->without_counters == 1);
	destroy(blind);
	CHECK(totals()->destroy_without_counters == 1 && totals()->destroy_events == 1);
	end();
}

static void test_offloaded_flows_are_counted_anew_in_each_dump(void)
{
	begin(false);
	empty_dump();
	struct test_flow soft = with(TCP_FLOW, 100, 50), hard = soft;
	soft.status = 1 << 14; /* IPS_OFFLOAD, IPS_HW_OFFLOAD of linux/netfilter/nf_conntrack_common.h */
	hard.status = 1 << 15;
	hard.id = 9;
	for (int dump = 0; dump < 2; dump++) {
		ledger_begin_dump(&ledger);
		sight(soft);
		sight(hard);
		ledger_end_dump(&ledger, true);
		CHECK(totals()->offloaded == 2 && totals()->pending_bytes == 300);
	}
	empty_dump();
	CHECK(totals()->offloaded == 0);
	end();
}

static void test_one_absence_proves_nothing_and_two_make_us_ask(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(with(TCP_FLOW, 100, 50), now());
	dump_of(flow);
	empty_dump();
	uint32_t position = 0;
	CHECK(ledger_next_absent(&ledger, &position) == NO_ENTRY);
	empty_dump();
	position = 0;
	uint32_t absent = ledger_next_absent(&ledger, &position);
	CHECK(absent != NO_ENTRY && ledger_next_absent(&ledger, &position) == NO_ENTRY);
	ledger_vanish(&ledger, absent);
	CHECK(totals()->flows == 0 && totals()->vanished == 0);
	destroy(with(flow, 170, 50)); /* late, but in time */
	CHECK(totals()->pending_bytes == 220);
	seal_all();
	for (int i = 0; i < 3; i++)
		empty_dump();
	CHECK(totals()->vanished == 0 && totals()->entries == 0);
	end();
}

static void test_a_flow_that_vanished_is_counted_and_its_bytes_stay(void)
{
	begin(false);
	empty_dump();
	dump_of(born(with(TCP_FLOW, 100, 50), now()));
	empty_dump();
	empty_dump();
	uint32_t position = 0;
	ledger_vanish(&ledger, ledger_next_absent(&ledger, &position));
	empty_dump();
	empty_dump();
	CHECK(totals()->vanished == 1 && totals()->pending_bytes == 150);
	seal_all();
	CHECK(totals()->entries == 0 && totals()->reported_bytes == 150);
	end();
}

static void test_the_ledger_grows_and_gives_entries_back(void)
{
	begin(false);
	empty_dump();
	struct test_flow flow = born(TCP_FLOW, now());
	for (int round = 0; round < 2; round++) {
		ledger_begin_dump(&ledger);
		for (uint32_t id = 0; id < 20000; id++) {
			flow.id = id;
			sight(with(flow, 10 + id, 0));
		}
		ledger_end_dump(&ledger, true);
		CHECK(totals()->flows == 20000 && ledger.header->seen_flows == 20000);
	}
	seal_all();
	uint64_t memory = totals()->memory_bytes;
	for (uint32_t id = 0; id < 20000; id++) {
		flow.id = id;
		destroy(with(flow, 10 + id, 0));
	}
	for (int i = 0; i < 3; i++)
		empty_dump();
	CHECK(totals()->entries == 0 && ledger.index.used == 0 && totals()->pending_bytes == 0);
	for (uint32_t id = 0; id < 20000; id++) {
		flow.id = id + 100000;
		destroy(with(flow, 10, 0));
	}
	CHECK(totals()->memory_bytes == memory);
	end();
}

static uint64_t little(const uint8_t *bytes, size_t width)
{
	uint64_t value = 0;
	for (size_t i = 0; i < width; i++)
		value |= (uint64_t)bytes[i] << 8 * i;
	return value;
}

static void test_sealing_writes_columns_of_both_families(void)
{
	enum { STARTED = 2000000000 }; /* later than any ledger of a test begins */
	begin(false);
	empty_dump();
	struct test_flow ipv6 = {.original = {"2001:db8::1", "2001:db8::2", 11, 12},
				 .reply = {"2001:db8::3", "2001:db8::4", 13, 14},
				 .protocol = IPPROTO_UDP};
	ledger_begin_dump(&ledger);
	sight(with(ipv6, 300, 400));
	sight(born(with(TCP_FLOW, 100, 200), STARTED * UINT64_C(1000000000) + 999999999));
	ledger_end_dump(&ledger, true);
	struct meter_sealed sealed = seal(sizeof sealed_bytes);
	CHECK(sealed.ipv4_records == 1 && sealed.ipv6_records == 1 && sealed.buffer_bytes == 61 + 109);
	CHECK(sealed.metered_bytes == 1000 && sealed.metered_packets == 100);
	const uint8_t *at = sealed_bytes;
	CHECK(at[0] == IPPROTO_TCP);
	CHECK(little(at + 1, 4) == 0xc0000201 && little(at + 5, 4) == 0xc6336409);
	CHECK(little(at + 9, 4) == 0x0a010203 && little(at + 13, 4) == 0xc0000201);
	CHECK(little(at + 17, 2) == 40000 && little(at + 19, 2) == 443);
	CHECK(little(at + 21, 2) == 8443 && little(at + 23, 2) == 40000);
	CHECK(little(at + 25, 8) == 10 && little(at + 33, 8) == 100);
	CHECK(little(at + 41, 8) == 20 && little(at + 49, 8) == 200);
	CHECK(little(at + 57, 4) == STARTED);
	at += 61;
	CHECK(at[0] == IPPROTO_UDP && at[1] == 0x20 && at[16] == 1 && at[32] == 2 && at[48] == 3 && at[64] == 4);
	CHECK(little(at + 65, 2) == 11 && little(at + 71, 2) == 14);
	CHECK(little(at + 73, 8) == 30 && little(at + 97, 8) == 400);
	CHECK(little(at + 105, 4) == 0);
	end();
}

static void test_sealing_splits_at_the_capacity(void)
{
	begin(false);
	empty_dump();
	ledger_begin_dump(&ledger);
	struct test_flow flow = TCP_FLOW;
	for (flow.id = 0; flow.id < 5; flow.id++)
		sight(with(flow, 100, 0));
	ledger_end_dump(&ledger, true);
	struct meter_sealed sealed;
	CHECK(seal_into(&ledger, sealed_bytes, 60, &sealed) == -ENOBUFS && sealed.buffer_bytes == 0);
	CHECK(seal(2 * 61).ipv4_records == 2 && seal(3 * 61 - 1).ipv4_records == 2);
	CHECK(seal(1000).ipv4_records == 1 && seal(1000).ipv4_records == 0);
	flow.id = 0;
	dump_of(with(flow, 150, 0));
	CHECK(seal(1000).metered_bytes == 50);
	end();
}

int main(void)
{
	test_existing_flows_are_the_baseline();
	test_existing_flows_count_when_asked();
	test_flows_born_after_listening_count_from_zero_even_in_the_first_dump();
	test_an_old_flow_that_the_first_dump_missed_is_baseline();
	test_a_flow_shown_twice_by_a_dump_counts_once();
	test_a_broken_dump_is_read_again_without_doubling();
	test_a_destroy_event_books_what_was_not_reported();
	test_an_ended_flow_stays_until_it_is_sealed();
	test_a_tombstone_stays_while_the_event_will_come_again();
	test_tombstones_stay_while_it_is_not_known_whose_events_will_come_again();
	test_lives_of_one_tuple_are_told_apart_by_start();
	test_lives_without_start_are_told_apart_by_order();
	test_a_fall_without_start_is_a_new_life_and_the_old_one_still_ends();
	test_a_fall_within_one_life_is_a_foreign_reset();
	test_a_dump_may_overtake_the_event();
	test_a_flow_given_up_and_shown_again_goes_on();
	test_an_end_without_start_that_fits_no_known_life_is_an_earlier_one();
	test_same_id_and_different_ids_zones_and_families_are_different_flows();
	test_what_is_not_metered_is_counted_by_reason();
	test_offloaded_flows_are_counted_anew_in_each_dump();
	test_one_absence_proves_nothing_and_two_make_us_ask();
	test_a_flow_that_vanished_is_counted_and_its_bytes_stay();
	test_the_ledger_grows_and_gives_entries_back();
	test_sealing_writes_columns_of_both_families();
	test_sealing_splits_at_the_capacity();
	puts("ledger: ok");
	return 0;
}
