"""A dict that gives memory back as keys are removed, which Python's own never does.

Contract: plain data, pure. What is held is read and set through `held`, and taken away with `remove` alone.
"""

from __future__ import annotations

from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class Shrinking(Generic[KeyT, ValueT]):
    """Made anew once half as many keys were removed as are left: a dict full of holes doubles as it grows.

    `held` is replaced then, so nobody keeps it. It is a plain dict, and this class no kind of dict, because
    the garbage collector passes over a plain one whose values it need not know.
    """

    def __init__(self) -> None:
        self.held: dict[KeyT, ValueT] = {}
        self._removed = 0

    def remove(self, key: KeyT) -> ValueT | None:
        """Take the key away; its value, None when there was none."""
        value = self.held.pop(key, None)
        if value is not None:
            self._removed += 1
            if self._removed > len(self.held) // 2:
                self.held = {name: kept for name, kept in self.held.items()}  # noqa: C416  # dict() copies holes
                self._removed = 0
        return value
