"""Whether a process's network has a TCP server on a port, read from the kernel's tables."""

from __future__ import annotations

_LISTEN = "0A"


def listens(pid: int, port: int) -> bool:
    """Look into the network namespace of process `pid`, without connecting to anything."""
    wanted = f"{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
                next(file, "")
                for line in file:
                    fields = line.split()
                    if fields[3] == _LISTEN and fields[1].rpartition(":")[2] == wanted:
                        return True
        except OSError:
            continue
    return False
