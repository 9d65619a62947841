"""Fields of resources that the test API server knows nothing of: PodMonitor and Certificate.

Their operators' own definitions come as Python classes in the packages cloudcoil-models-*. Importing those
takes 14 s, and pydantic takes a field that they do not have for nothing to mind, so their source is read
instead: which fields a class has under which names, of which classes, with which words allowed.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_SOURCES = {
    "monitoring.coreos.com/v1": ("prometheus_operator", "v1.py"),
    "cert-manager.io/v1": ("cert_manager", "v1.py"),
}
_OURS_TO_TRUST = ("metadata", "apiVersion", "kind")
"""Checked with the rest of Kubernetes' own."""


def knows(api_version: str) -> bool:
    """Whether resources of that API version can be checked here."""
    return api_version in _SOURCES


def problems(resource: dict[str, Any]) -> list[str]:
    """What is wrong with a resource: one line for each unknown field, missing one or word not allowed."""
    classes = _classes(resource["apiVersion"])
    bare = {name: value for name, value in resource.items() if name not in _OURS_TO_TRUST}
    return list(_object(classes, resource["kind"], bare, resource["kind"]))


@cache
def _classes(api_version: str) -> dict[str, dict[str, tuple[ast.expr, bool]]]:
    """Class name → field's name in YAML → annotation, and whether it must be there."""
    package, module = _SOURCES[api_version]
    found = importlib.util.find_spec("cloudcoil")
    assert found is not None, "cloudcoil-models-* are not installed: deploy/local setup"
    places = list(found.submodule_search_locations or ())
    source = next(path for place in places if (path := Path(place) / "models" / package / module).exists())
    classes: dict[str, dict[str, tuple[ast.expr, bool]]] = {}
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = {
                _alias(item): (item.annotation, item.value is None)
                for item in node.body
                if isinstance(item, ast.AnnAssign)
            }
    return classes


def _alias(item: ast.AnnAssign) -> str:
    for node in ast.walk(item.annotation):
        if isinstance(node, ast.keyword) and node.arg == "alias":
            assert isinstance(node.value, ast.Constant)
            return str(node.value.value)
    assert isinstance(item.target, ast.Name)
    return item.target.id


def _object(
    classes: dict[str, dict[str, tuple[ast.expr, bool]]], name: str, value: Any, where: str
) -> Iterator[str]:
    fields = classes[name]
    if not isinstance(value, dict):
        if fields.keys() != {"root"}:  # a root model is a plain value with a name
            yield f"{where} is no {name}"
        return
    for missing in (field for field, (_, required) in fields.items() if required and field not in value):
        if missing not in _OURS_TO_TRUST:
            yield f"{where}.{missing} is missing"
    for field, inner in value.items():
        if field not in fields:
            yield f"{where}.{field} is unknown"
            continue
        yield from _value(classes, fields[field][0], inner, f"{where}.{field}")


def _value(
    classes: dict[str, dict[str, tuple[ast.expr, bool]]], annotation: ast.expr, value: Any, where: str
) -> Iterator[str]:
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id in classes:
            for item in value if isinstance(value, list) else [value]:
                yield from _object(classes, node.id, item, where)
        elif (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id == "Literal"
        ):
            words = ast.literal_eval(node.slice)
            words = words if isinstance(words, tuple) else (words,)
            for item in value if isinstance(value, list) else [value]:
                if item not in words:
                    yield f"{where}: {item!r} is none of {words}"
