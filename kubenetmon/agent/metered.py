"""What metering yields, as plain data: `kubenetmon.agent.conntrack` makes it, others pass it on.

Contract: frozen values, nothing owned, nothing to shut down; to import this loads no C.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubenetmon.proto import FlowArrays


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What one read found."""

    flows: int
    """Distinct flows that the kernel's table held."""
    changed: int
    """Changes of counters found, of living and of ended flows."""
    ended: int
    """DESTROY events booked."""
    duration: float
    """Seconds that the read took."""
    cpu: float
    """Seconds of processor time that it took, the kernel's part included."""
    received_messages: int
    """Messages that the dump consisted of."""
    received_bytes: int
    """Bytes of those."""


@dataclass(frozen=True, slots=True)
class SealedRecords:
    """The records of one batch, as arrays; together they fit one message of the wire."""

    ipv4: FlowArrays
    ipv6: FlowArrays
    records: int
    bytes: int
    """What they carry, both directions."""
    packets: int
    """What they carry, both directions."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Since `open`, both directions; the fields from `flows` on are what there is now where they say so."""

    observed_bytes: int
    observed_packets: int
    reported_bytes: int
    reported_packets: int
    ignored_protocol_bytes: int
    ignored_protocol_packets: int
    ignored_loopback_bytes: int
    ignored_loopback_packets: int
    ignored_baseline_bytes: int
    ignored_baseline_packets: int
    ignored_overflow_bytes: int
    """Of ended flows, more than can wait while nothing is sealed, however coarsely."""
    ignored_overflow_packets: int
    pending_bytes: int
    pending_packets: int
    flows: int
    """Now: live flows in the ledger."""
    entries: int
    """Now: those, and ended flows that are remembered or wait to be sealed."""
    pending_flows: int
    """Now: flows that the next `seal` reports."""
    waiting_flows: int
    """Now: those of them that have ended and take up memory for nothing but that, merged ones as one."""
    merged_flows: int
    """Ended flows that gave up ports to be reported together with others."""
    ignored_flows: int
    """Flows that are not metered, being neither TCP nor UDP or having a loopback address."""
    reported_flows: int
    """Records sealed."""
    dumps: int
    """Dumps read to their end."""
    destroy_events: int
    """Ends of flows that the kernel told."""
    destroy_without_counters: int
    """Those of flows that the kernel did not count."""
    vanished: int
    """Flows gone from the kernel without an event: what they moved after their last dump is not metered."""
    ambiguous_identity: int
    """Lives of flows that only counters could tell apart, for want of `nf_conntrack_timestamp`."""
    foreign_resets: int
    """Counters that fell within one life: another process resets them."""
    malformed: int
    """Messages that could not be read."""
    truncated_events: int
    """Events larger than any that the kernel is known to send."""
    gap_nanoseconds: int
    """For how long nobody listened to ends of flows: before `open`, and while this process stood still."""
    without_counters: int
    """In the last dump: flows that carry no counters and cannot be metered."""
    with_counters: int
    """In the last dump: flows that carry counters."""
    offloaded: int
    """In the last dump: flows in a flowtable, which may have stopped counting."""
    memory_bytes: int
    """Address space of the ledger."""


@dataclass(frozen=True, slots=True)
class AccountingState:
    """What the kernel is set to count; None where it has no such setting (conntrack is not loaded)."""

    accounting: int | None
    """`nf_conntrack_acct`: 1 when flows that begin from now on are counted."""
    events: int | None
    """`nf_conntrack_events`: 1 tells every end; 2 not that of flows from before a listener; 0 none."""
    timestamps: int | None
    """`nf_conntrack_timestamp`: 1 when flows that begin from now on carry their start time."""
    tracked: int | None
    """Flows that the kernel holds now."""
    limit: int | None
    """Flows that it can hold (`nf_conntrack_max`)."""
    with_counters: int
    """Flows of the last read that carry counters; 0 before the first read."""
    without_counters: int
    """Flows of the last read that carry none; 0 before the first read."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where the ledger was left by the agent before, or begins."""

    epoch: bytes
    next_sequence: int
    next_report: int
    unsealed_from: int
    """Unix seconds at which the next report begins; 0: nothing was ever sealed."""
    unsealed_from_monotonic: float
    """The same moment by the monotonic clock, seconds."""
    gap: float
    """Seconds for which nobody had listened; 0 for a new ledger."""


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A sealed batch from the state directory."""

    epoch: bytes
    sequence: int
    report: int
    begin: int
    """Unix seconds."""
    end: int
    """Unix seconds."""
    records: SealedRecords
    sent: int
    """0, or how it may have left: `kubenetmon.agent.state.SENT_BY_PUSH` or `SENT_BY_SUBMIT`."""
