"""What a view over the bare directory shows, and what it showed before does not: excluded paths in
directories that were removed.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from sandboxsdk.disk import translated
from sandboxsdk.host import Opener, has_openat2, owned, remove_entry
from sandboxsdk.snapshot import BASES, DIRECTORY, Objects

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def take_away(root: int, paths: Sequence[bytes], reader: Objects, tree: bytes) -> None:
    """Remove those paths that lie in directories which a tree does not have.

    Args:
        root: descriptor of the view.

    Raises:
        HostFull, HostRefused: the host refused it.
        Corrupt: a part of the tree is missing or damaged.
    """
    opener = Opener(with_openat2=has_openat2())
    for path in paths:
        *parts, name = path.split(b"/")
        if _has_directory(reader, tree, parts):
            continue
        with translated("restore", "/workspace"):
            try:
                with owned(opener.directory(root, parts)) as place:
                    remove_entry(opener, place, name)
            except OSError as error:
                if error.errno not in _GONE:
                    raise


def _has_directory(reader: Objects, tree: bytes, parts: Sequence[bytes]) -> bool:
    for name in parts:
        node = BASES.read(reader, tree).find(name)
        if node is None or node.kind != DIRECTORY:
            return False
        tree = node.content
    return True
