/* What Python sees of the shim. Plain declarations only: csrc/build_conntrack.py gives this text to cffi, and
 * meter.h includes it. Functions that return int return 0 or a negative errno. */

/* Totals since meter_open(), both directions. In bytes and in packets, always exactly:
 * observed = reported + ignored_protocol + ignored_loopback + ignored_baseline + pending. */
struct meter_totals {
	uint64_t observed_bytes, observed_packets;
	uint64_t reported_bytes, reported_packets;
	uint64_t ignored_protocol_bytes, ignored_protocol_packets;
	uint64_t ignored_loopback_bytes, ignored_loopback_packets;
	uint64_t ignored_baseline_bytes, ignored_baseline_packets;
	uint64_t pending_bytes, pending_packets;

	uint64_t flows;           /* live flows in the ledger */
	uint64_t entries;         /* those, tombstones, and ended flows that wait to be sealed */
	uint64_t pending_flows;   /* flows that have something pending */
	uint64_t ignored_flows;   /* lives of flows that are not metered: protocol or loopback */
	uint64_t reported_flows;  /* records sealed */
	uint64_t dumps;           /* dumps read to their end */
	uint64_t destroy_events;  /* DESTROY events applied */
	uint64_t destroy_without_counters;
	uint64_t vanished;        /* flows that the kernel no longer had, without a DESTROY event */
	uint64_t ambiguous_identity;
	uint64_t foreign_resets;
	uint64_t malformed;       /* messages that could not be read */
	uint64_t truncated_events; /* events larger than the buffer for one message */

	uint64_t without_counters; /* of the last dump: flows that carry no counters */
	uint64_t with_counters;    /* of the last dump: flows that carry counters */
	uint64_t offloaded;        /* of the last dump: flows in a flowtable, which may not count */
	uint64_t memory_bytes;     /* address space of the ledger: what its peak needed */
};

struct meter_config {
	uint32_t count_existing;      /* not 0: what flows counted before we listened is metered as well */
	uint32_t event_buffer_bytes;  /* the kernel's queue of events for our socket */
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

/* Opens both sockets in the network namespace of the calling thread and starts the thread that reads events.
 * NULL with *error a negative errno and *step naming what failed. */
struct meter *meter_open(const struct meter_config *config, int *error, const char **step);

/* Applies the events that wait, then reads one full dump. Waits for nothing but the kernel. -ECANCELED after
 * meter_abort(); -EPROTO, -ENOMEM and the errors of netlink otherwise: what was read is kept, nothing is counted twice
 * or lost, and the next call starts anew. */
int meter_read(struct meter *meter, struct meter_read_result *result);

/* Applies the events that wait and writes the oldest pending records into the buffer, as many as fit:
 * what they carry is reported from then on. 0 records: nothing is pending. -ENOBUFS: not even one fits. */
int meter_seal(struct meter *meter, uint8_t *buffer, uint64_t capacity, struct meter_sealed *sealed);

/* The totals as the last read, seal or overflow of the event spool left them; never waits for those. */
void meter_totals_get(struct meter *meter, struct meter_totals *totals);

/* Ends a running meter_read() early and refuses later ones; from any thread. */
void meter_abort(struct meter *meter);

/* Stops the thread and frees everything; no other call may run or follow. */
void meter_close(struct meter *meter);

/* Receives one full dump and throws it away: what no reader can do without, the yardstick of the bench. */
int meter_receive_floor(struct meter *meter, struct meter_read_result *result);
