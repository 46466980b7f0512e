"""What gives objects, and what takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class Objects(Protocol):
    """What gives one object after another: a store, a writer, or what was only measured."""

    def read(self, kind: int, digest: bytes, /) -> bytes: ...


class Reader(Objects, Protocol):
    """What also gives many objects at once, in the order they lie."""

    def read_many(
        self, kind: int, digests: Iterable[bytes], /
    ) -> Iterator[tuple[bytes, bytes]]: ...


class Sink(Protocol):
    """What takes objects and gives their digests."""

    def add(self, kind: int, data: bytes, /) -> bytes: ...
