/* The ledger against a small model of the kernel that does all it may do: flows die before, in and after a dump,
 * their events come late, twice or not in time, dumps repeat and skip, lives of one tuple follow each other. Events
 * for which the listener has no room come many dumps later; what the kernel says of them until then may be cut short.
 * Afterwards what was observed must be what the model's flows moved, to the byte, and nothing may be left. A kernel
 * that does what none may (it loses events, shows a dead flow under another start, or cuts short without a sign) shows
 * that this can fail. */
#include <time.h>

#include "ledger.h"
#include "message.h"
#include "messages.h"
#include "sealing.h"

enum { TUPLES = 40, EVENTS = 4096, STEPS = 3000, RUNS = 60 };

enum kernel { HONEST, LOSES_EVENTS, FORGES_STARTS, HIDES_EVENTS };

struct life {
	struct test_flow flow; /* its counters are the kernel's */
	bool alive;
	bool linked; /* dead, and still shown by the dump that comes next */
};

static enum kernel kernel;
static struct ledger ledger;
static uint8_t sealed_bytes[1 << 16];
static uint64_t random_state, wall;
static struct life lives[TUPLES];
static struct test_flow events[EVENTS];
static size_t first_event, last_event;
static struct test_flow undelivered[EVENTS];
static size_t undelivered_count;
static uint64_t true_bytes, sealed_total, most_waiting;

static uint64_t draw(uint64_t bound)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % bound;
}

static bool chance(uint64_t percent)
{
	return draw(100) < percent;
}

static void show(const struct test_flow *flow, int (*book)(struct ledger *, const struct sighting *))
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	CHECK(message_read(make_message(buffer, flow), &sighting));
	CHECK(book(&ledger, &sighting) == 0);
}

static void be_born(struct life *life, size_t tuple)
{
	life->flow = (struct test_flow){
		.original = {"192.0.2.1", "198.51.100.9", (uint16_t)(1000 + tuple), 443},
		.reply = {"198.51.100.9", "192.0.2.1", 443, (uint16_t)(1000 + tuple)},
		.protocol = tuple % 2 ? IPPROTO_TCP : IPPROTO_UDP,
		.id = (uint32_t)(tuple % 7), /* the same again for the next life, and for other tuples */
		.start = ++wall,
	};
	life->alive = true;
	life->linked = false;
}

static void move(struct life *life)
{
	for (int i = 0; i < COUNTERS; i++) {
		uint64_t amount = draw(1000);
		life->flow.counters[i] += amount;
		if (i == ORIGINAL_BYTES || i == REPLY_BYTES)
			true_bytes += amount;
	}
}

static void die(struct life *life)
{
	life->alive = false;
	life->linked = true;
	if (undelivered_count < EVENTS && chance(undelivered_count ? 80 : 2)) {
		undelivered[undelivered_count++] = life->flow;
		return;
	}
	CHECK(last_event < EVENTS);
	events[last_event++] = life->flow;
	if (chance(10) && last_event < EVENTS)
		events[last_event++] = life->flow;
}

/* The kernel tries the youngest first. */
static void deliver(size_t at_most)
{
	for (; at_most > 0 && undelivered_count > 0 && last_event < EVENTS; at_most--)
		events[last_event++] = undelivered[--undelivered_count];
}

static void list_undelivered(void)
{
	bool whole = chance(50);
	size_t shown = whole ? 0 : undelivered_count - draw(undelivered_count + 1);
	ledger.tombstones_stay = !whole && kernel != HIDES_EVENTS;
	for (size_t number = undelivered_count; number > shown; number--) {
		_Alignas(8) uint8_t buffer[1024];
		struct sighting sighting;
		CHECK(message_read(make_message(buffer, &undelivered[number - 1]), &sighting));
		ledger_renew(&ledger, &sighting.key);
	}
	deliver(draw(4));
}

static void book_events(size_t at_most)
{
	for (; at_most > 0 && first_event < last_event; at_most--, first_event++)
		if (kernel != LOSES_EVENTS || !chance(2))
			show(&events[first_event], ledger_destroy);
	if (first_event == last_event)
		first_event = last_event = 0;
}

static void change_something(void)
{
	size_t tuple = draw(TUPLES);
	struct life *life = &lives[tuple];
	if (!life->alive) {
		if (!life->linked || chance(50))
			be_born(life, tuple);
	} else if (chance(15)) {
		die(life);
	} else {
		move(life);
	}
}

static void ask_for_absent(void)
{
	uint32_t position = 0, number;
	while ((number = ledger_next_absent(&ledger, &position)) != NO_ENTRY) {
		const struct flow_key key = entry_at(&ledger, number)->key;
		struct life *life = &lives[key.source_port - 1000];
		if (life->alive)
			show(&life->flow, ledger_sight);
		if (entry_at(&ledger, number)->seen != ledger.header->dump)
			ledger_vanish(&ledger, number);
	}
}

static void dump(bool resize, bool complete)
{
	ledger_begin_dump(&ledger);
	for (size_t step = 0; step < TUPLES; step++) {
		struct life *life = &lives[step];
		bool skipped = resize && chance(30);
		if (!skipped && (life->alive || (life->linked && chance(50)))) {
			if (!life->alive && chance(30))
				move(life); /* a packet that came before the flow was unlinked */
			struct test_flow shown = life->flow;
			shown.start += kernel == FORGES_STARTS && !life->alive;
			show(&shown, ledger_sight);
		}
		if (!life->alive)
			life->linked = false;
		const struct life *repeated = &lives[draw(step + 1)];
		if (resize && chance(20) && repeated->alive)
			show(&repeated->flow, ledger_sight);
		if (chance(20))
			change_something();
	}
	ledger_end_dump(&ledger, complete);
	if (complete) {
		ask_for_absent();
		list_undelivered();
	}
}

static void check_sums(void)
{
	const struct meter_totals *totals = &ledger.header->totals;
	uint64_t pending = 0, flows = 0, entries = 0;
	for (uint32_t number = 0; number < ledger.header->used; number++) {
		const struct entry *entry = entry_at(&ledger, number);
		if (entry->key.family == FAMILY_NONE)
			continue;
		entries++;
		flows += !(entry->key.flags & FLAG_DEAD);
		pending += entry->last[ORIGINAL_BYTES] - entry->reported[ORIGINAL_BYTES] +
			   entry->last[REPLY_BYTES] - entry->reported[REPLY_BYTES];
	}
	CHECK(totals->observed_bytes ==
	      totals->reported_bytes + totals->ignored_overflow_bytes + totals->pending_bytes);
	CHECK(totals->observed_bytes <= true_bytes || kernel >= FORGES_STARTS);
	CHECK(totals->pending_bytes == pending && totals->flows == flows && totals->entries == entries);
	CHECK(totals->waiting_flows <= most_waiting);
	CHECK(totals->reported_bytes == sealed_total && ledger.index.used == entries);
}

static void run(uint64_t seed)
{
	random_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
	memset(lives, 0, sizeof lives);
	first_event = last_event = undelivered_count = 0;
	true_bytes = sealed_total = 0;
	CHECK(ledger_open(&ledger, false) == 0);
	most_waiting = TUPLES * STEPS;
	if (seed % 2) {
		ledger.limits.whole = draw(4);
		ledger.limits.by_port = ledger.limits.whole + draw(3);
		ledger.limits.by_addresses = ledger.limits.by_port + draw(3);
		most_waiting = ledger.limits.by_addresses;
	}
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	wall = (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec + 1000000000;
	for (int step = 0; step < STEPS; step++) {
		if (chance(90)) {
			change_something();
		} else if (chance(50) || last_event > EVENTS / 2) {
			book_events(EVENTS); /* as meter_read() does, before each dump */
			dump(chance(30), chance(90));
		} else {
			struct meter_sealed sealed;
			CHECK(seal_into(&ledger, sealed_bytes, 61 + draw(4000), &sealed) == 0);
			sealed_total += sealed.metered_bytes;
		}
		check_sums();
	}
	book_events(EVENTS);
	dump(false, true);
	for (size_t tuple = 0; tuple < TUPLES; tuple++)
		if (lives[tuple].alive)
			die(&lives[tuple]);
	for (book_events(EVENTS); undelivered_count > 0; book_events(EVENTS))
		deliver(EVENTS);
	ledger.tombstones_stay = false;
	for (int i = 0; i < 4; i++) {
		ledger_begin_dump(&ledger);
		ledger_end_dump(&ledger, true);
	}
	if (kernel != HONEST) {
		bool fewer = ledger.header->totals.observed_bytes < true_bytes;
		CHECK(ledger.header->totals.observed_bytes != true_bytes && fewer == (kernel == LOSES_EVENTS));
		ledger_close(&ledger);
		return;
	}
	CHECK(ledger.header->totals.observed_bytes == true_bytes);
	for (struct meter_sealed sealed = {.buffer_bytes = 1}; sealed.buffer_bytes;) {
		CHECK(seal_into(&ledger, sealed_bytes, sizeof sealed_bytes, &sealed) == 0);
		sealed_total += sealed.metered_bytes;
	}
	check_sums();
	CHECK(sealed_total + ledger.header->totals.ignored_overflow_bytes == true_bytes);
	CHECK(ledger.header->totals.entries == 0 && ledger.header->totals.waiting_flows == 0);
	CHECK(ledger.header->totals.ignored_overflow_bytes == 0 || seed % 2);
	CHECK(ledger.header->totals.vanished == 0 && ledger.header->totals.ambiguous_identity == 0);
	CHECK(ledger.header->totals.foreign_resets == 0);
	ledger_close(&ledger);
}

int main(void)
{
	for (uint64_t seed = 1; seed <= RUNS; seed++)
		run(seed);
	for (kernel = LOSES_EVENTS; kernel <= HIDES_EVENTS; kernel++)
		run(2); /* nothing is merged in it */
	puts("model: ok");
	return 0;
}
