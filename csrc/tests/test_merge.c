/* What ended flows keep of themselves while nothing is sealed: all, then no client port, then no port, then only
 * their bytes. */
#include <time.h>

#include "ledger.h"
#include "message.h"
#include "messages.h"
#include "sealing.h"

enum { RECORD_BYTES = 61, MOST_RECORDS = 64, LIVES = 150000 };

struct record {
	uint16_t ports[4]; /* original source and destination, reply source and destination */
	uint64_t counters[COUNTERS];
	uint32_t start;
};

static struct ledger ledger;
static uint64_t wall;
static struct record records[MOST_RECORDS];

static const struct test_flow FLOW = {
	.original = {"192.0.2.1", "198.51.100.9", 40000, 443},
	.reply = {"10.1.2.3", "192.0.2.1", 8443, 40000},
	.protocol = IPPROTO_TCP,
	.counters = {1, 100, 2, 50},
};

static void begin(uint64_t whole, uint64_t by_port, uint64_t by_addresses)
{
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	wall = (uint64_t)(time.tv_sec + 1) * 1000000000;
	CHECK(ledger_open(&ledger, false) == 0);
	ledger.limits = (struct waiting_limits){whole, by_port, by_addresses};
}

static void end_of(struct test_flow flow, uint16_t client_port)
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	flow.original.source_port = flow.reply.destination_port = client_port;
	flow.start = ++wall;
	CHECK(message_read(make_message(buffer, &flow), &sighting));
	CHECK(ledger_destroy(&ledger, &sighting) == 0);
}

static void dumps_go_by(void)
{
	for (int i = 0; i < 3; i++) {
		ledger_begin_dump(&ledger);
		ledger_end_dump(&ledger, true);
	}
}

/* Seals all into `records`; how many there were. */
static uint32_t seal(void)
{
	static uint8_t bytes[RECORD_BYTES * MOST_RECORDS];
	struct meter_sealed sealed;
	CHECK(seal_into(&ledger, bytes, sizeof bytes, &sealed) == 0 && sealed.ipv6_records == 0);
	uint32_t count = sealed.ipv4_records;
	for (uint32_t i = 0; i < count; i++) {
		for (size_t port = 0; port < 4; port++)
			memcpy(&records[i].ports[port], bytes + (17 + 2 * port) * count + 2 * i, 2);
		for (size_t counter = 0; counter < COUNTERS; counter++)
			memcpy(&records[i].counters[counter], bytes + (25 + 8 * counter) * count + 8 * i, 8);
		memcpy(&records[i].start, bytes + 57 * count + 4 * i, 4);
	}
	CHECK(ledger.header->totals.pending_flows == 0 && ledger.header->totals.pending_bytes == 0);
	CHECK(ledger.header->totals.waiting_flows == 0 && ledger.header->totals.entries == 0);
	CHECK(ledger.index.used == 0);
	return count;
}

static bool has_ports(uint32_t i, uint16_t client, uint16_t service, uint16_t behind)
{
	const uint16_t *ports = records[i].ports;
	return ports[0] == client && ports[1] == service && ports[2] == behind && ports[3] == client;
}

static void test_up_to_the_limit_nothing_is_merged(void)
{
	begin(3, 3, 3);
	for (uint16_t port = 1; port <= 3; port++)
		end_of(FLOW, port);
	dumps_go_by();
	CHECK(ledger.header->totals.waiting_flows == 3 && ledger.header->totals.merged_flows == 0);
	CHECK(seal() == 3 && has_ports(0, 1, 443, 8443) && has_ports(2, 3, 443, 8443));
	ledger_close(&ledger);
}

static void test_beyond_it_they_share_a_record_without_client_port(void)
{
	struct test_flow other_service = FLOW, other_pod = FLOW;
	other_service.original.destination_port = 80;
	other_pod.reply.source = "10.1.2.4";
	begin(1, 9, 9);
	end_of(FLOW, 1);
	for (uint16_t port = 2; port < 30; port++) {
		end_of(FLOW, port);
		end_of(other_service, port);
		end_of(other_pod, port);
	}
	dumps_go_by();
	CHECK(ledger.header->totals.waiting_flows == 4 && ledger.header->totals.merged_flows == 3 * 28);
	CHECK(seal() == 4);
	CHECK(has_ports(0, 1, 443, 8443) && has_ports(1, 0, 443, 8443) && has_ports(2, 0, 80, 8443) &&
	      has_ports(3, 0, 443, 8443));
	CHECK(records[0].start == wall / 1000000000);
	for (uint32_t i = 1; i < 4; i++)
		CHECK(records[i].start == 0 && records[i].counters[ORIGINAL_PACKETS] == 28 && records[i].counters[ORIGINAL_BYTES] == 2800 &&
		      records[i].counters[REPLY_PACKETS] == 56 && records[i].counters[REPLY_BYTES] == 1400);
	ledger_close(&ledger);
}

static void test_beyond_that_they_share_one_without_ports(void)
{
	begin(0, 1, 2);
	for (uint16_t service = 1; service <= 20; service++) {
		struct test_flow flow = FLOW;
		flow.original.destination_port = service;
		end_of(flow, 5);
	}
	dumps_go_by();
	CHECK(ledger.header->totals.ignored_overflow_bytes == 0);
	CHECK(seal() == 2 && has_ports(0, 0, 1, 8443) && has_ports(1, 0, 0, 0));
	CHECK(records[1].counters[ORIGINAL_BYTES] == 1900);
	ledger_close(&ledger);
}

static void test_what_finds_no_room_at_all_is_counted(void)
{
	struct test_flow elsewhere = FLOW;
	elsewhere.original.source = "192.0.2.2";
	begin(0, 0, 1);
	end_of(FLOW, 1);
	end_of(elsewhere, 1);
	end_of(FLOW, 2);
	dumps_go_by();
	const struct meter_totals *totals = &ledger.header->totals;
	CHECK(totals->ignored_overflow_bytes == 150 && totals->ignored_overflow_packets == 3);
	CHECK(totals->observed_bytes == 450 && totals->pending_bytes == 300);
	CHECK(seal() == 1 && records[0].counters[ORIGINAL_BYTES] == 200);
	ledger_close(&ledger);
}

static void test_a_living_flow_is_never_taken_for_a_merged_one(void)
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	struct test_flow living = FLOW;
	begin(0, 1, 1);
	end_of(FLOW, 1);
	dumps_go_by();
	living.original.source_port = living.reply.destination_port = 0;
	living.counters[ORIGINAL_BYTES] = 7;
	CHECK(message_read(make_message(buffer, &living), &sighting));
	CHECK(ledger_sight(&ledger, &sighting) == 0);
	CHECK(ledger.header->totals.flows == 1 && ledger.header->totals.pending_flows == 2);
	CHECK(ledger.header->totals.foreign_resets == 0);
	ledger_close(&ledger);
}

static void test_memory_is_bounded_however_many_end(void)
{
	begin(WAIT_WHOLE, WAIT_BY_PORT, WAIT_BY_ADDRESSES);
	for (uint32_t life = 0; life < LIVES; life++) {
		struct test_flow flow = FLOW;
		flow.id = life;
		flow.original.destination_port = (uint16_t)(life >> 12); /* 4096 clients' ports a service */
		end_of(flow, (uint16_t)(life & 4095));
		if (life % 1000 == 999)
			dumps_go_by();
	}
	const struct meter_totals *totals = &ledger.header->totals;
	CHECK(totals->observed_bytes == UINT64_C(150) * LIVES && totals->pending_bytes == totals->observed_bytes);
	CHECK(totals->waiting_flows > WAIT_WHOLE && totals->waiting_flows <= WAIT_BY_PORT);
	CHECK(totals->merged_flows == LIVES - WAIT_WHOLE);
	CHECK(totals->memory_bytes < UINT64_C(15000000));
	ledger_close(&ledger);
}

int main(void)
{
	test_up_to_the_limit_nothing_is_merged();
	test_beyond_it_they_share_a_record_without_client_port();
	test_beyond_that_they_share_one_without_ports();
	test_what_finds_no_room_at_all_is_counted();
	test_a_living_flow_is_never_taken_for_a_merged_one();
	test_memory_is_bounded_however_many_end();
	puts("merge: ok");
	return 0;
}
