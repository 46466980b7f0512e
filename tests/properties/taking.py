"""Takes steps in the directory that it runs in, and tells what is there then.

As a program it does so in a box, or wherever else it is started: it reads steps from its standard
input and prints what it sees. It needs nothing but the standard library, because a box has no more.
"""

import errno
import json
import os
import stat
import sys
import zlib


def permitted(act, path, *arguments):
    """Do something with a file that its mode permits.

    On an ordinary user's overlay a file that came up from below and got a second name can have an
    inode for each name, as stat shows (root's have not: likely because only root's are looked up by
    their handles). What is permitted by one name then goes by the mode that was last set by it.
    """
    try:
        return act(path, *arguments)
    except PermissionError:
        os.chmod(path, stat.S_IMODE(os.lstat(path).st_mode))
        return act(path, *arguments)


def write(path, flags, mode, size, pieces):
    fd = permitted(os.open, path, os.O_WRONLY | flags, mode)
    if size is not None:
        os.ftruncate(fd, size)
    for at, data in pieces:
        os.pwrite(fd, bytes.fromhex(data), at)
    os.close(fd)


def remove(path):
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            remove(f"{path}/{name}")
        os.rmdir(path)
    else:
        os.unlink(path)


def move(old, new):
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    # A directory that did not come from this box: piece by piece, as mv does.
    found = os.lstat(old)
    if os.path.lexists(new):
        os.rmdir(new)
    os.mkdir(new)
    for name in os.listdir(old):
        move(f"{old}/{name}", f"{new}/{name}")
    for name in os.listxattr(old):
        os.setxattr(new, name, os.getxattr(old, name))
    os.chmod(new, stat.S_IMODE(found.st_mode))
    os.utime(new, ns=(found.st_mtime_ns, found.st_mtime_ns))
    os.rmdir(old)


def note(path, name, value):
    if value is None:
        permitted(os.removexattr, path, name)
    else:
        permitted(os.setxattr, path, name, bytes.fromhex(value))


def stamp(path, time):
    os.utime(path, ns=(time, time), follow_symlinks=False)


def link(old, new):
    os.link(old, new, follow_symlinks=False)


STEPS = {
    "write": write,
    "remove": remove,
    "move": move,
    "note": note,
    "stamp": stamp,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "symlink": os.symlink,
    "chmod": os.chmod,
    "link": link,
}


def look(path, shown, found):
    """Note type, mode, size, time, target, checksum and attributes of a path and all below it."""
    s = os.lstat(path)
    kind, mode = stat.S_IFMT(s.st_mode), stat.S_IMODE(s.st_mode)
    size, target, content, notes = 0, None, None, {}
    if kind == stat.S_IFLNK:
        target = os.readlink(path)
    elif kind == stat.S_IFREG:
        size = s.st_size
        if mode & 0o400:
            with permitted(open, path, "rb", 0) as file:
                content = zlib.crc32(file.readall())
    if kind in (stat.S_IFREG, stat.S_IFDIR) and mode & 0o400:
        for name in os.listxattr(path):
            if name.startswith("user."):
                notes[name] = permitted(os.getxattr, path, name).hex()
    found[shown] = [kind, mode, size, s.st_mtime_ns, target, content, notes]
    if kind == stat.S_IFDIR:
        for name in os.listdir(path):
            look(f"{path}/{name}", f"{shown}/{name}" if shown else name, found)


def take(steps):
    """Take steps; give what is below the directory then, by path. The directory itself is ""."""
    mask = os.umask(0)
    try:
        for step in steps:
            STEPS[step[0]](*step[1:])
        found = {}
        look(".", "", found)
    finally:
        os.umask(mask)
    return found


if __name__ == "__main__":
    json.dump(take(json.load(sys.stdin)), sys.stdout)
