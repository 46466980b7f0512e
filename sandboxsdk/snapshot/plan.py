"""What a restore will do, as data: decided from two trees alone, before anything is touched.

Pure. What a plan costs is proportional to what differs: directories with the same digest are not
read, except when hard links differ, which may reach into any directory. New directories are named
by their digest and not listed; whoever carries the plan out lists them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .measure import NOT_MADE, Measure, Trees, check_limits, data_of, is_shared
from .pairs import differing
from .tree import DIRECTORY, FIFO, Directory, Node, Reader

# A walk through so many differing directories is worth a look at how many there can be.
_MANY_DIRECTORIES = 20_000

Owners = Callable[[int, int], tuple[int, int]]


class Place:
    """A directory below the root, as a step from the one above; the root has no `parent`."""

    __slots__ = ("depth", "name", "parent")

    def __init__(self, parent: Place | None = None, name: bytes = b"") -> None:
        self.parent: Place | None = parent
        self.name: bytes = name
        self.depth: int = 0 if parent is None else parent.depth + 1

    def path(self, name: bytes = b"") -> bytes:
        """Give the path of an entry of this directory, or of the directory itself."""
        names = [name] if name else []
        at: Place | None = self
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        return b"/".join(reversed(names))


Step = tuple[Place, Node]


class Existing(msgspec.Struct, kw_only=True):
    """A directory that both trees have and that differs.

    Attributes:
        digest: of the wanted directory.
        wanted: its own metadata, without nodes.
        changed: whether entries of it change, so that its time must be set again.
        metadata: whether its own metadata differs.
        attributes: whether its attributes differ.
    """

    place: Place
    digest: bytes
    wanted: Directory
    changed: bool = False
    metadata: bool = False
    attributes: bool = False


class Plan(msgspec.Struct, kw_only=True):
    """The steps of a restore, in the order in which they are done.

    Attributes:
        directories: that exist and differ, each after the one that it lies in.
        removals: names of the current tree that go.
        fresh: directories to make, with the digest of what they hold.
        entries: files, links and FIFOs to write anew, of one name each.
        links: files of several names to write anew: names in existing directories, by link number.
        metadata: files of which only metadata differs: what is there, and what is wanted.
        skipped: paths of what is wanted and never made.
        total: entries to be written.
        data: bytes to be written, holes not counted.
        replaced: bytes of the files whose names these take.
    """

    directories: list[Existing] = []
    removals: list[Step] = []
    fresh: list[tuple[Place, bytes]] = []
    entries: list[Step] = []
    links: dict[int, list[Step]] = {}
    metadata: list[tuple[Place, Node, Node]] = []
    skipped: list[bytes] = []
    total: int = 0
    data: int = 0
    replaced: int = 0


def plan(
    reader: Reader | Trees, current: bytes, target: bytes, *, owners: Owners | None = None
) -> Plan:
    """Decide how what one tree describes becomes another.

    What is never written does not count as a difference: set-id bits, sticky bits of files, and,
    unless `owners` is given, owners.

    Raises:
        LimitExceeded: there is more to write than a checkpoint may have.
        Corrupt: a tree is missing, damaged, or cannot be.
    """
    trees = reader if isinstance(reader, Trees) else Trees(reader)
    planner = _Planner(trees, owners)
    if current != target:
        planner.compare(current, target)
    made = planner.plan
    check_limits(made.total, 0)
    return made


class _Planner:
    def __init__(self, trees: Trees, owners: Owners | None) -> None:
        self._trees, self._owners = trees, owners
        self._measure = Measure(trees)
        self._places: dict[tuple[Place, bytes], Place] = {}
        self._existing: dict[Place, Existing] = {}
        self._linked = False
        self.plan = Plan()

    def compare(self, current: bytes, target: bytes) -> None:
        root = Place()
        stack = [(root, current, target)]
        while stack:
            place, was, wanted = stack.pop()
            if len(self._existing) == _MANY_DIRECTORIES:
                # Few directories that contain each other often differ in more places than there
                # is time for.
                Measure.whole(self._trees, current)
                Measure.whole(self._trees, target)
            check_limits(0, place.depth + 1)
            before, after = self._trees.directory(was), self._trees.directory(wanted)
            existing = self._note(place, wanted, before, after)
            for name, old, new in differing(before.nodes, after.nodes):
                if old is not None and new is not None and old.kind == new.kind == DIRECTORY:
                    if old.content != new.content:
                        below = self._place(place, name)
                        stack.append((below, old.content, new.content))
                else:
                    self._differ(existing, old, new)
        if self._linked:
            self._compare_links(root, current, target)
        self.plan.data += self._measure.linked_data

    def _note(self, place: Place, wanted: bytes, before: Directory, after: Directory) -> Existing:
        attributes = before.attributes != after.attributes
        existing = Existing(
            place=place,
            digest=wanted,
            wanted=bare(after),
            attributes=attributes,
            metadata=attributes or self._metadata_differs(before, after, 0o1777),
        )
        self._existing[place] = existing
        self.plan.directories.append(existing)
        return existing

    def _place(self, parent: Place, name: bytes) -> Place:
        # One object per directory, so that it can be a key.
        return self._places.setdefault((parent, name), Place(parent, name))

    def _metadata_differs(self, old: Node | Directory, new: Node | Directory, bits: int) -> bool:
        if old.mtime != new.mtime or (old.mode ^ new.mode) & bits:
            return True
        if self._owners is None or (old.uid, old.gid) == (new.uid, new.gid):
            return False
        return self._owners(old.uid, old.gid) != self._owners(new.uid, new.gid)

    def _differ(self, existing: Existing, old: Node | None, new: Node | None) -> None:
        """Note the steps for one name that differs, and is not a directory on both sides."""
        place = existing.place
        if new is None or old is None:
            if old is not None:
                existing.changed = True
                self.plan.removals.append((place, old))
            if new is not None:
                self._add(existing, new)
        elif new.kind in NOT_MADE and (old.kind, old.size) == (new.kind, new.size):
            return
        elif DIRECTORY in (old.kind, new.kind) or new.kind in NOT_MADE:
            existing.changed = True
            self.plan.removals.append((place, old))
            self._add(existing, new)
        elif is_shared(new):
            self._linked = True
        elif is_shared(old) or self._written_anew(old, new):
            self.plan.replaced += data_of(self._trees.reader, old)
            self._add(existing, new)
        elif new.is_file and (
            old.attributes != new.attributes or self._metadata_differs(old, new, 0o777)
        ):
            self.plan.metadata.append((place, old, new))

    def _written_anew(self, old: Node, new: Node) -> bool:
        if (old.kind, old.size, old.content) != (new.kind, new.size, new.content):
            return True
        # A link or a FIFO costs no more to make than to change.
        bits = 0o777 if new.kind == FIFO else 0
        return not new.is_file and self._metadata_differs(old, new, bits)

    def _add(self, existing: Existing, node: Node) -> None:
        existing.changed = True
        place = existing.place
        if node.kind == DIRECTORY:
            extent = self._measure.of(node.content)
            check_limits(0, place.depth + 1 + extent.depth)
            self._linked = self._linked or extent.linked
            self.plan.total += extent.entries
            self.plan.data += extent.data
            self.plan.fresh.append((self._place(place, node.name), node.content))
        elif node.kind in NOT_MADE:
            self.plan.skipped.append(place.path(node.name))
        elif is_shared(node):
            self._linked = True
        else:
            self.plan.total += 1
            self.plan.data += data_of(self._trees.reader, node)
            self.plan.entries.append((place, node))

    # --- Files of several names -------------------------------------------------------------------

    def _compare_links(self, root: Place, current: bytes, target: bytes) -> None:
        """Note all names of each file of several names that is not in both trees just so."""
        digests: dict[Place, bytes] = {}
        wanted = self._groups(root, target, digests)
        there = self._groups(root, current, {})
        links = {(place, node.name): node for group in there.values() for place, node in group}
        fresh = {place for place, _ in self.plan.fresh}
        for number, group in wanted.items():
            olds = [links.get((place, node.name)) for place, node in group]
            first, new = olds[0], group[0][1]
            if (
                first is not None
                and all(old is not None and old.link == first.link for old in olds)
                and len(there[first.link]) == len(group)
                and first.attributes == new.attributes
                and not self._written_anew(first, new)
                and not self._metadata_differs(first, new, 0o777)
            ):
                continue
            if number not in self._measure.linked:
                self.plan.data += data_of(self._trees.reader, new)
            self.plan.replaced += 0 if first is None else data_of(self._trees.reader, first)
            for place, node in group:
                self.plan.total += 1
                if not self._lies_in(place, fresh):
                    self._existing_at(place, digests).changed = True
                    self.plan.links.setdefault(number, []).append((place, node))

    def _groups(
        self, root: Place, tree: bytes, digests: dict[Place, bytes]
    ) -> dict[int, list[Step]]:
        """Give the names of each file of several names; notes directories on the way to them."""
        measure = Measure(self._trees)
        measure.of(tree)
        groups: dict[int, list[Step]] = {}
        stack = [(root, tree)]
        while stack:
            place, digest = stack.pop()
            digests[place] = digest
            for node in self._trees.directory(digest).nodes:
                if node.kind == DIRECTORY:
                    if measure.of(node.content).linked:
                        stack.append((self._place(place, node.name), node.content))
                elif is_shared(node):
                    groups.setdefault(node.link, []).append((place, node))
        return groups

    @staticmethod
    def _lies_in(place: Place, places: set[Place]) -> bool:
        at: Place | None = place
        while at is not None:
            if at in places:
                return True
            at = at.parent
        return False

    def _existing_at(self, place: Place, digests: dict[Place, bytes]) -> Existing:
        """Give the step for an existing directory; one that is equal in both trees has none yet."""
        missing = []
        at: Place | None = place
        while at is not None and at not in self._existing:
            missing.append(at)
            at = at.parent
        for one in reversed(missing):
            equal = self._trees.directory(digests[one])
            self._note(one, digests[one], equal, equal)
        return self._existing[place]


def bare(directory: Directory) -> Directory:
    """Give a directory's own metadata, without nodes."""
    return msgspec.structs.replace(directory, nodes=())
