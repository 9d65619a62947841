"""Network namespaces as nodes, pods and the internet, and packet counters as the truth to compare with.

Contract: `create_namespace` makes a namespace that belongs to this process, under a name that carries the
process id and its start time. `Namespace.delete` ends what runs inside and removes it with its interfaces,
routes and rules. What a killed owner left is removed by `remove_leftovers`; a namespace whose owner lives
is never touched. Nothing here reaches beyond the namespaces: no rule, address or route of the host's own
namespace is changed. Every failure is a `MachineError` of one line.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from kubenetmon.errors import MachineError

PREFIX = "kubenetmon-"
NAMESPACE_DIRECTORY = Path("/run/netns")
PACKAGES = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}

_COMMAND_TIMEOUT = 60.0
_INTERFACE_NAME_LIMIT = 15  # IFNAMSIZ is 16 with the closing zero
_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
# linux/netlink.h and linux/netfilter/nfnetlink*.h: NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS.
_NETLINK_NETFILTER = 12
_CONNTRACK_STATISTICS, _REQUEST_AND_ACKNOWLEDGE = 1 << 8 | 5, 0x5
# ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO of linux/ethtool.h: what lets one skb stand for several packets.
_ETHTOOL_OFFLOADS = {
    "transmit segmentation": 0x1F,
    "generic segmentation": 0x24,
    "generic receive": 0x2C,
}

_numbers = itertools.count(1)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Count:
    """What an nft counter stands at: packets, and bytes from the IP header on."""

    packets: int
    bytes: int

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)


def require_machine() -> None:
    """Raise `MachineError` unless this process can make namespaces: root, and the tools of `PACKAGES`."""
    if os.geteuid() != 0:
        raise MachineError("network namespaces need root: run this command as root, for example with sudo")
    missing = [PACKAGES[tool] for tool in PACKAGES if shutil.which(tool) is None]
    if missing:
        raise MachineError(
            f"the tools of {' and '.join(missing)} are not on PATH: install them, on Debian with "
            f"apt-get install {' '.join(missing)}"
        )


def owner_of(name: str) -> tuple[int, int] | None:
    """(process id, start time in clock ticks) that a namespace's name carries; None when it is not ours."""
    parts = name.removeprefix(PREFIX).split("-", 2)
    if not name.startswith(PREFIX) or len(parts) != 3 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])


def own_prefix() -> str:
    """How the names of what this process makes begin."""
    return f"{PREFIX}{os.getpid()}-{_start_time(os.getpid())}-"


def is_own(name: str) -> bool:
    """Whether the name is that of something which this process has made."""
    return name.startswith(own_prefix())


def is_leftover(name: str) -> bool:
    """Whether the name is that of something whose owner is gone."""
    owner = owner_of(name)
    return owner is not None and _start_time(owner[0]) != owner[1]


def list_namespaces() -> list[str]:
    """The names of all namespaces made here, by living and by dead owners."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(NAMESPACE_DIRECTORY) if owner_of(name) is not None)
    return []


def remove_leftovers() -> list[str]:
    """Remove the namespaces whose owner is gone, and what still runs in them; their names."""
    removed = []
    for name in list_namespaces():
        if is_leftover(name):
            Namespace(name).delete()
            removed.append(name)
    return removed


def remove_own() -> None:
    """Remove every namespace that this process has made, whoever holds it."""
    for name in list_namespaces():
        if is_own(name):
            Namespace(name).delete()


def create_namespace(label: str) -> Namespace:
    """A new namespace with its loopback up and IPv6 duplicate address detection off.

    `label` is for people; the name is unique whatever it says. Raises `MachineError` when the kernel or the
    privileges do not allow it.
    """
    require_machine()
    namespace = Namespace(f"{own_prefix()}{next(_numbers)}-{label}")
    _run(["ip", "netns", "add", namespace.name])
    try:
        for scope in ("all", "default"):
            namespace.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0, missing_ok=True)
            namespace.sysctl(f"net.ipv6.conf.{scope}.router_solicitations", 0, missing_ok=True)
        namespace.ip("link", "set", "lo", "up")
    except BaseException:
        namespace.delete()
        raise
    return namespace


def veth_pair(first: Namespace, first_interface: str, second: Namespace, second_interface: str) -> None:
    """Join two namespaces by a virtual cable; both ends are up afterwards."""
    for interface in (first_interface, second_interface):
        if len(interface) > _INTERFACE_NAME_LIMIT:
            raise ValueError(
                f"interface name {interface!r} is longer than {_INTERFACE_NAME_LIMIT} characters"
            )
    _run(
        f"ip link add {first_interface} netns {first.name} type veth "
        f"peer name {second_interface} netns {second.name}".split()
    )
    first.ip("link", "set", first_interface, "up")
    second.ip("link", "set", second_interface, "up")


class Namespace:
    """A network namespace by name; making the object makes nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return NAMESPACE_DIRECTORY / self.name

    def exists(self) -> bool:
        """Whether the namespace is there."""
        return self.path.exists()

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside.

        Not `ip netns exec`: that mounts /sys anew, without the cgroups that ClickHouse reads limits from.
        """
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self, argv: Sequence[str], input: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; with `check`, a failure is a `MachineError`."""
        return _run(self.command(argv), input, check)

    def popen(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        ends_with_us: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a command inside; the process id is the command's own.

        It stays out of the terminal's foreground group, so that Ctrl-C reaches only its owner, and with
        `ends_with_us` the kernel kills it when the thread that started it is gone.
        """
        guard = shutil.which("setpriv") if ends_with_us else None
        command = [guard, "--pdeathsig", "KILL", *self.command(argv)] if guard else self.command(argv)
        return subprocess.Popen(  # noqa: S603 - no shell; what runs is this program's own choice
            command, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, run in a thread of ours inside the namespace.

        Sockets that it makes stay in the namespace for good; the other threads never leave theirs.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(self.path)
                results.append(function())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=inside, name=f"in {self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def ip(self, *arguments: str) -> None:
        """Run `ip` inside."""
        _run(["ip", "-netns", self.name, *arguments])

    def address(self, interface: str, cidr: str) -> None:
        """Give an interface an address, `192.0.2.1/24` or `2001:db8::1/64`."""
        version = ipaddress.ip_interface(cidr).version
        self.ip("address", "add", cidr, "dev", interface, *(["nodad"] if version == 6 else []))

    def route(self, destination: str, via: str) -> None:
        """Send what goes to `destination` (a prefix, or `default`) by the gateway `via`."""
        family = ["-6"] if ipaddress.ip_address(via).version == 6 else []
        self.ip(*family, "route", "add", destination, "via", via)

    def sysctl(self, key: str, value: int | str, *, missing_ok: bool = False) -> None:
        """Set a kernel variable inside, by its dotted name."""
        path = Path("/proc/sys", *key.split("."))

        def write() -> None:
            if key.startswith("net.netfilter.") and not path.exists():
                _want_conntrack()
            path.write_text(f"{value}\n")

        try:
            self.call(write)
        except OSError as error:
            if missing_ok and isinstance(error, FileNotFoundError):
                return
            raise MachineError(
                f"the kernel does not take {key}={value} in a network namespace ({error.strerror}): "
                "use a kernel with network namespaces and connection tracking, as root"
            ) from error

    def nft(self, script: str) -> None:
        """Apply an nft script inside, whole or not at all."""
        self.run(["nft", "-f", "-"], input=script)

    def counters(self, table: str = "", *, family: str = "inet") -> dict[str, Count]:
        """The named counters inside, of one table or of all, by name."""
        which = ["table", family, table] if table else []
        return {
            counter["name"]: Count(counter["packets"], counter["bytes"])
            for counter in self._nft_objects(["list", "counters", *which], "counter")
        }

    def set_counters(
        self, table: str, name: str, *, family: str = "inet"
    ) -> dict[tuple[str | int, ...], Count]:
        """The counters of a set's elements, by the element's parts as nft prints them."""
        counts: dict[tuple[str | int, ...], Count] = {}
        for found in self._nft_objects(["list", "set", family, table, name], "set"):
            for item in found.get("elem", ()):
                element = item["elem"]
                value = element["val"]
                key = tuple(value["concat"]) if isinstance(value, dict) else (value,)
                counts[key] = Count(element["counter"]["packets"], element["counter"]["bytes"])
        return counts

    def disable_offloads(self, interface: str) -> None:
        """Make every packet on the interface an skb of its own: no segmentation or receive offloads."""
        self.call(lambda: _set_offloads(interface, enabled=False))

    def processes(self) -> list[int]:
        """The ids of the processes with a thread whose network is this namespace."""
        try:
            ours = self.path.stat()
        except FileNotFoundError:
            return []
        return [
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdecimal() and _has_network(int(entry), (ours.st_dev, ours.st_ino))
        ]

    def delete(self) -> None:
        """End what runs inside and remove the namespace; nothing happens when it is gone already."""
        if not self.exists():
            return
        deadline = time.monotonic() + 5
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        _run(["ip", "netns", "delete", self.name], check=self.exists())

    def _nft_objects(self, arguments: Sequence[str], kind: str) -> list[dict[str, Any]]:
        answer = json.loads(self.run(["nft", "-j", *arguments]).stdout)
        return [item[kind] for item in answer["nftables"] if kind in item]


def _has_network(process: int, inode: tuple[int, int]) -> bool:
    """Whether a process is in the network namespace with that (device, inode).

    A thread that has ended is in none. The first one may be gone before the others, as when a process that
    writes is killed: then one of those tells.
    """
    with contextlib.suppress(OSError):
        found = os.stat(f"/proc/{process}/ns/net")
        return (found.st_dev, found.st_ino) == inode
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):
                found = os.stat(f"/proc/{process}/task/{thread}/ns/net")
                return (found.st_dev, found.st_ino) == inode
    return False


def _enter(path: Path) -> None:
    """Move the calling thread into a namespace: `os.setns` is newer than the oldest Python we run on."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise MachineError(f"cannot enter {path} ({os.strerror(number)}): run this command as root")
    finally:
        os.close(descriptor)


def _want_conntrack() -> None:
    """Have the kernel load connection tracking, as distributions ship it: a module that nobody needed yet.

    Its first message over netlink does that, and needs no `modprobe` on PATH; its answer does not matter.
    """
    request = struct.pack("=IHHIIBBH", 20, _CONNTRACK_STATISTICS, _REQUEST_AND_ACKNOWLEDGE, 0, 0, 0, 0, 0)
    with contextlib.suppress(OSError):
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        with link:
            link.settimeout(_COMMAND_TIMEOUT)
            link.sendto(request, (0, 0))
            link.recv(1)


def _set_offloads(interface: str, *, enabled: bool) -> None:
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _ETHTOOL_OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("=II", command, enabled), 8)
            request = struct.pack("16sP16x", name, ctypes.addressof(value))
            fcntl.ioctl(control, _SIOCETHTOOL, request)


def _start_time(process: int) -> int | None:
    """When a process began, in clock ticks after boot (proc(5), stat field 22); None when it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _run(
    argv: Sequence[str], input: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    try:
        result = subprocess.run(  # noqa: S603 - no shell, and every command names one of our namespaces
            argv, input=input, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        package = PACKAGES.get(argv[0], argv[0])
        raise MachineError(f"{argv[0]} is not on PATH: install {package}") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"`{' '.join(argv)}` did not end within {_COMMAND_TIMEOUT:g}s") from error
    if check and result.returncode != 0:
        lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        said = lines[0] if lines else f"exit code {result.returncode}"
        raise MachineError(
            f"`{' '.join(argv)}` failed ({said}): needed are root and a kernel with network namespaces, "
            "veth and nftables"
        )
    return result
