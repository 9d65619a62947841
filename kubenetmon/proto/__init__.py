"""The messages and services of both wires, generated from the .proto files beside this one.

`generated/` is made by `nox -s proto` and is never edited; a test makes it anew and compares.
"""

from kubenetmon.proto.generated.grpc import Flow as ObservedFlow
from kubenetmon.proto.generated.grpc import (
    FlowHandlerBase,
    FlowHandlerStub,
    L4Endpoint,
    Observation,
    ObservationSummary,
)
from kubenetmon.proto.generated.grpc import FlowTuple as ObservedTuple
from kubenetmon.proto.generated.kubenetmon.v1 import (
    BatchAck,
    FlowArrays,
    FlowBatch,
    FlowCollectorBase,
    FlowCollectorStub,
    Outcome,
)

PUSH_METHOD = "/kubenetmon.v1.FlowCollector/Push"
SUBMIT_METHOD = "/grpc.FlowHandler/Submit"

MAX_MESSAGE_BYTES = 1 << 20
"""A batch is one message, and no message of either wire is larger than this."""

MAX_BATCH_BYTES = MAX_MESSAGE_BYTES - (1 << 14)
"""What the arrays of one batch may take together; the rest is left for names, numbers and framing."""

IPV4_RECORD_BYTES = 1 + 4 * 4 + 4 * 2 + 4 * 8 + 4
"""Bytes of one IPv4 record over all arrays."""

IPV6_RECORD_BYTES = 1 + 4 * 16 + 4 * 2 + 4 * 8 + 4
"""Bytes of one IPv6 record over all arrays."""

EPOCH_BYTES = 16

__all__ = [
    "EPOCH_BYTES",
    "IPV4_RECORD_BYTES",
    "IPV6_RECORD_BYTES",
    "MAX_BATCH_BYTES",
    "MAX_MESSAGE_BYTES",
    "PUSH_METHOD",
    "SUBMIT_METHOD",
    "BatchAck",
    "FlowArrays",
    "FlowBatch",
    "FlowCollectorBase",
    "FlowCollectorStub",
    "FlowHandlerBase",
    "FlowHandlerStub",
    "L4Endpoint",
    "Observation",
    "ObservationSummary",
    "ObservedFlow",
    "ObservedTuple",
    "Outcome",
]
