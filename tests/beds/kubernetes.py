"""A real Kubernetes API for tests: kube-apiserver and etcd on loopback, no kubelet, nothing runs.

Contract: `Cluster` owns two processes and a temporary directory; `stop` ends and removes them, whatever state
they are in. Objects are made through the API, pod addresses through the status subresource, as kubelets
do. Users are tokens: "admin" may do everything, every other user what RBAC objects grant.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.beds.ports import free_port

API_SERVER_VERSION = "1.20.2"
SERVICE_RANGE = "198.18.0.0/16"
SERVER_ACCOUNT = "system:serviceaccount:kubenetmon-server:kubenetmon-server"

_START_TIMEOUT = 60.0


def find_binaries() -> tuple[Path, Path]:
    """kube-apiserver and etcd. Raises `FileNotFoundError` that says how to get what is missing.

    KUBEBUILDER_ASSETS names a directory with both, as for envtest; else the cache that
    tests/beds/build-kubernetes.sh fills, and etcd from the PATH (Debian: etcd-server).
    """
    places = []
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        places.append(Path(assets))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places.append(cache / "kubenetmon" / f"kubernetes-{API_SERVER_VERSION}")
    server = next(
        (place / "kube-apiserver" for place in places if (place / "kube-apiserver").is_file()), None
    )
    if server is None:
        raise FileNotFoundError(
            "needs kube-apiserver: run tests/beds/build-kubernetes.sh or set KUBEBUILDER_ASSETS"
        )
    etcd = next((place / "etcd" for place in places if (place / "etcd").is_file()), None)
    on_path = shutil.which("etcd")
    if etcd is None and on_path is None:
        raise FileNotFoundError("needs etcd: install etcd-server or set KUBEBUILDER_ASSETS")
    return server, etcd or Path(str(on_path))


class ApiRefusedError(Exception):
    """The API answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Cluster:
    """kube-apiserver and etcd; `api_server_flags` are added to the server's command line. Their directory is
    made in `place`, or where temporary files are."""

    names: tuple[str, ...] = ()
    """What the API's certificate is for, beside this machine's own address."""

    def __init__(
        self,
        *api_server_flags: str,
        users: tuple[str, ...] = (SERVER_ACCOUNT, "nobody"),
        place: Path | None = None,
    ) -> None:
        self._api_server, self._etcd = find_binaries()
        self._flags = api_server_flags
        self.directory = Path(tempfile.mkdtemp(prefix="kubenetmon-kubernetes-", dir=place))
        self.port, self._etcd_port, self._etcd_peer_port = free_port(), free_port(), free_port()
        self._etcd_process: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: http.client.HTTPSConnection | None = None
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}
        self.tokens = {user: f"token-{number}" for number, user in enumerate(("admin", *users))}
        self._write_secrets()

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def certificate_authority(self) -> Path:
        """The certificate that clients trust."""
        return self.directory / "ca.crt"

    def start(self) -> None:
        """Start both processes and wait until the API answers."""
        self._etcd_process = self._spawn(
            "etcd",
            str(self._etcd),
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{self._etcd_peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._etcd_peer_port}",
            f"--initial-cluster=default=http://127.0.0.1:{self._etcd_peer_port}",
            "--log-level=error",
        )
        self.start_api_server()

    def start_api_server(self) -> None:
        """Start kube-apiserver on the same port as ever and wait until it is ready."""
        self._process = self._spawn(
            "kube-apiserver",
            str(self._api_server),
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            f"--cert-dir={self.directory / 'certificates'}",
            f"--tls-cert-file={self.directory / 'server.crt'}",
            f"--tls-private-key-file={self.directory / 'server.key'}",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            f"--service-account-key-file={self.directory / 'accounts.key'}",
            f"--service-account-signing-key-file={self.directory / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--allow-privileged=true",
            *self._without_nodes(),
            *self._flags,
        )
        self._wait_ready()

    def _without_nodes(self) -> tuple[str, ...]:
        """Flags of an API that pods never ask, and whose pods have no controller to make their tokens."""
        return (
            "--bind-address=127.0.0.1",
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            "--disable-admission-plugins=ServiceAccount",
        )

    def kill_api_server(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End kube-apiserver at once."""
        self._drop_connection()
        self._end(self._process, number)
        self._process = None

    def pause_api_server(self) -> None:
        """Let it hang: connections stay open and silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume_api_server(self) -> None:
        """End the pause."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End both processes and remove the directory."""
        self._drop_connection()
        self._end(self._process, signal.SIGKILL)
        self._end(self._etcd_process, signal.SIGKILL)
        self._process = self._etcd_process = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def kubeconfig(self, user: str = "admin", *, token: str | None = None, port: int | None = None) -> Path:
        """A new kubeconfig for that user, or with another token, or to another port of this machine."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://127.0.0.1:{port or self.port}",
                        "certificate-authority": str(self.certificate_authority),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": token or self.tokens[user]}}],
        }
        with tempfile.NamedTemporaryFile(
            "w", dir=self.directory, prefix="kubeconfig-", delete=False
        ) as config:
            yaml.safe_dump(content, config)
        return Path(config.name)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: str = "admin",
        content_type: str = "application/json",
    ) -> Any:
        """One request to the API; returns the decoded answer. Raises `ApiRefusedError`."""
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.tokens[user]}", "Content-Type": content_type}
        for attempt in (1, 2):
            if self._connection is None:
                context = ssl.create_default_context(cafile=str(self.certificate_authority))
                self._connection = http.client.HTTPSConnection(
                    "127.0.0.1", self.port, timeout=10, context=context
                )
            try:
                self._connection.request(method, path, payload, headers)
                response = self._connection.getresponse()
                answer = response.read()
                break
            except (OSError, http.client.HTTPException):
                self._drop_connection()
                if attempt == 2:
                    raise
        if response.status >= 300:
            raise ApiRefusedError(response.status, answer.decode(errors="replace"))
        with contextlib.suppress(ValueError):
            return json.loads(answer)
        return answer

    def create_pod(
        self,
        name: str,
        *,
        node: str = "",
        address: str = "",
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        host_network: bool = False,
        account: str = "",
    ) -> None:
        """A pod, running with that address unless it is empty."""
        spec: dict[str, Any] = {
            "containers": [{"name": "main", "image": "none"}],
            "hostNetwork": host_network,
        }
        if node:
            spec["nodeName"] = node
        if account:
            spec["serviceAccountName"] = account
        metadata = {"name": name, "labels": dict(labels or {})}
        self.request("POST", f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": spec})
        if address:
            self.set_pod_status(name, address, namespace=namespace)

    def set_pod_status(
        self, name: str, address: str, *, phase: str = "Running", namespace: str = "default"
    ) -> None:
        """What a kubelet would report; `address` may be several, separated by commas."""
        addresses = address.split(",")
        status = {"phase": phase, "podIP": addresses[0], "podIPs": [{"ip": ip} for ip in addresses]}
        self._merge(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})

    def delete_pod(self, name: str, *, namespace: str = "default") -> None:
        """Delete at once: there is no kubelet to wait for."""
        self.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    def create_node(
        self, name: str, *, address: str, zone: str = "", pod_cidrs: tuple[str, ...] = ()
    ) -> None:
        """A node with that InternalIP."""
        labels = {"topology.kubernetes.io/zone": zone} if zone else {}
        spec = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
        self.request("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}, "spec": spec})
        addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]
        self._merge(f"/api/v1/nodes/{name}/status", {"status": {"addresses": addresses}})

    def delete_node(self, name: str) -> None:
        """Delete a node."""
        self.request("DELETE", f"/api/v1/nodes/{name}")

    def set_node_address(self, name: str, address: str) -> None:
        """Another InternalIP."""
        addresses = [{"type": "InternalIP", "address": address}]
        self._merge(f"/api/v1/nodes/{name}/status", {"status": {"addresses": addresses}})

    def label_node(self, name: str, **labels: str) -> None:
        """Set labels; underscores in names stand for nothing but themselves."""
        self._merge(f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}})

    def create_service(self, name: str, *, namespace: str = "default", address: str = "") -> None:
        """A service of type ClusterIP, at that address of 198.18.0.0/16 unless it is empty."""
        spec: dict[str, Any] = {"ports": [{"port": 80}]}
        if address:
            spec["clusterIP"] = address
        path = f"/api/v1/namespaces/{namespace}/services"
        self.request("POST", path, {"metadata": {"name": name}, "spec": spec})

    def delete_service(self, name: str, *, namespace: str = "default") -> None:
        """Delete a service."""
        self.request("DELETE", f"/api/v1/namespaces/{namespace}/services/{name}")

    def create_namespace(self, name: str) -> None:
        """A namespace, unless it is there; they do not go away again, no controller runs."""
        try:
            self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        except ApiRefusedError as error:
            if error.status != 409:
                raise

    def create_service_account(self, namespace: str, name: str) -> None:
        """A service account in a namespace that exists, unless it is there."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        try:
            self.request("POST", path, {"metadata": {"name": name}})
        except ApiRefusedError as error:
            if error.status != 409:
                raise

    def token(self, namespace: str, account: str, *, pod: str = "", audience: str = "") -> str:
        """What kubelet projects into a pod: a token of ten minutes, bound to the pod if one is named.

        Without an audience it is one for the API itself.
        """
        spec: dict[str, Any] = {"expirationSeconds": 600}
        if audience:
            spec["audiences"] = [audience]
        if pod:
            uid = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")["metadata"]["uid"]
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.request("POST", path, body)["status"]["token"])

    @property
    def signing_key(self) -> Path:
        """The private key (PEM) that service accounts' tokens are signed with."""
        return self.directory / "accounts.key"

    def apply_server_side(self, wanted: Mapping[str, Any]) -> Any:
        """Server-side apply, which refuses a field that the API does not know; the object as it is then."""
        path = f"{self.resource_path(wanted)}?fieldManager=tests&force=true"
        return self.request("PATCH", path, wanted, content_type="application/apply-patch+yaml")

    def delete(self, one: Mapping[str, Any]) -> None:
        """Delete an object, if it is there."""
        try:
            self.request("DELETE", self.resource_path(one))
        except ApiRefusedError as error:
            if error.status != 404:
                raise

    def resource_path(self, wanted: Mapping[str, Any]) -> str:
        """Where an object is. Raises `KeyError` for a kind that the API does not know."""
        version = wanted["apiVersion"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if root not in self._kinds:
            try:
                found = self.request("GET", root)["resources"]
            except ApiRefusedError:
                found = []
            self._kinds[root] = {
                one["kind"]: (one["name"], one["namespaced"]) for one in found if "/" not in one["name"]
            }
        plural, namespaced = self._kinds[root][wanted["kind"]]
        metadata = wanted["metadata"]
        place = f"/namespaces/{metadata['namespace']}" if namespaced else ""
        return f"{root}{place}/{plural}/{urllib.parse.quote(metadata['name'])}"

    def delete_all(self) -> None:
        """Remove all pods and nodes, and all services but the API's own."""
        for pod in self.request("GET", "/api/v1/pods")["items"]:
            self.delete_pod(pod["metadata"]["name"], namespace=pod["metadata"]["namespace"])
        for node in self.request("GET", "/api/v1/nodes")["items"]:
            self.delete_node(node["metadata"]["name"])
        for service in self.request("GET", "/api/v1/services")["items"]:
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            if (namespace, name) != ("default", "kubernetes"):
                self.delete_service(name, namespace=namespace)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or replace RBAC objects, whole."""
        for wanted in objects:
            plural = f"{wanted['kind'].lower()}s"
            path = f"/apis/{wanted['apiVersion']}/{plural}"
            name = urllib.parse.quote(wanted["metadata"]["name"])
            try:
                self.request("PUT", f"{path}/{name}", wanted)
            except ApiRefusedError as error:
                if error.status != 404:
                    raise
                self.request("POST", path, wanted)

    def allows(self, user: str, verb: str, resource: str) -> bool:
        """Whether the user may do that to core resources, as the API server sees it now."""
        attributes = {"verb": verb, "resource": resource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        }
        answer = self.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    def resource_version(self) -> str:
        """The cluster's newest resource version."""
        return str(self.request("GET", "/api/v1/pods?limit=1")["metadata"]["resourceVersion"])

    def compact(self) -> None:
        """Let etcd forget all history up to now, as it does every five minutes in a real cluster."""
        self._ask_etcd("compaction", {"revision": self.resource_version(), "physical": True})

    def store(self, changes: Mapping[str, bytes | None]) -> None:
        """Change objects behind the API server's back, which notices at once: for many a second.

        By key below /registry their JSON, None to delete. The API server must have been started with
        `--storage-media-type=application/json`.
        """
        requests: list[dict[str, Any]] = []
        for name, content in changes.items():
            key = base64.b64encode(f"/registry/{name}".encode()).decode()
            if content is None:
                requests.append({"requestDeleteRange": {"key": key}})
            else:
                requests.append({"requestPut": {"key": key, "value": base64.b64encode(content).decode()}})
        # Etcd takes 128 operations at once and gives them all one revision.
        for start in range(0, len(requests), 100):
            self._ask_etcd("txn", {"success": requests[start : start + 100]})

    def _ask_etcd(self, method: str, body: object) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._etcd_port, timeout=30)
        connection.request("POST", f"/v3/kv/{method}", json.dumps(body))
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status != 200:
            raise ApiRefusedError(response.status, answer.decode())

    def _merge(self, path: str, patch: object) -> None:
        self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def _spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory)},
            )

    def _end(self, process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
        if process is None:
            return
        process.send_signal(number)
        if number is not signal.SIGKILL:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
                return
            process.kill()
        process.wait(10)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            assert self._process is not None
            try:
                self.request("GET", "/readyz")
                self.request("GET", "/api/v1/namespaces/default")
                return
            except (ApiRefusedError, OSError, http.client.HTTPException):
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / "kube-apiserver.log").read_text(errors="replace")
                raise RuntimeError(f"kube-apiserver did not start:\n{log[-3000:]}")
            time.sleep(0.05)

    def _write_secrets(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.certificate_authority)
        certificate = authority.issue_cert("127.0.0.1", "localhost", *self.names)
        certificate.private_key_pem.write_to_path(self.directory / "server.key")
        for part in certificate.cert_chain_pems:
            part.write_to_path(self.directory / "server.crt", append=True)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self.directory / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        lines = []
        for number, (user, token) in enumerate(self.tokens.items()):
            group = "system:masters" if user == "admin" else "testers"
            lines.append(f'{token},{user},{number},"{group}"\n')
        (self.directory / "tokens.csv").write_text("".join(lines))


@contextlib.contextmanager
def running_cluster(*api_server_flags: str) -> Iterator[Cluster]:
    """A cluster for as long as the block lasts."""
    cluster = Cluster(*api_server_flags)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
