"""X.509 certificates (RFC 5280): for which names one is good and until when; not whether it can be trusted.

    read_certificate(DER) -> Certificate(names, begins, ends)

Python's ssl tells this of a peer's certificate only. A certificate is a tree of type, length, value (X.690, DER):

    0 Certificate  SEQUENCE
      0 TBSCertificate  SEQUENCE: [0] version?  serial  algorithm  issuer  validity  subject  key  [3] extensions?
        validity   SEQUENCE: begins, ends                        UTCTime or GeneralizedTime
        subject    SEQUENCE of SET of SEQUENCE: type, value      the common name counts if there is no other name
        [3]        SEQUENCE of SEQUENCE: id, critical?, OCTET STRING with the extension's own DER
          subjectAltName   SEQUENCE of [2] DNS name | [7] address | others that do not matter here
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE, SET, OBJECT_ID, OCTET_STRING, UTC_TIME = 0x30, 0x31, 0x06, 0x04, 0x17
_EXPLICIT_0, _EXPLICIT_3, _DNS_NAME, _ADDRESS = 0xA0, 0xA3, 0x82, 0x87

_COMMON_NAME = bytes((0x55, 4, 3))  # 2.5.4.3
_ALTERNATIVE_NAMES = bytes((0x55, 29, 17))  # 2.5.29.17

# YYMMDDHHMMSSZ and YYYYMMDDHHMMSSZ (RFC 5280 4.1.2.5)
_TIME = re.compile(rb"((?:[0-9]{2})?[0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})Z")

Time = tuple[int, int, int, int, int, int]


class Certificate(NamedTuple):
    """`names`: lower case, a first label may be `*`; addresses as text. Times: year to second, UTC."""

    names: tuple[str, ...]
    begins: Time
    ends: Time


def read_certificate(data: bytes) -> Certificate:
    """ValueError if it is none."""
    try:
        tbs = list(_items(_only(_only(data, SEQUENCE, more=True), SEQUENCE, more=True)))
        fields = tbs[1:] if tbs[0][0] == _EXPLICIT_0 else tbs
        _, _, _, (_, validity), (_, subject), _, *rest = fields
        (begin_type, begin), (end_type, end) = _items(validity)
        names = [name for tag, value in rest if tag == _EXPLICIT_3 for name in _alternative_names(value)]
        return Certificate(
            tuple(names or _common_names(subject)), _read_time(begin_type, begin), _read_time(end_type, end)
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"not an X.509 certificate: {error}") from None


def matches(name: str, host: str) -> bool:
    """Whether a certificate's name is good for a host: `*` stands for one whole label, the first (RFC 9525 6.3)."""
    if name[:2] == "*.":
        label, dot, rest = host.partition(".")
        return bool(label and dot) and rest == name[2:]
    return name == host


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of what stands in `data`, one after another."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:  # so many bytes of the length follow
            size = length & 0x7F
            if not 1 <= size <= 4:
                raise ValueError("a length that DER does not have")
            length, at = int.from_bytes(data[at : at + size]), at + size
        if at + length > len(data):
            raise ValueError("it ends too early")
        yield tag, data[at : at + length]
        at += length


def _only(data: bytes, tag: int, *, more: bool = False) -> bytes:
    """The first value, which must be of this type and, but for `more`, the only one."""
    items = _items(data)
    found, value = next(items, (-1, b""))
    if found != tag or (not more and next(items, None) is not None):
        raise ValueError(f"type {found:#x} where {tag:#x} must be")
    return value


def _alternative_names(extensions: bytes) -> Iterator[str]:
    for _, extension in _items(_only(extensions, SEQUENCE)):
        (_, kind), *_, (tag, value) = _items(extension)
        if kind != _ALTERNATIVE_NAMES or tag != OCTET_STRING:
            continue
        for tag, name in _items(_only(value, SEQUENCE)):
            if tag == _DNS_NAME:
                yield name.decode("ascii").lower()
            elif tag == _ADDRESS:
                yield str(ipaddress.ip_address(name))


def _common_names(subject: bytes) -> Iterator[str]:
    for _, attributes in _items(subject):
        for _, attribute in _items(attributes):
            (_, kind), (_, value) = _items(attribute)
            if kind == _COMMON_NAME:
                yield value.decode("utf-8", "replace").lower()


def _read_time(tag: int, value: bytes) -> Time:
    match = _TIME.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not a time")
    year, month, day, hour, minute, second = map(int, match.groups())
    if tag == UTC_TIME:  # RFC 5280 4.1.2.5.1: 50 to 99 are of the 20th century
        year += 1900 if year >= 50 else 2000
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        raise ValueError(f"{value!r} is no time of day")
    return year, month, day, hour, minute, second
