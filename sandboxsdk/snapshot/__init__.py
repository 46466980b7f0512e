"""Directories into trees and back: capture, restore, compare.

Knows files below a descriptor and objects in a store; must not know tasks, checkpoints or boxes.

Invariants: nothing is reached but below the descriptor that was given, whoever races us; a tree is
whole in the store before its digest is given; equal directories are the same object; what is read
from a store is checked before anything is done with it; set-id bits are never written.
"""

from .attributes import read_attributes
from .bases import BASES
from .cache import YOUNG_SECONDS, StatCache
from .capture import capture
from .compare_trees import compare_trees
from .comparison import (
    Content,
    Entry,
    compare,
    contents_matter,
    make_change,
    pair_renames,
    rename_candidates,
    with_renames,
)
from .exclude import excluding
from .left_out import is_whiteout
from .measure import Trees
from .merge_trees import Merged, merge_trees
from .moved import Moved
from .names import Names, note_names, read_names
from .plan import Plan, plan
from .reach import damaged_paths, needed_by, reachable
from .rebasing import rebased
from .restore import Restored, restore_in_place, restore_to, uninterrupted
from .rules import EXCLUDED_MAX, Captured, Exclude, Merge, Progress, Rules
from .scratch import Scratch
from .totals import Totals, totals_after, totals_of
from .tree import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    PARTS,
    SOCKET,
    SYMLINK,
    Directory,
    Node,
    Objects,
    Reader,
    Sink,
    read_directory,
    read_parts,
    write_directory,
)
from .victims import name_victims
from .writing import Supply, is_leftover

__all__ = [
    "BASES",
    "BLOCK",
    "CHARACTER",
    "DIRECTORY",
    "EXCLUDED_MAX",
    "FIFO",
    "FILE",
    "PARTS",
    "SOCKET",
    "SYMLINK",
    "YOUNG_SECONDS",
    "Captured",
    "Content",
    "Directory",
    "Entry",
    "Exclude",
    "Merge",
    "Merged",
    "Moved",
    "Names",
    "Node",
    "Objects",
    "Plan",
    "Progress",
    "Reader",
    "Restored",
    "Rules",
    "Scratch",
    "Sink",
    "StatCache",
    "Supply",
    "Totals",
    "Trees",
    "capture",
    "compare",
    "compare_trees",
    "contents_matter",
    "damaged_paths",
    "excluding",
    "is_leftover",
    "is_whiteout",
    "make_change",
    "merge_trees",
    "name_victims",
    "needed_by",
    "note_names",
    "pair_renames",
    "plan",
    "reachable",
    "read_attributes",
    "read_directory",
    "read_names",
    "read_parts",
    "rebased",
    "rename_candidates",
    "restore_in_place",
    "restore_to",
    "totals_after",
    "totals_of",
    "uninterrupted",
    "with_renames",
    "write_directory",
]
