"""Whether two entries are the same, but for times, owners, hard links and attributes."""

from __future__ import annotations

from .compare_trees import same_content
from .measure import check_limits
from .tree import DIRECTORY, SYMLINK, Node, Objects, read_directory

DIRECTORY_BITS = 0o1777
FILE_BITS = 0o777


def equal_below(reader: Objects, one: Node | None, two: Node | None) -> bool:
    """Compare two entries and all below them; None is that there is none.

    Raises:
        LimitExceeded: there is more than a checkpoint may hold.
    """
    stack = [(one, two)]
    # Directories that share what is below them are compared once.
    seen: set[tuple[bytes, bytes]] = set()
    while stack:
        first, second = stack.pop()
        if first is None or second is None:
            if first is not second:
                return False
            continue
        if first.kind == second.kind == DIRECTORY:
            pair = first.content, second.content
            if first.content == second.content or pair in seen:
                continue
            seen.add(pair)
            check_limits(len(seen), 0)
            a = read_directory(reader, first.content)
            b = read_directory(reader, second.content)
            if (a.mode ^ b.mode) & DIRECTORY_BITS:
                return False
            ours = {node.name: node for node in a.nodes}
            theirs = {node.name: node for node in b.nodes}
            stack += [(ours.get(name), theirs.get(name)) for name in {*ours, *theirs}]
        elif not _same_leaf(reader, first, second):
            return False
    return True


def part_of(reader: Objects, part: Node, whole: Node) -> bool:
    """Say whether an entry has nothing but what another has, whatever modes directories have.

    Raises:
        LimitExceeded: there is more than a checkpoint may hold.
    """
    stack = [(part, whole)]
    seen: set[tuple[bytes, bytes]] = set()
    while stack:
        first, second = stack.pop()
        if first.kind == second.kind == DIRECTORY:
            pair = first.content, second.content
            if first.content == second.content or pair in seen:
                continue
            seen.add(pair)
            check_limits(len(seen), 0)
            known = {node.name: node for node in read_directory(reader, second.content).nodes}
            for node in read_directory(reader, first.content).nodes:
                twin = known.get(node.name)
                if twin is None:
                    return False
                stack.append((node, twin))
        elif not _same_leaf(reader, first, second):
            return False
    return True


def _same_leaf(reader: Objects, one: Node, two: Node) -> bool:
    if one.is_file != two.is_file or (not one.is_file and one.kind != two.kind):
        return False
    if one.kind == SYMLINK:
        return one.content == two.content
    if (one.mode ^ two.mode) & FILE_BITS or one.size != two.size:
        return False
    return not one.is_file or same_content(reader, one, two)
