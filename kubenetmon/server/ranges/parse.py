"""The providers' files, read into claims: "this prefix is ours, in this region, for this service".

Contract: pure. `parse` checks a file as a whole and raises `ConfigurationError` with one line that names the
file and the item at fault; what it returns is small (2 MB for all providers) and immutable. Which of
several claims to one prefix wins is for `kubenetmon.server.ranges.resolve` to decide.

Formats:
AWS https://docs.aws.amazon.com/vpc/latest/userguide/aws-ip-ranges.html,
Google's goog.json and cloud.json https://support.google.com/a/answer/10026322,
Azure's "Service Tags" https://learn.microsoft.com/azure/virtual-network/service-tags-overview.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_pton
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from kubenetmon.errors import ConfigurationError
from kubenetmon.server.snapshot import Family

AWS, GCP, GOOGLE, AZURE = "aws", "gcp", "google", "azure"
PROVIDERS: tuple[str, ...] = (AWS, GCP, GOOGLE, AZURE)
"""Every provider, in the order in which equal prefixes are resolved; a provider's file is `<name>.json`."""

CLOUDS = (AWS, GCP, AZURE)
"""The clouds that labels name; Google's services count as gcp."""

_SHORTEST4, _SHORTEST6 = 8, 16
"""No provider holds a network wider than this; one that does would swallow the internet by mistake."""

_MOST_CLAIMS = 500_000
"""Five times Azure's, which are the most: a larger file costs time and memory and is none of theirs."""

_MOST_CLAIMS_OF_ONE = 1000
"""Claims to one prefix; Azure makes five."""

_LARGEST_SHARE: Mapping[Family, float] = {4: 1 / 8, 6: 1 / 1024}
"""Of all addresses. AWS, the largest, holds 2.2 % of IPv4 and less than a hundred millionth of IPv6."""

_LENGTHS = {str(length): length for length in range(129)}
_LENGTH_BYTES = [bytes((length,)) for length in range(129)]


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
class Claims:
    """Claims to prefixes of one family, packed, since they are kept until the provider publishes others.

    A prefix is its address in network order (4 or 16 bytes) and its length (1 byte), `width` bytes in all,
    one behind the other in `prefixes`; `tag_of[i]` says which tag the i-th has.
    """

    width: int
    prefixes: bytes
    tag_of: array[int]

    def extent(self) -> tuple[int, int, float]:
        """How many different prefixes, how often one is named at most, and their share of all addresses."""
        packed = np.frombuffer(self.prefixes, f"S{self.width}")
        different, counts = np.unique(packed, return_counts=True)
        octets = different.view(np.uint8).reshape(-1, self.width)
        # By the first 48 bits: no shorter network is missed, and a longer one is as nothing.
        starts = octets[:, : min(self.width - 1, 6)] @ (256.0 ** -np.arange(1, 1 + min(self.width - 1, 6)))
        ends = starts + 0.5 ** octets[:, -1]
        reached = np.maximum.accumulate(np.concatenate(([0.0], ends)))
        share = np.maximum(ends - np.maximum(starts, reached[:-1]), 0).sum()
        return len(different), int(counts.max(initial=0)), float(share)


@dataclass(frozen=True, slots=True)
class ProviderRanges:
    """One provider's claims by family; `distinct` is the number of different prefixes."""

    provider: str
    tags: Sequence[Tag]
    families: Mapping[Family, Claims]
    distinct: int

    def regions(self) -> set[str]:
        """Every region named, normalised."""
        return {normalised(tag.region) for tag in self.tags}


class _AwsPrefix(msgspec.Struct, gc=False):
    region: str = ""
    service: str = ""
    ip_prefix: str = ""
    ipv6_prefix: str = ""


class _AwsFile(msgspec.Struct, gc=False):
    prefixes: list[msgspec.Raw]
    ipv6_prefixes: list[msgspec.Raw] = []


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
    values: list[msgspec.Raw]


_ItemT = TypeVar("_ItemT")


def _one_by_one(items: Sequence[msgspec.Raw], kind: type[_ItemT], where: str) -> Iterator[tuple[int, _ItemT]]:
    """Each item and its index: all objects of a file at once would take three times the file's size."""
    decoder = msgspec.json.Decoder(kind)
    for index, raw in enumerate(items):
        try:
            yield index, decoder.decode(raw)
        except msgspec.ValidationError as error:
            problem, _, inside = str(error).partition(" - at `$")
            place = f"$.{where}[{index}]{inside or '`'}"
            raise msgspec.ValidationError(f"{problem} - at `{place}") from error


class _Group(NamedTuple):
    """Prefixes of one tag, and where they are in the file; `{index}` stands for the index in the group."""

    where: str
    texts: Sequence[str]
    tag: Tag


def _aws_claims(content: bytes) -> Iterator[_Group]:
    document = msgspec.json.decode(content, type=_AwsFile)
    for index, item in _one_by_one(document.prefixes, _AwsPrefix, "prefixes"):
        tag = Tag(item.region, item.service, item.service)
        yield _Group(f"prefixes[{index}].ip_prefix", (item.ip_prefix,), tag)
    for index, item in _one_by_one(document.ipv6_prefixes, _AwsPrefix, "ipv6_prefixes"):
        tag = Tag(item.region, item.service, item.service)
        yield _Group(f"ipv6_prefixes[{index}].ipv6_prefix", (item.ipv6_prefix,), tag)


def _google_claims(content: bytes, fixed: Tag | None) -> Iterator[_Group]:
    document = msgspec.json.decode(content, type=_GoogleFile)
    for index, item in enumerate(document.prefixes):
        tag = fixed or Tag(item.scope, item.service, item.service)
        if item.ipv4_prefix:
            yield _Group(f"prefixes[{index}].ipv4Prefix", (item.ipv4_prefix,), tag)
        if item.ipv6_prefix:
            yield _Group(f"prefixes[{index}].ipv6Prefix", (item.ipv6_prefix,), tag)


def _azure_claims(content: bytes) -> Iterator[_Group]:
    document = msgspec.json.decode(content, type=_AzureFile)
    for _, value in _one_by_one(document.values, _AzureTag, "values"):
        published = value.properties.system_service
        stand_in = "azurecloud" if "azurecloud" in value.name.lower() else "azureservice"
        tag = Tag(value.properties.region or "global", published or stand_in, published)
        yield _Group(f"{value.name:.100}.addressPrefixes[{{index}}]", value.properties.address_prefixes, tag)


_READERS: Mapping[str, Callable[[bytes], Iterator[_Group]]] = {
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
    packed = {5: bytearray(), 17: bytearray()}
    tag_of = {5: array("H"), 17: array("H")}
    tags: dict[Tag, int] = {}
    try:
        for where, texts, tag in _READERS[provider](content):
            number = tags.setdefault(tag, len(tags))
            for index, text in enumerate(texts):
                try:
                    prefix = _packed(text)
                except ValueError as error:
                    item = where.replace("{index}", str(index))
                    raise ConfigurationError(f"{source}: {item} is {error}: {text!r:.100}") from None
                packed[len(prefix)] += prefix
                tag_of[len(prefix)].append(number)
            if len(tag_of[5]) + len(tag_of[17]) > _MOST_CLAIMS:
                raise ConfigurationError(
                    f"{source} holds more than {_MOST_CLAIMS} prefixes: not {provider}'s"
                )
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
    families: dict[Family, Claims] = {
        4: Claims(5, bytes(packed[5]), tag_of[5]),
        6: Claims(17, bytes(packed[17]), tag_of[17]),
    }
    distinct = 0
    for family, claims in families.items():
        count, most, share = claims.extent()
        distinct += count
        if most > _MOST_CLAIMS_OF_ONE:
            raise ConfigurationError(f"{source} is absurd: it names a prefix {most} times")
        if share > _LARGEST_SHARE[family]:
            raise ConfigurationError(
                f"{source} is absurd: it claims {share:.2%} of all IPv{family} addresses for {provider}"
            )
    if not distinct:
        raise ConfigurationError(f"{source} holds no prefixes: fetch the ranges of {provider} again")
    return ProviderRanges(provider, tuple(tags), families, distinct)


def _packed(text: str) -> bytes:
    """A prefix's address in network order and its length; a bare address is a prefix of full length.

    Raises `ValueError` that says what it is instead.
    """
    address_text, slash, length_text = text.partition("/")
    family, bits, shortest = (AF_INET6, 128, _SHORTEST6) if ":" in address_text else (AF_INET, 32, _SHORTEST4)
    try:
        address = inet_pton(family, address_text)
        length = _LENGTHS[length_text] if slash else bits
    except (OSError, ValueError, KeyError):  # ValueError: an embedded null character
        raise ValueError("no network") from None
    if length < bits:
        if length < shortest:
            raise ValueError("absurdly wide")
        if int.from_bytes(address) & ((1 << (bits - length)) - 1):
            raise ValueError("no network, host bits are set")
    elif length > bits:
        raise ValueError("no network")
    return address + _LENGTH_BYTES[length]


def normalised(text: str) -> str:
    """Clouds, regions and services as the table spells them: lower case, no spaces."""
    return text.lower().replace(" ", "")
