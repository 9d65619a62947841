"""The registry: typed by the catalogue, kept by aioprometheus."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from aioprometheus.collectors import Collector, Counter, Gauge, Histogram, Registry
from aioprometheus.renderer import render


class Kind(Enum):
    """Prometheus' metric kinds that we use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric as the catalogue declares it.

    `labels` maps a label's name to its closed set of values, or to () where the values are open.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    buckets: Sequence[float] = ()

    def known_label_sets(self) -> list[dict[str, str]]:
        """Every combination of labels that exists from the start; empty when a label's set is open."""
        return [
            dict(zip(self.labels, values, strict=True)) for values in itertools.product(*self.labels.values())
        ]


class Metrics:
    """The metrics of one process: inert data, no task, no shutdown.

    Raises `KeyError` for a spec that is not in the catalogue given at construction and `ValueError` for
    labels that the spec does not declare: both are programming errors, and both show in the first test.
    """

    def __init__(self, specs: Sequence[MetricSpec]) -> None:
        self._registry = Registry()
        self._collectors: dict[str, Collector] = {}
        self._before_render: list[Callable[[], None]] = []
        for spec in specs:
            collector: Collector
            if spec.kind is Kind.COUNTER:
                collector = Counter(spec.name, spec.help, registry=self._registry)
            elif spec.kind is Kind.GAUGE:
                collector = Gauge(spec.name, spec.help, registry=self._registry)
            else:
                collector = Histogram(
                    spec.name, spec.help, buckets=[*spec.buckets, float("inf")], registry=self._registry
                )
            self._collectors[spec.name] = collector
            if spec.kind is not Kind.HISTOGRAM:
                for labels in spec.known_label_sets():
                    collector.set_value(labels, 0)

    def add(self, spec: MetricSpec, amount: float = 1, **labels: str) -> None:
        """Raise a counter by `amount`, which is not negative."""
        collector = self._collector(spec, labels)
        assert isinstance(collector, Counter)
        collector.add(labels, amount)

    def set(self, spec: MetricSpec, value: float, **labels: str) -> None:
        """Set a gauge, or a counter whose true value is kept elsewhere."""
        self._collector(spec, labels).set_value(labels, value)

    def observe(self, spec: MetricSpec, value: float, **labels: str) -> None:
        """Put one value into a histogram."""
        collector = self._collector(spec, labels)
        assert isinstance(collector, Histogram)
        collector.observe(labels, value)

    def value(self, spec: MetricSpec, **labels: str) -> float:
        """What a counter or gauge stands at; 0 for labels never used."""
        return float(self._collector(spec, labels).values.get(labels) or 0)

    def before_render(self, callback: Callable[[], None]) -> None:
        """Call this at every scrape, before the text is made: read numbers that live elsewhere."""
        self._before_render.append(callback)

    def render(self) -> bytes:
        """The text of /metrics in Prometheus' exposition format 0.0.4."""
        for callback in self._before_render:
            callback()
        content, _ = render(self._registry, ["text/plain"])
        return bytes(content)

    def _collector(self, spec: MetricSpec, labels: Mapping[str, str]) -> Collector:
        if labels.keys() != spec.labels.keys():
            raise ValueError(f"{spec.name} has the labels {sorted(spec.labels)}, not {sorted(labels)}")
        return self._collectors[spec.name]
