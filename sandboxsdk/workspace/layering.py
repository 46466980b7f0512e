"""The layers that a task's files lie on: its upper frozen into one more, or exchanged for others.

Everything here is done while nothing has the view mounted, and each step leaves something that
shows the right files: killed between two of them, the next box shows what the last one did.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Literal, final

import msgspec

from sandboxsdk import disk
from sandboxsdk.errors import SandboxError
from sandboxsdk.host import owned
from sandboxsdk.ids import new_id
from sandboxsdk.layers import (
    FILES,
    GONE,
    LAYERS_MAX,
    About,
    Layers,
    Stack,
    Torn,
    are_to_be_lost,
    belongs,
    forget_stack,
    read_stack,
    unmark_upper,
    write_stack,
)
from sandboxsdk.snapshot import BASES, Captured, Totals, Trees
from sandboxsdk.store import Store

from .carrying import CARRIED, are_movable, bring_back, carried, cover, grouped, throw_away
from .checking import agrees
from .fitting import Excluded, Wanted, fit, showing
from .flattening import Unequal, flatten, run_to_merge
from .scan import CACHE
from .upper import (
    UNFINISHED,
    UPPER,
    is_from_another_boot,
    make_upper,
    note_boot,
    opened_up,
    place_upper,
)

FREEZE_BYTES_MAX = 64 * 1024 * 1024
"""What takes more on disk is not frozen: a change of any of it would copy it again."""
REWRITTEN_BYTES_MAX = 8 * 1024 * 1024
"""Nor is more of large files that were there before: they are likely to be changed again."""

Standing = Literal["ready", "lost", "torn"]


@final
class Layering:
    """The stack of the task in `directory`; `excluding` says that trees leave something out."""

    def __init__(self, directory: str, layers: Layers, *, excluding: bool) -> None:
        self._directory = directory
        self._excluding = excluding
        self._layers = layers

    def standing(self, task: int, store: Store, *, stacks: bool) -> Standing:
        """Tell whether the view can be mounted: "lost" is some layer, "torn" is what says which.

        Args:
            stacks: several layers can be mounted at all.
        """
        try:
            stack = read_stack(task)
        except Torn:
            return "torn"
        self._finish_carrying(task, stack)
        upper = f"{self._directory}/{UPPER}"
        if os.path.isdir(upper):
            if not belongs(upper, stack):
                return "torn"
            self._finish_freeze(task, stack, upper)
        if stack.layers and are_to_be_lost():
            self._layers.lose(stack)
        if not stack.layers:
            return "ready"
        if not stacks or self._abouts(stack.layers) is None:
            return "lost"
        if not self.are_sound(stack.layers, store):
            return "lost"
        return "ready"

    def are_sound(self, layers: Sequence[str], store: Store) -> bool:
        """Look at each layer that this process has not made or looked at; a bad one is not used
        any more.
        """
        trees = Trees(store, BASES)
        for name in layers:
            if self._layers.is_checked(name):
                continue
            about = self._layers.about(name)
            sound = False
            if about is not None:
                with contextlib.suppress(OSError, SandboxError):
                    with owned(_opened(self._place_of(name))) as layer:
                        sound = agrees(trees, about.parent, about.tree, layer)
            self._layers.note_checked(name, sound=sound)
            if not sound:
                return False
        return True

    def _finish_freeze(self, task: int, stack: Stack, upper: str) -> None:
        """Give a layer its files, if whoever froze it was killed just before."""
        if not stack.layers or self._layers.about(stack.layers[0], empty=True) is None:
            return
        if not _is_made_for(upper, stack):
            disk.rename(UPPER, self._place_of(stack.layers[0]), old_dir=task)

    def _finish_carrying(self, task: int, stack: Stack) -> None:
        """End what a kill has interrupted: the stack says whether the former upper still counts."""
        fresh, upper = f"{self._directory}/{CARRIED}", f"{self._directory}/{UPPER}"
        if not os.path.isdir(fresh):
            return
        there = os.path.isdir(upper)
        if there and not _is_made_for(fresh, stack):
            bring_back(task)
            return
        if there:
            self._finish_freeze(task, stack, upper)
        if os.path.isdir(upper):
            throw_away(task, UPPER)
        place_upper(task, CARRIED)

    def _place_of(self, layer: str) -> str:
        return f"{self._layers.path}/{layer}/{FILES}"

    def forget(self, task: int) -> None:
        """Have the upper lie over the base itself; whoever calls puts the files into place."""
        self._finish_carrying(task, Stack())
        upper = f"{self._directory}/{UPPER}"
        with contextlib.suppress(FileNotFoundError), opened_up(upper):
            unmark_upper(upper)
        # The mark first: without it the upper belongs to no stack as well.
        forget_stack(task)

    # --- Freezing ---------------------------------------------------------------------------------

    def can_freeze(self, task: int, captured: Captured, below: bytes) -> bool:
        """Tell whether the upper, captured as it is, is worth being a layer, and can be one.

        Args:
            below: digest of the tree that it lies over.
        """
        fits = captured.disk_bytes <= FREEZE_BYTES_MAX
        fits = fits and captured.rewritten_bytes <= REWRITTEN_BYTES_MAX
        if not captured.whole or not fits or captured.tree == below:
            return False
        if captured.excluded:
            with owned(_opened(f"{self._directory}/{UPPER}")) as upper:
                if not are_movable(upper, captured.excluded):
                    return False
        try:
            return len(read_stack(task).layers) < LAYERS_MAX
        except Torn:
            return False

    def freeze(self, task: int, captured: Captured, below: bytes, store: Store) -> None:
        """Make a layer of the upper, and an empty upper over it."""
        trees = Trees(store, BASES)
        root = trees.directory(captured.tree)
        before = read_stack(task)
        layers = self._merged(before.layers, below, trees)
        name = self._layers.begin(below, captured.tree, span=1, disk_bytes=captured.disk_bytes)
        stack = self._following(before, captured.tree, captured.totals, (name, *layers))
        size = stack.disk_bytes + captured.disk_bytes
        stack = msgspec.structs.replace(stack, disk_bytes=size)
        # What may fail comes first: after this there is only renaming.
        fresh = make_upper(task, stack, root)
        with carried(task, fresh, grouped(captured.excluded), lambda _: None) as made:
            write_stack(task, stack)
        disk.rename(UPPER, self._place_of(name), old_dir=task)
        place_upper(task, made)
        self._settle(task)

    def _merged(self, layers: tuple[str, ...], above: bytes, trees: Trees) -> tuple[str, ...]:
        """Make one of the topmost layers, while there are enough of one size."""
        while abouts := self._abouts(layers):
            count = run_to_merge([about.span for about in abouts])
            if not count:
                break
            try:
                made = self._merge(layers[:count], abouts[:count], above, trees)
            except (OSError, SandboxError, Unequal):
                # They do as they are, only more slowly.
                break
            layers = (made, *layers[count:])
        return layers

    def _merge(
        self, layers: tuple[str, ...], abouts: list[About], above: bytes, trees: Trees
    ) -> str:
        below = abouts[-1].parent
        # Under a name that a sweep removes, should we be killed.
        unfinished = f"{self._layers.path}/{new_id()}{GONE}"
        with contextlib.ExitStack() as opened:
            sources = self._all_opened(layers, opened)
            disk.make_directory(unfinished)
            with owned(_opened(unfinished)) as target:
                size = flatten(trees, below, above, sources, target, hide=self._excluding)
            span = sum(about.span for about in abouts)
            name = self._layers.begin(below, above, span=span, disk_bytes=size)
            disk.rename(unfinished, self._place_of(name))
        return name

    # --- Exchanging -------------------------------------------------------------------------------

    def can_keep(
        self,
        task: int,
        excluded: Excluded,
        base: int,
        layers: Sequence[str],
        tree: bytes,
        store: Store,
    ) -> bool:
        """Tell whether excluded paths stay what they are when the upper is exchanged.

        Args:
            base: descriptor of what lies at the bottom.
            layers, tree: as for `exchange`.
        """
        if excluded.hide or not any(excluded):
            return True
        with contextlib.ExitStack() as opened:
            try:
                upper = opened.enter_context(owned(_opened(f"{self._directory}/{UPPER}")))
                now = [upper, *self._all_opened(read_stack(task).layers, opened)]
                then = self._all_opened(layers, opened)
                return are_movable(upper, excluded.above) and fit(
                    upper, excluded, base, Wanted(store, tree), now=now, then=then
                )
            except (OSError, SandboxError, Torn):
                return False

    def _all_opened(self, layers: Sequence[str], opened: contextlib.ExitStack) -> list[int]:
        return [opened.enter_context(owned(_opened(self._place_of(name)))) for name in layers]

    def exchange(
        self,
        task: int,
        layers: Sequence[str],
        bottom: bytes,
        tree: bytes,
        totals: Totals,
        base: int,
        *,
        excluded: Excluded,
        above: Captured | None,
        store: Store,
    ) -> None:
        """Lay an upper that holds excluded paths alone over layers that show `tree`; what else the
        upper held is given up.

        Args:
            bottom: digest of what lies below the layers.
            base: descriptor of that.
            excluded: what `can_keep` has looked at.
            above: what the upper holds, captured as it is: it is kept as a layer that nobody lies
                on, if it can be one.
        """
        try:
            before = read_stack(task)
        except Torn:
            before = Stack()
        stack = self._following(before, tree, totals, tuple(layers))
        stack = msgspec.structs.replace(stack, bottom=bottom)
        left = self._left(task, above, before.tree or bottom)
        fresh = make_upper(task, stack, BASES.read(store, tree).directory)
        wanted = Wanted(store, tree)
        if excluded.hide:
            with contextlib.ExitStack() as opened:
                then = self._all_opened(layers, opened)
                cover(task, fresh, showing(excluded.below, base, wanted, then), wanted)
        with carried(task, fresh, grouped(excluded.above), wanted) as made:
            write_stack(task, stack)
        with contextlib.suppress(FileNotFoundError):
            disk.rename(UPPER, left, old_dir=task, new_dir=task)
        place_upper(task, made)
        self._settle(task)

    def _left(self, task: int, above: Captured | None, below: bytes) -> str:
        """Say where an upper goes that is exchanged: it becomes a layer, or is removed."""
        if above is None or not self.can_freeze(task, above, below):
            return f"{UNFINISHED}{new_id()}"
        name = self._layers.begin(below, above.tree, span=1, disk_bytes=above.disk_bytes)
        return self._place_of(name)

    def _settle(self, task: int) -> None:
        """Forget what is told of the upper that was."""
        _forget_scan(task)
        if is_from_another_boot(self._directory):
            note_boot(task)

    def _following(
        self, before: Stack, tree: bytes, totals: Totals, layers: tuple[str, ...]
    ) -> Stack:
        abouts = [self._layers.about(name) for name in layers]
        return Stack(
            id=new_id(),
            previous=before.id,
            bottom=before.bottom,
            tree=tree,
            files=totals.files,
            size=totals.bytes,
            layers=layers,
            disk_bytes=sum(about.disk_bytes for about in abouts if about is not None),
        )

    def _abouts(self, layers: Sequence[str]) -> list[About] | None:
        """Say what each layer is; None if one cannot be used."""
        found = []
        for name in layers:
            about = self._layers.about(name)
            if about is None:
                return None
            found.append(about)
        return found


def _is_made_for(upper: str, stack: Stack) -> bool:
    """Tell whether an upper was made for this stack, and not for the one before."""
    return belongs(upper, msgspec.structs.replace(stack, previous=stack.id))


def _opened(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _forget_scan(task: int) -> None:
    """What the last walk through another upper remembers is of no use."""
    with contextlib.suppress(FileNotFoundError):
        disk.remove(CACHE, dir_fd=task)
