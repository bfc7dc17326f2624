"""What tensors and tables can be made."""

from __future__ import annotations

from protocol.messages import Spec
from psserver.store import dense, sparse

__all__ = ["check_spec"]


def check_spec(spec: Spec) -> None:
    """Raise ``BadRequest`` if nothing can be made of ``spec``."""
    if spec.table is not None:
        sparse.check_table(spec)
    else:
        dense.check_spec(spec)
