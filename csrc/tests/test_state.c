/* A kill at every single instruction. The ledger works on a shared mapping under a tracer that steps it one
 * instruction at a time; after each, the tracer copies the region as a kill would leave it, takes the copy up, does
 * again what a restarted agent would, and finds every sum as if nothing had happened. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ledger.h"
#include "message.h"
#include "messages.h"
#include "state.h"

enum { BUFFER = 61 * 2, MAX_BATCHES = 64, COPIED_ENTRIES = 16 };

enum kind { SIGHT, EVENT, BEGIN, END, SEAL, NEXT_SPOOL, VANISH };

struct step {
	enum kind kind;
	int flow;
	uint64_t bytes, start;
};

/* What happens, in order: births, growth, a reset, two lives of one tuple, ends, tombstones that expire, batches
 * smaller than what is pending, ends that wait. */
static const struct step STEPS[] = {
	{BEGIN, 0, 0, 0},    {SIGHT, 0, 100, 1},  {SIGHT, 1, 50, 1},	 {SIGHT, 2, 70, 1},  {END, 0, 0, 0},
	{SEAL, 0, 0, 0},     {BEGIN, 0, 0, 0},	  {SIGHT, 0, 150, 1},	 {SIGHT, 1, 20, 1},  {SIGHT, 2, 70, 1},
	{SIGHT, 3, 9, 1},    {END, 0, 0, 0},	  {EVENT, 0, 180, 1},	 {EVENT, 3, 30, 1},  {EVENT, 4, 33, 1},
	{NEXT_SPOOL, 0, 0, 0}, {SIGHT, 0, 10, 2}, {SIGHT, 4, 33, 1},	 {SEAL, 0, 0, 0},    {SEAL, 0, 0, 0},
	{BEGIN, 0, 0, 0},    {SIGHT, 0, 11, 2},	  {SIGHT, 1, 25, 1},	 {END, 0, 0, 0},     {BEGIN, 0, 0, 0},
	{SIGHT, 0, 12, 2},   {SIGHT, 1, 26, 1},	  {END, 0, 0, 0},	 {VANISH, 2, 0, 0},  {BEGIN, 0, 0, 0},
	{SIGHT, 0, 13, 2},   {END, 0, 0, 0},	  {BEGIN, 0, 0, 0},	 {SIGHT, 1, 36, 1},  {END, 0, 0, 0},
	{EVENT, 0, 14, 2},   {SEAL, 0, 0, 0},	  {SEAL, 0, 0, 0},	 {EVENT, 5, 40, 1},  {EVENT, 6, 41, 1},
	{EVENT, 7, 42, 1},   {EVENT, 8, 43, 1},	  {BEGIN, 0, 0, 0},	 {END, 0, 0, 0},     {BEGIN, 0, 0, 0},
	{END, 0, 0, 0},	     {BEGIN, 0, 0, 0},	  {END, 0, 0, 0},	 {SEAL, 0, 0, 0},    {SEAL, 0, 0, 0},
};
enum { STEP_COUNT = sizeof STEPS / sizeof *STEPS };

/* What outlives the child besides the ledger: how far it came, and the batches it stored, by sequence. */
struct shared {
	volatile uint32_t step;
	uint64_t batches[MAX_BATCHES];
};

static struct shared *shared;
static struct ledger ledger;
static uint64_t base_start;
static uint64_t expected_observed, expected_packets, instants;
static struct waiting_limits limits;

static struct ledger_identity identity(void)
{
	return (struct ledger_identity){
		.magic = STATE_MAGIC,
		.version = STATE_VERSION_NUMBER,
		.entry_bytes = sizeof(struct entry),
		.boot = "a boot",
		.place = "a node",
		.epoch = "0123456789abcde",
	};
}

static void read_step(const struct step *step, void *buffer, struct sighting *sighting)
{
	struct test_flow flow = {
		.original = {"192.0.2.1", "198.51.100.9", (uint16_t)(1000 + step->flow), 443},
		.reply = {"198.51.100.9", "192.0.2.1", 443, (uint16_t)(1000 + step->flow)},
		.protocol = IPPROTO_TCP,
		.id = 7,
		.start = base_start + step->start,
		.counters = {step->bytes / 2, step->bytes, 1, step->bytes * 3},
	};
	CHECK(message_read(make_message(buffer, &flow), sighting));
}

static uint32_t number_of(struct ledger *of, const struct step *step)
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	struct step as_born = *step;
	as_born.start = 1;
	read_step(&as_born, buffer, &sighting);
	return ledger_find(of, &sighting.key, key_hash(&sighting.key, of->header->seed), 0, FLAG_DEAD);
}

static void seal(struct ledger *of, uint64_t *batches)
{
	static uint8_t arrays[BUFFER];
	struct meter_sealed sealed;
	const struct meter_interval interval = {.start = 1, .end = 2};
	CHECK(ledger_prepare(of, arrays, sizeof arrays, &sealed) == 0);
	CHECK(of->header->next_sequence < MAX_BATCHES);
	if (sealed.buffer_bytes > 0)
		batches[of->header->next_sequence] = sealed.metered_bytes;
	ledger_sealed(of, &sealed, &interval);
}

/* `spooled`: bytes of spool that events up to and with this one take; an event below `taken` is booked already. */
static void perform(struct ledger *of, const struct step *step, uint64_t spooled, uint32_t spool, uint64_t *batches)
{
	_Alignas(8) uint8_t buffer[1024];
	struct sighting sighting;
	uint32_t number;
	switch (step->kind) {
	case BEGIN:
		ledger_begin_dump(of);
		return;
	case END:
		ledger_end_dump(of, true);
		return;
	case SEAL:
		seal(of, batches);
		return;
	case NEXT_SPOOL:
		if (of->header->draining == spool)
			ledger_next_spool(of);
		return;
	case VANISH:
		number = number_of(of, step);
		if (number != NO_ENTRY)
			ledger_vanish(of, number);
		return;
	case SIGHT:
		read_step(step, buffer, &sighting);
		CHECK(ledger_sight(of, &sighting) == 0);
		return;
	case EVENT:
		read_step(step, buffer, &sighting);
		if (of->header->draining == spool && of->header->taken < spooled)
			CHECK(ledger_take_event(of, &sighting, spooled) == 0);
		return;
	}
}

/* From a step on to the end; a dump that broke off is done again from its beginning. */
static void perform_from(struct ledger *of, uint32_t first, uint64_t *batches, volatile uint32_t *progress)
{
	uint64_t spooled = 0;
	uint32_t spool = 0;
	for (uint32_t i = 0; i < STEP_COUNT; i++) {
		if (STEPS[i].kind == EVENT)
			spooled += 8;
		if (i >= first) {
			if (progress)
				*progress = i;
			perform(of, &STEPS[i], spooled, spool, batches);
		}
		if (STEPS[i].kind == NEXT_SPOOL) {
			spool = !spool;
			spooled = 0;
		}
	}
}

static uint64_t sealed_in(const struct ledger *of, const uint64_t *batches)
{
	uint64_t sum = 0;
	for (uint64_t sequence = 1; sequence < of->header->next_sequence; sequence++)
		sum += batches[sequence];
	return sum;
}

static void check_sums(const struct ledger *of, const uint64_t *batches)
{
	const struct meter_totals *totals = &of->header->totals;
	CHECK(totals->reported_bytes == sealed_in(of, batches));
	CHECK(totals->observed_bytes ==
	      totals->reported_bytes + totals->ignored_overflow_bytes + totals->pending_bytes);
	CHECK(totals->observed_packets ==
	      totals->reported_packets + totals->ignored_overflow_packets + totals->pending_packets);
}

/* The region as it is now, in a file of its own, taken up as after a kill. */
static void take_up_and_finish(int copy, uint32_t step)
{
	static uint64_t batches[MAX_BATCHES];
	struct ledger revived;
	enum meter_state_fault fault;
	const struct ledger_identity ours = identity();
	CHECK(pwrite(copy, ledger.header, HEADER_BYTES + COPIED_ENTRIES * sizeof(struct entry), 0) > 0);
	memcpy(batches, shared->batches, sizeof batches);
	CHECK(ledger_open_file(&revived, copy, true, &ours, &fault) == 0 && fault == STATE_OK);
	revived.limits = limits;
	check_sums(&revived, batches);
	perform_from(&revived, step, batches, NULL);
	check_sums(&revived, batches);
	CHECK(revived.header->totals.observed_bytes == expected_observed);
	CHECK(revived.header->totals.observed_packets == expected_packets);
	for (int i = 0; i < 5; i++)
		seal(&revived, batches);
	check_sums(&revived, batches);
	CHECK(revived.header->totals.pending_bytes == 0);
	ledger_close(&revived);
}

static int make_file(const char *name)
{
	int descriptor = memfd_create(name, MFD_CLOEXEC);
	CHECK(descriptor >= 0);
	return descriptor;
}

static void open_ledger(struct ledger *of, int descriptor)
{
	enum meter_state_fault fault;
	const struct ledger_identity ours = identity();
	CHECK(ledger_open_file(of, descriptor, true, &ours, &fault) == 0);
	of->limits = limits;
}

static void test_without_a_kill(void)
{
	static uint64_t batches[MAX_BATCHES];
	memset(batches, 0, sizeof batches);
	int descriptor = make_file("whole");
	open_ledger(&ledger, descriptor);
	perform_from(&ledger, 0, batches, NULL);
	check_sums(&ledger, batches);
	expected_observed = ledger.header->totals.observed_bytes;
	expected_packets = ledger.header->totals.observed_packets;
	/* flow 0: 180 then 14 of its second life; 1: 50, reset, then 36; 2: 70; 3: 30; 4: 33; then four that end at
	 * once; each four times over */
	CHECK(expected_observed == 4 * (180 + 14 + 50 + 36 + 70 + 30 + 33 + 40 + 41 + 42 + 43));
	CHECK(ledger.header->totals.vanished == 1 && ledger.header->totals.foreign_resets == 1);
	CHECK(ledger.header->totals.merged_flows > 0 || ledger.header->totals.ignored_overflow_bytes > 0);
	ledger_close(&ledger);
	close(descriptor);
}

static void child(void)
{
	CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
	raise(SIGSTOP);
	perform_from(&ledger, 0, shared->batches, &shared->step);
	shared->step = STEP_COUNT;
	_exit(0);
}

static void test_a_kill_at_every_instruction(void)
{
	int descriptor = make_file("ledger"), copy = make_file("copy");
	open_ledger(&ledger, descriptor);
	CHECK(ftruncate(copy, (off_t)(HEADER_BYTES + ledger.header->capacity * sizeof(struct entry))) == 0);
	memset(shared, 0, sizeof *shared);
	pid_t victim = fork();
	CHECK(victim >= 0);
	if (victim == 0)
		child();
	int status;
	CHECK(waitpid(victim, &status, 0) == victim && WIFSTOPPED(status));
	static uint8_t before[HEADER_BYTES + COPIED_ENTRIES * sizeof(struct entry)];
	static struct shared before_shared;
	uint64_t had = instants;
	while (shared->step < STEP_COUNT) {
		CHECK(ptrace(PTRACE_SINGLESTEP, victim, NULL, NULL) == 0);
		CHECK(waitpid(victim, &status, 0) == victim && WIFSTOPPED(status));
		/* An instruction that stored nothing leaves what was looked at already. */
		if (memcmp(before, ledger.header, sizeof before) == 0 &&
		    memcmp(&before_shared, shared, sizeof *shared) == 0)
			continue;
		memcpy(before, ledger.header, sizeof before);
		memcpy(&before_shared, shared, sizeof *shared);
		if (shared->step < STEP_COUNT)
			take_up_and_finish(copy, shared->step);
		instants++;
	}
	CHECK(instants - had > 1000);
	kill(victim, SIGKILL);
	CHECK(waitpid(victim, &status, 0) == victim);
	ledger_close(&ledger);
	close(descriptor);
	close(copy);
}

static void test_a_state_that_is_not_ours_or_not_whole_is_not_taken_up(void)
{
	static uint64_t batches[MAX_BATCHES];
	const struct ledger_identity ours = identity();
	enum meter_state_fault fault;
	int descriptor = make_file("faulty");
	open_ledger(&ledger, descriptor);
	perform_from(&ledger, 0, batches, NULL);
	uint32_t used = ledger.header->used;
	ledger_close(&ledger);
	struct ledger_identity other = ours;
	strcpy(other.boot, "another boot");
	CHECK(ledger_open_file(&ledger, descriptor, true, &other, &fault) < 0 && fault == STATE_OTHER_BOOT);
	other = ours;
	strcpy(other.place, "another node");
	CHECK(ledger_open_file(&ledger, descriptor, true, &other, &fault) < 0 && fault == STATE_FOREIGN);
	other = ours;
	other.version++;
	CHECK(ledger_open_file(&ledger, descriptor, true, &other, &fault) < 0 && fault == STATE_VERSION);
	/* Each bit of what is protected, turned over and back. */
	uint64_t refused = 0, tried = 0;
	size_t header_from = offsetof(struct ledger_header, seed);
	for (size_t at = 0; at < HEADER_BYTES + used * sizeof(struct entry); at++) {
		size_t within = at < HEADER_BYTES ? at : (at - HEADER_BYTES) % sizeof(struct entry);
		bool guarded = at < HEADER_BYTES ? at < header_from + PROTECTED_BYTES
						 : (within < 56 || within >= 64) && within < 184;
		if (!guarded)
			continue;
		uint8_t byte, turned;
		CHECK(pread(descriptor, &byte, 1, (off_t)at) == 1);
		turned = byte ^ (uint8_t)(1 << at % 8);
		CHECK(pwrite(descriptor, &turned, 1, (off_t)at) == 1);
		tried++;
		if (ledger_open_file(&ledger, descriptor, true, &ours, &fault) == 0)
			ledger_close(&ledger);
		else
			refused += fault != STATE_OK;
		CHECK(pwrite(descriptor, &byte, 1, (off_t)at) == 1);
	}
	CHECK(refused == tried);
	open_ledger(&ledger, descriptor);
	ledger_close(&ledger);
	CHECK(ftruncate(descriptor, HEADER_BYTES + 100 * sizeof(struct entry)) == 0);
	CHECK(ledger_open_file(&ledger, descriptor, true, &ours, &fault) < 0 && fault == STATE_TRUNCATED);
	CHECK(ftruncate(descriptor, 100) == 0);
	CHECK(ledger_open_file(&ledger, descriptor, true, &ours, &fault) < 0 && fault == STATE_TRUNCATED);
	close(descriptor);
}

static void test_metering_goes_on_in_memory_from_the_same_byte(void)
{
	static uint64_t batches[MAX_BATCHES];
	int descriptor = make_file("left");
	open_ledger(&ledger, descriptor);
	perform_from(&ledger, 0, batches, NULL);
	CHECK(ledger_leave_file(&ledger) == 0 && ledger.descriptor == -1);
	CHECK(ledger.header->totals.observed_bytes == expected_observed);
	seal(&ledger, batches);
	check_sums(&ledger, batches);
	struct stat status;
	CHECK(fstat(descriptor, &status) == 0 && status.st_size == 0);
	ledger_close(&ledger);
	close(descriptor);
}

/* A first input for fuzz_state: changes that keep the file whole, then ones that do not. */
static void write_input(const char *directory)
{
	static const uint8_t changes[] = {1, 0x10, 0x02, 1, 0x50, 0x10, 3, 0xd0, 0x11, 255};
	char path[4096];
	snprintf(path, sizeof path, "%s/changes", directory);
	FILE *file = fopen(path, "wb");
	CHECK(file != NULL && fwrite(changes, sizeof changes, 1, file) == 1 && fclose(file) == 0);
}

int main(int count, char **arguments)
{
	if (count > 1) {
		write_input(arguments[1]);
		return 0;
	}
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	base_start = ((uint64_t)time.tv_sec + 1) * 1000000000;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	/* The four that end at once are merged, then counted as overflow. */
	limits = (struct waiting_limits){1, 2, 3};
	test_without_a_kill();
	test_a_kill_at_every_instruction();
	limits = (struct waiting_limits){1, 1, 1};
	test_without_a_kill();
	test_a_kill_at_every_instruction();
	test_a_state_that_is_not_ours_or_not_whole_is_not_taken_up();
	test_metering_goes_on_in_memory_from_the_same_byte();
	printf("state: ok, %llu instants\n", (unsigned long long)instants);
	return 0;
}
