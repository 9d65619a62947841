"""Documents that operators may write themselves: JSON or YAML, checked, and one line when they are wrong."""

from __future__ import annotations

import json
from collections.abc import Set
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from kubenetmon.errors import ConfigurationError

FORMAT = 1
_MAX_BYTES = 8 << 20


def read_document(path: Path, what: str) -> dict[str, Any]:
    """A map from a file of JSON or YAML whose `format` is ours. Raises `ConfigurationError`."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigurationError(f"{path} is larger than 8 MiB: that is no file of {what}")
        content = path.read_bytes()
        if path.suffix == ".json":
            document = json.loads(content, parse_float=str)
        else:
            document = yaml.load(content, Loader=_Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigurationError(f"{path} is neither JSON nor YAML: {reason}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigurationError(f"{path} is no file of {what}: it must begin with `format: {FORMAT}`")
    return document


def text_of(entry: dict[str, Any], key: str, path: Path) -> str:
    """The text under a key. Raises `ConfigurationError`."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{path}: {key} is missing or not text in {str(entry)[:80]}")
    return value


def named_entry(raw: Any, what: str, known: Set[str], path: Path) -> str:
    """The `id` of an entry, which must be a map of known keys. Raises `ConfigurationError`."""
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: {what} must be a map, not {raw!r:.60}")
    name = text_of(raw, "id", path)
    if unknown := raw.keys() - known:
        raise ConfigurationError(f"{path}: {name}: unknown key {min(map(str, unknown))!r}")
    return name


def texts_of(entry: dict[str, Any], key: str, name: str, path: Path) -> tuple[str, ...]:
    """The texts under a key of what is called `name`; none without the key. Raises `ConfigurationError`."""
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ConfigurationError(f"{path}: {name}: {key} must be a list of texts")
    return tuple(value)


def number(value: object, key: str, path: Path) -> Decimal:
    """A number that is not negative, exactly as it was written. Raises `ConfigurationError`."""
    try:
        parsed = Decimal(str(value))
    except InvalidOperation:
        parsed = Decimal("NaN")
    if isinstance(value, bool) or not parsed.is_finite() or parsed < 0:
        raise ConfigurationError(f"{path}: {key} {value!r} is not a number from 0 on")
    return parsed


class _Loader(yaml.SafeLoader):
    """Numbers stay as they were written: a price is no binary fraction. Dates stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
