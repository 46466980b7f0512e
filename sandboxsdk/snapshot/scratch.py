"""What a walk gives when it is only looked at: digests and trees in memory, nothing stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import final

from sandboxsdk.codec import typed_digest
from sandboxsdk.errors import Corrupt
from sandboxsdk.store import BLOB

from .tree import Reader


class Forgotten(Exception):
    """A content that the walk read and nobody kept."""


@final
class Scratch:
    """A sink that keeps trees and lists, forgets contents, and reads on in another reader."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: dict[bytes, bytes] = {}
        self._forgotten: set[bytes] = set()

    def add(self, kind: int, data: bytes) -> bytes:
        """Give the digest of an object, and keep it unless it is a file's content."""
        digest = typed_digest(kind, data)
        if kind != BLOB:
            self._kept[digest] = bytes(data)
        else:
            self._forgotten.add(digest)
        return digest

    def read(self, kind: int, digest: bytes) -> bytes:
        """Give a tree or list of the walk, or whatever the other reader has.

        Raises:
            Corrupt: the other reader does not have it.
            Forgotten: it does not have it either, and it is a content that the walk read.
        """
        kept = self._kept.get(digest)
        if kept is None:
            try:
                return self._reader.read(kind, digest)
            except Corrupt as error:
                if digest in self._forgotten:
                    raise Forgotten from error
                raise
        if typed_digest(kind, kept) != digest:
            raise Corrupt(path=f"object {digest.hex()}", reason="is of another kind")
        return kept

    def read_many(self, kind: int, digests: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Give objects as `read` does, those of the other reader in the order they lie there."""
        wanted = list(dict.fromkeys(digests))
        for digest in wanted:
            if digest in self._kept:
                yield digest, self.read(kind, digest)
        yield from self._reader.read_many(kind, [d for d in wanted if d not in self._kept])
