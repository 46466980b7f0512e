"""Frozen layers are found by what they show, and go when nobody lies on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxsdk.layers import FILES, Layers, Stack, write_stack
from sandboxsdk.layers import layers as module

A, B, C, D = (bytes([number]) * 32 for number in range(1, 5))


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    (tmp_path / "tasks").mkdir()
    return Layers(str(tmp_path / "layers"), (str(tmp_path / "tasks"), str(tmp_path / "none")))


def frozen(layers: Layers, parent: bytes, tree: bytes, *, span: int = 1, size: int = 10) -> str:
    name = layers.begin(parent, tree, span=span, disk_bytes=size)
    os.mkdir(f"{layers.path}/{name}/{FILES}")
    return name


def test_a_layer_counts_when_it_has_its_files(layers: Layers) -> None:
    """Before that, and after damage, it is as if there were none."""
    name = layers.begin(A, B, span=3, disk_bytes=5)
    assert layers.about(name) is None
    os.mkdir(f"{layers.path}/{name}/{FILES}")
    about = layers.about(name)
    assert about is not None
    assert (about.parent, about.tree, about.span, about.disk_bytes) == (A, B, 3, 5)
    path = Path(layers.path, name, "about")
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole[:20] + b"\0" + whole[21:]):
        path.write_bytes(data)
        module._abouts.clear()
        assert layers.about(name) is None
    for odd in ("", "..", "../x", "lock", f"{name}/x", name[:-1]):
        assert layers.about(odd) is None


def test_the_shortest_chain_is_found(layers: Layers) -> None:
    """From one tree to another, the top layer first; also over one that stands for several."""
    assert layers.chain(A, A) == []
    assert layers.chain(A, B) is None
    one, two = frozen(layers, A, B), frozen(layers, B, C)
    three = frozen(layers, C, D)
    assert layers.chain(A, D) == [three, two, one]
    assert layers.chain(B, C) == [two]
    assert layers.chain(D, A) is None
    whole = frozen(layers, A, C, span=2)
    assert layers.chain(A, D) == [three, whole]


def test_circles_end(layers: Layers) -> None:
    """There and back again is a circle of layers."""
    there, _back = frozen(layers, A, B), frozen(layers, B, A)
    assert layers.chain(A, B) == [there]
    assert layers.chain(C, B) is None


def test_layers_of_another_boot_are_not_used_and_go(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files were never synced, so a power cut may have left them empty."""
    name = frozen(layers, A, B)
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    later = Layers(layers.path, ())
    assert later.about(name) is None
    assert later.chain(A, B) is None
    assert later.sweep() == 1
    assert os.listdir(layers.path) == ["lock"]


def test_only_the_newest_of_those_that_nobody_needs_are_kept(
    layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a task lies on stays, however old it is; what is being made stays for a minute."""
    monkeypatch.setattr(module, "_KEPT_MAX", 2)
    monkeypatch.setattr(module, "_MANY", 4)
    names = [frozen(layers, A, bytes([number]) * 32) for number in range(10, 18)]
    for number, name in enumerate(names):
        os.utime(f"{layers.path}/{name}", (number, number))
    (tmp_path / "tasks" / "task").mkdir()
    descriptor = os.open(tmp_path / "tasks" / "task", os.O_RDONLY)
    write_stack(descriptor, Stack(id="x", tree=B, layers=(names[0],)))
    os.close(descriptor)
    fresh = layers.begin(A, D, span=1, disk_bytes=0)
    with layers.held() as held:
        assert held
    os.utime(f"{layers.path}/lock", (0, 0))
    assert layers.sweep() == 6
    assert set(os.listdir(layers.path)) == {names[0], names[7], fresh, "lock"}
    assert layers.sweep() == 0
    assert {stack.tree for stack in layers.stacks()} == {B}


def test_much_disk_is_looked_at_too(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few large layers are too much as well."""
    monkeypatch.setattr(module, "_KEPT_BYTES_MAX", 250)
    monkeypatch.setattr(module, "_MUCH_BYTES", 100)
    names = [frozen(layers, A, bytes([number]) * 32, size=100) for number in range(10, 14)]
    for number, name in enumerate(names):
        os.utime(f"{layers.path}/{name}", (number, number))
    assert layers.sweep() == 2
    assert set(os.listdir(layers.path)) == {*names[2:], "lock"}


def test_what_is_half_removed_goes_next_time(layers: Layers) -> None:
    """A sweep that was killed has renamed a layer, and maybe removed a part of it."""
    name = frozen(layers, A, B)
    os.rename(f"{layers.path}/{name}", f"{layers.path}/{name}.gone")
    assert layers.chain(A, B) is None
    other = frozen(layers, A, C)
    os.rename(f"{layers.path}/{other}", f"{layers.path}/{other[:34]}{'0' * 16}{other[50:]}")
    assert layers.sweep() == 2
