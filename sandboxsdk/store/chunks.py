"""Large files in pieces whose borders follow the content, so that an edit changes few of them.

Owner of pyfastcdc. The parameters are part of the format only in so far as other ones find fewer
pieces again; reading does not depend on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Protocol

CHUNK_BYTES_MIN = 512 * 1024
CHUNK_BYTES_AVERAGE = 1024 * 1024
CHUNK_BYTES_MAX = 4 * 1024 * 1024
FIXED_BYTES = 1024 * 1024

# Without its compiled module the library falls back to Python, a hundred times slower, and says so
# in a warning; fixed pieces are better then.
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyfastcdc.cy import FastCDC
except ImportError:  # pragma: no cover - depends on the platform's wheel
    FastCDC = None


class Stream(Protocol):
    """Something that is read from front to back; an empty answer is its end."""

    def read(self, length: int, /) -> bytes: ...


def cut_chunks(stream: Stream) -> Iterator[bytes]:
    """Give a stream's content in pieces, in order; holds about 8 MiB at a time.

    Whatever `stream.read` raises goes through.
    """
    if FastCDC is None:
        yield from _fixed(stream)
        return
    chunker = FastCDC(CHUNK_BYTES_AVERAGE, min_size=CHUNK_BYTES_MIN, max_size=CHUNK_BYTES_MAX)
    for chunk in chunker.cut_stream(stream):
        # Its view is valid only until the next one is asked for.
        yield bytes(chunk.data)


def _fixed(stream: Stream) -> Iterator[bytes]:
    rest = bytearray()
    while data := stream.read(FIXED_BYTES):
        rest += data
        while len(rest) >= FIXED_BYTES:
            yield bytes(rest[:FIXED_BYTES])
            del rest[:FIXED_BYTES]
    if rest:
        yield bytes(rest)
