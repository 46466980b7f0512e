"""Makes `format-1/`: a home as this version writes it, and what is in its checkpoints.

Run once for each version of the format, as root: `python tests/golden/make_golden.py DIRECTORY`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from sandboxsdk import Home, Sandbox, Task, Workspace

_BIG = b"".join(b"line %d\n" % (number % 100) for number in range(700_000))


def main(target: Path) -> None:
    """Make the home below `target`."""
    work = Path("/tmp/golden")
    shutil.rmtree(work, ignore_errors=True)
    app = work / "app"
    (app / "folder" / "empty").mkdir(parents=True)
    (app / "text").write_text("some text\n")
    (app / "nothing").write_bytes(b"")
    (app / "big").write_bytes(_BIG)
    with (app / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"after the hole")
        file.truncate(3 << 20)
    os.link(app / "text", app / "folder" / "same")
    os.symlink("../nowhere", app / "link")
    os.mkfifo(app / "fifo")
    Path(os.fsdecode(os.fsencode(app) + b"/\xff\x1b\n")).write_text("odd name")
    os.setxattr(app / "text", "user.note", b"an attribute")
    (app / "run").write_text("#!/bin/sh\n")
    (app / "run").chmod(0o4755)
    (app / "closed").mkdir(mode=0o500)
    os.utime(app / "nothing", ns=(0, -1_234_567_890))
    home = Home(work / "home")
    task = Task.create("golden", name="golden", workspace=Workspace.direct(app), home=home)
    with Sandbox(task, runtime="process") as box:
        first = box.checkpoint("first", description="what was there", labels={"kind": "golden"})
        (app / "text").unlink()
        (app / "new").write_text("made later\n")
        second = box.checkpoint("second")
        second.tag("stable")
        box.checkpoint("gone").delete()
        box.restore(first)
    (target / "home").mkdir(parents=True)
    for name in ("format", "tasks", "store/format", "store/packs", "store/lock"):
        source = work / "home" / name
        into = target / "home" / name
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, into) if source.is_dir() else shutil.copy(source, into)
    for scan in target.rglob("scan"):
        scan.unlink()
    for lease in target.rglob("lease"):
        lease.write_bytes(b"")  # It names the machine.
    expected = {
        checkpoint.name: {
            os.fsencode(entry.path).hex(): [entry.kind, entry.mode, entry.mtime_ns, entry.size]
            for entry in checkpoint.files()
        }
        for checkpoint in task.checkpoints()
    }
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
