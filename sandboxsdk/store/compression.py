"""zstd, from the standard library where it has it. Owner of the library.

Decompression trusts nothing: the libraries ignore their own limit of output when a frame states a
size, and one of them takes bytes behind the frame. So the frame is looked at before.
"""

from __future__ import annotations

import sys

LEVEL = 1
_MAGIC = b"\x28\xb5\x2f\xfd"
# zstd itself wants no more at the levels that we write.
_WINDOW_BYTES_MAX = 16 * 1024 * 1024


class Malformed(Exception):
    """These bytes are not one zstd frame of the expected content. The text says why."""


if sys.version_info >= (3, 14):
    from compression import zstd

    def compress(data: bytes) -> bytes:
        """Give one frame that states its size and has no checksum of its own."""
        return zstd.compress(data, level=LEVEL)

    def decompress(data: bytes, length: int) -> bytes:
        """Give the content of exactly one frame, which is `length` bytes long.

        Raises:
            Malformed: it is something else.
        """
        if data[:4] != _MAGIC:
            raise Malformed("does not begin as a zstd frame")
        try:
            info = zstd.get_frame_info(data)
            if info.decompressed_size != length:
                raise Malformed(f"states {info.decompressed_size} bytes instead of {length}")
            if info.dictionary_id:
                raise Malformed("wants a dictionary")
            window = {zstd.DecompressionParameter.window_log_max: 24}
            decompressor = zstd.ZstdDecompressor(options=window)
            content = decompressor.decompress(data, max_length=length)
            if not decompressor.eof:
                # The last piece may still wait for room; more output than stated ends here.
                content += decompressor.decompress(b"", max_length=1)
        except (zstd.ZstdError, EOFError) as error:
            raise Malformed(str(error)) from error
        if len(content) != length or not decompressor.eof or decompressor.unused_data:
            raise Malformed("is not exactly one frame of the stated size")
        return content

else:
    import zstandard

    def compress(data: bytes) -> bytes:
        """Give one frame that states its size and has no checksum of its own."""
        return zstandard.ZstdCompressor(level=LEVEL).compress(data)

    def decompress(data: bytes, length: int) -> bytes:
        """Give the content of exactly one frame, which is `length` bytes long.

        Raises:
            Malformed: it is something else.
        """
        if data[:4] != _MAGIC:
            raise Malformed("does not begin as a zstd frame")
        try:
            found = zstandard.get_frame_parameters(data)
            if found.content_size != length:
                raise Malformed(f"states {found.content_size} bytes instead of {length}")
            if found.window_size > _WINDOW_BYTES_MAX:
                raise Malformed(f"wants a window of {found.window_size} bytes")
            if found.dict_id:
                raise Malformed("wants a dictionary")
            decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
            # The stated size is what is allocated, and it was compared above.
            content = decompressor.decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Malformed(str(error)) from error
        if len(content) != length:
            raise Malformed(f"holds {len(content)} bytes instead of {length}")
        return content
