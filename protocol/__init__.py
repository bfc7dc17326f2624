"""What travels between asyncps processes, and what every asyncps command agrees on.

The wire is described for implementers of other clients in ``docs/protocol.md``.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
