"""Settings are checked where they are written: a value that exists is valid."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.codec import to_builtins, to_struct
from sandboxsdk.errors import UsageError
from sandboxsdk.model import (
    Image,
    Limits,
    Mount,
    Network,
    Secret,
    Spec,
    Workspace,
    check_env,
    check_many,
    check_name,
    check_path,
)

NAN, INF = float("nan"), float("inf")


class Text:
    """Not text, though it can be shown."""

    def __str__(self):
        return "text"


NO_TEXT = [5, 5.0, True, False, b"\xff", Text(), [], ["x"], {"x": "y"}, object, NAN, 10**5000]
NO_LIST = [5, True, "text", b"bytes", {"a": 1}, Text(), object(), 0, NAN]
NO_NUMBER = ["5", b"5", True, False, NAN, INF, -INF, 0, -1, 2**31, 10**5000, [], {}, Text(), 1j]
NO_STRUCT = [5, 0, False, True, "", "text", b"x", [], {}, Text(), object(), Limits]


def named(values):
    return [pytest.param(value, id=f"{index}-{type(value).__name__}") for index, value in values]


def cases():
    def each(name, values, make):
        for index, value in enumerate(values):
            yield pytest.param(make, value, id=f"{name}-{index}-{type(value).__name__}")

    for field in ("cpus", "wall_time", "pids", "open_files"):
        yield from each(field, NO_NUMBER, lambda value, field=field: Limits(**{field: value}))
    for field in ("pids", "open_files"):
        yield from each(field, [1.5], lambda value, field=field: Limits(**{field: value}))
    sizes = [*(value for value in NO_TEXT if value != 5), *NO_NUMBER[3:8], "4 XB", "", 2**63]
    for field in ("memory", "disk"):
        yield from each(field, sizes, lambda value, field=field: Limits(**{field: value}))
    hosts = [*NO_TEXT, None, "", "a\nb", "a\x1bb", "a\udc80"]
    yield from each("Network.allow", hosts, Network.allow)
    yield from each("Network.mode", [*NO_TEXT, None, "all"], lambda v: Network(mode=v))
    yield from each("Network.list", [*NO_LIST, None, [5]], lambda v: Network(allowlist=v))
    names = [*NO_TEXT, None, "", "1A", "A-B", "A=B", "A\0", "Ä"]
    yield from each("Secret.name", names, Secret)
    yield from each("Secret.value", [*NO_TEXT, 0, "a\0b"], lambda v: Secret("A", v))
    for items in (NO_LIST, [None], [[value] for value in hosts]):
        yield from each("Secret.hosts", items, lambda v: Secret("A", "x", hosts=v))
    yield from each("Image", [*NO_TEXT, None, "", "a\0b", "a\nb"], Image)
    yield from each("Image.kind", [*NO_TEXT, None, "iso"], lambda v: Image("x", kind=v))
    yield from each("Image.pull", [None, 1, "yes"], lambda v: Image("x", pull=v))
    paths = [5, 5.0, True, None, "", "a\0b", b"a\0b", Text(), [], {}, object, NAN]
    for make in (Image.from_rootfs, Image.from_tar, check, Mount):
        yield from each(make.__name__, paths, make)
    targets = [5, True, "", "rel/path", "/a/../b", "/a\nb", "/a\0b", [], Text(), b"\xff", "/\udc80"]
    yield from each("Mount.target", targets, lambda v: Mount("/usr", v))
    yield from each("Mount.write", [None, 1, "yes"], lambda v: Mount("/usr", write=v))
    yield from each("Mount.kind", [None, "tmpfs", 5, []], lambda v: Mount("/usr", kind=v))
    yield from each("Mount.also", [*NO_LIST, None], lambda v: Mount("/usr", also=v))
    yield from each("Mount.cache", [*NO_TEXT, None, "", "..", "a/b"], Mount.cache)
    yield from each("Mount.cache", [".", "..", "a/.."], lambda name: Mount(name, kind="cache"))
    places = [5, 5.0, True, [], {}, Text(), object, NAN]
    yield from each("Workspace.private", places, Workspace.private)
    yield from each("Workspace.direct", places, Workspace.direct)
    yield from each("Workspace.path", [*places, b"x", Path("x")], lambda v: Workspace(path=v))
    for make in (Workspace.private, Workspace.direct):
        odd = [*NO_LIST, None, [5], [None]]
        yield from each("exclude", odd, lambda v, make=make: make("/x", exclude=v))
    yield from each("Workspace.kind", [*NO_TEXT, None, "zfs"], lambda v: Workspace.private(kind=v))
    yield from each("Workspace.mode", [*NO_TEXT, None, "open"], lambda v: Workspace(mode=v))
    for field in ("image", "limits", "network"):
        yield from each(field, [*NO_STRUCT, None], lambda v, field=field: Spec(**{field: v}))
    for field in ("secrets", "mounts"):
        odd = [*NO_LIST, None, [5], [None], ["x"]]
        yield from each(field, odd, lambda v, field=field: Spec(**{field: v}))
    envs = [5, True, "A=b", b"A", ["A"], Text(), {5: "x"}, {"A": 5}, {"A": None}, {"A": "\0"}]
    envs += [{"": "x"}, {"A=": "x"}, {b"A": "x"}, {"A": b"x"}, {None: "x"}]
    yield from each("env", envs, lambda v: Spec(env=v))
    yield from each("overridden", envs, lambda v: Spec().overridden(env=v))
    yield from each("runtime", [*NO_TEXT, None, "", "vmware"], lambda v: Spec(runtime=v))


def check(path):
    return check_path(path, what="path")


@pytest.mark.parametrize(("make", "value"), list(cases()))
def test_wrong_value_is_refused_where_it_is_written(make, value):
    """Every constructor raises UsageError, with a remedy, for every kind of wrong value."""
    with pytest.raises(UsageError) as caught:
        make(value)
    assert caught.value.hint
    assert str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).code == caught.value.code


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "\t", ".", "..", "a/b", "/", "a\nb", "a\x1b[31m", "a\0", "a\x7f", "a\u202eb"),
        *("\udc80", "\ud800", "x" * 201, "x" * 300, 5, None, b"name", True, ["a"], Text()),
    ],
)
def test_wrong_name_is_refused(name):
    """A name prints on one line, is short, and is no path."""
    with pytest.raises(UsageError) as caught:
        check_name(name, what="name")
    assert caught.value.hint
    assert str(caught.value).isascii() or all(
        c.isprintable() or c == "\n" for c in str(caught.value)
    )


@pytest.mark.parametrize("name", ["a", "fix the login bug", "Größe 😀", "..a", "x" * 200, "-rf"])
def test_plain_name_is_kept(name):
    """What can be read aloud is a name, whatever the language."""
    assert check_name(name, what="name") == name


def test_limits_are_bytes_afterwards():
    """Text and numbers mean the same; None lifts a limit."""
    limits = Limits(memory="1GiB", disk="1GB", cpus=1, pids=None, wall_time=0.5)
    assert (limits.memory, limits.disk, limits.memory_bytes) == (1024**3, 1000**3, 1024**3)
    assert Limits(memory=None, disk=None).memory_bytes is None
    assert Limits(memory=None, disk=None).disk_bytes is None
    assert Limits() == Limits(memory="4GiB", cpus=2.0, pids=256, disk="10GiB")


@given(
    memory=st.none() | st.integers(1024**2, 2**63 - 1),
    cpus=st.none() | st.floats(0.01, 1000),
    pids=st.none() | st.integers(1, 2**31 - 1),
    env=st.dictionaries(
        st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(exclude_characters="\0", codec=None)),
        max_size=3,
    ),
    hosts=st.lists(st.from_regex("[a-z.]{1,9}", fullmatch=True), min_size=1, max_size=3),
)
def test_spec_comes_back_from_storage(memory, cpus, pids, env, hosts):
    """What is valid is stored and comes back equal; secret values do not."""
    spec = Spec(
        limits=Limits(memory=memory, cpus=cpus, pids=pids),
        env=env,
        network=Network.allow(*hosts),
        secrets=(Secret("TOKEN", "hidden", hosts=tuple(hosts)),),
        mounts=(Mount("/usr/share", "/data"), Mount.cache("pip"), Mount.toolchain()),
    )
    again = to_struct(to_builtins(spec.storable()), Spec, path="p")
    assert again == spec.storable()
    assert again.secrets[0].value is None
    assert again.secrets[0].hosts == tuple(hosts)


def test_secret_never_shows_its_value():
    """Neither the secret nor an error about it holds the value."""
    secret = Secret("TOKEN", "canary", hosts=["a.example.com"])
    assert "canary" not in f"{secret} {secret!r} {Spec(secrets=(secret,))}"
    assert secret.hosts == ("a.example.com",)
    with pytest.raises(UsageError) as caught:
        Secret("TOKEN", "canary\0")
    assert "canary" not in str(caught.value) + repr(caught.value.fields)
    with pytest.raises(UsageError) as caught:
        check_env([("A", "canary")])
    assert "canary" not in str(caught.value) + repr(caught.value.fields)


def test_override_replaces_what_is_given_and_adds_to_env():
    """None keeps what is there; env is laid over, later wins."""
    base = Spec(env={"A": "1", "B": "1"}, limits=Limits(pids=5))
    made = base.overridden(env={"B": "2"}, limits=None, runtime="process")
    assert (made.env, made.limits, made.runtime) == ({"A": "1", "B": "2"}, base.limits, "process")
    assert base.env == {"A": "1", "B": "1"}


def test_paths_may_be_anything_that_names_a_file():
    """Text, bytes and path objects are paths; bytes that are not UTF-8 are kept."""
    assert Mount(Path("/usr")).source == "/usr"
    assert Mount(b"/\xff", "/data").source == os.fsdecode(b"/\xff")
    assert Workspace.private(b"/x\xff").path == os.fsdecode(b"/x\xff")
    assert Workspace.private(Path("/x")) == Workspace(path="/x")
    assert Image.from_rootfs(Path("/r")) == Image("/r", kind="rootfs")
    assert Image.from_tar("/r.tar").kind == "tar"


def test_sequences_are_copied_to_tuples():
    """Lists and generators are taken; what the caller does to them later changes nothing."""
    given_list = ["a"]
    workspace = Workspace.private("/x", exclude=given_list)
    given_list.append("b")
    assert workspace.exclude == ("a",)
    assert Workspace.direct("/x", exclude=(c for c in "ab")).exclude == ("a", "b")
    assert check_many((), str, what="x") == ()


def test_endless_list_is_refused():
    """A generator without end does not hang the call."""
    with pytest.raises(UsageError, match="more than"):
        check_many(iter(lambda: "x", None), str, what="x")


def test_settings_cannot_be_changed_afterwards():
    """Settings are values."""
    with pytest.raises(AttributeError):
        Limits().pids = 5
    with pytest.raises(AttributeError):
        Secret("A").value = "x"


def test_network_that_allows_nobody_is_refused():
    """An empty list is a mistake, not an open door."""
    with pytest.raises(UsageError, match=re.escape("names nobody")):
        Network.allow()
    assert Network.none() == Network()
    assert Network.open().mode == "open"
    assert msgspec.structs.asdict(Network.allow("a:5"))["allowlist"] == ("a:5",)


def test_memory_without_a_unit_is_noticed():
    """Nothing runs in less than a mebibyte, so a small number is a forgotten unit."""
    for small in (512, "512", "64KiB"):
        with pytest.raises(UsageError, match="1 MiB") as caught:
            Limits(memory=small)
        assert "unit" in caught.value.hint
    assert Limits(disk=512).disk_bytes == 512
