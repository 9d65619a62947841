#define _GNU_SOURCE
#include "meter.h"

#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "clock.h"
#include "events.h"
#include "ledger.h"
#include "message.h"
#include "netlink.h"
#include "state.h"

enum {
	FED_STEPS = 256,
	/* Of the list of dying flows. For each datagram the kernel goes through it from the start, with a lock that the
	 * delivery of events waits for: reading 100,000 flows takes it 16 s, so many take 0.1 s. */
	LISTED_FLOWS = 8000,
};

struct meter {
	pthread_mutex_t lock; /* guards ledger, requests and the spool that is booked; held while a dump runs */
	struct ledger ledger;
	struct requests requests;
	struct events events;
	atomic_bool stop;
	int directory;
	atomic_int state_error;
	struct meter_resumed resumed;
	uint32_t steps; /* flows that dumps and answers have shown */
	uint32_t listed; /* flows that the list of the dying has shown */
	pthread_mutex_t published_lock; /* guards `published`, for a copy's time */
	struct meter_totals published;
};

/* Called with the lock, after every change: the identity holds in what others see at any time. */
static void publish(struct meter *meter)
{
	pthread_mutex_lock(&meter->published_lock);
	meter->published = meter->ledger.header->totals;
	pthread_mutex_unlock(&meter->published_lock);
	if (meter->directory >= 0 && meter->ledger.descriptor < 0 && atomic_load(&meter->state_error) == 0)
		atomic_store(&meter->state_error, -ENOSPC);
}

static bool is_destroy(const struct nlmsghdr *message)
{
	return message->nlmsg_type == ((NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_DELETE);
}

static void take_turn(void *owner)
{
	struct meter *meter = owner;
	ledger_next_spool(&meter->ledger);
}

static int book_spool(struct meter *meter)
{
	struct ledger *ledger = &meter->ledger;
	uint64_t used;
	const uint8_t *messages = events_messages(&meter->events, ledger->header->draining, &used);
	size_t position = ledger->header->taken;
	const struct nlmsghdr *message;
	int error = 0;
	while (!error && position < used && (message = message_next(messages, used, &position))) {
		struct sighting sighting;
		bool whole = is_destroy(message) && message_read(message, &sighting);
		error = ledger_take_event(ledger, whole ? &sighting : NULL, position);
	}
	if (!error && ledger->header->taken < used)
		error = ledger_take_event(ledger, NULL, used);
	return error;
}

static int64_t gap_before(const struct meter *meter)
{
	return meter->resumed.gap_nanoseconds > 0 ? meter->resumed.gap_nanoseconds : 0;
}

/* Books all events that wait; never during a dump, because the kernel sends a DESTROY event before it unlinks
 * the flow. -ENOMEM leaves the rest for the next time. */
static int book_events(struct meter *meter)
{
	int error = book_spool(meter);
	if (error)
		return error;
	events_hand_over(&meter->events, take_turn);
	error = book_spool(meter);
	struct meter_totals *totals = &meter->ledger.header->totals;
	int64_t gap;
	events_losses(&meter->events, &totals->truncated_events, &gap);
	totals->gap_nanoseconds = gap + gap_before(meter);
	return error;
}

static void book_full_spool(void *owner)
{
	struct meter *meter = owner;
	pthread_mutex_lock(&meter->lock);
	(void)book_events(meter);
	publish(meter);
	pthread_mutex_unlock(&meter->lock);
}

/* Whether the ledger holds nothing yet: its maker may have been killed before it made the spools. */
static bool is_fresh(const struct ledger_header *header)
{
	return header->totals.dumps == 0 && header->totals.destroy_events == 0 && header->next_sequence == 1 &&
	       header->totals.entries == 0;
}

static int open_state(struct meter *meter, const struct meter_config *config, enum meter_state_fault *fault)
{
	struct ledger *ledger = &meter->ledger;
	int error;
	*fault = STATE_OK;
	meter->directory = config->directory;
	if (config->directory < 0) {
		error = ledger_open(ledger, config->count_existing != 0);
		if (!error)
			memcpy(ledger->header->identity.epoch, config->epoch, EPOCH_BYTES);
	} else {
		struct ledger_identity identity = {
			.magic = STATE_MAGIC,
			.version = STATE_VERSION_NUMBER,
			.entry_bytes = sizeof(struct entry),
		};
		snprintf(identity.boot, sizeof identity.boot, "%s", config->boot);
		snprintf(identity.place, sizeof identity.place, "%s", config->place);
		memcpy(identity.epoch, config->epoch, EPOCH_BYTES);
		error = ledger_open_file(ledger, config->ledger_file, config->count_existing != 0, &identity, fault);
	}
	if (error)
		return error;
	struct ledger_header *header = ledger->header;
	bool fresh = is_fresh(header), anew = config->directory < 0;
	error = events_map(&meter->events, anew ? -1 : config->events_file, false, header->identity.epoch);
	if (error == -EUCLEAN && fresh) {
		anew = true;
		events_unmap(&meter->events);
		error = events_map(&meter->events, config->events_file, true, header->identity.epoch);
	}
	if (error == -EUCLEAN)
		*fault = STATE_CORRUPT;
	if (error)
		return error;
	/* What the agent before received is in the spools; what came to us alone goes behind it. */
	int64_t listened_until = meter->events.spools->listened_until;
	events_resume(&meter->events, header->draining);
	if (fresh)
		ledger_number_from(ledger, config->first_sequence);
	int64_t last = listened_until > header->born_after ? listened_until : header->born_after;
	int64_t gap = meter->events.listening_since - last;
	meter->resumed = (struct meter_resumed){
		.next_sequence = header->next_sequence,
		.next_report = header->next_report,
		.unsealed_from = header->unsealed_from,
		.unsealed_from_monotonic = header->unsealed_from_monotonic,
		.gap_nanoseconds = anew ? -1 : gap > 0 ? gap : 0,
	};
	memcpy(meter->resumed.epoch, header->identity.epoch, EPOCH_BYTES);
	header->totals.gap_nanoseconds = gap_before(meter);
	while (!error && !events_place_early(&meter->events, listened_until))
		error = book_events(meter);
	return error;
}

struct meter *meter_listen(const struct listening *listening, int *error, const char **step)
{
	*step = "allocate memory";
	*error = -ENOMEM;
	struct meter *meter = calloc(1, sizeof *meter);
	if (!meter)
		return NULL;
	pthread_mutex_init(&meter->lock, NULL);
	pthread_mutex_init(&meter->published_lock, NULL);
	atomic_init(&meter->stop, false);
	atomic_init(&meter->state_error, 0);
	/* Listening comes first: what ends from now on is told to us, what lives shows in the first dump. */
	*error = events_open(&meter->events, listening, book_full_spool, meter, step);
	if (*error) {
		meter_close(meter);
		return NULL;
	}
	return meter;
}

int meter_wait(struct meter *meter, int64_t listened_until)
{
	return events_wait(&meter->events, listened_until);
}

int meter_start(struct meter *meter, const struct meter_config *config, const char **step,
		enum meter_state_fault *fault)
{
	*step = "make the ledger";
	int error = open_state(meter, config, fault);
	if (!error) {
		*step = "open the request socket";
		error = requests_open(&meter->requests);
	}
	if (!error) {
		*step = "start the thread that reads events";
		publish(meter);
		error = events_start(&meter->events);
	}
	if (error) {
		requests_close(&meter->requests);
		events_unmap(&meter->events);
		ledger_close(&meter->ledger);
	}
	return error;
}

void meter_resumed_get(struct meter *meter, struct meter_resumed *resumed)
{
	*resumed = meter->resumed;
}

int meter_state_error(struct meter *meter)
{
	return atomic_load(&meter->state_error);
}

void meter_close(struct meter *meter)
{
	meter_abort(meter);
	events_close(&meter->events);
	requests_close(&meter->requests);
	ledger_close(&meter->ledger);
	pthread_mutex_destroy(&meter->lock);
	pthread_mutex_destroy(&meter->published_lock);
	free(meter);
}

void meter_abort(struct meter *meter)
{
	atomic_store(&meter->stop, true);
}

/* A reader whose spool is full waits for a long dump to end: while that shows flows nobody stands still. */
static void go_on(struct meter *meter)
{
	if (++meter->steps % FED_STEPS == 0)
		watchdog_feed(&meter->events.watchdog, nanoseconds(CLOCK_BOOTTIME));
}

static int book_flow(void *context, const struct nlmsghdr *message)
{
	struct meter *meter = context;
	struct ledger *ledger = &meter->ledger;
	struct sighting sighting;
	go_on(meter);
	if (message_read(message, &sighting))
		return ledger_sight(ledger, &sighting);
	ledger->header->totals.malformed++;
	return 0;
}

/* Flows that two dumps did not show and whose end no event told: the kernel is asked for each. */
static int settle_absent(struct meter *meter)
{
	struct ledger *ledger = &meter->ledger;
	uint32_t position = 0, number;
	while ((number = ledger_next_absent(ledger, &position)) != NO_ENTRY) {
		if (atomic_load(&meter->stop))
			return -ECANCELED;
		struct flow_key key = entry_at(ledger, number)->key;
		go_on(meter);
		int error = requests_get(&meter->requests, &key, book_flow, meter);
		if (error && error != -ENOENT && error != -EINVAL)
			return error;
		if (entry_at(ledger, number)->seen != ledger->header->dump)
			ledger_vanish(ledger, number);
	}
	return 0;
}

static int renew_tombstone(void *context, const struct nlmsghdr *message)
{
	struct meter *meter = context;
	struct sighting sighting;
	go_on(meter);
	if (message_read(message, &sighting))
		ledger_renew(&meter->ledger, &sighting.key);
	return ++meter->listed < LISTED_FLOWS ? 0 : -E2BIG;
}

/* What a dump that reached its end proves: flows that it did not show are asked for, and tombstones are kept
 * for those whose DESTROY event the kernel will send again because a listener could not take it. */
static int settle_dump(struct meter *meter)
{
	bool whole;
	meter->ledger.tombstones_stay = true;
	meter->listed = 0;
	int error = settle_absent(meter);
	if (error)
		return error;
	error = requests_dump_dying(&meter->requests, &meter->stop, renew_tombstone, meter, &whole);
	bool no_list = error == -EINVAL || error == -EOPNOTSUPP; /* the kernel has none */
	meter->ledger.tombstones_stay = !whole && !no_list;
	return no_list || error == -E2BIG ? 0 : error;
}

static void start_clocks(struct meter_read_result *result)
{
	*result = (struct meter_read_result){
		.cpu_nanoseconds = (uint64_t)nanoseconds(CLOCK_THREAD_CPUTIME_ID),
		.wall_nanoseconds = (uint64_t)nanoseconds(CLOCK_MONOTONIC),
	};
}

static void stop_clocks(struct meter_read_result *result)
{
	result->cpu_nanoseconds = (uint64_t)nanoseconds(CLOCK_THREAD_CPUTIME_ID) - result->cpu_nanoseconds;
	result->wall_nanoseconds = (uint64_t)nanoseconds(CLOCK_MONOTONIC) - result->wall_nanoseconds;
}

int meter_read(struct meter *meter, struct meter_read_result *result)
{
	start_clocks(result);
	pthread_mutex_lock(&meter->lock);
	struct ledger *ledger = &meter->ledger;
	uint64_t changes = ledger->header->changes;
	uint64_t events = ledger->header->totals.destroy_events;
	int error = book_events(meter);
	if (!error) {
		struct dump_size size;
		ledger_begin_dump(ledger);
		error = requests_dump(&meter->requests, &meter->stop, book_flow, meter, &size);
		ledger_end_dump(ledger, error == 0);
		result->messages = size.messages;
		result->bytes = size.bytes;
		result->flows = ledger->header->seen_flows + ledger->header->totals.without_counters;
		if (!error)
			error = settle_dump(meter);
		else if (error == -EINTR)
			error = 0; /* every flow it showed is booked; it just proves no absence */
	}
	result->changed = ledger->header->changes - changes;
	result->events = ledger->header->totals.destroy_events - events;
	publish(meter);
	pthread_mutex_unlock(&meter->lock);
	stop_clocks(result);
	return error;
}

/* Stores the batch, so that sealing it is one instant of the ledger. */
static int store(struct meter *meter, const struct meter_interval *interval, const uint8_t *buffer,
		 const struct meter_sealed *sealed)
{
	if (meter->directory < 0 || meter->ledger.descriptor < 0 || sealed->buffer_bytes == 0)
		return 0;
	int error = batch_write(meter->directory, meter->ledger.header, interval, sealed, buffer);
	if (!error)
		return 0;
	atomic_store(&meter->state_error, error);
	return ledger_leave_file(&meter->ledger);
}

int meter_seal(struct meter *meter, const struct meter_interval *interval, uint8_t *buffer, uint64_t capacity,
	       struct meter_sealed *sealed)
{
	pthread_mutex_lock(&meter->lock);
	*sealed = (struct meter_sealed){0};
	int error = book_events(meter);
	if (!error)
		error = ledger_prepare(&meter->ledger, buffer, capacity, sealed);
	if (!error)
		error = store(meter, interval, buffer, sealed);
	if (!error)
		ledger_sealed(&meter->ledger, sealed, interval);
	else
		*sealed = (struct meter_sealed){0};
	publish(meter);
	pthread_mutex_unlock(&meter->lock);
	return error;
}

void meter_totals_get(struct meter *meter, struct meter_totals *totals)
{
	pthread_mutex_lock(&meter->published_lock);
	*totals = meter->published;
	pthread_mutex_unlock(&meter->published_lock);
}

int meter_receive_floor(struct meter *meter, struct meter_read_result *result)
{
	struct dump_size size;
	start_clocks(result);
	pthread_mutex_lock(&meter->lock);
	int error = requests_dump(&meter->requests, &meter->stop, NULL, NULL, &size);
	pthread_mutex_unlock(&meter->lock);
	stop_clocks(result);
	result->messages = result->flows = size.messages;
	result->bytes = size.bytes;
	return error;
}
