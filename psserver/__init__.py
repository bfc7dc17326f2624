"""The server: stores a shard of every job's parameters and applies the workers' updates to them."""

import os

# The server's largest BLAS call is a dot product over a quarter of a megabyte: a second thread would not
# make it faster but would spin beside the event loop. Must be said before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
