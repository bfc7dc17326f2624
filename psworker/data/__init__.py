"""Training data: batches, and the sources they are read from, chunk by chunk."""

from psworker.data.batch import Batch, minibatches
from psworker.data.source import Source, open_source
from psworker.data.split import Split

__all__ = ["Batch", "Source", "Split", "minibatches", "open_source"]
