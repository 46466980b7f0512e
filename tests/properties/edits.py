"""Edits by number: each finds something in the files that it fits to, or does nothing."""

from __future__ import annotations

from typing import Any

from .naive import DIRECTORY, FIFO, FILE, SYMLINK, Entry, Files, above, join, order

# Names that collide often, and names that are easy to get wrong.
NAMES = [
    "a",
    "b",
    "c",
    "d",
    "deep",
    "x" * 255,
    "new\nline",
    " spaces ",
    "lowerdir=a,upperdir=b:c",
    "back\\slash",
    "\udcff\udcfebytes",
    "ünï",
    "-rf",
    ".wh.a",
    ".wh..wh..opq",
    "#1",
]
CONTENTS = [b"", b"same", b"SAME", b"s" * 5000, b"\n" * 4096]
FILE_MODES = [0o644, 0o755, 0o600, 0o400, 0o000, 0o666]
DIRECTORY_MODES = [0o755, 0o700, 0o711, 0o1777, 0o555, 0o750]


def _pick(found: list[Any], number: int) -> Any:
    return found[number % len(found)] if found else None


def _place(files: Files, a: int, b: int) -> str:
    return join(_pick(files.folders(), a), _pick(NAMES, b))


def _text(c: int) -> bytes:
    return CONTENTS[c] if c < len(CONTENTS) else b"text %d\n" % c


def _open_file(files: Files, a: int) -> str | None:
    found = [p for p in files.of(FILE) if files.entries[p].mode & 0o200]
    path: str | None = _pick(found, a)
    return path


def create(files: Files, a: int, b: int, c: int) -> None:
    """A file under a name that may be new, or in place of whatever has the name."""
    path = _place(files, a, b)
    if files.clear(path):
        files.make(path, _text(c), _pick(FILE_MODES, b + c))


def overwrite(files: Files, a: int, b: int, c: int) -> None:
    """All of a file in place; as large as before at times, and at times with its old time."""
    path = _open_file(files, a)
    if path is not None:
        old = files.entries[path].content
        same_size = b % 2 and 0 < len(old) < 10_000
        new = bytes([c]) * len(old) if same_size else _text(c)
        files.overwrite(path, new, fresh=b % 3 == 0, keep=b % 4 == 1)


def append(files: Files, a: int, b: int, c: int) -> None:
    path = _open_file(files, a)
    if path is not None:
        files.write_at(path, len(files.entries[path].content), b"%d more\n" % c)


def patch(files: Files, a: int, b: int, c: int) -> None:
    """A few bytes somewhere in a file, or behind its end."""
    path = _open_file(files, a)
    if path is not None:
        files.write_at(path, b * 1000, b"patch %d" % c)


def truncate(files: Files, a: int, b: int, c: int) -> None:
    path = _open_file(files, a)
    if path is not None:
        files.write_at(path, 0, b"", size=[0, 1, 100, 4096, 50_000][c % 5])


def replace(files: Files, a: int, b: int, c: int) -> None:
    """A new file renamed over another one, as editors save."""
    path = _pick(files.of(FILE, FIFO, SYMLINK), a)
    fresh = above(path or "")
    if path is None or not files.entries[fresh].mode & 0o200:
        return
    fresh = join(fresh, ".fresh")
    if fresh not in files.entries:
        files.make(fresh, _text(c), _pick(FILE_MODES, b))
        files.move(fresh, path)


def chmod(files: Files, a: int, b: int, c: int) -> None:
    path = _pick(files.of(FILE, FIFO), a)
    if path is not None:
        files.chmod(path, _pick(FILE_MODES, c))


def chmod_folder(files: Files, a: int, b: int, c: int) -> None:
    """A directory, which may be the one that holds all."""
    path = _pick(["", *files.of(DIRECTORY)], a)
    files.chmod(path, _pick(DIRECTORY_MODES, c))
    if not path and not files.entries[""].mode & 0o200:
        files.chmod("", 0o755)


def touch(files: Files, a: int, b: int, c: int) -> None:
    times = [1, 10**18 + 7, -(10**9), 2**33 * 10**9, None]
    files.stamp(_pick(order(files.entries), a), times[c % len(times)])


def annotate(files: Files, a: int, b: int, c: int) -> None:
    found = [p for p in ("", *files.of(FILE, DIRECTORY)) if files.entries[p].mode & 0o600 == 0o600]
    path, name = _pick(found, a), ["user.note", "user.other.name"][b % 2]
    if path is None:
        return
    if c % 3 or name not in files.entries[path].notes:
        files.note(path, name, b"\0\xff%d" % c if c else b"")
    else:
        files.note(path, name, None)


def move_file(files: Files, a: int, b: int, c: int) -> None:
    """Anything but a directory, to a new name or over anything but a directory."""
    old, new = _pick(files.of(FILE, SYMLINK, FIFO), a), _place(files, b, c)
    if old is None or not files.removable(old) or f"{old}/".startswith(f"{new}/"):
        return
    there = files.entries.get(new)
    if there is None or there.kind != DIRECTORY or files.clear(new):
        files.move(old, new)


def move_folder(files: Files, a: int, b: int, c: int) -> None:
    """A directory to a new name, or over an empty directory, or in place of what is there."""
    old, new = _pick(files.of(DIRECTORY), a), _place(files, b, c)
    if old is None or not files.removable(old) or f"{new}/".startswith(f"{old}/"):
        return
    if old.startswith(f"{new}/"):
        return
    there = files.entries.get(new)
    empty = there is not None and there.kind == DIRECTORY and files.below(new) == [new]
    if empty or files.clear(new):
        files.move(old, new)


def move_there_and_back(files: Files, a: int, b: int, c: int) -> None:
    old, new = _pick(order(p for p in files.entries if p), a), _place(files, b, c)
    if old is None or not files.removable(old) or new in files.entries:
        return
    if not f"{new}/".startswith(f"{old}/"):
        files.move(old, new)
        files.move(new, old)


def file_for_folder(files: Files, a: int, b: int, c: int) -> None:
    path = _pick(files.of(DIRECTORY), a)
    if path is not None and files.clear(path):
        files.make(path, _text(c))


def folder_for_file(files: Files, a: int, b: int, c: int) -> None:
    path = _pick(files.of(FILE, SYMLINK, FIFO), a)
    if path is not None and files.clear(path):
        files.mkdir(path)
        if c % 3:
            files.make(join(path, _pick(NAMES, b)), _text(c))


def remake_folder(files: Files, a: int, b: int, c: int) -> None:
    """A directory removed, and made anew with some of the names that it had."""
    path = _pick(files.of(DIRECTORY), a)
    if path is None or not files.removable(path):
        return
    inner = [p for p in files.below(path) if above(p) == path and p != path]
    kinds = {p: files.entries[p].kind for p in inner}
    files.remove(path)
    files.mkdir(path, _pick(DIRECTORY_MODES[:4], b))
    for number, name in enumerate(inner):
        if (b + number) % 3 == 0:
            if (kinds[name] == DIRECTORY) == bool(c % 2):
                files.mkdir(name)
            else:
                files.make(name, _text(c))


def remove(files: Files, a: int, b: int, c: int) -> None:
    path = _pick(order(p for p in files.entries if p), a)
    if path is not None:
        files.clear(path)


def remake(files: Files, a: int, b: int, c: int) -> None:
    """A file removed and made again, perhaps just as it was."""
    path = _pick(files.of(FILE), a)
    if path is not None:
        old = files.entries[path]
        if files.clear(path):
            files.make(path, old.content[:9000] if b % 2 else _text(c), old.mode)
            if c % 2:
                files.stamp(path, old.time)


def symlink(files: Files, a: int, b: int, c: int) -> None:
    path = _place(files, a, b)
    if files.clear(path):
        files.symlink(path, _pick(["/etc/passwd", "..", "no/where", "a", "\udcfe\n"], c))


def fifo(files: Files, a: int, b: int, c: int) -> None:
    path = _place(files, a, b)
    if files.clear(path):
        files.mkfifo(path, _pick(FILE_MODES, c))


def link(files: Files, a: int, b: int, c: int) -> None:
    """One more name for a file or a FIFO, in place of whatever has the name."""
    old, new = _pick(files.of(FILE, FIFO), a), _place(files, b, c)
    if old is None or f"{old}/".startswith(f"{new}/") or not files.clear(new):
        return
    files.link(old, new)


def append_to_linked(files: Files, a: int, b: int, c: int) -> None:
    """To a file of several names."""
    names: dict[int, list[str]] = {}
    for path in files.of(FILE):
        names.setdefault(id(files.entries[path]), []).append(path)
    found = [path for group in names.values() if len(group) > 1 for path in group]
    path = _pick([p for p in order(found) if files.entries[p].mode & 0o200], a)
    if path is not None:
        files.write_at(path, len(files.entries[path].content), b"%d linked\n" % c)


def folder(files: Files, a: int, b: int, c: int) -> None:
    """A new directory, or several one below the other."""
    path = _place(files, a, b)
    for _ in range(1 + c % 3):
        if path not in files.entries:
            files.mkdir(path, _pick(DIRECTORY_MODES[:4], c))
        entry = files.entries[path]
        if entry.kind != DIRECTORY or not entry.mode & 0o200:
            return
        path = join(path, _pick(NAMES, c))


def sparse(files: Files, a: int, b: int, c: int) -> None:
    path = _place(files, a, b)
    if files.clear(path):
        files.make_sparse(path, [100_000, 1 << 20][c % 2], c * 1000)


def duplicate(files: Files, a: int, b: int, c: int) -> None:
    """A second file with the content of another one."""
    old, new = _pick(files.of(FILE), a), _place(files, b, c)
    if old is not None and new not in files.entries:
        files.make(new, files.entries[old].content[:9000])


EDITS = [
    create,
    overwrite,
    append,
    patch,
    truncate,
    replace,
    chmod,
    chmod_folder,
    touch,
    annotate,
    move_file,
    move_folder,
    move_there_and_back,
    file_for_folder,
    folder_for_file,
    remake_folder,
    remove,
    remake,
    symlink,
    fifo,
    link,
    append_to_linked,
    folder,
    sparse,
    duplicate,
]

# What may make holes; without them all that is told of the files can be compared.
HOLED = [patch, truncate, sparse]


def furnish(*, with_holes: bool = True) -> Files:
    """Give what lies below the boxes at first. It has no hard links and nothing that is closed."""
    files = Files()
    files.entries[""] = Entry(DIRECTORY, 0o755)
    files.steps.append(["chmod", ".", 0o755])
    for path in ("a", "d", "d/a", "d/d", "d/d/a", "deep", "empty", NAMES[4] + "/" + NAMES[8]):
        files.mkdir(path)
    path = "deep"
    for name in ("a", "b", "c", "d", "a"):
        path = join(path, name)
        files.mkdir(path)
        files.make(join(path, "leaf"), b"below " + path.encode())
    for number, name in enumerate(NAMES):
        inner = join("d", name)
        if inner not in files.entries:
            files.make(inner, b"%d in d" % number)
        if name not in files.entries and number > 4:
            files.make(name, b"same" if number % 2 else b"S" * 3000)
    for number, name in enumerate(("a/a", "a/b", "d/a/a", "d/a/b", "d/d/a/a", "d/d/b")):
        files.make(name, _text(number), _pick([0o644, 0o755, 0o400, 0o600], number))
    files.make("b", bytes(range(256)) * 400)
    if with_holes:
        files.make_sparse("a/sparse", 1 << 20, 300_000)
    files.make("a/none")
    files.symlink("c", "b")
    files.symlink("d/link", "/no/where")
    files.mkfifo("a/fifo", 0o640)
    files.mkfifo("fifo")
    files.note("d", "user.note", b"of a directory")
    files.note("a/a", "user.note", b"of a file")
    files.chmod("d/d/a", 0o555)
    files.chmod("empty", 0o1777)
    files.stamp("a/b", 10**18)
    files.stamp("")
    return files
