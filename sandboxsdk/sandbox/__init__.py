"""What a user works with: the Sandbox, its commands, processes and files.

Knows tasks, workspaces and the runtime port; must not know namespaces, journals' lines or overlay's
markers.

Invariants: nothing that a box started outlives its block; every wait has an end that the caller can
set; what was printed before a command was killed is in the error that says so.
"""

from .files import Files, TransferReport
from .process import Process
from .sandbox import Sandbox

__all__ = ["Files", "Process", "Sandbox", "TransferReport"]
