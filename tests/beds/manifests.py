"""What `deploy/` describes, as objects: charts by Helm's own library, overlays by kubectl's kustomize.

The charts are the one truth: `deploy/base` is what they render with the values in `BASE_VALUES`, without
Helm's labels and checksums (kustomize has its own). Alert rules and dashboards are made elsewhere; a chart
takes only files of its own, so it has copies. `python -m tests.beds.manifests --write` (`nox -s manifests`)
makes the files anew; a test compares.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from kubenetmon.config import server as server_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHARTS = DEPLOY / "helm"
BASE = DEPLOY / "base"
OVERLAYS = ("agent", "server", "kind", "kind-secure", "production")
PARTS = ("agent", "server")

BASE_VALUES: Mapping[str, Mapping[str, Any]] = {
    "agent": {},
    "server": {"environment": "development", "cloud": "aws", "region": "us-west-2", "cluster": "cluster"},
}

WITH_ALL_KEYS: Mapping[str, Any] = {"secure": True, "page": {"enabled": True}}
"""With these the server's chart writes every key of the configuration that it has a value for."""

Object = dict[str, Any]
_HELMS_OWN = ("helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version")
_GENERATED_RULE = "# Made from alerts.yaml by `nox -s manifests`: change it there.\n"
_GENERATED = "# Made from deploy/helm by `nox -s manifests`: change it there.\n"


def chart(part: str) -> Path:
    """Where a part's chart is."""
    return CHARTS / f"kubenetmon-{part}"


def render_chart(
    part: str, values: Mapping[str, Any] | None = None, *, name: str = "", namespace: str = ""
) -> list[Object]:
    """The objects of a release, in Helm's order of templates. Raises Helm's own errors."""
    from helm_python import Chart

    release = name or f"kubenetmon-{part}"
    with Chart.load(chart(part)) as loaded:
        rendered = loaded.render(dict(values or {}), name=release, namespace=namespace or release)
    texts = (rendered[path] for path in sorted(rendered) if path.endswith(".yaml"))
    return [one for text in texts for one in yaml.safe_load_all(text) if one is not None]


def production_values(part: str) -> Object:
    """The chart's values-production.yaml, with the base's required ones."""
    values = yaml.safe_load((chart(part) / "values-production.yaml").read_text())
    return {**BASE_VALUES[part], **values}


def kubectl() -> Path:
    """The kubectl of the environment that tests run in, whose version the lock file pins."""
    return Path(sys.executable).with_name("kubectl")


def kustomize(directory: Path) -> list[Object]:
    """The objects of a kustomization."""
    done = subprocess.run(
        [kubectl(), "kustomize", directory], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


def identity(one: Object) -> tuple[str, str, str]:
    """Kind, namespace and name."""
    metadata = one["metadata"]
    return one["kind"], metadata.get("namespace", ""), metadata["name"]


def pick(objects: Iterable[Object], kind: str, name: str = "") -> Object:
    """The one object of that kind (and name, where there are several)."""
    found = [one for one in objects if one["kind"] == kind and name in ("", one["metadata"]["name"])]
    assert len(found) == 1, (kind, name, [identity(one) for one in found])
    return found[0]


def without_helm(one: Object) -> Object:
    """A copy without what only Helm needs."""
    bare = copy.deepcopy(one)
    labels = bare["metadata"].get("labels", {})
    for label in _HELMS_OWN:
        labels.pop(label, None)
    pod = bare.get("spec", {}).get("template", {}).get("metadata", {})
    annotations = pod.get("annotations", {})
    for annotation in [name for name in annotations if name.startswith("checksum/")]:
        del annotations[annotation]
    if "annotations" in pod and not annotations:
        del pod["annotations"]
    return bare


def without_hashes(objects: Iterable[Object]) -> list[Object]:
    """Copies with the names of generated ConfigMaps and Secrets as they were before kustomize hashed them."""
    text = yaml.safe_dump_all(objects)
    return list(yaml.safe_load_all(re.sub(r"\b(config|clickhouse-credentials)-[0-9a-z]{10}\b", r"\1", text)))


def server_settings(objects: Iterable[Object]) -> tuple[str, list[str]]:
    """The server's configuration file and its `--set` overrides."""
    found = list(objects)
    config = str(pick(found, "ConfigMap", "config")["data"]["config.yaml"])
    args = pick(found, "Deployment", "kubenetmon-server")["spec"]["template"]["spec"]["containers"][0]["args"]
    return config, [after for before, after in pairwise(args) if before == "--set"]


def credentials(objects: Iterable[Object]) -> dict[str, str]:
    """What the Secret for ClickHouse holds, in clear."""
    data = pick(objects, "Secret", "clickhouse-credentials")["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


class _Dumper(yaml.SafeDumper):
    """Blocks for text of several lines, lists set in, as people write."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def copied_files() -> dict[Path, str]:
    """What the server's chart has of deploy/prometheus and deploy/grafana; dashboards on one line each."""
    files = chart("server") / "files"
    found = {files / "alerts.yaml": (DEPLOY / "prometheus" / "alerts.yaml").read_text()}
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        model = json.loads(path.read_text())
        found[files / path.name] = json.dumps(model, ensure_ascii=False, separators=(",", ":")) + "\n"
    return found


def rule_files() -> dict[Path, str]:
    """The PrometheusRule, as the chart renders it."""
    rendered = render_chart("server", {**BASE_VALUES["server"], "alerts": {"enabled": True}})
    rule = without_helm(pick(rendered, "PrometheusRule"))
    return {DEPLOY / "prometheus" / "prometheusrule.yaml": _GENERATED_RULE + _written(rule)}


def _written(one: Object) -> str:
    return str(yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=110))


def base_files() -> dict[Path, str]:
    """The generated files of `deploy/base` and their contents."""
    files: dict[Path, str] = {}
    for part in PARTS:
        for one in render_chart(part, BASE_VALUES[part]):
            bare = without_helm(one)
            bare["metadata"].pop("namespace", None)
            if bare["kind"] == "ConfigMap":
                files[BASE / part / "config.yaml"] = _GENERATED + bare["data"]["config.yaml"]
            elif bare["kind"] != "Secret":
                files[BASE / part / f"{bare['kind'].lower()}.yaml"] = _GENERATED + _written(bare)
    return files


def schema_files() -> dict[Path, str]:
    """The schema of the server's values: `configuration` takes every key that the chart has no value for."""
    path = chart("server") / "values.schema.json"
    schema = json.loads(path.read_text())
    rendered = render_chart("server", {**BASE_VALUES["server"], **WITH_ALL_KEYS})
    taken = yaml.safe_load(server_settings(rendered)[0])
    further = {name: True for name in server_config.KEYS if name not in taken}
    schema["properties"]["configuration"]["properties"] = further
    return {path: json.dumps(schema, indent=2) + "\n"}


def generated_files() -> Iterator[tuple[Path, str]]:
    """All that this writes; what is rendered comes after what it is rendered from."""
    for made in (copied_files, schema_files, base_files, rule_files):
        yield from made().items()


def main(arguments: list[str]) -> int:
    """Write the files, or say which differ."""
    if arguments not in (["--write"], []):
        print("usage: python -m tests.beds.manifests [--write]", file=sys.stderr)
        return 2
    differing = 0
    for path, text in generated_files():
        if path.exists() and path.read_text() == text:
            continue
        differing += 1
        print(path.relative_to(ROOT))
        if arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 0 if arguments or not differing else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
