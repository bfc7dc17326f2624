"""Training data: batches, and the sources they are read from, chunk by chunk."""

from psworker.data.batch import Batch, minibatches
from psworker.data.source import Source, open_source
from psworker.data.split import Part

__all__ = ["Batch", "Part", "Source", "minibatches", "open_source"]
