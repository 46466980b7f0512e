"""What bubblewrap is told for one command, and the environment that a command sees. (pure)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WORKSPACE = "/workspace"
HOME = "/home/sandbox"
GUEST_UID = 1000
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ETC = {
    "passwd": (
        "root:x:0:0:root:/home/sandbox:/bin/sh\n"
        "sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "# no resolver: this box has no network\n",
    "shells": "/bin/sh\n",
}


def environment(
    user: str, *, terminal: bool, path_first: Sequence[str], extra: Mapping[str, str]
) -> dict[str, str]:
    """Give the whole environment of a command: nothing of the caller's is in it."""
    found = {
        "PATH": ":".join([*path_first, PATH]),
        "HOME": HOME,
        "USER": user,
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - the guest's own
    }
    if terminal:
        found["TERM"] = "xterm-256color"
    return {**found, **extra}


def arguments(
    *,
    user: str,
    cwd: str,
    environment: Mapping[str, str],
    terminal: bool,
    linger: bool,
    hidden_files: Sequence[str],
    hidden_directories: Sequence[str],
) -> bytes:
    """Give bubblewrap's options, NUL-separated as `--args` reads them, so that `ps` shows none of
    them.

    Network, IPC and host name are the holder's; user, pid and cgroup namespaces are the command's
    own.
    """
    uid = "0" if user == "root" else str(GUEST_UID)
    options = ["--unshare-user", "--uid", uid, "--gid", uid, "--disable-userns"]
    options += ["--unshare-pid", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    if not terminal:
        options.append("--new-session")
    if not terminal and not linger:
        # A terminal's Ctrl-C kills bubblewrap itself; the holder then follows the init instead.
        options.append("--die-with-parent")
    # One bind brings the whole root: the holder mounted every part of it with its final flags, so
    # that bubblewrap, which would do it again for each command, finds nothing to change.
    options += ["--dev-bind", "/box", "/", "--proc", "/proc"]
    # Read-only already, like everything in the holder's root; so here, too, nothing is remounted.
    for name in hidden_files:
        options += ["--dev-bind", "/void", name]
    for name in hidden_directories:
        options += ["--dev-bind", "/hollow", name]
    options += ["--dev-bind", "/boot_id", "/proc/sys/kernel/random/boot_id"]
    options += ["--chdir", cwd, "--clearenv"]
    for name, value in environment.items():
        options += ["--setenv", name, value]
    return b"".join(option.encode("utf-8", "surrogateescape") + b"\0" for option in options)
