"""Large files in pieces."""

from __future__ import annotations

import io
import random

import pytest

from sandboxsdk.store import chunks, cut_chunks


class Slow:
    """A stream that gives little at a time, and counts."""

    def __init__(self, content):
        self.content, self.at = content, 0

    def read(self, length, /):
        data = self.content[self.at : self.at + min(length, 70_001)]
        self.at += len(data)
        return data


CONTENT = random.Random(3).randbytes(12_000_000)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("length", [0, 1, 600_000, 12_000_000])
def test_pieces_make_up_the_whole(monkeypatch, compiled, length):
    """The pieces, put together, are the content; each has a size within bounds but the last."""
    if not compiled:
        monkeypatch.setattr(chunks, "FastCDC", None)
    content = CONTENT[:length]
    for stream in (io.BytesIO(content), Slow(content)):
        pieces = list(cut_chunks(stream))
        assert b"".join(pieces) == content
        assert all(len(piece) <= chunks.CHUNK_BYTES_MAX for piece in pieces)
        assert all(len(piece) >= chunks.CHUNK_BYTES_MIN for piece in pieces[:-1])
        assert len(pieces) < 2 or len(pieces) > length // chunks.CHUNK_BYTES_MAX


def test_an_edit_changes_few_pieces():
    """Bytes put in at the beginning leave the later pieces as they were."""
    if chunks.FastCDC is None:
        pytest.skip("the compiled module is missing here")
    before = set(cut_chunks(io.BytesIO(CONTENT)))
    after = set(cut_chunks(io.BytesIO(b"inserted" + CONTENT)))
    assert len(after - before) <= 2


def test_what_a_stream_raises_goes_through():
    """An error while reading is the caller's."""

    class Failing:
        def read(self, _, /):
            raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        list(cut_chunks(Failing()))
