"""Probes that do more than read what the attacker said. Each takes the stand and asserts."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import inspect
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxsdk import (
    CapabilityError,
    Denied,
    FileConflict,
    HostFull,
    Image,
    Limits,
    Mount,
    Network,
    Sandbox,
    SandboxError,
    UsageError,
    clock,
)
from sandboxsdk.runtime.seccomp import profile

from .stand import MIB, PROBE, Stand, complain, host_processes, parsed

STATUS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")


def _status(text: str) -> dict[str, str]:
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: " ".join(value.split()) for name, value in lines.items()}


def _ids(stand: Stand) -> dict[str, str]:
    return _status(stand.box.exec([PROBE, "ids"]).stdout)


# --- Who one is -----------------------------------------------------------------------------------


def no_capabilities(stand: Stand) -> None:
    found = _ids(stand)
    complain({name: found[name] for name in STATUS[:5]}, {"0" * 16})


def is_filtered(stand: Stand) -> None:
    found = _ids(stand)
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


def is_nobody_special(stand: Stand) -> None:
    found = _ids(stand)
    assert set(found["Uid"].split() + found["Gid"].split()) == {"1000"}
    # Without root nobody can drop groups; the caller's others show as one that means nothing.
    mine = set(os.getgroups()) - {os.getegid()} if os.geteuid() else set()
    assert set(found["Groups"].split()) <= ({"1000", "65534"} if mine else {"1000"})


def setid_gains_nothing(stand: Stand) -> None:
    planted = stand.base / "setid"
    shutil.copyfile(stand.program, planted)
    planted.chmod(0o6755)
    found = stand.box.exec(["/workspace/setid", "ids"]).stdout
    assert "uids 1000 1000 1000" in found
    assert _status(found)["CapEff"] == "0" * 16
    # The host's own set-id programs: this one would mount, were it root.
    assert stand.box.exec("mount -t tmpfs none /tmp").exit_code != 0


def file_capabilities_gain_nothing(stand: Stand) -> None:
    planted = stand.base / "capable"
    shutil.copyfile(stand.program, planted)
    planted.chmod(0o755)
    if os.geteuid() == 0:
        grant = struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
        os.setxattr(planted, "security.capability", grant)
    found = _status(stand.box.exec(["/workspace/capable", "ids"]).stdout)
    assert found["CapEff"] == found["CapPrm"] == "0" * 16
    assert stand.said("setid")["capability"] == "EPERM"


def status_is_the_same(stand: Stand) -> None:
    def chosen(text: str) -> dict[str, str]:
        return {name: _status(text)[name] for name in STATUS}

    found = [
        chosen(stand.box.exec([PROBE, "ids"], user=user).stdout) for user in ("sandbox", "root")
    ]
    found += [
        chosen(stand.box.spawn([PROBE, "ids"], pty=pty).wait(10).stdout) for pty in (False, True)
    ]
    assert all(one == found[0] for one in found)
    assert found[0]["Seccomp"] == "2"


def init_is_hidden(stand: Stand) -> None:
    names = [
        f"/proc/1/{name}" for name in ("environ", "root", "cwd", "mem", "fd", "maps", "status")
    ]
    complain(stand.ask("read", *names), {"ENOENT"})
    assert stand.sh("ls -A /proc/1") == ""


def no_secrets(stand: Stand) -> None:
    assert stand.canary not in stand.sh("env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline")


# --- What one sees --------------------------------------------------------------------------------


def exec_by_policy(stand: Stand) -> None:
    found = stand.sh(
        "cp probe /tmp/p && /tmp/p nothing && echo tmp; cp probe /dev/shm/p; /dev/shm/p"
    )
    assert "tmp" in found.split()
    assert "denied" in found


def addresses_are_zero(stand: Stand) -> None:
    addresses = stand.sh(
        "cut -d' ' -f1 /proc/kallsyms | sort -u; cut -d: -f1 /proc/iomem | sort -u"
    )
    assert set(addresses) <= set("0-\n "), addresses[:200]


def proc_is_not_writable(stand: Stand) -> None:
    found = stand.box.exec([PROBE, "walk", "/proc"]).stdout.split()
    opened = {name for name in found if name.startswith("/proc/")}
    # Open to all by their mode; one needs a capability to write, the others start a measurement.
    known = {f"/proc/pressure/{name}" for name in ("cpu", "io", "memory", "irq")}
    assert opened <= known | {"/proc/sys/kernel/ns_last_pid"}
    assert "written" not in stand.sh("echo 7 > /proc/sys/kernel/ns_last_pid && echo written")


def sys_is_empty(stand: Stand) -> None:
    assert stand.sh("ls -A /sys") == ""


def machine_directories_are_empty(stand: Stand) -> None:
    assert stand.sh("ls -A /proc/acpi /proc/scsi /proc/asound 2>/dev/null | grep -v :$") in (
        "",
        "\n",
    )


def host_is_not_seen(stand: Stand) -> None:
    stand.box.exec("true")
    names = stand.sh("echo /proc/[0-9]*").split()
    assert len(names) <= 5, names
    mine = os.getpid()
    if f"/proc/{mine}" not in names:
        assert stand.ask("signal", str(mine))["signal"] == "ESRCH"
    # Not even another command of the same box.
    neighbour = stand.spawn("sleep")
    complain(stand.ask("signal", str(neighbour.pid)), {"ESRCH"})
    neighbour.kill()


def mounts_name_no_host_path(stand: Stand) -> None:
    found = stand.sh("cat /proc/self/mountinfo /proc/self/mounts /proc/self/mountstats")
    assert str(stand.directory) not in found
    assert stand.base.name not in found


def mounts_are_private(stand: Stand) -> None:
    found = stand.sh("cat /proc/self/mountinfo")
    assert "/workspace" in found
    assert not {"shared:", "master:", "propagate_from:"} & {w[:7] for w in found.split()}
    assert "shared:" not in found
    assert "master:" not in found


def mounts_have_flags(stand: Stand) -> None:
    for line in stand.sh("cat /proc/self/mountinfo").splitlines():
        fields = line.split()
        place, flags = fields[4], fields[5].split(",")
        assert "nosuid" in flags, line
        # The devices themselves must work; nothing can be made beside them.
        if place != "/dev" and not place.startswith("/dev/"):
            assert "nodev" in flags, line
    assert " /dev ro," in stand.sh("cat /proc/self/mountinfo")


def machine_is_not_identified(stand: Stand) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    inside = stand.sh("cat /proc/sys/kernel/random/boot_id")
    assert len(inside) == len(boot_id)
    assert inside != boot_id
    complain(stand.ask("read", "/etc/machine-id", "/var/lib/dbus/machine-id"), {"ENOENT"})
    assert socket.gethostname() not in stand.sh("hostname; cat /etc/hostname").split()


def cgroups_are_hidden(stand: Stand) -> None:
    complain(
        stand.ask("write", "/sys/fs/cgroup", "/sys/fs/cgroup/memory/release_agent"), {"ENOENT"}
    )
    for line in stand.sh("cat /proc/self/cgroup").splitlines():
        assert line.endswith(":/"), line


def passwd_is_generated(stand: Stand) -> None:
    users = stand.sh("cut -d: -f1,3 /etc/passwd").split()
    assert users == ["root:0", "sandbox:1000", "nobody:65534"]


# --- Sockets, descriptors, terminals --------------------------------------------------------------


def family(number: int) -> Callable[[Stand], None]:
    """No socket of this family can be made."""

    def probe(stand: Stand) -> None:
        found = stand.said("sockets")
        complain(
            {f"{number}-{k}": found[f"family-{number}-{k}"] for k in range(1, 6)}, {"EAFNOSUPPORT"}
        )

    return probe


def only_known_families(stand: Stand) -> None:
    found = stand.said("sockets")
    opened = {name.split("-")[1] for name, said in found.items() if name[0] == "f" and said == "ok"}
    assert opened <= {"1", "2", "10", "16"}
    protocols = {name: said for name, said in found.items() if name.startswith("netlink-")}
    assert protocols.pop("netlink-0") == "ok"
    complain(protocols, {"EAFNOSUPPORT"})


def terminals_are_not_typed_into(stand: Stand) -> None:
    on_terminal = parsed(stand.box.spawn([PROBE, "terminal"], pty=True).wait(10).stdout)
    without = stand.said("terminal")
    for found in (on_terminal, without):
        complain({n: found[n] for n in ("TIOCSTI", "TIOCSTI-dirty", "TIOCLINUX")}, {"EPERM"})
    assert on_terminal["tty"] == "ok"
    assert without["tty"] == "ENXIO"


def no_sockets(stand: Stand) -> None:
    with Sandbox(home=stand.home) as box:
        box.files.upload(stand.program, "probe")
        assert box.exec([PROBE, "special", "/"]).stdout.split() == ["special", "0"]
    places = ("/run", "/var/run", "/tmp/.X11-unix", "/run/user", "/var/run/docker.sock")
    assert stand.sh(f"ls -A {' '.join(places)} 2>/dev/null | grep -v :").strip() == ""


def abstract_sockets_are_apart(stand: Stand) -> None:
    name = f"sandboxsdk-{os.urandom(6).hex()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen(4)
        assert parsed(_outside(stand, "reach", name, "4999"))["abstract"] == "ok"
        assert stand.ask("reach", name, "4999")["abstract"] == "ECONNREFUSED"
        assert name not in stand.sh("cat /proc/net/unix")


def _outside(stand: Stand, *arguments: str) -> str:
    done = subprocess.run(
        [str(stand.program), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


def no_descriptors(stand: Stand) -> None:
    for pty in (False, True):
        found = stand.box.spawn(["/bin/ls", "/proc/self/fd"], pty=pty).wait(10).stdout.split()
        # The fourth is ls looking.
        assert found == ["0", "1", "2", "3"], found


def cwd_is_refused(stand: Stand) -> None:
    for cwd in ("/proc/self/fd/3", "/proc/1/cwd", "../proc/self/fd/3", "/tmp/../proc/self/root"):
        with pytest.raises(UsageError):
            stand.box.exec("true", cwd=cwd)


def cwd_by_link(stand: Stand) -> None:
    """A link that the guest planted where the caller wants to work (shape of CVE-2024-21626)."""
    links = [f"/proc/self/fd/{number}" for number in range(3, 32)]
    links += [f"{link}/.." for link in links[:8]]
    links += ["/proc/self/root/..", "/proc/1/root", "/proc/thread-self/fd/3", "/dev/fd/3"]
    escaped = {}
    for link in links:
        stand.sh(f"ln -sfn {link} trap")
        with contextlib.suppress(SandboxError):
            result = stand.box.exec([PROBE, "where"], cwd="trap")
            found = parsed(result.stdout)
            inside = found["cwd"].startswith("/") and found["above"] == "box"
            if not inside or found["planted"] == "ok":
                escaped[link] = found
    assert not escaped


# --- The runtime itself ---------------------------------------------------------------------------


def runtime_is_not_writable(stand: Stand) -> None:
    process = stand.spawn("sleep")
    program = Path(f"/proc/{process.pid}/exe").resolve()
    before = _digest(program)
    places = ("/proc/1/exe", "/usr/bin/bwrap", "/bwrap/bwrap", str(program))
    complain(stand.ask("write", *places), {"ETXTBSY", "EROFS", "EACCES", "ENOENT"})
    assert _digest(program) == before
    process.kill()


def _digest(program: Path) -> str:
    # One that came in a wheel is a copy that only the box's holder has.
    return hashlib.sha256(program.read_bytes()).hexdigest() if program.exists() else ""


def init_is_filtered(stand: Stand) -> None:
    process = stand.spawn("sleep")
    # It filters itself a moment after it has started the command.
    deadline = time.monotonic() + 10
    found = {}
    while found.get("Seccomp") != "2" and time.monotonic() < deadline:
        found = _status(Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
    assert {found[name] for name in STATUS[:5]} == {"0" * 16}
    assert found["Seccomp"] == "2"
    process.kill()
    found = stand.said("init")
    if found.get("attach") is None:
        assert found["init-self"] == "ok"
        complain({n: found[n] for n in ("init-vsock", "init-netlink")}, {"EAFNOSUPPORT"})
        names = ("init-userns", "init-mountns", "init-personality", "init-keyctl", "init-chmod")
        complain({name: found[name] for name in names}, {"EPERM"})
        assert found["init-io-uring"] == "ENOSYS"


def init_survives(stand: Stand) -> None:
    assert stand.sh("kill -9 1; kill -STOP 1; kill -TERM 1; echo alive").strip() == "alive"


def other_boxes_are_not_traced(stand: Stand) -> None:
    neighbour = stand.spawn("sleep", box=stand.small)
    complain(stand.ask("trace", str(neighbour.pid)), {"ESRCH", "EPERM"})
    neighbour.kill()


def links_in_an_image(stand: Stand) -> None:
    outside = stand.directory / "outside"
    outside.mkdir(mode=0o777)
    rootfs = stand.directory / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    try:
        program = stand.compiled("static", "-static")
    except subprocess.CalledProcessError:
        pytest.skip("no static C library to make a program for a root file system of its own")
    shutil.copy(program, rootfs / "bin" / "probe")
    for name in ("dev", "proc", "sys", "tmp", "home", "run", "workspace", "etc", "mnt"):
        (rootfs / name).symlink_to(outside)
    with Sandbox(image=Image.from_rootfs(str(rootfs)), home=stand.home) as box:
        places = ("/dev", "/tmp", "/home/sandbox", "/workspace", "/etc", "/run", "/mnt")
        found = parsed(box.exec(["/bin/probe", "write", *places]).stdout)
        made = ("/tmp/x", "/workspace/x", "/etc/x", "/mnt/x", "/run/x", "/dev/x")
        box.exec(["/bin/probe", "write", *made])
        box.files.write("/tmp/y", "y")
        assert found["/tmp"] == found["/workspace"] == "ok"
        complain({name: found[name] for name in ("/dev", "/etc", "/run")}, {"EROFS", "EACCES"})
        assert parsed(box.exec(["/bin/probe", "read", "/dev/null", "/dev/zero"]).stdout) == {
            "/dev/null": "empty",
            "/dev/zero": "ok",
        }
    assert list(outside.iterdir()) == []


def no_such_options(stand: Stand) -> None:
    names = "privileged cap_add devices device_cgroup_rules pid_mode network_mode ipc_mode uts_mode"
    names += " userns_mode security_opt cgroup_parent volumes_from group_add seccomp apparmor"
    for name in names.split():
        with pytest.raises(TypeError):
            Sandbox(**{name: "host"})  # type: ignore[arg-type]
    assert not set(names.split()) & set(inspect.signature(Sandbox.__init__).parameters)
    for build in (Network.open, lambda: Network.allow("example.com")):
        with pytest.raises(CapabilityError), Sandbox(network=build(), home=stand.home) as box:
            box.exec("true")
    with pytest.raises(UsageError):
        stand.box.exec("true", user="daemon")


def mounts_are_denied(stand: Stand) -> None:
    forbidden = ["/", "/etc", "/usr", "/var", "/var/run", "/run", "/proc", "/sys", "/dev", "/home"]
    forbidden += ["/proc/self/root", "/dev/shm", "/dev/null", "/usr/../etc", "//", "/root", "/boot"]
    forbidden += [os.path.expanduser("~"), stand.home.path, os.path.dirname(stand.home.path)]
    forbidden += [os.path.join(stand.home.path, "tasks"), "~"]
    sources = [source for source in forbidden if os.path.lexists(os.path.expanduser(source))]
    links = stand.directory / "links"
    links.mkdir()
    for number, source in enumerate(list(sources)):
        link = links / str(number)
        link.symlink_to(os.path.expanduser(source))
        sources.append(str(link))
    with socket.socket(socket.AF_UNIX) as server:
        # A short name: a socket's path has room for 107 bytes.
        descriptor = os.open(links, os.O_PATH)
        server.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
    os.mkfifo(links / "fifo")
    for source in [*sources, str(links / "socket"), str(links / "fifo")]:
        with (
            pytest.raises(Denied),
            Sandbox(mounts=[Mount(source, "/mnt/x")], home=stand.home) as box,
        ):
            box.exec("true")
            pytest.fail(f"{source} was mounted")


_WITHOUT_NAMESPACES = """
import os, sys
from sandboxsdk import Sandbox, Home, SandboxError, syscalls
maps = [("uid_map", os.geteuid()), ("gid_map", os.getegid())]
syscalls.unshare(syscalls.CLONE_NEWUSER)
for name, text in (("setgroups", "deny"), *((n, f"{i} {i} 1") for n, i in maps)):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
try:
    with Sandbox(home=Home(sys.argv[1])) as box:
        print("ran", box.exec("id").stdout)
except SandboxError as error:
    print(type(error).__name__, error)
"""


def missing_feature(stand: Stand) -> None:
    with pytest.raises(CapabilityError, match="riscv64"):
        profile("riscv64")
    done = _python(_WITHOUT_NAMESPACES, [str(stand.directory / "without")])
    assert done.stdout.startswith("RuntimeUnavailable"), done.stdout
    assert "max_user_namespaces" in done.stdout


def _python(script: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    import sandboxsdk

    package = os.path.dirname(os.path.dirname(sandboxsdk.__file__))
    start = f"import sys; sys.path[:0] = {[package, *sys.path]!r}\n{script}"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        stdout=subprocess.PIPE,
        # Not a pipe: helpers of a dead owner may have it open for as long as they are frozen.
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=60,
    )


# --- Bombs ----------------------------------------------------------------------------------------


def fork_bomb(stand: Stand) -> None:
    number, answer = stand.ask("fork", "2000", box=stand.small)["processes"].split()
    assert answer == "EAGAIN"
    assert int(number) < 32
    assert stand.small.exec("echo fine").stdout == "fine\n"


def memory_bomb(stand: Stand) -> None:
    result = stand.small.exec([PROBE, "memory", "16"], timeout=20)
    assert result.reason == "oom", result
    fill = "for n in 1 2 3 4 5 6 7 8; do head -c 7M /dev/zero > /tmp/big-$n || exit 9; done"
    assert stand.small.exec(fill, timeout=20).exit_code == 9
    stand.small.exec("rm -f /tmp/big-*", check=True)
    assert stand.ask("mlock", "32", box=stand.small)["mlock"] in ("EPERM", "ENOMEM", "EAGAIN")
    assert stand.small.exec("echo fine").stdout == "fine\n"


def disk_bomb(stand: Stand) -> None:
    result = stand.small.exec([PROBE, "disk"], timeout=20)
    assert result.reason == "disk", result
    one_file = stand.small.exec("rm -f disk-*; head -c 50000000 /dev/zero > one")
    assert one_file.exit_code != 0
    assert stand.small.files.stat("one").size <= 8 * MIB
    assert stand.small.exec("rm -f one; echo fine").stdout == "fine\n"


def inode_bomb(stand: Stand) -> None:
    limits = Limits(disk=8 * MIB)
    with Sandbox(limits=limits, home=stand.home) as box:
        box.files.upload(stand.program, "probe")
        box.files.mkdir("many")
        result = box.exec("./probe many 10000; sleep 20", timeout=20)
        assert result.reason == "disk", result


def output_bomb(stand: Stand) -> None:
    page = os.sysconf("SC_PAGESIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page

    gc.collect()
    before = resident()
    most = 0
    count = 0

    def look(_stream: str, data: bytes) -> None:
        nonlocal most, count
        count += len(data)
        most = max(most, resident())

    result = stand.box.exec("head -c 1G /dev/zero", on_output=look, max_output=MIB, timeout=60)
    assert count == 1024 * MIB
    assert len(result.stdout_bytes) == MIB
    assert result.truncated
    assert most - before < 64 * MIB


def descriptor_bombs(stand: Stand) -> None:
    found = {name: answer.split() for name, answer in stand.said("bombs").items()}
    assert found["descriptors"][1] == "EMFILE"
    assert all(int(number) < 256 for number, _answer in found.values()), found


def host_keeps_its_own(stand: Stand) -> None:
    with Sandbox(home=stand.home) as greedy:
        greedy.files.upload(stand.program, "probe")
        with greedy.spawn([PROBE, "hold"]) as process:
            process.wait_for(pattern="terminals")
            complain(parsed(_outside(stand, "one")), {"ok"})
            assert stand.ask("one")["terminal"] == "ok"


def nothing_stays(stand: Stand) -> None:
    marker = f"marker-{os.urandom(6).hex()}"
    stand.ask("zombies", "500", box=stand.small)
    assert stand.small.exec([PROBE, "daemon", marker]).exit_code == 0
    assert host_processes(marker) == []
    with Sandbox(home=stand.home) as box:
        box.files.upload(stand.program, "probe")
        box.spawn([PROBE, "daemon", marker]).wait(10)
        assert host_processes(marker) == []
        box.spawn([PROBE, "sleep", marker])
        assert host_processes(marker)
    assert host_processes(marker) == []


def processor_share(stand: Stand) -> None:
    state = next(s for s in stand.small.describe().limits if s.name == "cpus")
    if state.how != "enforced":
        with pytest.raises(CapabilityError):
            Sandbox(limits=Limits(cpus=0.5), require=["cpus"], home=stand.home)
        return
    result = stand.small.exec([PROBE, "spin", "2"], timeout=20)
    used = stand.small.stats().cpu_seconds
    assert used is not None
    assert (result.usage.cpu_seconds or 0) <= 0.5 * result.duration * 1.1 + 0.1


def oom_score(stand: Stand) -> None:
    before = stand.sh("cat /proc/self/oom_score_adj")
    after = stand.sh(
        "echo -1000 2>/dev/null > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"
    )
    assert after.split()[-1] == before.strip()
    assert int(before) >= int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii"))


def no_core(stand: Stand) -> None:
    result = stand.box.exec([PROBE, "crash"])
    assert result.reason == "signal", result
    assert not [name for name in stand.sh("ls -A").split() if "core" in name]
    assert stand.sh("ulimit -Hc").strip() == "0"


def limits_are_hard(stand: Stand) -> None:
    found = stand.said("limits")
    complain(found, {"EPERM"})
    assert {"rlimit-1", "rlimit-4", "rlimit-7"} <= set(found)


# --- Boxes, owners --------------------------------------------------------------------------------


def boxes_are_apart(stand: Stand) -> None:
    name, port = f"box-{os.urandom(4).hex()}", "4711"
    server = stand.spawn("serve", name, port)
    server.wait_for(pattern="ready")
    inside = stand.ask("reach", name, port)
    assert inside.pop("route") == "ENETUNREACH"
    complain(inside, {"ok"})
    complain(
        stand.ask("reach", name, port, box=stand.small), {"ECONNREFUSED", "ENOENT", "ENETUNREACH"}
    )
    from_host = parsed(_outside(stand, "reach", name, port))
    assert from_host["abstract"] == "ECONNREFUSED"
    assert from_host["tmp"] == from_host["shm"] == "ENOENT"
    server.kill()


def stubborn_is_gone(stand: Stand) -> None:
    for paused in (False, True):
        with Sandbox(home=stand.home) as box:
            box.files.upload(stand.program, "probe")
            process = box.spawn([PROBE, "stubborn"])
            process.wait_for(pattern="ready")
            watched = os.pidfd_open(process.pid)
            if paused:
                box.pause()
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        assert poll.poll(0)
        os.close(watched)


_OWNER = """
import os, signal, sys
from sandboxsdk import Home, Sandbox
with Sandbox(home=Home(sys.argv[1])) as box:
    box.files.upload(sys.argv[2], "probe")
    process = box.spawn(["/workspace/probe", "sleep", sys.argv[3]])
    box.pause()
    os.kill(os.getpid(), signal.SIGKILL)
"""
_NEXT = """
import sys
from sandboxsdk import Home, Sandbox
with Sandbox(home=Home(sys.argv[1])) as box:
    print(box.exec("echo fine").stdout)
"""


def frozen_orphan(stand: Stand) -> None:
    marker = f"marker-{os.urandom(6).hex()}"
    home = stand.directory / "orphan"
    done = _python(_OWNER, [str(home), str(stand.program), marker])
    assert done.returncode == -9, done
    assert _python(_NEXT, [str(home)]).stdout.split() == ["fine"]
    for _ in range(500):
        if not host_processes(marker):
            break
        clock.pause(0.02)
    assert host_processes(marker) == []


# --- Beyond the table -----------------------------------------------------------------------------


def no_setid_files(stand: Stand) -> None:
    found = dict(stand.said("setid"))
    assert found.pop("set-id-left") == "none"
    assert found.pop("mkdir") == "ok"
    complain(found, {"EPERM", "ENOSYS", "EINVAL"})


def handed_output(stand: Stand) -> None:
    name = f"take-{os.urandom(4).hex()}"
    taker = stand.spawn("take", name)
    taker.wait_for(pattern="ready")
    result = stand.box.exec([PROBE, "give", name], timeout=20)
    assert "given" in result.stdout.split(), result
    assert taker.poll() is None
    taker.kill()


def full_scratch(stand: Stand) -> None:
    with Sandbox(limits=Limits(memory=64 * MIB), home=stand.home) as box:
        box.exec("head -c 32M /dev/zero > /tmp/a; head -c 32M /dev/zero > ~/b")
        for path in ("/tmp/c", "/home/sandbox/c"):
            with pytest.raises(HostFull):
                box.files.write(path, b"x" * MIB)
        assert not box.files.exists("/tmp/c")
        box.files.write("c", b"x" * MIB)
        box.files.remove("/tmp/a", missing_ok=True)
        box.files.remove("/home/sandbox/b", missing_ok=True)
        box.files.write("/tmp/c", b"x" * MIB)


def traps_for_files(stand: Stand) -> None:
    stand.sh("mkdir -p traps && cd traps && mkfifo fifo && ln -s /etc/passwd link && ln -s / dir")
    stand.sh("cd traps && ln -s loop loop && ln -s /proc/self/fd/0 magic && truncate -s 8E sparse")
    files = stand.box.files
    for path in ("traps/fifo", "traps"):
        with pytest.raises(FileConflict):
            files.read_bytes(path)
    for path in ("traps/link", "traps/loop", "traps/magic", "traps/dir/etc/passwd"):
        with pytest.raises(Denied):
            files.read_bytes(path)
    if files.exists("traps/sparse"):
        with pytest.raises(SandboxError):
            files.read_bytes("traps/sparse")
    for path in ("traps/dir/tmp/x", "traps/link", "traps/magic"):
        with pytest.raises(Denied):
            files.write(path, "x")
    with pytest.raises(FileConflict):
        files.download("traps/fifo", stand.directory / "fifo")
    files.download("traps/link", stand.directory / "link")
    assert (stand.directory / "link").readlink() == Path("/etc/passwd")
    files.remove("traps", recursive=True)


def many_files(stand: Stand) -> None:
    with Sandbox(home=stand.home) as box:
        box.files.upload(stand.program, "probe")
        box.files.mkdir("many")
        box.exec([PROBE, "many", "30000"], check=True)
        assert len(box.diff()) == 30_002
        task = Path(box.task.directory)
    assert not task.exists()


def deep_tree(stand: Stand) -> None:
    with Sandbox(home=stand.home) as box:
        box.files.upload(stand.program, "probe")
        box.exec([PROBE, "deep", "4000"], check=True)
        assert len(box.diff()) >= 4000
        box.exec("mkdir second && mv d second/d")
        box.files.remove("second", recursive=True)
        box.exec([PROBE, "deep", "4000"], check=True)
        task = Path(box.task.directory)
    assert not task.exists()
