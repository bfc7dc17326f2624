"""The worker: a client for the parameter server, and a daemon that trains with it."""

from protocol.optimizers import (
    DCSGD,
    FTRL,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Add,
    Cosine,
    InverseSqrt,
    Momentum,
    Nesterov,
    RMSProp,
    Step,
)
from protocol.tables import Normal, Uniform, Zeros
from protocol.tls import TLS
from psworker.client import Client, connect
from psworker.keys import hash_features
from psworker.rows import SparseGradient
from psworker.tables import SparseTable

__all__ = [
    "DCSGD",
    "FTRL",
    "SGD",
    "TLS",
    "Adagrad",
    "Adam",
    "AdamW",
    "Add",
    "Client",
    "Cosine",
    "InverseSqrt",
    "Momentum",
    "Nesterov",
    "Normal",
    "RMSProp",
    "SparseGradient",
    "SparseTable",
    "Step",
    "Uniform",
    "Zeros",
    "connect",
    "hash_features",
]
