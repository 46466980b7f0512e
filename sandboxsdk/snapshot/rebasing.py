"""What layers show over another tree than the one that they were made over."""

from __future__ import annotations

import msgspec

from .scratch import Scratch
from .tree import DIRECTORY, Node, read_directory, write_directory


def rebased(scratch: Scratch, old: bytes, new: bytes, onto: bytes) -> bytes:
    """Lay what makes one tree of another over a third; gives the digest of what shows then.

    As an overlay does it: what differs between the first two hides the third, and directories are
    merged.

    Args:
        old, new: digests of the tree that layers were made over, and of what they show over it.
        onto: digest of what lies below them now.

    Raises:
        Corrupt: a tree is missing or damaged.
    """
    if new == old:
        return onto
    if onto == old:
        return new
    before, there = _nodes(scratch, old), _nodes(scratch, onto)
    directory = read_directory(scratch, new)
    after = {node.name: node for node in directory.nodes}
    nodes: list[Node] = []
    for name in sorted(after.keys() | there.keys()):
        was, now, below = before.get(name), after.get(name), there.get(name)
        shown = below if now == was else now
        if now is not None and below is not None and now.kind == below.kind == DIRECTORY:
            under = was.content if was is not None and was.kind == DIRECTORY else b""
            content = rebased(scratch, under, now.content, below.content)
            shown = Node(name, DIRECTORY, content=content)
        if shown is not None:
            nodes.append(shown)
    return write_directory(scratch, msgspec.structs.replace(directory, nodes=nodes))


def _nodes(scratch: Scratch, tree: bytes) -> dict[bytes, Node]:
    if not tree:
        return {}
    return {node.name: node for node in read_directory(scratch, tree).nodes}
