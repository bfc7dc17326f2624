"""What an operator types, and local clusters for tests and notebooks."""

from psctl.child import ProcessFailed
from psctl.cluster import LocalCluster

__all__ = ["LocalCluster", "ProcessFailed"]
