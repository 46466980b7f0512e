"""Three trees into one: what is taken over, what is a conflict, and what is never touched."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.snapshot import Merged, measure, merge_trees
from sandboxsdk.snapshot import tree as t
from tests import trees

# A node of the model: ("f", content, mode), ("l", target), ("p", mode), ("s",), ("d", mode, names).
Made = Any
NOW = 2 * 10**18


@pytest.fixture
def sink():
    return trees.Memory()


# --- The model ------------------------------------------------------------------------------------


def d(mode: int = 0o755, **names: Made) -> Made:
    """Write a directory down; its names are text here."""
    return ("d", mode, {name.encode(): node for name, node in names.items()})


def f(content: str, mode: int = 0o644) -> Made:
    return ("f", content.encode(), mode)


def stored(sink: trees.Memory, made: Made, salt: int = 0) -> bytes:
    """Store a directory of the model. Another salt is other times, owners, cuts of files."""
    nodes = [node_of(sink, name, inner, salt) for name, inner in made[2].items()]
    owner = (salt, salt)
    return trees.directory(sink, nodes, mode=made[1], mtime=10**18 + salt, owner=owner)


def node_of(sink: trees.Memory, name: bytes, made: Made, salt: int) -> t.Node:
    own = {"mtime": 10**18 + salt, "uid": salt, "gid": salt}
    if made[0] == "d":
        return trees.below(name, stored(sink, made, salt))
    if made[0] == "f" and salt and len(made[1]) > 1:
        node = trees.sparse(sink, name, [made[1][:1], made[1][1:]])
        return t.msgspec.structs.replace(node, mode=made[2], **own)
    if made[0] == "f":
        return trees.file(sink, name, made[1], made[2], **own)
    if made[0] == "l":
        return trees.symlink(name, made[1], **own)
    kind, mode = (t.FIFO, made[1]) if made[0] == "p" else (t.SOCKET, 0o755)
    return t.Node(name, kind, mode, **own)


def loaded(sink: trees.Memory, digest: bytes) -> Made:
    """Read a tree back into the model."""
    here = t.read_directory(sink, digest)
    names: dict[bytes, Made] = {}
    for node in here.nodes:
        if node.kind == t.DIRECTORY:
            names[node.name] = loaded(sink, node.content)
        elif node.is_file:
            names[node.name] = ("f", trees.content(sink, node), node.mode)
        elif node.kind == t.SYMLINK:
            names[node.name] = ("l", node.content)
        else:
            names[node.name] = ("p", node.mode) if node.kind == t.FIFO else ("s",)
    return ("d", here.mode, names)


def flat(made: Made, path: bytes = b"") -> dict[bytes, Made]:
    """Give everything by its path; a directory as its mode."""
    if made[0] != "d":
        return {path: made}
    found: dict[bytes, Made] = {path or b".": ("d", made[1])}
    for name, inner in made[2].items():
        found.update(flat(inner, path + b"/" + name if path else name))
    return found


def is_dir(made: Made) -> bool:
    return made is not None and made[0] == "d"


def names_of(made: Made) -> dict[bytes, Made]:
    return dict(made[2]) if is_dir(made) else {}


class Model:
    """The rules, as they are told, for trees that are small."""

    def __init__(self, moved: set[bytes], held: set[bytes], *, force: bool) -> None:
        self.moved, self.held, self.force = moved, held, force
        self.conflicts: set[bytes] = set()
        self.kept: set[bytes] = set()
        self.skipped: set[bytes] = set()

    def merge(
        self, path: bytes, b: Made, n: Made, there: Made, *, lost: bool = False
    ) -> tuple[Made, Made]:
        """Give what is there afterwards, and what is known to be."""
        if n == b:
            return there, b
        if path in self.held:
            if n != there:
                self.kept.add(path)
            return there, b
        if n == ("s",):
            self.skipped.add(path)
            return there, b
        if is_dir(n) or (n is None and is_dir(b)):
            return self._directory(path, b, n, there, lost=lost)
        if n == there:
            return there, n
        if self._free(path, b, there, lost=lost):
            return n, n
        self.conflicts.add(path)
        return (n, n) if self.force else (there, b)

    def _free(self, path: bytes, b: Made, there: Made, *, lost: bool) -> bool:
        if lost or b != there:
            return False
        return not (self.moved & (flat(there, path).keys() if there is not None else {path}))

    def _directory(
        self, path: bytes, b: Made, n: Made, there: Made, *, lost: bool
    ) -> tuple[Made, Made]:
        if n is None and there is None:
            return None, None
        if n is None and not is_dir(there):
            self.conflicts.add(path)
            return (None, None) if self.force else (there, b)
        if (
            n is not None
            and not is_dir(b)
            and not is_dir(there)
            and not self._free(path, b, there, lost=lost)
        ):
            self.conflicts.add(path)
            if not self.force:
                return there, b
        lost = not is_dir(there) and (lost or is_dir(b))
        now, known, before = names_of(there), names_of(b), names_of(there)
        for name in names_of(b) | names_of(n):
            inner = path + b"/" + name if path else name
            was, wants = names_of(b).get(name), names_of(n).get(name)
            got = self.merge(inner, was, wants, before.get(name), lost=lost)
            for names, node in zip((now, known), got, strict=True):
                names.pop(name, None)
                if node is not None:
                    names[name] = node
        refused = self._refuses(path, b, n, there, now)
        if refused:
            self.conflicts.add(path or b".")
        return self._made(path, b, n, there, now, known, lost=lost, refused=refused)

    def _refuses(self, path: bytes, b: Made, n: Made, there: Made, now: dict[bytes, Made]) -> bool:
        if not is_dir(b):
            return False
        if n is None:
            return not now and path in self.moved
        if n[1] == b[1] or (is_dir(there) and there[1] == n[1]):
            return False
        return not is_dir(there) or there[1] != b[1] or path in self.moved

    def _made(
        self,
        path: bytes,
        b: Made,
        n: Made,
        there: Made,
        now: dict[bytes, Made],
        known: dict[bytes, Made],
        *,
        lost: bool,
        refused: bool,
    ) -> tuple[Made, Made]:
        stays = refused and not self.force
        if n is None:
            return (
                ("d", there[1], now) if now or stays else None,
                ("d", b[1], known) if known or stays else None,
            )
        expected = ("d", b[1] if is_dir(b) and stays else n[1], known)
        if is_dir(there):
            keeps = not is_dir(b) or stays or n[1] == b[1]
            return ("d", there[1] if keeps else n[1], now), expected
        if lost and not now and not (self.force and path in self.conflicts):
            return there, expected
        return ("d", n[1], now), expected


def merged(
    sink: trees.Memory, b: Made, n: Made, there: Made, **more: Any
) -> tuple[Made, Made, Merged]:
    """Merge three directories of the model that differ in times, owners and cuts as well."""
    done = merge_trees(
        sink, base=stored(sink, b), new=stored(sink, n, 1), there=stored(sink, there, 2), **more
    )
    return loaded(sink, done.tree), loaded(sink, done.expected), done


# --- One path -------------------------------------------------------------------------------------

KINDS: dict[str, Made] = {
    "nothing": None,
    "file": f("one"),
    "other": f("two"),
    "program": f("one", 0o755),
    "link": ("l", b"target"),
    "fifo": ("p", 0o644),
    "directory": d(inner=f("x")),
    "empty": d(),
}


@pytest.mark.parametrize("was", KINDS)
def test_every_kind_on_every_side(sink, was):
    """Taken where there is what was; nothing to do where it is the same; else a conflict, and what
    is there stays.
    """
    for wants, n in KINDS.items():
        for has, there in KINDS.items():
            b = KINDS[was]
            sides = [d(**({"p": node} if node is not None else {})) for node in (b, n, there)]
            tree, _, done = merged(sink, *sides)
            got = tree[2].get(b"p")
            print(f"{was:10}{wants:10}{has:10}{done.conflicts!s:20}{got}")
            down = is_dir(n) and is_dir(there)
            if b in (n, there) or n == there:
                assert not done.conflicts
                assert got == (there if n == b else n)
            elif down or (is_dir(b) and n is None and is_dir(there)):
                # Name by name: what only one side has is there; a directory goes when it is empty.
                stays = down or (was == "empty" and has == "directory")
                assert not done.conflicts
                assert got == (d(inner=f("x")) if stays else None)
            elif is_dir(b) and is_dir(n) and not is_dir(there) and not names_of(n):
                # All that the task did there is to take away what is gone.
                assert (done.conflicts, got) == ((), there)
            else:
                shown = "p/inner" if is_dir(b) and is_dir(n) else "p"
                assert (done.conflicts, got) == ((shown,), there)


@pytest.mark.parametrize("n", [f("two"), f("one", 0o700), None, ("l", b"x"), d(x=f("x"))])
def test_what_moved_is_not_taken(sink, n):
    """A path that is not what it was before base was read is a conflict, unless both are equal."""
    b, new = d(p=f("one")), d(**({"p": n} if n is not None else {}))
    asked = []

    def moved(path: bytes, present: bool) -> bool:  # noqa: FBT001
        asked.append((path, present))
        return True

    tree, expected, done = merged(sink, b, new, b, moved=moved)
    assert (tree, expected, done.conflicts) == (b, b, ("p",))
    assert asked == [(b"p", True)]
    assert merged(sink, b, new, new, moved=moved)[2].conflicts == ()
    assert merged(sink, b, b, new, moved=moved)[2].conflicts == ()


def test_a_name_that_base_lacks_may_have_moved(sink):
    """Of a path that base lacks it is asked as well: the user may have removed it before."""
    asked = []

    def moved(path: bytes, present: bool) -> bool:  # noqa: FBT001
        asked.append((path, present))
        return path == b"d/x"

    tree, _, done = merged(sink, d(), d(d=d(x=f("x"), y=f("y"))), d(), moved=moved)
    assert done.conflicts == ("d/x",)
    assert tree == d(d=d(y=f("y")))
    assert asked == [(b"d", False), (b"d/x", False), (b"d/y", False)]


# --- Directories ----------------------------------------------------------------------------------


def test_edits_of_both_in_one_directory(sink):
    """Each side's own changes are there, those of the user untouched."""
    b = d(s=d(a=f("1"), b=f("1"), c=f("1")))
    n = d(s=d(a=f("task"), b=f("1"), new=f("n")))
    there = d(s=d(a=f("1"), b=f("user"), c=f("1"), mine=f("m")))
    tree, expected, done = merged(sink, b, n, there)
    assert tree == d(s=d(a=f("task"), b=f("user"), new=f("n"), mine=f("m")))
    assert expected == n
    assert done.conflicts == ()


@pytest.mark.parametrize("there", [None, f("user's"), ("l", b"elsewhere"), ("p", 0o600)])
@pytest.mark.parametrize(
    ("n", "paths"),
    [
        (d(y=f("2")), ("d/y",)),
        (d(y=f("1"), x=f("new")), ("d/x",)),
        (d(y=f("1"), x=d(z=f("new"))), ("d/x",)),
        (d(0o700, y=f("1")), ("d",)),
        (d(0o700, y=f("2"), x=f("new")), ("d", "d/x", "d/y")),
    ],
)
def test_a_directory_that_is_gone_is_a_conflict_at_what_changed(sink, n, paths, there):
    """Nothing is put in place of what the user made of a directory; what was to go in is named."""
    has = d(**({"d": there} if there is not None else {}))
    b = d(d=d(y=f("1")))
    tree, expected, done = merged(sink, b, d(d=n), has)
    assert (tree, expected, done.conflicts) == (has, b, paths)
    tree, _, done = merged(sink, b, d(d=n), has, force=True)
    assert set(paths) <= set(done.conflicts)
    assert is_dir(tree[2][b"d"])
    assert tree[2][b"d"][1] == n[1]


@pytest.mark.parametrize("there", [None, f("user's")])
def test_removing_from_a_directory_that_is_gone_is_done_already(sink, there):
    """What the task took away below a directory that is gone needs nothing."""
    has = d(**({"d": there} if there is not None else {}))
    tree, expected, done = merged(sink, d(d=d(y=f("1"), z=f("2"))), d(d=d(z=f("2"))), has)
    assert (tree, expected, done.conflicts) == (has, d(d=d(z=f("2"))), ())


def test_a_removed_directory_leaves_what_the_user_added_and_changed(sink):
    """What is unchanged goes, additions stay with their directories, changes are conflicts."""
    b = d(d=d(y=f("1"), z=d(q=f("1")), w=d(q=f("1"))))
    there = d(d=d(y=f("2"), z=d(q=f("1"), u=f("user")), w=d(q=f("1"))))
    tree, expected, done = merged(sink, b, d(), there)
    assert tree == d(d=d(y=f("2"), z=d(u=f("user"))))
    assert expected == d(d=d(y=f("1")))
    assert done.conflicts == ("d/y",)
    tree, expected, done = merged(sink, b, d(), there, force=True)
    assert tree == d(d=d(z=d(u=f("user"))))
    assert (expected, done.conflicts) == (d(), ("d/y",))


@pytest.mark.parametrize("b", [d(), d(y=f("1"))])
def test_a_removed_directory_that_moved_stays(sink, b):
    """A directory that was put there before base was read is not removed, though it is empty."""
    sides = d(d=b), d(), d(d=b)
    tree, expected, done = merged(sink, *sides, moved=lambda path, _: path == b"d")
    assert (tree, expected, done.conflicts) == (d(d=d()), d(d=d()), ("d",))
    assert merged(sink, *sides, moved=lambda _path, _: True, force=True)[0] == d()


def test_an_emptied_directory_goes_whatever_its_mode(sink):
    """Of a run that was stopped there are directories half made, with a mode of their own."""
    tree, expected, done = merged(sink, d(d=d(y=f("1"))), d(), d(d=d(0o700)))
    assert (tree, expected, done.conflicts) == (d(), d(), ())


@pytest.mark.parametrize(
    "there", [d(y=f("1"), u=f("user")), d(y=f("2")), d(), d(0o700, y=f("1")), None, f("user")]
)
@pytest.mark.parametrize("n", [f("file"), ("l", b"x")])
def test_a_directory_is_replaced_only_if_it_is_what_it_was(sink, n, there):
    """Whatever the user added, changed or removed below it keeps it; with force all of it goes."""
    b = d(d=d(y=f("1")))
    has = d(**({"d": there} if there is not None else {}))
    assert merged(sink, b, d(d=n), b)[0] == d(d=n)
    tree, expected, done = merged(sink, b, d(d=n), has)
    assert (tree, expected, done.conflicts) == (has, b, ("d",))
    tree, expected, done = merged(sink, b, d(d=n), has, force=True)
    assert (tree, expected, done.conflicts) == (d(d=n), d(d=n), ("d",))


def test_a_directory_in_which_something_moved_is_not_replaced(sink):
    """What moved deep below a directory keeps it as well."""
    b = d(d=d(e=d(y=f("1"))))
    for path in (b"d", b"d/e", b"d/e/y"):
        done = merged(sink, b, d(d=f("x")), b, moved=lambda at, _, path=path: at == path)[2]
        assert done.conflicts == ("d",)


def test_a_file_becomes_a_directory(sink):
    """The directory takes the place of a file that is what it was, and of no other."""
    b, n = d(d=f("1")), d(d=d(x=f("x"), e=d()))
    assert merged(sink, b, n, b)[:2] == (n, n)
    has = d(d=f("2"))
    tree, _, done = merged(sink, b, n, has)
    assert (tree, done.conflicts) == (has, ("d",))
    assert merged(sink, b, n, has, force=True)[0] == n


def test_modes_of_directories(sink):
    """Three-way as well; of a directory that both made the user's mode stays."""
    old, one, two = (d(d=d(mode)) for mode in (0o755, 0o700, 0o1777))
    assert merged(sink, old, one, old)[:2] == (one, one)
    assert merged(sink, old, old, one)[:2] == (one, old)
    tree, expected, done = merged(sink, old, one, two)
    assert (tree, expected, done.conflicts) == (two, old, ("d",))
    assert merged(sink, old, one, two, force=True)[0] == one
    assert merged(sink, old, one, old, moved=lambda _path, _: True)[2].conflicts == ("d",)
    assert merged(sink, d(), one, old)[0] == old
    tree, _, done = merged(sink, d(0o755), d(0o700), d(0o711))
    assert (tree, done.conflicts) == (d(0o711), (".",))


def test_attributes_of_directories_are_taken_if_the_task_changed_them(sink):
    """Else those that are there stay; what is known afterwards has them too."""
    x, y, z = (((b"user.a", value),) for value in (b"x", b"y", b"z"))
    made = {a: trees.directory(sink, [], attributes=a) for a in (x, y, z)}
    for n, there, wanted, known in ((y, z, y, y), (x, z, z, x), (y, x, y, y)):
        done = merge_trees(sink, base=made[x], new=made[n], there=made[there])
        assert t.read_directory(sink, done.tree).attributes == wanted
        assert t.read_directory(sink, done.expected).attributes == known


# --- Held -----------------------------------------------------------------------------------------


def test_held_paths_stay_and_are_named(sink):
    """What is held is not taken, below it neither; named only if the task changed it."""
    b = d(k=f("1"), h=d(a=f("1"), b=f("1")), same=f("1"), both=f("1"))
    n = d(k=f("2"), h=d(a=f("2"), b=f("1"), c=f("1")), same=f("1"), both=f("2"), new=f("x"))
    there = d(k=f("1"), h=d(a=f("1"), b=f("user")), same=f("1"), both=f("2"))
    held = {b"k", b"h", b"same", b"both"}
    asked = {}

    def holds(path: bytes, is_directory: bool) -> bool:  # noqa: FBT001
        asked[path] = is_directory
        return path in held

    tree, expected, done = merged(sink, b, n, there, held=holds)
    assert (done.held, done.conflicts) == (("h", "k"), ())
    assert tree == d(**{**text(there), "new": f("x")})
    assert expected == d(**{**text(b), "new": f("x")})
    assert (asked[b"h"], asked[b"k"]) == (True, False)
    assert not any(path.startswith(b"h/") for path in asked)
    # Force overrides conflicts, never this.
    assert merged(sink, b, n, there, held=holds, force=True)[0] == tree


def text(made: Made) -> dict[str, Made]:
    return {name.decode(): node for name, node in made[2].items()}


def test_a_new_directory_is_made_without_what_is_held(sink):
    """The directory comes and is known to be there; what is held in it is not."""
    n = d(d=d(x=f("x")))
    for b in (d(), d(d=f("file"))):
        tree, expected, done = merged(sink, b, n, b, held=lambda path, _: path == b"d/x")
        assert (tree, expected, done.held) == (d(d=d()), d(d=d()), ("d/x",))


def test_a_removed_directory_stays_for_what_is_held(sink):
    """Its held names stay, and it with them."""
    b = d(d=d(h=f("1"), x=f("1")))
    tree, expected, done = merged(sink, b, d(), b, held=lambda path, _: path == b"d/h")
    assert tree == expected == d(d=d(h=f("1")))
    assert done.held == ("d/h",)


# --- What is taken --------------------------------------------------------------------------------


def test_set_id_bits_are_dropped(sink):
    """Files and directories lose them, a directory keeps its sticky bit, users' own files stay."""
    b, n = d(mine=f("m", 0o4755)), d(mine=f("m", 0o4755), x=f("x", 0o6755), d=d(0o7777))
    tree = merged(sink, b, n, b)[0]
    assert tree == d(mine=f("m", 0o4755), x=f("x", 0o755), d=d(0o1777))


def test_set_id_bits_are_no_change(sink):
    """They are never taken over, so setting them is nothing that the task did."""
    b, n = d(x=f("x", 0o755), d=d(0o755)), d(x=f("x", 0o4755), d=d(0o2755))
    tree, _, done = merged(sink, b, n, b)
    assert (tree, done.conflicts) == (b, ())


def test_sockets_and_devices_are_left_out(sink):
    """What is there in their place stays, and they are named."""
    b, n = d(x=f("1")), d(x=("s",), y=("s",), d=d(z=("s",)))
    tree, _, done = merged(sink, b, n, b)
    assert (tree, done.conflicts) == (d(x=f("1"), d=d()), ())
    assert done.skipped == ("d/z", "x", "y")


def test_times(sink):
    """What is taken, and directories in which an entry changes, get the time; others stay."""
    b = d(s=d(a=f("1"), deep=d(b=f("1"))), other=d(c=f("1")))
    n = d(s=d(a=f("1"), deep=d(b=f("2"))), other=d(c=f("1")), new=d(x=f("x")))
    there = stored(sink, b, 2)
    done = merge_trees(sink, base=stored(sink, b), new=stored(sink, n, 1), there=there, now=NOW)
    before, after = trees.nodes(sink, there), trees.nodes(sink, done.tree)
    times = {path for path, node in after.items() if node.mtime == NOW}
    assert times == {b".", b"s/deep", b"s/deep/b", b"new", b"new/x"}
    for path in after.keys() - times:
        assert after[path] == before[path]
    own = {node.name: node for node in t.read_directory(sink, done.tree).nodes}
    assert own[b"other"] == trees.below(b"other", stored(sink, b[2][b"other"], 2))


def test_owners(sink):
    """With `owned` it belongs to whom it, or the directory that it goes into, belongs."""
    theirs = {"uid": 5, "gid": 6}
    inner = trees.directory(sink, [], owner=(7, 8))
    there = trees.directory(
        sink,
        [trees.file(sink, b"f", b"1", **theirs), trees.below(b"d", inner)],
        owner=(3, 4),
    )
    into = trees.directory(sink, [trees.file(sink, b"y", b"y", uid=1)], owner=(1, 1))
    new = trees.directory(
        sink,
        [
            trees.file(sink, b"f", b"2", uid=1),
            trees.file(sink, b"n", b"n", uid=1),
            trees.below(b"d", into),
            trees.below(b"e", into),
        ],
    )

    def owners(**more: Any) -> dict[bytes, tuple[int, int]]:
        done = merge_trees(sink, base=there, new=new, there=there, **more)
        return {path: (n.uid, n.gid) for path, n in trees.nodes(sink, done.tree).items()}

    assert owners(owned=True) == {
        b".": (3, 4),
        b"f": (5, 6),
        b"n": (3, 4),
        b"d": (7, 8),
        b"d/y": (7, 8),
        b"e": (3, 4),
        b"e/y": (3, 4),
    }
    assert owners()[b"n"] == (1, 0)
    assert owners()[b"e"] == (1, 1)


def test_owners_of_what_is_replaced_by_another_kind(sink):
    """A directory in place of a file belongs to the file's owner, and the other way round."""
    file = trees.file(sink, b"p", b"1", uid=5, gid=6)
    place = trees.below(b"p", trees.directory(sink, [], owner=(5, 6)))
    for one, two in ((file, place), (place, file)):
        other = (
            trees.file(sink, b"p", b"2", uid=1) if two is file else trees.below(b"p", into(sink))
        )
        there = trees.directory(sink, [one])
        new = trees.directory(sink, [other])
        done = merge_trees(sink, base=there, new=new, there=there, owned=True)
        found = trees.nodes(sink, done.tree)
        assert {(n.uid, n.gid) for path, n in found.items() if path != b"."} == {(5, 6)}


def into(sink: trees.Memory) -> bytes:
    return trees.directory(sink, [trees.file(sink, b"x", b"x", uid=1)], owner=(1, 1))


def test_attributes_of_files(sink):
    """The task's if it changed them against base, else those that are there."""
    x, y, z = (((b"user.a", value),) for value in (b"x", b"y", b"z"))

    def one(data: bytes, attributes: t.Attributes) -> bytes:
        return trees.directory(sink, [trees.file(sink, b"f", data, attributes=attributes)])

    for n, there, wanted in ((y, z, y), (x, z, z)):
        done = merge_trees(sink, base=one(b"1", x), new=one(b"2", n), there=one(b"1", there))
        assert t.read_directory(sink, done.tree).nodes[0].attributes == wanted


def test_hard_links(sink):
    """What is taken is a file of its own; the user's other names keep their number."""
    names = (b"a", b"b", b"c")

    def linked(**contents: bytes) -> bytes:
        nodes = [
            trees.file(sink, name, contents.get(name.decode(), b"1"), link=9) for name in names
        ]
        return trees.directory(sink, nodes)

    done = merge_trees(sink, base=linked(), new=linked(a=b"2"), there=linked())
    found = trees.nodes(sink, done.tree)
    assert [found[name].link for name in names] == [0, 9, 9]
    done = merge_trees(sink, base=linked(), new=linked(a=b"2", b=b"2"), there=linked())
    found = trees.nodes(sink, done.tree)
    assert [found[name].link for name in names] == [0, 0, 9]


# --- Cost and damage ------------------------------------------------------------------------------


def test_equal_trees_are_not_read(sink):
    """Where the task changed nothing, nothing is read, whatever is there."""
    there = stored(sink, d(x=f("1")), 2)
    digest = stored(sink, d(y=f("1")))
    sink.reads = 0
    done = merge_trees(sink, base=digest, new=digest, there=there)
    assert (done.tree, done.expected, sink.reads) == (there, digest, 0)


def test_it_costs_what_differs(sink):
    """Of a hundred directories only those on the way to the change are read."""
    many = {f"d{n}": d(e=d(f=f(str(n)))) for n in range(100)}
    b = stored(sink, d(**many))
    n = stored(sink, d(**{**many, "d5": d(e=d(f=f("new")))}))
    sink.reads = 0
    done = merge_trees(sink, base=b, new=n, there=b)
    assert sink.reads <= 12
    assert done.tree == n


def test_deep_trees_take_no_memory_for_their_paths(sink):
    """A guest nests directories as deep as it likes; their paths alone would be gigabytes."""
    sides = []
    for content in (b"1", b"2"):
        digest = trees.directory(sink, [trees.file(sink, b"f", content)])
        for _ in range(2500):
            digest = trees.directory(sink, [trees.below(b"n" * 200, digest)])
        sides.append(digest)
    tracemalloc.start()
    try:
        done = merge_trees(sink, base=sides[0], new=sides[1], there=sides[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.tree == done.expected == sides[1]
    assert peak < 64 << 20


def test_more_than_anybody_could_visit_is_refused(sink, monkeypatch):
    """Shared directories with very many paths end in a typed error."""
    monkeypatch.setattr(measure, "ENTRIES_MAX", 5000)
    roots = trees.crowded(sink)
    with pytest.raises(LimitExceeded):
        merge_trees(sink, base=roots[0], new=roots[1], there=roots[0])
    top = trees.directory(sink, [trees.below(b"a", roots[0])])
    with pytest.raises(LimitExceeded):
        merge_trees(sink, base=top, new=stored(sink, d(a=f("x"))), there=top)


def test_a_missing_tree_is_an_error(sink):
    """A tree that is gone on any side is `Corrupt`, never a removal."""
    sides = [
        stored(sink, made, salt)
        for salt, made in enumerate(
            (d(d=d(x=f("1"))), d(d=d(x=f("2"))), d(d=d(x=f("1"), y=f("u"))))
        )
    ]
    below = [t.read_directory(sink, side).nodes[0].content for side in sides]
    for gone in (*sides, *below):
        kept = sink.objects.pop(gone)
        with pytest.raises(Corrupt):
            merge_trees(sink, base=sides[0], new=sides[1], there=sides[2])
        sink.objects[gone] = kept


# --- Laws -----------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c"])
LEAVES = st.one_of(
    st.tuples(st.just("f"), st.sampled_from([b"", b"11", b"22"]), st.sampled_from([0o644, 0o755])),
    st.tuples(st.just("l"), st.sampled_from([b"x", b"y"])),
    st.just(("p", 0o644)),
)
NODES = st.recursive(
    LEAVES,
    lambda inner: st.tuples(
        st.just("d"), st.sampled_from([0o755, 0o700]), st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=6,
)
TREES = st.dictionaries(NAMES, NODES, max_size=3).map(lambda names: ("d", 0o755, names))
PATHS = st.lists(NAMES, min_size=1, max_size=3)
EDITS = st.lists(st.tuples(PATHS, st.one_of(st.none(), NODES)), max_size=4)


def edited(made: Made, edits: list[tuple[list[bytes], Made]]) -> Made:
    """Put nodes at paths, or take them away, as far as there are directories on the way."""
    made = copy.deepcopy(made)
    for names, node in edits:
        at = made
        for name in names[:-1]:
            at = at[2].get(name) if is_dir(at) else None
        if is_dir(at) and node is None:
            at[2].pop(names[-1], None)
        elif is_dir(at):
            at[2][names[-1]] = copy.deepcopy(node)
    return made


SIDES = st.tuples(TREES, EDITS, EDITS, st.booleans()).map(
    lambda drawn: (
        drawn[0],
        edited(drawn[0], drawn[1]),
        edited(edited(drawn[0], drawn[1]) if drawn[3] else drawn[0], drawn[2]),
    )
)
MARKS = st.sets(st.lists(NAMES, min_size=1, max_size=3).map(b"/".join), max_size=3)
SOCKETS = st.booleans()


@settings(max_examples=600)
@given(sides=SIDES, moved=MARKS, held=MARKS, force=st.booleans(), socket=SOCKETS)
def test_it_does_what_the_rules_say(
    sides: tuple[Made, Made, Made],
    moved: set[bytes],
    held: set[bytes],
    force: bool,  # noqa: FBT001
    socket: bool,  # noqa: FBT001
) -> None:
    """Trees, conflicts, and what is held are those of a plain model, for any three trees."""
    b, n, there = sides
    if socket:
        n = edited(n, [([b"a"], ("s",))])
    sink = trees.Memory()
    model = Model(moved, held, force=force)
    wanted = model.merge(b"", b, n, there)
    tree, expected, done = merged(
        sink,
        b,
        n,
        there,
        moved=lambda path, _: path in moved,
        held=lambda path, _: path in held,
        force=force,
        now=NOW,
    )
    assert (tree, expected) == wanted
    for told, paths in (
        (done.conflicts, model.conflicts),
        (done.held, model.kept),
        (done.skipped, model.skipped),
    ):
        assert told == tuple(path.decode() for path in sorted(paths))


@settings(max_examples=600)
@given(sides=SIDES)
def test_nothing_of_the_users_is_lost_and_nothing_of_the_tasks(
    sides: tuple[Made, Made, Made],
) -> None:
    """Without a conflict every path that the user changed is as the user left it, and every path
    that the task changed is as the task left it.
    """
    b, n, there = sides
    tree, expected, done = merged(trees.Memory(), b, n, there)
    if done.conflicts:
        return
    old, new, has, now, known = (flat(made) for made in (b, n, there, tree, expected))
    for path in old.keys() | has.keys():
        emptied = is_dir(old.get(path)) and is_dir(has.get(path)) and path not in new
        if old.get(path) != has.get(path) and not emptied:
            assert now.get(path) == has.get(path), path
    for path in old.keys() | new.keys():
        if old.get(path) == new.get(path):
            continue
        holds = any(other.startswith(path + b"/") for other in has.keys() - old.keys())
        both_made = path not in old and is_dir(new.get(path)) and is_dir(has.get(path))
        replaced = is_dir(new.get(path)) and is_dir(has.get(path)) and not is_dir(old.get(path))
        if not (holds and path not in new) and not both_made and not replaced:
            assert now.get(path) == new.get(path), path
    assert known == new


@settings(max_examples=400)
@given(sides=SIDES, force=st.booleans())
def test_laws(sides: tuple[Made, Made, Made], force: bool) -> None:  # noqa: FBT001
    """From base one comes to new; no change changes nothing; twice is once; and back again."""
    b, n, there = sides
    sink = trees.Memory()
    assert merged(sink, b, n, b)[0] == n
    same = merge_trees(
        sink, base=stored(sink, b), new=stored(sink, b, 1), there=stored(sink, there, 2)
    )
    assert same.tree == stored(sink, there, 2)
    assert same.conflicts == ()
    new, has = stored(sink, n, 1), stored(sink, there, 2)
    done = merge_trees(sink, base=stored(sink, b), new=new, there=has, force=force, now=NOW)
    if not done.conflicts or force:
        # What is known afterwards is where the next merge begins.
        again = merge_trees(sink, base=done.expected, new=new, there=done.tree)
        assert (again.tree, again.expected, again.conflicts) == (done.tree, done.expected, ())
    if not done.conflicts:
        again = merge_trees(sink, base=stored(sink, b), new=new, there=done.tree, now=NOW + 1)
        assert (again.tree, again.conflicts) == (done.tree, ())
    back = merge_trees(sink, base=done.tree, new=has, there=done.tree)
    assert loaded(sink, back.tree) == there
    assert back.conflicts == ()
