"""A directory with everything in it, what happens to it, and what a box shows of it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandboxsdk import Home, Sandbox, Task, Workspace

# (kind of workspace, runtime): the same is expected of all.
KINDS = [
    ("overlay", "bubblewrap"),
    ("copy", "bubblewrap"),
    ("direct", "bubblewrap"),
    ("direct", "process"),
]
PRIVATE = [pair for pair in KINDS if pair[0] != "direct"]

DEEP = "deep/" + "/".join(f"level{number}" for number in range(60))
ODD = ["new\nline", " spaces ", "-rf", "ünï", b"\xff\xfebytes", "*", "x" * 255, "\x1b[31mred"]
PAST = (1_000_000_000_123_456_789, 1_000_000_000_123_456_789)

Seen = dict[str, list[Any]]

# Prints everything below the current directory: kind, mode, names of the same file, size, target,
# content, time and attributes by path. Times are those of files and links: a directory's change as
# one looks.
_LOOK = """
import hashlib, json, os, stat
found, names = {}, {}
def look(path):
    s = os.lstat(path)
    kind, target, content, attributes = stat.S_IFMT(s.st_mode), None, None, {}
    if stat.S_ISLNK(s.st_mode):
        target = os.readlink(path).hex()
    elif stat.S_ISREG(s.st_mode):
        try:
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        except PermissionError:
            content = "closed"
    if stat.S_ISREG(s.st_mode) or stat.S_ISDIR(s.st_mode):
        for name in os.listxattr(path):
            if name.startswith("user."):
                attributes[name] = os.getxattr(path, name).hex()
    plain = not stat.S_ISDIR(s.st_mode)
    shown = os.fsdecode(path)[2:]
    if plain:
        names.setdefault((s.st_dev, s.st_ino), []).append(shown)
    found[shown] = [
        kind, stat.S_IMODE(s.st_mode), None, s.st_size if plain else 0, target, content,
        s.st_mtime_ns if plain else 0, attributes,
    ]
for folder, folders, files in os.walk(b"."):
    for name in folders + files:
        look(os.path.join(folder, name))
for group in names.values():
    for name in group:
        found[name][2] = sorted(group)
print(json.dumps(found))
"""

# Every sort of edit, on what the directory had and on what is new.
_MESS = r"""
echo more >> README
printf 'new content' > src/a.py
rm src/b.py
rm -r emptied
mkdir -p made/in/depth && echo deep > made/in/depth/file
mv moved renamed
mv one.txt two.txt
chmod 600 run.sh
chmod 711 modes
ln -sf /elsewhere link
ln README hard-new
rm hard-b && echo parted > hard-b
mkfifo pipe-new
rm pipe
rm dangling && mkdir dangling && echo was-a-link > dangling/file
rm -r becomes-file && echo was-a-directory > becomes-file
: > filled
truncate -s 20M sparse
rm -- -rf
find deep -name leaf -exec sh -c 'echo changed > "$1"' sh {} \;
touch -d '2001-02-03 04:05:06' touched
printf x > "$(printf 'odd\nnew')"
"""
_MESS_ATTRIBUTES = """
import os
try:
    os.setxattr("run.sh", "user.note", b"changed")
    os.setxattr("touched", "user.fresh", b"1")
    os.removexattr("noted", "user.note")
except OSError:
    pass
"""


def furnish(base: Path) -> None:
    """Fill a directory with everything that a checkpoint can hold."""
    for name in ("src", "emptied/below", "moved/inner", "modes", "becomes-file", DEEP, "sticky"):
        (base / name).mkdir(parents=True)
    texts = {
        "README": "read me\n",
        "src/a.py": "a\n",
        "src/b.py": "b\n",
        "src/private": "secret",
        "emptied/below/f": "gone soon",
        "moved/inner/f": "moved",
        "one.txt": "one",
        "run.sh": "#!/bin/sh\necho ran\n",
        "becomes-file/f": "x",
        "hard-a": "several names",
        "filled": "content",
        "touched": "t",
        "noted": "n",
        f"{DEEP}/leaf": "bottom",
        "empty": "",
    }
    for name, text in texts.items():
        (base / name).write_text(text)
    (base / "large").write_bytes(os.urandom(3 << 20))
    with open(base / "sparse", "wb") as file:
        file.truncate(16 << 20)
        file.seek(5 << 20)
        file.write(b"island" * 1000)
    os.link(base / "hard-a", base / "hard-b")
    (base / "link").symlink_to("README")
    (base / "dangling").symlink_to("no/where")
    (base / "absolute").symlink_to("/etc/passwd")
    os.mkfifo(base / "pipe", 0o640)
    for name in ODD:
        path = os.path.join(os.fsencode(base), os.fsencode(name))
        with open(path, "wb") as odd:
            odd.write(b"odd")
    (base / "run.sh").chmod(0o755)
    (base / "src/private").chmod(0o600)
    (base / "sticky").chmod(0o1777)
    os.utime(base / "one.txt", ns=PAST)
    os.utime(base / "link", ns=PAST, follow_symlinks=False)
    if has_attributes(base):
        os.setxattr(base / "noted", "user.note", b"\0binary\xff")
        os.setxattr(base / "src", "user.note", b"of a directory")


def has_attributes(directory: Path) -> bool:
    """Tell whether a file system stores attributes of users."""
    try:
        os.setxattr(directory, "user.try", b"1")
        os.removexattr(directory, "user.try")
    except OSError:
        return False
    return True


def outside(directory: Path) -> Seen:
    """Describe what the host sees below a directory, times included."""
    found: Seen = {}
    for folder, folders, files in os.walk(os.fsencode(directory)):
        for name in [b".", *folders, *files]:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            content = None
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as file:
                    content = file.read().hex()
            found[os.fsdecode(path)] = [s.st_mode, s.st_size, s.st_mtime_ns, s.st_uid, content]
    return found


class Stage:
    """A task on a furnished directory, under one kind of workspace and one runtime."""

    def __init__(self, place: Path, home: Home, kind: str, runtime: str, **how: Any) -> None:
        self.kind, self.runtime, self.home, self.how = kind, runtime, home, how
        self.base = place / "project"
        self.base.mkdir()
        furnish(self.base)
        self.task = self.another()

    @property
    def private(self) -> bool:
        return self.kind != "direct"

    def another(self) -> Task:
        """Make one more task on the directory."""
        if self.private:
            workspace = Workspace.private(self.base, kind=self.kind, **self.how)
        else:
            workspace = Workspace.direct(self.base, **self.how)
        return Task.create("t", workspace=workspace, home=self.home, runtime=self.runtime)

    def box(self, task: Task | None = None) -> Sandbox:
        return Sandbox(task or self.task)

    def reopened(self) -> Sandbox:
        """Give a box of the same task as another process would find it."""
        return Sandbox(Task.open(self.task.id, home=Home(self.home.path)))


def look(box: Sandbox) -> Seen:
    """Describe everything in a box, as a program in it sees it."""
    done = box.exec(["python3", "-c", _LOOK], check=True, max_output=1 << 26)
    found: Seen = json.loads(done.stdout)
    if box.task.record.workspace.kind == "overlay":
        # Names of one file may show different inodes there, until the next mount.
        for facts in found.values():
            facts[2] = None
    return found


def mess_up(box: Sandbox) -> None:
    """Make every sort of edit."""
    box.exec(_MESS, check=True)
    box.exec(["python3", "-c", _MESS_ATTRIBUTES], check=True)


def without(seen: Seen, *names: str) -> Seen:
    """Leave out paths, with what lies below them."""
    return {
        path: facts
        for path, facts in seen.items()
        if not any(path == name or path.startswith(f"{name}/") for name in names)
    }


def kinds_of(changes: list[Any]) -> Iterator[str]:
    """Give changes as short words."""
    for change in changes:
        yield f"{change.kind} {change.path}"
