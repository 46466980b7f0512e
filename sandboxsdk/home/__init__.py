"""The home: the one directory where everything is kept, and the one place where settings meet
engines.

Invariants: it belongs to us alone; what a crash leaves in it is recognised by a lock that nobody
holds any more; a newer format is refused before anything is read.
"""

from .home import Home
from .opening import FORMAT

__all__ = ["FORMAT", "Home"]
