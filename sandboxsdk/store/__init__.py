"""The store: bytes by their digest, in packs that are only appended to.

Knows objects of three kinds and what lies where; must not know what a file, a tree or a task is.

Invariants:
- When a commit returns, what was added is on disk, and a kill at any point before or after leaves a
  store that needs no repair.
- What is read has the digest that was asked for, or `Corrupt` is raised; every number is bounded
  before it is used.
- The packs are the truth. The index is a cache that names only what is on disk, and is rebuilt when
  it is lost.
- Nothing that is needed is taken away: that is decided under a hold that excludes writers.
"""

from .chunks import cut_chunks
from .compression import Malformed, compress, decompress
from .frame import BLOB, LIST, OBJECT_BYTES_MAX, TREE
from .store import Store
from .verification import Damage, StoreCheck
from .writer import Writer

__all__ = [
    "BLOB",
    "LIST",
    "OBJECT_BYTES_MAX",
    "TREE",
    "Damage",
    "Malformed",
    "Store",
    "StoreCheck",
    "Writer",
    "compress",
    "cut_chunks",
    "decompress",
]
