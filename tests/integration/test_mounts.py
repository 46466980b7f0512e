"""Mounts and images: what of the host a box sees, and with which rights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from sandboxsdk import Image, Mount, Sandbox
from sandboxsdk.errors import CapabilityError, Denied, UsageError


def test_toolchain_brings_the_callers_python(home):
    """The caller's own interpreter runs in the box, with what is installed beside it."""
    code = "import msgspec, sys; print(sys.prefix, msgspec.json.encode([1]).decode())"
    with Sandbox(mounts=[Mount.toolchain()], home=home) as box:
        result = box.exec(["python3", "-c", code], check=True)
        assert result.stdout == f"{sys.prefix} [1]\n"
        written = box.exec(["touch", f"{sys.prefix}/written"])
    assert written.exit_code != 0
    assert not os.path.exists(f"{sys.prefix}/written")


def test_mount_is_read_only_unless_asked(home, tmp_path):
    """Two mounts of one directory differ in what may be written, and the host sees what was."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "given").write_text("given\n")
    mounts = [Mount(shared, "/mnt/read"), Mount(shared, "/mnt/write", write=True)]
    with Sandbox(mounts=mounts, home=home) as box:
        assert box.exec("cat /mnt/read/given").stdout == "given\n"
        assert box.exec("touch /mnt/read/new").exit_code != 0
        box.exec("echo new > /mnt/write/new", check=True)
        assert box.exec("cat /mnt/read/new").stdout == "new\n"
    assert (shared / "new").read_text() == "new\n"
    assert (shared / "new").stat().st_uid == shared.stat().st_uid


def test_single_file_and_same_path(home, tmp_path):
    """A file can be mounted; without a target it is where it is outside."""
    config = tmp_path / "a config.toml"
    config.write_text("x = 1\n")
    with Sandbox(mounts=[Mount(config)], home=home) as box:
        assert box.exec(["cat", config]).stdout == "x = 1\n"
        assert box.exec(["ls", tmp_path]).stdout == "a config.toml\n"


def test_cache_is_shared_by_name(home):
    """What one box puts into a cache, the next one that asks for it finds; others do not."""
    with Sandbox(mounts=[Mount.cache("tools")], home=home) as box:
        box.exec("echo kept > ~/.cache/tools/item", check=True)
    with Sandbox(mounts=[Mount.cache("tools", "/cache")], home=home) as box:
        assert box.exec("cat /cache/item").stdout == "kept\n"
    with Sandbox(mounts=[Mount.cache("other", "/cache")], home=home) as box:
        assert box.exec("ls /cache").stdout == ""


@pytest.mark.parametrize(
    "target", ["/", "/workspace", "/workspace/data", "/proc", "/usr/x", "/etc"]
)
def test_targets_of_the_box_are_taken(home, tmp_path, target):
    """Where the box has its own, nothing can be mounted."""
    source = tmp_path / "source"
    source.mkdir()
    with Sandbox(mounts=[Mount(source, target)], home=home) as box:
        with pytest.raises(UsageError, match="belongs to the box"):
            box.exec("true")


def test_sources_that_are_not_there_or_not_for_boxes(home):
    """A missing source is a mistake; the home of sandboxsdk, and what holds it, is refused."""
    with Sandbox(mounts=[Mount("/no/such", "/x")], home=home) as box, pytest.raises(UsageError):
        box.exec("true")
    for source in (home.path, os.path.dirname(home.path), f"{home.path}/tasks", "/run", "/etc"):
        with Sandbox(mounts=[Mount(source, "/x")], home=home) as box:
            with pytest.raises(Denied):
                box.exec("true")


@pytest.fixture
def rootfs(tmp_path):
    """Give a root file system of one static program, made by the compiler."""
    root = tmp_path / "rootfs"
    for name in ("bin", "etc"):
        (root / name).mkdir(parents=True)
    source = tmp_path / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("from the image"); return 7; }\n')
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed; apt-get install gcc"
    subprocess.run([compiler, "-static", "-o", root / "bin" / "hello", source], check=True)
    (root / "etc" / "release").write_text("ours\n")
    return root


def test_image_from_a_root_file_system(home, rootfs):
    """The box sees the image and nothing of the host's /usr; the image is not written."""
    with Sandbox(image=Image.from_rootfs(rootfs), home=home) as box:
        result = box.exec(["/bin/hello"])
        assert (result.exit_code, result.stdout) == (7, "from the image\n")
        assert box.describe().image == f"rootfs {rootfs}"
        with pytest.raises(UsageError):
            box.exec(["/usr/bin/env"])
    assert sorted(os.listdir(rootfs)) == ["bin", "etc"]
    assert os.listdir(rootfs / "etc") == ["release"]


@pytest.mark.parametrize("image", [Image("python:3.12"), Image.busybox(), Image.from_tar("x.tar")])
def test_images_of_later_versions_are_refused(home, image):
    """What this version cannot run is said, with what it can."""
    with Sandbox(image=image, home=home) as box, pytest.raises(CapabilityError, match="Image"):
        box.exec("true")


def test_image_that_is_not_there_or_not_for_boxes(home, tmp_path, monkeypatch):
    """A missing image is the caller's mistake; `~` is the caller's home; the host is no image."""
    for missing in ("/no/such/root", __file__):
        with Sandbox(image=Image.from_rootfs(missing), home=home) as box:
            with pytest.raises(UsageError, match="is no directory"):
                box.exec("true")
    with Sandbox(image=Image.from_rootfs("/"), home=home) as box, pytest.raises(Denied):
        box.exec("true")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "root").mkdir()
    with Sandbox(image=Image.from_rootfs("~/root"), home=home) as box:
        with pytest.raises(UsageError, match="did not start"):
            box.exec("true")


def test_toolchain_is_checked_like_any_mount(home):
    """What no mount may show, none may show under another name."""
    for source in (home.path, "/run"):
        with Sandbox(mounts=[Mount(source, kind="toolchain")], home=home) as box:
            with pytest.raises(Denied):
                box.exec("true")
