"""The program that keeps a box alive: a fork server and one holder process per entered box.

It runs outside the caller's process (`python -I -S`), single-threaded, on the standard library and
`sandboxsdk.syscalls` alone, so that it starts in milliseconds and can fork and unshare safely. It
knows namespaces, mounts, descriptors and process ids; it must not know tasks, checkpoints or what a
command means, and it does no work on guest data: everything a command prints goes straight to the
caller.

Invariants:
- A holder is PID 1 of its box's pid namespace: when it dies, for whatever reason, the kernel kills
  every process of the box before anybody can see the holder as dead.
- A holder dies when its owner does (a pidfd of the owner, and the end of the control socket).
- A command is reported as ended only when every process it started is dead.
- Nothing that a holder mounts is visible outside its own mount namespace.
"""

from .wire import Channel, adopt, pair

__all__ = ["Channel", "adopt", "pair"]
