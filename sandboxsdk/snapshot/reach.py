"""Which objects a tree needs: what garbage collection keeps, and what damage takes away."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator

from sandboxsdk.errors import Corrupt
from sandboxsdk.store import BLOB, LIST, TREE

from .tree import (
    DIRECTORY,
    FILE,
    PARTS,
    Node,
    Objects,
    Reader,
    list_pages,
    read_directory,
    read_parts,
)

_EXAMPLES_MAX = 10


def reachable(reader: Objects, roots: Iterable[bytes]) -> set[bytes]:
    """Give the digests of everything that these trees are made of, themselves included.

    Raises:
        Corrupt: a tree or list is missing or damaged, so what it needs cannot be known.
    """
    return set().union(*needed_by(reader, roots).values())


def needed_by(reader: Objects, roots: Iterable[bytes]) -> dict[int, set[bytes]]:
    """Give the same by the kind of object; raises as `reachable`."""
    trees: set[bytes] = set()
    lists: set[bytes] = set()
    blobs: set[bytes] = set()
    waiting = list(roots)
    while waiting:
        tree = waiting.pop()
        if tree in trees:
            continue
        trees.update(digest for digest, _ in list_pages(reader, TREE, tree))
        for node in read_directory(reader, tree).nodes:
            if node.kind == DIRECTORY:
                waiting.append(node.content)
            elif node.kind == FILE and node.content:
                blobs.add(node.content)
            elif node.kind == PARTS and node.content not in lists:
                lists.update(digest for digest, _ in list_pages(reader, LIST, node.content))
                blobs.update(part.content for part in read_parts(reader, node) if part.content)
    return {BLOB: blobs, LIST: lists, TREE: trees}


def _contents(reader: Reader, node: Node, known: Collection[bytes]) -> Iterator[bytes]:
    if node.kind == FILE and node.content:
        yield node.content
    elif node.kind == PARTS and node.content not in known:
        for digest, _ in list_pages(reader, LIST, node.content):
            yield digest
        for part in read_parts(reader, node):
            if part.content:
                yield part.content


def damaged_paths(reader: Reader, root: bytes, lost: Collection[bytes]) -> list[str]:
    """Give some paths of a tree that need an object which is lost, at most ten, sorted.

    A directory stands for all in it; of what several directories share, one path is given.
    """
    found: list[str] = []
    lost = frozenset(lost)
    # A directory that several share is looked into once: a tree may have more paths than anybody
    # could visit.
    seen: set[bytes] = set()
    waiting = [(b"", root)]
    while waiting and len(found) < _EXAMPLES_MAX:
        path, tree = waiting.pop()
        if tree in seen:
            continue
        seen.add(tree)
        try:
            pages = {digest for digest, _ in list_pages(reader, TREE, tree)}
            nodes = read_directory(reader, tree).nodes
        except Corrupt:
            found.append(os.fsdecode(path) or ".")
            continue
        if pages & lost:
            found.append(os.fsdecode(path) or ".")
        for node in nodes:
            below = path + b"/" + node.name if path else node.name
            if node.kind == DIRECTORY:
                waiting.append((below, node.content))
            elif node.is_file and _is_lost(reader, node, lost):
                found.append(os.fsdecode(below))
    return sorted(found)[:_EXAMPLES_MAX]


def _is_lost(reader: Reader, node: Node, lost: Collection[bytes]) -> bool:
    try:
        return any(digest in lost for digest in _contents(reader, node, ()))
    except Corrupt:
        return True
