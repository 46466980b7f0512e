"""A private workspace by an overlay of the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, final

from sandboxsdk.errors import HostFull, HostRefused, SandboxError
from sandboxsdk.host import disk_usage, owned
from sandboxsdk.ids import new_id
from sandboxsdk.layers import FILES, NOTHING, Layers, Stack, Torn, read_stack
from sandboxsdk.model import Change, View, Workspace
from sandboxsdk.snapshot import (
    Captured,
    Exclude,
    Merge,
    Progress,
    Rules,
    Sink,
    Totals,
    excluding,
    uninterrupted,
)
from sandboxsdk.store import Store
from sandboxsdk.units import format_size

from .difference import difference
from .fitting import NOTHING_EXCLUDED, Excluded
from .layer import Layer
from .layering import FREEZE_BYTES_MAX, Layering, Standing
from .place import EMPTY, open_base, place_of, shown
from .removing import await_removal, begin_removal, remove_scratch
from .scan import CACHE, Scan, base_cache, scan
from .upper import (
    UNFINISHED,
    UPPER,
    is_from_another_boot,
    make_upper,
    note_boot,
    place_upper,
    root_of,
)

# Names that may be left over: scratch of earlier mounts, and an upper that was not finished or is
# of no use any more. The last is of a runtime that keeps its scratch files on disk.
_SCRATCH = ("work-", UNFINISHED, "scratch-")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Mounted(Protocol):
    """A box that has a workspace mounted."""

    def busy(self) -> bool:
        """Tell whether any process is on the files."""
        ...

    def remounted(self, prepare: Callable[[], View]) -> bool:
        """Take the workspace off, have `prepare` change what lies on disk, and mount what it says;
        False, and nothing was done, if something uses it.
        """
        ...


@final
class OverlayWorkspace:
    """A private view of a directory, or of nothing: an upper, over layers, over the directory.

    It takes these names in the task's directory:

        upper/        what the view holds beyond what lies below it, in overlay's own format
        carried/      for a moment, the upper that is about to take the place of the other one
        stack         what lies below it: frozen layers of the home, and the tree that they show
        work-ID/      the kernel's scratch directory of one mount; the next mount gets another one
        empty/        the base, where the workspace began with nothing
        boot          the boot of the kernel under which the upper was made
        scan          what the last walk through the upper remembers

    Invariants: an upper appears whole, with its mode and its mark, or not at all; a work directory
    is mounted once; the base is never written, and neither is a layer.
    """

    begins = False
    layered = True

    def __init__(
        self,
        workspace: Workspace,
        *,
        directory: str,
        scans: str,
        layers: Layers,
        since: int | None = None,
        chosen: str = "",
    ) -> None:
        self._since, self._chosen = since, chosen
        self._base = workspace.path
        self._exclude = excluding(workspace.exclude)
        self._directory = directory
        self._scans = scans
        self._cache = base_cache(workspace)
        self._layers = layers
        self._layering = Layering(directory, self._layers, excluding=self._exclude is not None)

    def begin(self, store: Store, tree: bytes) -> None:
        """See `OpenWorkspace.begin`: nothing, the base itself lies below the view."""

    def prepare(self) -> View:
        """See `OpenWorkspace.prepare`."""
        with self._opened() as task:
            os.close(open_base(task, self._base))  # Nothing is made where that is gone.
            remove_scratch(task, self._scratch(task))
            return self._prepared(task, self._make_work(task))

    @staticmethod
    def _make_work(task: int) -> str:
        work = f"{_SCRATCH[0]}{new_id()}"
        os.mkdir(work, 0o700, dir_fd=task)
        return work

    def _prepared(self, task: int, work: str) -> View:
        """Make all ready but the work directory, of which there is a fresh one."""
        with owned(open_base(task, self._base)) as base:
            lower = place_of(self._base_path, base)
            stack = _stack(task)
            if UPPER not in os.listdir(task):
                self._make_upper(task, stack, base)
        with owned(self._layers.opened()) as directory:
            layers = place_of(self._layers.path, directory)
        return View(
            kind="overlay",
            base=lower,
            layers=layers,
            stack=tuple(f"{name}/{FILES}" for name in stack.layers),
            task=place_of(self._directory, task),
            upper=UPPER,
            work=work,
        )

    def diff(self) -> list[Change] | None:
        """See `OpenWorkspace.diff`; costs what changed, not what the base holds."""
        with self._opened() as task:
            if _stack(task).layers:
                return None  # What the layers show is in the store, as a tree.
            upper = self._open_upper(task)
            if upper is None:
                return []
            with Layer(upper, path=f"{self._directory}/{UPPER}") as above:
                base = open_base(task, self._base)
                with Layer(base, path=self._base_path) as below:
                    return difference(below, above, exclude=self._exclude)

    def capture_beginning(self, sink: Sink, store: Store, progress: Progress | None) -> Scan:
        """See `OpenWorkspace.capture_beginning`."""
        with self._opened() as task:
            base = open_base(task, self._base)
            rules = Rules(
                overlay=True,
                mounts=True,
                since=self._since,
                exclude=self._exclude,
                progress=progress,
                shown=f"{self._base_path}/",
            )
            with owned(base):
                return scan(sink, store, base, rules, directory=self._scans, name=self._cache)

    def capture(
        self,
        sink: Sink,
        store: Store,
        base: Merge | None,
        progress: Progress | None,
        *,
        mapped: bool = False,
        unlock: bool = False,
        before: Scan | None = None,
        layers: bool = True,
    ) -> Scan:
        """See `OpenWorkspace.capture`."""
        del unlock
        assert base is not None
        with self._opened() as task:
            below = _over(_stack(task), base) if layers else base
            upper = self._open_upper(task)
            if upper is None:
                return Scan(Captured(tree=below.tree, totals=below.totals))
            rules = Rules(
                overlay=True,
                merge=below,
                unlock=True,
                mapped=mapped,
                exclude=self._exclude,
                progress=progress,
                shown="/workspace/",
            )
            with owned(upper) as root:
                return scan(
                    sink, store, root, rules, directory=self._directory, name=CACHE, before=before
                )

    @contextmanager
    def restoring(self, mounted: int) -> Iterator[int]:
        """See `OpenWorkspace.restoring`: only through the mount, which knows what the base has."""
        yield mounted

    # --- Layers -----------------------------------------------------------------------------------

    def is_untouched(self) -> bool:
        """See `OpenWorkspace.is_untouched`."""
        return not os.path.lexists(f"{self._directory}/{UPPER}")

    def standing(self, store: Store, *, stacks: bool = True) -> Standing:
        """See `OpenWorkspace.standing`."""
        with self._opened() as task:
            return self._layering.standing(task, store, stacks=stacks)

    def forget_layers(self) -> None:
        """See `OpenWorkspace.forget_layers`."""
        with self._opened() as task:
            self._layering.forget(task)

    def freeze(
        self, captured: Captured, base: bytes, store: Store, boxes: Sequence[Mounted]
    ) -> bool:
        """See `OpenWorkspace.freeze`."""
        with self._opened() as task:
            below = _stack(task).tree or base
            if not self._layering.can_freeze(task, captured, below):
                return False
            # What is merged is in no stack for a moment.
            with self._layers.held() as held:
                return held and self._exchanged(
                    task, boxes, lambda: self._layering.freeze(task, captured, below, store)
                )

    def bottom(self) -> bytes:
        """See `OpenWorkspace.bottom`."""
        with self._opened() as task:
            return _stack(task).bottom

    def layered_tree(self) -> bytes:
        """See `OpenWorkspace.layered_tree`."""
        with self._opened() as task:
            return _stack(task).tree

    def switch(
        self,
        tree: bytes,
        totals: Totals,
        bottom: bytes,
        store: Store,
        boxes: Sequence[Mounted],
        begun: Callable[[], None],
        *,
        excluded: Excluded = NOTHING_EXCLUDED,
        above: Captured | None = None,
    ) -> bool:
        """See `OpenWorkspace.switch`."""
        with self._opened() as task, self._layers.held() as held:
            chain = self._layers.chain(bottom, tree) if held else None
            while chain and not self._layering.are_sound(chain, store):
                chain = self._layers.chain(bottom, tree)
            if chain is None:
                return False
            with owned(open_base(task, self._base)) as base:
                if not self._layering.can_keep(task, excluded, base, chain, tree, store):
                    return False
                # Not while the box is off its files: whoever calls holds locks of this thread.
                begun()

                def change() -> None:
                    self._layering.exchange(
                        task,
                        chain,
                        bottom,
                        tree,
                        totals,
                        base,
                        excluded=excluded,
                        above=above,
                        store=store,
                    )

                done = self._exchanged(task, boxes, change)
            if done and not boxes:
                remove_scratch(task, self._scratch(task, (UNFINISHED,)))
            return done

    def _exchanged(self, task: int, boxes: Sequence[Mounted], change: Callable[[], None]) -> bool:
        """Do it while no box has the view mounted; False, and nothing is done, if one keeps it."""
        if len(boxes) > 1:
            return False
        if not boxes:
            change()
            return True
        # What could fail later would leave a box off its files, so it is done before.
        os.close(open_base(task, self._base))
        work = self._make_work(task)
        failed: list[Exception] = []

        def prepare() -> View:
            try:
                change()
            except (OSError, SandboxError) as error:
                # Whatever lies there now shows the right files.
                failed.append(error)
            return self._prepared(task, work)

        # An interrupt between taking off and mounting would leave a box without its files.
        done = uninterrupted(lambda _: boxes[0].remounted(prepare))
        # Not before: nobody waits for it while the box is off its files.
        left = self._scratch(task, *((_SCRATCH, work) if done else ((work,), "")))
        begin_removal(self._directory, left)
        if failed:
            raise failed[0]
        return done

    def settle(self) -> None:
        """See `OpenWorkspace.settle`."""
        await_removal(self._directory)

    # --- What it is -------------------------------------------------------------------------------

    @property
    def path(self) -> str | None:
        """See `OpenWorkspace.path`."""
        return self._base

    @property
    def spared(self) -> Exclude | None:
        """See `OpenWorkspace.spared`."""
        return self._exclude

    def disk_bytes(self) -> int:
        """See `OpenWorkspace.disk_bytes`."""
        with self._opened() as task:
            upper = self._open_upper(task)
            if upper is None:
                return 0
            with owned(upper):
                return disk_usage(upper) + _stack(task).disk_bytes

    def describe(self) -> str:
        """See `OpenWorkspace.describe`."""
        if self._base is None:
            return "private and empty at first (overlay)"
        return f"private view of {shown(self._base)} (overlay), which itself is not written"

    def notes(self) -> tuple[str, ...]:
        """See `OpenWorkspace.notes`."""
        limit = format_size(FREEZE_BYTES_MAX)
        layered = f"checkpoints lay changes below the view as layers, up to {limit} at once"
        kept = (
            "more than that, files of several names, sockets and over 1,000 excluded paths stay"
            " above: each checkpoint looks through them, and a restore writes them back"
        )
        told = [layered, kept]
        if self._chosen:
            told.insert(0, f"kind overlay was chosen: {self._chosen}")
        if self._base is not None:
            told += [
                "rename(2) of a directory that came with the workspace fails: EXDEV; mv copies it",
                "hard links among files that came with the workspace part when one is written",
            ]
            if os.geteuid() != 0:
                told.append("files of other owners that came with the workspace are read-only")
        if is_from_another_boot(self._directory):
            told.append(
                "this view was written under an earlier boot of the host; after a power cut its"
                " newest files may be incomplete"
            )
        return tuple(told)

    @property
    def _base_path(self) -> str:
        return f"{self._directory}/{EMPTY}" if self._base is None else self._base

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the task's directory, and translate what the host refuses meanwhile."""
        try:
            task = os.open(self._directory, _DIRECTORY)
            try:
                yield task
            finally:
                os.close(task)
        except SandboxError:
            raise  # Some are an OSError too, and say more than we could.
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostFull(path=self._directory, reason=reason) from error
            hint = "the task's directory must be whole and belong to the user who runs this"
            raise HostRefused(
                what="cannot use", path=self._directory, reason=reason, hint=hint
            ) from error

    def _open_upper(self, task: int) -> int | None:
        try:
            return os.open(UPPER, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=task)
        except FileNotFoundError:
            return None  # Never mounted, so nothing changed.

    @staticmethod
    def _scratch(task: int, kinds: tuple[str, ...] = _SCRATCH, spare: str = "") -> list[str]:
        """Name what earlier mounts left: a volatile mount marks its work directory as used up."""
        return [name for name in os.listdir(task) if name != spare and name.startswith(kinds)]

    def _make_upper(self, task: int, stack: Stack, base: int) -> None:
        """Make the upper that is not there: the view's root shows it."""
        if stack.layers:
            with owned(os.open(f"{self._layers.path}/{stack.layers[0]}/{FILES}", _PATH)) as top:
                root = root_of(top)
        else:
            root = root_of(base)
        note_boot(task)
        place_upper(task, make_upper(task, stack, root))


def _stack(task: int) -> Stack:
    """Give what the upper lies over; what is torn was forgotten, or is so now."""
    try:
        return read_stack(task)
    except Torn:
        return NOTHING


def _over(stack: Stack, base: Merge) -> Merge:
    """Say what the upper is laid over."""
    if not stack.tree:
        return base
    totals = Totals(stack.files, stack.size)
    return Merge(reader=base.reader, tree=stack.tree, totals=totals, bases=base.bases)
