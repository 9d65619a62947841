/* What Python sees of the shim. Plain declarations only: csrc/build_conntrack.py gives this text to cffi, and
 * meter.h includes it. Functions that return int return 0 or a negative errno. */

/* Totals since meter_open(), both directions. In bytes and in packets, always exactly:
 * observed = reported + ignored_protocol + ignored_loopback + ignored_baseline + ignored_overflow + pending. */
struct meter_totals {
	uint64_t observed_bytes, observed_packets;
	uint64_t reported_bytes, reported_packets;
	uint64_t ignored_protocol_bytes, ignored_protocol_packets;
	uint64_t ignored_loopback_bytes, ignored_loopback_packets;
	uint64_t ignored_baseline_bytes, ignored_baseline_packets;
	uint64_t ignored_overflow_bytes, ignored_overflow_packets; /* no room to wait in: WAIT_BY_ADDRESSES */
	uint64_t pending_bytes, pending_packets;

	uint64_t flows;           /* live flows in the ledger */
	uint64_t entries;         /* those, tombstones, and ended flows that wait to be sealed */
	uint64_t pending_flows;   /* flows that have something pending */
	uint64_t waiting_flows;   /* those of them that have ended and take up memory for nothing but that */
	uint64_t merged_flows;    /* ended flows that gave up ports to be reported together with others */
	uint64_t ignored_flows;   /* lives of flows that are not metered: protocol or loopback */
	uint64_t reported_flows;  /* records sealed */
	uint64_t dumps;           /* dumps read to their end */
	uint64_t destroy_events;  /* DESTROY events applied */
	uint64_t destroy_without_counters;
	uint64_t vanished;        /* flows that the kernel no longer had, without a DESTROY event */
	uint64_t ambiguous_identity;
	uint64_t foreign_resets;
	uint64_t malformed;       /* messages that could not be read; from here on not kept over a kill */
	uint64_t truncated_events; /* events larger than the buffer for one message */
	int64_t gap_nanoseconds;  /* for how long nobody listened: before us, and while our process stood still */

	uint64_t without_counters; /* of the last dump: flows that carry no counters */
	uint64_t with_counters;    /* of the last dump: flows that carry counters */
	uint64_t offloaded;        /* of the last dump: flows in a flowtable, which may not count */
	uint64_t memory_bytes;     /* address space of the ledger: what its peak needed */
};

/* Ended flows that wait to be sealed, by how many do: up to the first number each for itself, then those of the same
 * protocol, addresses and service port together with client port 0, then those of the same protocol and addresses with
 * all ports 0; beyond the last one they are counted as ignored_overflow. Some 10 MB. */
enum meter_waiting {
	WAIT_WHOLE = 40000,
	WAIT_BY_PORT = 48000,
	WAIT_BY_ADDRESSES = 56000,
};

/* Why a state file is not taken up. */
enum meter_state_fault {
	STATE_OK,
	STATE_TRUNCATED,
	STATE_VERSION,
	STATE_CORRUPT,
	STATE_OTHER_BOOT,
	STATE_FOREIGN, /* another node's, or another network namespace's */
};

struct listening {
	const char *watchdog; /* the path of its program */
	uint32_t buffer_bytes;
	uint32_t patience_milliseconds;
};

struct meter_config {
	uint32_t count_existing;      /* not 0: what flows counted before we listened is metered as well */
	int32_t directory;            /* the state directory, to write batches into; -1: all is in memory */
	int32_t ledger_file, events_file; /* in it, open; they stay the caller's */
	const char *boot, *place;     /* whose state this is */
	const uint8_t *epoch;         /* 16 bytes, for a new ledger */
	uint64_t first_sequence;      /* for a new ledger, at least 1 */
};

/* What a report covers: Unix seconds, and the end by the monotonic clock in nanoseconds. */
struct meter_interval {
	int64_t start, end, end_monotonic;
};

/* Where the ledger was left, or begins. */
struct meter_resumed {
	uint8_t epoch[16];
	uint64_t next_sequence, next_report;
	int64_t unsealed_from, unsealed_from_monotonic; /* 0: nothing was ever sealed */
	int64_t gap_nanoseconds; /* for how long nobody listened before us; -1: the ledger is new */
};

/* The start of a batch's file; its arrays follow. */
struct meter_batch_file {
	uint64_t magic;
	uint32_t version;
	uint32_t ipv4_records, ipv6_records, reserved;
	uint8_t epoch[16];
	uint64_t sequence, report;
	int64_t interval_start, interval_end;
	uint64_t arrays_bytes, metered_bytes, metered_packets;
	char place[320];
	uint64_t checksum; /* of all before it and of the arrays */
	uint64_t sent;     /* 0 or how it may have left: the outbox's */
};

struct meter_read_result {
	uint64_t flows;               /* distinct flows in the dump */
	uint64_t changed;             /* counter changes found, in the dump and in events */
	uint64_t events;              /* DESTROY events applied */
	uint64_t messages, bytes;     /* received in the dump */
	uint64_t cpu_nanoseconds;     /* this thread's, kernel and user */
	uint64_t wall_nanoseconds;
};

/* One sealed batch: in the buffer the columns of kubenetmon.proto's FlowArrays in the order of its fields,
 * first those of all IPv4 records, then those of all IPv6 records. */
struct meter_sealed {
	uint32_t ipv4_records, ipv6_records;
	uint64_t buffer_bytes;
	uint64_t metered_bytes, metered_packets;
};

struct meter;

/* Listens in the network namespace of the calling thread to flows that end, so that nothing passes unheard until
 * meter_start(). When nothing is read for longer than the patience and events pile up, a process of its own stops
 * listening for us until we go on (watchdog.h). NULL with *error a negative errno and *step naming what failed. */
struct meter *meter_listen(const struct listening *listening, int *error, const char **step);

/* While another agent meters: takes in what the kernel has queued for us and forgets what that agent has received,
 * which by its spool's header is all up to `listened_until`, boot time in nanoseconds. 0 or -ENOMEM. */
int meter_wait(struct meter *meter, int64_t listened_until);

/* Takes up or makes the ledger, opens the request socket and starts the thread that reads events. 0 or a negative
 * errno with *step naming what failed, and then it may be called again; with -EUCLEAN *fault says why the state
 * files cannot be used. */
int meter_start(struct meter *meter, const struct meter_config *config, const char **step,
		enum meter_state_fault *fault);
void meter_resumed_get(struct meter *meter, struct meter_resumed *resumed);

/* Applies the events that wait, then reads one full dump. Waits for nothing but the kernel. -ECANCELED after
 * meter_abort(); -EPROTO, -ENOMEM and the errors of netlink otherwise: what was read is kept, nothing is counted twice
 * or lost, and the next call starts anew. */
int meter_read(struct meter *meter, struct meter_read_result *result);

/* Applies the events that wait and writes the oldest pending records into the buffer, as many as fit:
 * what they carry is reported from then on, and in the state directory as the file `batch-SEQUENCE` in 20 digits.
 * 0 records: nothing is pending. -ENOBUFS: not even one fits. */
int meter_seal(struct meter *meter, const struct meter_interval *interval, uint8_t *buffer, uint64_t capacity,
	       struct meter_sealed *sealed);

/* 0, or the error for which the meter had to go on in memory: the state directory is full. */
int meter_state_error(struct meter *meter);

/* Whether these bytes are a batch file that can be sent. */
int meter_batch_valid(const uint8_t *bytes, uint64_t length);

/* The totals as the last read, seal or overflow of the event spool left them; never waits for those. */
void meter_totals_get(struct meter *meter, struct meter_totals *totals);

/* Ends a running meter_read() early and refuses later ones; from any thread. */
void meter_abort(struct meter *meter);

/* Stops the thread and frees everything; no other call may run or follow. */
void meter_close(struct meter *meter);

/* Receives one full dump and throws it away: what no reader can do without, the yardstick of the bench. */
int meter_receive_floor(struct meter *meter, struct meter_read_result *result);
