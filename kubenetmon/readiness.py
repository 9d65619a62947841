"""What stands between this process and its work, as /ready shows it.

Contract: each part owns one named check and keeps it true to life. `required` checks gate /ready until they
have passed once; a later failure shows in the body and in metrics but does not take the replica out of its
Service, because agents must be able to reach it and wait.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Check:
    """One named condition."""

    passing: bool
    detail: str
    passed_once: bool


class Readiness:
    """All checks of a process; plain data, no task."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def expect(self, name: str, detail: str) -> None:
        """Declare a check that has yet to pass; `detail` says what is awaited."""
        self._checks.setdefault(name, Check(False, detail, False))

    def passed(self, name: str, detail: str = "") -> None:
        """The condition holds now."""
        self._checks[name] = Check(True, detail, True)

    def failed(self, name: str, detail: str) -> None:
        """The condition does not hold now; `detail` says why and what to do."""
        previous = self._checks.get(name)
        self._checks[name] = Check(False, detail, previous is not None and previous.passed_once)

    def inform(self, name: str, passing: bool, detail: str) -> None:
        """A condition that is shown and gates nothing."""
        self._checks[name] = Check(passing, detail, True)

    @property
    def ready(self) -> bool:
        """True once every check has passed at least once."""
        return all(check.passed_once for check in self._checks.values())

    def report(self) -> dict[str, object]:
        """The body of /ready."""
        return {
            "ready": self.ready,
            "checks": {
                name: {"ok": check.passing, "detail": check.detail} for name, check in self._checks.items()
            },
        }
