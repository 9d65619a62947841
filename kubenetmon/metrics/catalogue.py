"""Every metric there is. `docs/metrics.md` is made from this file (`nox -s docs`).

Names, labels and buckets of the first two groups are the original's; those that count bytes and packets
make up the conservation identity: at the agent observed = reported + ignored{reason} + pending, at the
server received = committed + ignored{reason} + pending.
"""

from __future__ import annotations

from typing import Literal, get_args

from kubenetmon.metrics.registry import Kind, MetricSpec

_UNITS = ("bytes", "packets")

# The original's, agent.
COLLECTOR_ERRORS = MetricSpec(
    "kubenetmon_collector_errors_total",
    Kind.COUNTER,
    "Failed reads of conntrack and failed sends to the server.",
    {"type": ("collection_failed", "send_failed")},
)
COLLECTOR_FLOWS = MetricSpec(
    "kubenetmon_collector_processed_flows_total",
    Kind.COUNTER,
    "Flow records sealed for the server, and flows seen but not metered.",
    {"type": ("sent", "ignored")},
)
COLLECTION_DURATION = MetricSpec(
    "kubenetmon_collector_last_collection_duration_us",
    Kind.GAUGE,
    "Duration of the last read of conntrack, in microseconds.",
)
LAST_COLLECTION = MetricSpec(
    "kubenetmon_collector_last_successful_collection_timestamp_unix_seconds",
    Kind.GAUGE,
    "When conntrack was last read to the end, in Unix seconds.",
)

# The original's, server.
SERVER_ERRORS = MetricSpec(
    "kubenetmon_server_errors_total",
    Kind.COUNTER,
    "What went wrong between receiving and inserting.",
    {"type": ("receive_failed", "parse_ip_failed", "labeling_failed", "enqueuing_failed")},
)
SERVER_OBSERVATIONS = MetricSpec(
    "kubenetmon_server_processed_observations_total",
    Kind.COUNTER,
    "Records received, by what became of them.",
    {"type": ("labeled", "ignored", "enqueued", "dropped")},
)
ENQUEUE_WAIT = MetricSpec(
    "kubenetmon_server_enqueue_wait_time_us",
    Kind.HISTOGRAM,
    "How long a batch waited for a free inserter, in microseconds.",
    {"type": ("succeeded", "failed")},
    (100, 1e3, 1e4, 1e5, 1e6, 5e6, 1e7, 2e7),
)
RANGE_REFRESHES = MetricSpec(
    "kubenetmon_public_ip_refreshes_total",
    Kind.COUNTER,
    "Refreshes of the cloud ranges.",
    {"result": ("succeeded", "failed")},
)
REMOTE_LABELER_ERRORS = MetricSpec(
    "kubenetmon_remote_labeler_errors_total",
    Kind.COUNTER,
    "What went wrong with cloud ranges and remote labels.",
    {"type": ("get_cloud_ranges", "remote_ips_refresh", "intra_cloud_empty_region")},
)
WORKER_ERRORS = MetricSpec(
    "kubenetmon_worker_errors_total",
    Kind.COUNTER,
    "Failed insert attempts.",
    {"type": ("flush_batch_failed", "channel_closed")},
)
WORKER_ROWS = MetricSpec(
    "kubenetmon_worker_rows_total",
    Kind.COUNTER,
    "Rows by what became of them.",
    {"type": ("inserted", "dropped")},
)
WORKER_BATCHES = MetricSpec(
    "kubenetmon_worker_batches_total",
    Kind.COUNTER,
    "Batches by what became of them.",
    {"type": ("inserted", "dropped")},
)
INSERT_RETRIES = MetricSpec(
    "kubenetmon_worker_insert_retries_total",
    Kind.COUNTER,
    "Insert attempts after the first of a batch.",
)
INSERT_WAIT = MetricSpec(
    "kubenetmon_worker_insert_wait_time_ms",
    Kind.HISTOGRAM,
    "From the first attempt of a batch to its commit, in milliseconds.",
    {"type": ("inserted", "dropped")},
    (1, 100, 1e3, 5e3, 1e4, 6e4, 1.2e5, 6e5),
)
INSERT_BATCH_AGE = MetricSpec(
    "kubenetmon_worker_insert_batch_age_ms",
    Kind.HISTOGRAM,
    "From the receipt of a batch to its commit, in milliseconds.",
    {},
    (100, 500, 1e3, 5e3, 1e4, 2e4, 3e4),
)

# Ours, agent: conservation and health.
AGENT_IGNORED_REASONS = ("protocol", "loopback", "baseline", "overflow")
AGENT_OBSERVED = MetricSpec(
    "kubenetmon_agent_observed_total",
    Kind.COUNTER,
    "What the kernel's counters added since the agent's ledger began, both directions.",
    {"unit": _UNITS},
)
AGENT_REPORTED = MetricSpec(
    "kubenetmon_agent_reported_total",
    Kind.COUNTER,
    "What went into sealed batches, both directions.",
    {"unit": _UNITS},
)
AGENT_IGNORED = MetricSpec(
    "kubenetmon_agent_ignored_total",
    Kind.COUNTER,
    "What was observed and is not metered, by reason.",
    {"reason": AGENT_IGNORED_REASONS, "unit": _UNITS},
)
AGENT_PENDING = MetricSpec(
    "kubenetmon_agent_pending",
    Kind.GAUGE,
    "What was observed and waits for the next batch to be sealed.",
    {"unit": _UNITS},
)
AGENT_BATCHES = MetricSpec(
    "kubenetmon_agent_batches_total",
    Kind.COUNTER,
    "Batches by what became of them.",
    {"outcome": ("sealed", "committed", "rejected", "submitted", "submit_unknown")},
)
AGENT_BATCH_BYTES = MetricSpec(
    "kubenetmon_agent_batch_metered_bytes_total",
    Kind.COUNTER,
    "Metered bytes of batches by what became of them; sealed = the others + unacknowledged.",
    {"outcome": ("sealed", "committed", "rejected", "submitted", "submit_unknown")},
)
AGENT_UNACKNOWLEDGED = MetricSpec(
    "kubenetmon_agent_unacknowledged_batches",
    Kind.GAUGE,
    "Sealed batches that the server has not acknowledged yet.",
)
AGENT_FLOWS = MetricSpec("kubenetmon_agent_flows", Kind.GAUGE, "Flows in the ledger.")
AGENT_TABLE_ENTRIES = MetricSpec(
    "kubenetmon_agent_conntrack_entries",
    Kind.GAUGE,
    "Entries in the kernel's table (nf_conntrack_count).",
)
AGENT_TABLE_LIMIT = MetricSpec(
    "kubenetmon_agent_conntrack_limit",
    Kind.GAUGE,
    "Entries that the kernel's table takes (nf_conntrack_max); beyond it new connections are dropped.",
)
AGENT_WAITING = MetricSpec(
    "kubenetmon_agent_waiting_flows",
    Kind.GAUGE,
    "Ended flows that wait to be reported and take up memory for it; many of them while the server is away.",
)
AGENT_MERGED = MetricSpec(
    "kubenetmon_agent_merged_flows_total",
    Kind.COUNTER,
    "Ended flows that lost their client port, or all ports, to be reported together with others.",
)
AGENT_EVENTS = MetricSpec(
    "kubenetmon_agent_destroy_events_total", Kind.COUNTER, "DESTROY events read from the kernel."
)
AGENT_AMBIGUOUS_IDENTITY = MetricSpec(
    "kubenetmon_agent_ambiguous_identity_total",
    Kind.COUNTER,
    "Flows whose lives could not be told apart because the kernel gave no start time.",
)
AGENT_FOREIGN_RESETS = MetricSpec(
    "kubenetmon_agent_foreign_resets_total",
    Kind.COUNTER,
    "Counters that fell within one life of a flow: another process resets them.",
)
AGENT_NO_COUNTERS = MetricSpec(
    "kubenetmon_agent_flows_without_counters",
    Kind.GAUGE,
    "Flows in the last read that carry no counters and cannot be metered.",
)
AGENT_OFFLOADED = MetricSpec(
    "kubenetmon_agent_offloaded_flows",
    Kind.GAUGE,
    "Flows in the last read that are offloaded and may not be counted by the kernel.",
)
AGENT_VANISHED = MetricSpec(
    "kubenetmon_agent_vanished_flows_total",
    Kind.COUNTER,
    "Flows gone from the kernel without an event; what they moved after their last read is not metered.",
)
AGENT_MALFORMED = MetricSpec(
    "kubenetmon_agent_malformed_messages_total",
    Kind.COUNTER,
    "Messages from the kernel that could not be read.",
)

AGENT_EVENT_GAP = MetricSpec(
    "kubenetmon_agent_event_gap_seconds",
    Kind.GAUGE,
    "For how long nobody listened to ends of flows: before this agent took the state directory up, and "
    "while it was stopped or starved; what a flow moved after its last read is not metered if the kernel "
    "removed it then (see vanished flows).",
)
STATE_REASONS = ("truncated", "version", "corrupt", "other_boot", "foreign", "full")
AGENT_STATE_SET_ASIDE = MetricSpec(
    "kubenetmon_agent_state_set_aside_total",
    Kind.COUNTER,
    "State in KUBENETMON_STATE_DIR that could not be used, by reason.",
    {"reason": STATE_REASONS},
)

# Ours, server: conservation and health.
SERVER_IGNORED_REASONS = (
    "udp",
    "node",
    "direction",
    "ipv6",
    "disabled",
    "duplicate",
    "dropped",
    "undecided",
    "address",
    "protocol",
    "memory",
)
SERVER_RECEIVED = MetricSpec(
    "kubenetmon_server_received_total",
    Kind.COUNTER,
    "What accepted batches carried, both directions.",
    {"unit": _UNITS},
)
SERVER_COMMITTED = MetricSpec(
    "kubenetmon_server_committed_total",
    Kind.COUNTER,
    "What ClickHouse holds, both directions.",
    {"unit": _UNITS},
)
SERVER_IGNORED = MetricSpec(
    "kubenetmon_server_ignored_total",
    Kind.COUNTER,
    "What was received and is not stored, by reason.",
    {"reason": SERVER_IGNORED_REASONS, "unit": _UNITS},
)
SERVER_HANDED_BACK = MetricSpec(
    "kubenetmon_server_handed_back_total",
    Kind.COUNTER,
    "What was received and given back to the agent to send again.",
    {"unit": _UNITS},
)
SERVER_PENDING = MetricSpec(
    "kubenetmon_server_pending",
    Kind.GAUGE,
    "What was received and is neither committed nor ignored yet.",
    {"unit": _UNITS},
)
SERVER_BATCHES = MetricSpec(
    "kubenetmon_server_batches_total",
    Kind.COUNTER,
    "Batches by wire and outcome.",
    {"wire": ("push", "submit"), "outcome": ("committed", "retry_later", "rejected")},
)
RefusalReason = Literal[
    "plain_text",
    "certificate",
    "handshake",
    "slow_handshake",
    "crowded",
    "idle",
    "no_token",
    "malformed",
    "expired",
    "audience",
    "account",
    "rejected",
    "node",
    "unknown_pod",
    "unreviewed",
    "flood",
]
REFUSAL_REASONS: tuple[str, ...] = get_args(RefusalReason)
SERVER_REFUSED = MetricSpec(
    "kubenetmon_server_refused_total",
    Kind.COUNTER,
    "Connections, streams and batches turned away because of who sent them or how, by reason.",
    {"reason": REFUSAL_REASONS},
)
SERVER_AGENTS = MetricSpec("kubenetmon_server_agents", Kind.GAUGE, "Agents connected now.")
SERVER_HELD_MEMORY = MetricSpec(
    "kubenetmon_server_held_memory_bytes",
    Kind.GAUGE,
    "Memory given to batches that arrive or are not settled; at its limit of 32 MiB agents wait.",
)
SERVER_WISHED_INTERVAL = MetricSpec(
    "kubenetmon_server_wished_report_interval_seconds",
    Kind.GAUGE,
    "Report interval that agents are asked to keep at least, since the table bears no more inserts; 0: none.",
)
INVENTORY_OBJECTS = MetricSpec(
    "kubenetmon_server_inventory_objects",
    Kind.GAUGE,
    "Kubernetes objects known; pods that have ended are not asked for.",
    {"kind": ("pods", "nodes", "services")},
)
INVENTORY_HISTORY = MetricSpec(
    "kubenetmon_server_inventory_history_seconds",
    Kind.GAUGE,
    "How far back the owner of every address is known; 3600, but for the first hour after the start or where "
    "more owners change than are kept: then who had an address before is not found for late batches.",
)
WATCH_EVENTS = MetricSpec(
    "kubenetmon_server_watch_events_total",
    Kind.COUNTER,
    "Changes read from the Kubernetes API.",
    {"kind": ("pods", "nodes", "services")},
)
WATCH_RELISTS = MetricSpec(
    "kubenetmon_server_watch_relists_total",
    Kind.COUNTER,
    "Full lists read from the Kubernetes API, as pages or a stream, by what made them necessary.",
    {"kind": ("pods", "nodes", "services"), "reason": ("start", "expired", "error")},
)
WATCH_SKIPPED = MetricSpec(
    "kubenetmon_server_watch_skipped_objects_total",
    Kind.COUNTER,
    "Kubernetes objects left out because they cannot be understood.",
    {"kind": ("pods", "nodes", "services")},
)
PEER_OBJECTS = MetricSpec(
    "kubenetmon_server_peer_objects",
    Kind.GAUGE,
    "Kubernetes objects known of the clusters in `peer_clusters`.",
    {"cluster": (), "kind": ("pods", "nodes")},
)
PEER_FOLLOWED = MetricSpec(
    "kubenetmon_server_peer_followed",
    Kind.GAUGE,
    "1 while the API of a cluster in `peer_clusters` is followed, else 0.",
    {"cluster": ()},
)
NO_SIDE = MetricSpec(
    "kubenetmon_server_no_side_total",
    Kind.COUNTER,
    "What was ignored for `direction`, by why no end could be taken for the reporting node's own; "
    "/debug/unattributed has samples.",
    {"cause": ("unknown_node", "both_unknown", "both_elsewhere", "no_node"), "unit": _UNITS},
)
AMBIGUOUS_OWNER = MetricSpec(
    "kubenetmon_server_ambiguous_owner_total",
    Kind.COUNTER,
    "What was committed to the last of several pods that had an address within one interval, because nobody "
    "knows when the flow began (agents without nf_conntrack_timestamp, or of the original).",
    {"unit": _UNITS},
)
LATE_ADDRESSES = MetricSpec(
    "kubenetmon_server_late_addresses_total",
    Kind.COUNTER,
    "Local addresses that a batch waited for (pod_wait), by whether the Kubernetes API showed them in time.",
    {"outcome": ("known", "unknown")},
)
RANGE_PREFIXES = MetricSpec(
    "kubenetmon_server_range_prefixes",
    Kind.GAUGE,
    "Cloud prefixes in use.",
    {"provider": ("aws", "gcp", "google", "azure")},
)
RANGE_AGE = MetricSpec(
    "kubenetmon_server_range_age_seconds",
    Kind.GAUGE,
    "Age of the copy of a provider's ranges that is in use.",
    {"provider": ("aws", "gcp", "google", "azure")},
)
CLICKHOUSE_ERRORS = MetricSpec(
    "kubenetmon_server_clickhouse_errors_total",
    Kind.COUNTER,
    "Errors from ClickHouse by its code; code 0: the connection itself failed.",
    {"code": ()},
)
HELD_BATCHES = MetricSpec(
    "kubenetmon_server_held_batches",
    Kind.GAUGE,
    "Batches held because ClickHouse refuses them until an operator mends something.",
)
TOKENS_WITHOUT_ROWS = MetricSpec(
    "kubenetmon_server_tokens_without_rows_total",
    Kind.COUNTER,
    "Batches that ClickHouse, killed in their insert, knew by their token and did not have; inserted anew.",
)
OLD_BATCHES = MetricSpec(
    "kubenetmon_server_old_batches_total",
    Kind.COUNTER,
    "Batches older than the table's memory of tokens, by what a look at the table found of them.",
    {"found": ("absent", "present", "undecided")},
)
EXACTLY_ONCE = MetricSpec(
    "kubenetmon_server_exactly_once",
    Kind.GAUGE,
    "1 while the table's deduplication window covers re-sent batches, else 0.",
)

# Both.
LOOP_LAG = MetricSpec(
    "kubenetmon_event_loop_lag_max_seconds",
    Kind.GAUGE,
    "Longest time since the last scrape that the event loop was late.",
)

AGENT_METRICS = (
    COLLECTOR_ERRORS,
    COLLECTOR_FLOWS,
    COLLECTION_DURATION,
    LAST_COLLECTION,
    AGENT_OBSERVED,
    AGENT_REPORTED,
    AGENT_IGNORED,
    AGENT_PENDING,
    AGENT_BATCHES,
    AGENT_BATCH_BYTES,
    AGENT_UNACKNOWLEDGED,
    AGENT_FLOWS,
    AGENT_TABLE_ENTRIES,
    AGENT_TABLE_LIMIT,
    AGENT_WAITING,
    AGENT_MERGED,
    AGENT_EVENTS,
    AGENT_AMBIGUOUS_IDENTITY,
    AGENT_FOREIGN_RESETS,
    AGENT_NO_COUNTERS,
    AGENT_OFFLOADED,
    AGENT_VANISHED,
    AGENT_MALFORMED,
    AGENT_EVENT_GAP,
    AGENT_STATE_SET_ASIDE,
)
SERVER_METRICS = (
    SERVER_ERRORS,
    SERVER_OBSERVATIONS,
    ENQUEUE_WAIT,
    RANGE_REFRESHES,
    REMOTE_LABELER_ERRORS,
    WORKER_ERRORS,
    WORKER_ROWS,
    WORKER_BATCHES,
    INSERT_RETRIES,
    INSERT_WAIT,
    INSERT_BATCH_AGE,
    SERVER_RECEIVED,
    SERVER_COMMITTED,
    SERVER_IGNORED,
    SERVER_HANDED_BACK,
    SERVER_PENDING,
    SERVER_BATCHES,
    SERVER_REFUSED,
    SERVER_AGENTS,
    SERVER_HELD_MEMORY,
    SERVER_WISHED_INTERVAL,
    INVENTORY_OBJECTS,
    INVENTORY_HISTORY,
    WATCH_EVENTS,
    WATCH_RELISTS,
    WATCH_SKIPPED,
    PEER_OBJECTS,
    PEER_FOLLOWED,
    NO_SIDE,
    LATE_ADDRESSES,
    AMBIGUOUS_OWNER,
    RANGE_PREFIXES,
    RANGE_AGE,
    CLICKHOUSE_ERRORS,
    HELD_BATCHES,
    OLD_BATCHES,
    TOKENS_WITHOUT_ROWS,
    EXACTLY_ONCE,
)
COMMON_METRICS = (LOOP_LAG,)
