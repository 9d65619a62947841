"""The providers' files, read into claims: "this prefix is ours, in this region, for this service".

Contract: pure. `parse` checks a file as a whole and raises `ConfigurationError` with one line that names the
file and the item at fault; what it returns is small (a few MB for all providers) and immutable. Which of
several claims to one prefix wins is decided in `resolve`, in the order the claims were published.

Formats:
AWS https://docs.aws.amazon.com/vpc/latest/userguide/aws-ip-ranges.html,
Google's goog.json and cloud.json https://support.google.com/a/answer/10026322,
Azure's "Service Tags" https://learn.microsoft.com/azure/virtual-network/service-tags-overview.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from kubenetmon.errors import ConfigurationError

AWS, GCP, GOOGLE, AZURE = "aws", "gcp", "google", "azure"
PROVIDERS: tuple[str, ...] = (AWS, GCP, GOOGLE, AZURE)
"""Every provider, in the order in which equal prefixes are resolved; a provider's file is `<name>.json`."""

CLOUDS = (AWS, GCP, AZURE)
"""The clouds that labels name; Google's services count as gcp."""

SHORTEST_PREFIX = {4: 8, 6: 16}
"""No provider holds a network wider than this; one that does would swallow the internet by mistake."""


class Label(NamedTuple):
    """Who a prefix belongs to, normalised: lower case, no spaces. All empty: nobody known."""

    cloud: str
    region: str
    service: str


NO_LABEL = Label("", "", "")


class Tag(NamedTuple):
    """What a provider says of a set of prefixes.

    `region` and `service` are as published but for Azure's stand-ins for empty ones; `published_service` is
    empty where the provider named none.
    """

    region: str
    service: str
    published_service: str


@dataclass(frozen=True, slots=True)
class ProviderRanges:
    """One provider's claims in the order of its file.

    A prefix is its address in network order (4 or 16 bytes) and its length (1 byte); `tag_of[i]` indexes
    `tags` for `prefixes[i]`. `distinct` is the number of different prefixes.
    """

    provider: str
    prefixes: Sequence[bytes]
    tags: Sequence[Tag]
    tag_of: Sequence[int]
    distinct: int


class _AwsPrefix(msgspec.Struct, gc=False):
    region: str = ""
    service: str = ""
    ip_prefix: str = ""
    ipv6_prefix: str = ""


class _AwsFile(msgspec.Struct, gc=False):
    prefixes: list[_AwsPrefix]
    ipv6_prefixes: list[_AwsPrefix] = []


class _GooglePrefix(msgspec.Struct, rename="camel", gc=False):
    ipv4_prefix: str = msgspec.field(default="", name="ipv4Prefix")
    ipv6_prefix: str = msgspec.field(default="", name="ipv6Prefix")
    service: str = ""
    scope: str = ""


class _GoogleFile(msgspec.Struct, gc=False):
    prefixes: list[_GooglePrefix]


class _AzureProperties(msgspec.Struct, rename="camel", gc=False):
    address_prefixes: list[str]
    region: str = ""
    system_service: str = ""


class _AzureTag(msgspec.Struct, gc=False):
    name: str
    properties: _AzureProperties


class _AzureFile(msgspec.Struct, gc=False):
    values: list[_AzureTag]


class _Claim(NamedTuple):
    item: str  # where in the file, for people
    text: str
    tag: Tag


def _aws_claims(content: bytes) -> Iterable[_Claim]:
    document = msgspec.json.decode(content, type=_AwsFile)
    for name, key, items in (
        ("prefixes", "ip_prefix", document.prefixes),
        ("ipv6_prefixes", "ipv6_prefix", document.ipv6_prefixes),
    ):
        for index, item in enumerate(items):
            text = item.ip_prefix if key == "ip_prefix" else item.ipv6_prefix
            yield _Claim(f"{name}[{index}].{key}", text, Tag(item.region, item.service, item.service))


def _google_claims(content: bytes, fixed: Tag | None) -> Iterable[_Claim]:
    document = msgspec.json.decode(content, type=_GoogleFile)
    for index, item in enumerate(document.prefixes):
        tag = fixed or Tag(item.scope, item.service, item.service)
        if item.ipv4_prefix:
            yield _Claim(f"prefixes[{index}].ipv4Prefix", item.ipv4_prefix, tag)
        if item.ipv6_prefix:
            yield _Claim(f"prefixes[{index}].ipv6Prefix", item.ipv6_prefix, tag)


def _azure_claims(content: bytes) -> Iterable[_Claim]:
    document = msgspec.json.decode(content, type=_AzureFile)
    for value in document.values:
        published = value.properties.system_service
        stand_in = "azurecloud" if "azurecloud" in value.name.lower() else "azureservice"
        tag = Tag(value.properties.region or "global", published or stand_in, published)
        for index, text in enumerate(value.properties.address_prefixes):
            yield _Claim(f"{value.name}.addressPrefixes[{index}]", text, tag)


_READERS: Mapping[str, Callable[[bytes], Iterable[_Claim]]] = {
    AWS: _aws_claims,
    GCP: lambda content: _google_claims(content, None),
    GOOGLE: lambda content: _google_claims(content, Tag("global", "googleservice", "googleservice")),
    AZURE: _azure_claims,
}


def parse(provider: str, content: bytes, source: str) -> ProviderRanges:
    """The claims in one provider's file; `source` is the file's path or URL, for messages.

    Raises `ConfigurationError` when the file is not JSON, not of this provider's form, holds no prefix, or
    holds one that is no network or wider than any provider's.
    """
    prefixes: list[bytes] = []
    tag_of = array("H")
    tags: dict[Tag, int] = {}
    known: dict[str, bytes] = {}
    try:
        for item, text, tag in _READERS[provider](content):
            prefix = known.get(text)
            if prefix is None:
                prefix = known[text] = _packed(text, item, source)
            prefixes.append(prefix)
            tag_of.append(tags.setdefault(tag, len(tags)))
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{source} is not the ranges file of {provider}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{source} is not JSON (expected the ranges of {provider}): {error}"
        ) from error
    except OverflowError as error:
        raise ConfigurationError(
            f"{source} holds more than 65536 kinds of ranges: not {provider}'s"
        ) from error
    if not prefixes:
        raise ConfigurationError(f"{source} holds no prefixes: fetch the ranges of {provider} again")
    return ProviderRanges(provider, prefixes, tuple(tags), tag_of, len(set(prefixes)))


def _packed(text: str, item: str, source: str) -> bytes:
    """A prefix's address in network order and its length; a bare address is a prefix of full length."""
    address_text, slash, length_text = text.partition("/")
    family, version = (socket.AF_INET6, 6) if ":" in address_text else (socket.AF_INET, 4)
    try:
        address = socket.inet_pton(family, address_text)
    except (OSError, ValueError):  # ValueError: an embedded null character
        raise ConfigurationError(f"{source}: {item} is no network: {text!r:.100}") from None
    bits = 8 * len(address)
    if not slash:
        length = bits
    elif (
        length_text.isascii() and length_text.isdigit() and len(length_text) <= 3 and int(length_text) <= bits
    ):
        length = int(length_text)
    else:
        raise ConfigurationError(f"{source}: {item} is no network: {text!r:.100}")
    if length < SHORTEST_PREFIX[version]:
        raise ConfigurationError(f"{source}: {item} is absurdly wide: {text!r:.100}")
    if length < bits and int.from_bytes(address) & ((1 << (bits - length)) - 1):
        raise ConfigurationError(f"{source}: {item} is no network, host bits are set: {text!r:.100}")
    return address + bytes((length,))


_AWS_RANK = {"s3": -1, "amazon": 1, "ec2": 2}  # any other service: 0; the lower wins


def normalised(text: str) -> str:
    """Clouds, regions and services as the table spells them: lower case, no spaces."""
    return text.lower().replace(" ", "")


def resolve(providers: Iterable[ProviderRanges]) -> dict[bytes, Label]:
    """One label a prefix, IPv4 and IPv6 together; DESIGN section 7 has the rules.

    The providers count in the order of `PROVIDERS` whatever the order given.
    """
    winners: dict[bytes, Label] = {}
    for ranges in sorted(providers, key=lambda ranges: PROVIDERS.index(ranges.provider)):
        cloud = GCP if ranges.provider == GOOGLE else ranges.provider
        labels = [Label(cloud, normalised(tag.region), normalised(tag.service)) for tag in ranges.tags]
        if ranges.provider == AWS:
            rank = [_AWS_RANK.get(label.service, 0) for label in labels]
            best: dict[bytes, int] = {}
            for prefix, tag in zip(ranges.prefixes, ranges.tag_of, strict=True):
                if rank[tag] <= best.get(prefix, 3):
                    best[prefix] = rank[tag]
                    winners[prefix] = labels[tag]
        elif ranges.provider == AZURE:
            _resolve_azure(winners, ranges, labels)
        else:
            for prefix, tag in zip(ranges.prefixes, ranges.tag_of, strict=True):
                winners[prefix] = labels[tag]
    return winners


def _resolve_azure(winners: dict[bytes, Label], ranges: ProviderRanges, labels: Sequence[Label]) -> None:
    for prefix, index in zip(ranges.prefixes, ranges.tag_of, strict=True):
        holder = winners.get(prefix)
        if holder is None:
            winners[prefix] = labels[index]
            continue
        tag = ranges.tags[index]
        # The original compares what it stored (normalised) with what was published (not): so the second
        # and third rule can only fire where a published name is in lower case. The cases show its answers.
        if (
            (holder.service in ("azurecloud", "azureservice", "") and tag.published_service)
            or tag.published_service == "azurestorage"
            or (holder.region == "global" and tag.region != "global" and holder.service == tag.service)
        ):
            winners[prefix] = labels[index]
