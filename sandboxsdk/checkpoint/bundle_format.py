"""The bytes of a task in one file: numbers, bounds and records. docs/format.md tells the whole.

Pure: nothing is read or written here.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any

import msgspec

from sandboxsdk.store import OBJECT_BYTES_MAX

VERSION = 1
MAGIC = b"SBXTASK\n"
HEAD = struct.Struct("<8sI")
FRAME = struct.Struct("<BII")
OBJECTS, JOURNAL, FACTS, END = range(1, 5)

BATCH_BYTES = 1 << 20
# So many objects are in one frame: of the smallest, a frame could hold millions.
BATCH_OBJECTS = 1 << 16
JOURNAL_BYTES_MAX = 256 << 20
# What a frame of each type may have uncompressed.
BYTES_MAX: dict[int, int] = {
    FACTS: 4 << 20,
    JOURNAL: BATCH_BYTES,
    # One object may have 16 MiB; the rest is room for what stands before each object.
    OBJECTS: OBJECT_BYTES_MAX + 2 * BATCH_BYTES,
    END: 256,
}
# What may stand behind a frame of each type; 0 is the head.
NEXT: dict[int, tuple[int, ...]] = {
    0: (FACTS,),
    FACTS: (JOURNAL, OBJECTS, END),
    JOURNAL: (JOURNAL, OBJECTS, END),
    OBJECTS: (OBJECTS, END),
}


class Object(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One object of the store, without its digest."""

    kind: int
    data: bytes


# The number is checked before anything is made of the objects' bytes.
Batch: type[list[Object]] = Annotated[  # type: ignore[assignment]  # a list, and bounded
    list[Object], msgspec.Meta(min_length=1, max_length=BATCH_OBJECTS)
]


class Told(msgspec.Struct, frozen=True):
    """What the file is about: digests of trees in hexadecimal, and what its writer says besides."""

    roots: list[str]
    facts: dict[str, Any]


class End(msgspec.Struct, array_like=True, frozen=True):
    """The end: how many objects there are, and the digest of everything before this frame."""

    objects: int
    digest: str


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held.

    Attributes:
        journal: the bytes of the task's journal.
        facts: what its writer said besides.
        roots: digests of the trees that are in it whole.
    """

    journal: bytes
    facts: dict[str, Any]
    roots: tuple[bytes, ...]


class BundleReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        objects: in the file.
        bytes: of the file.
    """

    objects: int
    bytes: int
