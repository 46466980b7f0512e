"""Mounts something below a directory, in namespaces of its own, and captures the directory.

usage: mounting.py PLACE directory|file same|other openat2|components
"""

from __future__ import annotations

import importlib
import os
import sys

from sandboxsdk import syscalls as sc
from sandboxsdk.errors import Denied
from sandboxsdk.snapshot import excluding, totals_of

# A program has its own folder to import from, and not the checkout's.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from tests import trees


def enter_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    sc.unshare(sc.CLONE_NEWNS if uid == 0 else sc.CLONE_NEWNS | sc.CLONE_NEWUSER)
    if uid:
        maps = (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"))
        for name, text in maps:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)


def cover(place: str, covered: str, device: str, walk: str) -> None:
    """Make PLACE/tree/sub/x, and mount a directory or file with a secret over it."""
    if walk == "components":
        importlib.import_module("sandboxsdk.snapshot.capture").has_openat2 = lambda: False
    os.chdir(place)
    os.makedirs("tree/sub")
    os.makedirs("secret")
    if device == "other":
        sc.mount("none", "secret", "tmpfs", 0)
    with open("secret/file", "w", encoding="ascii") as file:
        file.write("secret")
    if covered == "directory":
        os.mkdir("tree/sub/x")
        sc.mount("secret", "tree/sub/x", None, sc.MS_BIND)
        return
    with open("tree/sub/x", "w", encoding="ascii") as file:
        file.write("under")
    sc.mount("secret/file", "tree/sub/x", None, sc.MS_BIND)


def check() -> None:
    """The mount is refused by its path, recorded empty, or excluded; its content is never read."""
    sink = trees.Memory()
    refusal = ""
    try:
        trees.walked(sink, "tree", shown="/w/")
    except Denied as error:
        refusal = str(error)
    assert "/w/sub/x: something else is mounted" in refusal, refusal
    got = trees.walked(sink, "tree", mounts=True)
    assert got.mounts == ("sub/x",), got
    found = trees.nodes(sink, got.tree)
    assert set(found) == {b".", b"sub", b"sub/x"}, found
    assert found[b"sub/x"].size == 0
    assert got.totals == totals_of(sink, got.tree)
    assert not any(b"secret" in data for _, data in sink.objects.values())
    got = trees.walked(sink, "tree", exclude=excluding(["x"]))
    assert set(trees.nodes(sink, got.tree)) == {b".", b"sub"}


if __name__ == "__main__":
    try:
        enter_namespaces()
    except OSError as error:
        sys.exit(print("no namespaces:", error))
    cover(*sys.argv[1:])
    check()
    print("fine")
