"""The worker: a client for the parameter server, and a daemon that trains with it."""

from protocol.optimizers import SGD, Add
from psworker.client import Client, connect

__all__ = ["SGD", "Add", "Client", "connect"]
