"""Several layers over each other made one, of hard links to the files that they hold.

The two trees, what lies below the layers and what they show, say what the new layer must name:
nothing else does, so it holds neither what was changed back nor whiteouts of what is not there. The
layers say where each file is. Costs what differs between the trees, and copies no content.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple, final

from sandboxsdk import disk
from sandboxsdk.host import Opener, has_openat2, owned
from sandboxsdk.snapshot import DIRECTORY, Directory, Node, Trees, read_attributes

FAN = 8
"""So many layers of one size are made one."""

_DEPTH_MAX = 64
_BLOCK_BYTES = 512  # what st_blocks counts in
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_MARKS, _ESCAPED = b"user.overlay.", b"user.overlay.overlay."


def run_to_merge(spans: Sequence[int]) -> int:
    """Say how many of the topmost layers are to be made one; 0 is none. (pure)

    As in a log-structured merge tree: layers grow by a factor, so that there are few of them and
    each entry is linked anew a few times only.

    Args:
        spans: how many freezes are in each layer, the top one first.
    """
    if len(spans) >= _DEPTH_MAX:
        return len(spans)
    run = 0
    while run < len(spans) and _level(spans[run]) == _level(spans[0]):
        run += 1
    return run if run >= FAN else 0


def _level(span: int) -> int:
    level = 0
    while span >= FAN:
        span //= FAN
        level += 1
    return level


class Unequal(Exception):
    """The layers do not hold what the trees say."""


def flatten(
    trees: Trees, below: bytes, above: bytes, layers: Sequence[int], target: int, *, hide: bool
) -> int:
    """Fill an empty directory with the one layer that makes a tree of another; gives the bytes that
    it takes on disk.

    Args:
        trees: reads the trees.
        below, above: digests of what the layers lie over, and of what they show then.
        layers: descriptors of the layers, the top one first.
        target: descriptor of the directory; what an error leaves in it is the caller's to remove.
        hide: there may be more below them than the trees say: what they hide stays hidden.

    Raises:
        Unequal: the layers do not hold what the trees say.
        OSError: the host refused something.
    """
    return _Flattening(trees, layers, target, hide=hide).run(below, above)


class _Visit(NamedTuple):
    """A directory to be written.

    Attributes:
        below: digest of the directory that it is laid over; empty is none.
        layers: numbers of those that have it, the top one first.
    """

    parts: tuple[bytes, ...]
    below: bytes
    above: bytes
    layers: tuple[int, ...]


@final
class _Flattening:
    def __init__(self, trees: Trees, layers: Sequence[int], target: int, *, hide: bool) -> None:
        self._trees, self._layers, self._target = trees, layers, target
        self._hide = hide
        self._opener = Opener(with_openat2=has_openat2())
        self._blocks = 0

    def run(self, below: bytes, above: bytes) -> int:
        done: list[tuple[tuple[bytes, ...], Directory]] = []
        waiting = [_Visit((), below, above, tuple(range(len(self._layers))))]
        while waiting:
            visit = waiting.pop()
            directory = self._trees.directory(visit.above)
            done.append((visit.parts, directory))
            waiting += self._write(visit, directory)
        for parts, directory in reversed(done):
            with owned(self._opener.directory(self._target, parts)) as place:
                set_metadata(place, directory)
                self._blocks += os.fstat(place).st_blocks
        return self._blocks * _BLOCK_BYTES

    def _write(self, visit: _Visit, directory: Directory) -> list[_Visit]:
        """Write what differs in one directory; gives the directories below that differ."""
        old = {}
        if visit.below:
            old = {node.name: node for node in self._trees.directory(visit.below).nodes}
        inner: list[_Visit] = []
        opened: list[int] = []
        try:
            for number in visit.layers:
                opened += [self._opener.directory(self._layers[number], visit.parts)]
            with owned(self._opener.directory(self._target, visit.parts)) as place:
                for node in directory.nodes:
                    was = old.pop(node.name, None)
                    if was == node and not self._may_hide(node, opened):
                        continue
                    if node.kind == DIRECTORY:
                        inner.append(self._begin(visit, node, was, opened, place))
                    else:
                        self._blocks += _link(node, opened, place)
                for name in old:
                    disk.make_whiteout(name, dir_fd=place)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return inner

    def _may_hide(self, node: Node, layers: Sequence[int]) -> bool:
        """Tell whether a directory that is as it was may hide what no tree says."""
        return (
            self._hide
            and node.kind == DIRECTORY
            and any(_is_there(node.name, layer) for layer in layers)
        )

    def _begin(
        self, visit: _Visit, node: Node, was: Node | None, opened: list[int], place: int
    ) -> _Visit:
        """Make a directory, and find out which layers have it."""
        disk.make_directory(node.name, 0o700, dir_fd=place)
        having: list[int] = []
        hidden = False
        for number, layer in zip(visit.layers, opened, strict=True):
            try:
                found = os.open(node.name, _DIRECTORY, dir_fd=layer)
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                # Something else, which hides what lies below.
                if hidden := _is_there(node.name, layer):
                    break
                continue
            with owned(found):
                having.append(number)
                if hidden := read_attributes(found, overlay=True).opaque == b"y":
                    break
        merged = was is not None and was.kind == DIRECTORY and not (hidden and self._hide)
        if was is not None and not merged:
            with owned(os.open(node.name, _DIRECTORY, dir_fd=place)) as made:
                disk.set_attribute(made, "user.overlay.opaque", b"y")
        below = was.content if was is not None and merged else b""
        return _Visit((*visit.parts, node.name), below, node.content, tuple(having))


def _is_there(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _link(node: Node, layers: Sequence[int], place: int) -> int:
    """Give a file, link or FIFO of the topmost layer that has it another name; gives its blocks."""
    for layer in layers:
        try:
            found = os.stat(node.name, dir_fd=layer, follow_symlinks=False)
        except FileNotFoundError:
            continue
        same = stat.S_IMODE(found.st_mode) == node.mode and found.st_mtime_ns == node.mtime
        if not same or (node.is_file and found.st_size != node.size):
            break
        disk.make_hard_link(node.name, node.name, old_dir=layer, new_dir=place)
        return found.st_blocks
    raise Unequal(os.fsdecode(node.name))


def set_metadata(place: int, directory: Directory) -> None:
    """Give a directory of a layer the metadata of a tree's; overlay's own names are escaped."""
    for name, value in directory.attributes:
        escaped = name.startswith(_MARKS)
        stored = _ESCAPED + name[len(_MARKS) :] if escaped else name
        disk.set_attribute(place, stored, value, path_only=True)
    if os.geteuid() == 0:
        disk.set_owner(place, directory.uid, directory.gid, path_only=True)
    # With the set-group bit, which new directories take over from the one they are made in.
    os.chmod(f"/proc/self/fd/{place}", directory.mode)
    disk.set_times(place, directory.mtime, path_only=True)
