"""A job that is read and learned at once: points around the corners of a cube, a class at each corner.

The demo's digits cost each worker a second, for scikit-learn takes that long to import; they are for tests
that are about learning, or about the demo.
"""

from pathlib import Path

import numpy as np

NAME = "points"
ROWS = 800
FEATURES = 3
CLASSES = 8
EPOCHS = 60
EXAMPLES_AT_ONCE = 20  # of a mini-batch


def write_points(directory: Path) -> Path:
    """Write the points and their job, synchronous until it is told otherwise; return the job file."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=ROWS)
    corners = (labels[:, None] >> np.arange(FEATURES)) & 1
    points = corners + rng.normal(scale=0.2, size=(ROWS, FEATURES))
    data = directory / "points.csv"
    np.savetxt(data, np.c_[points, labels], fmt="%.4f,%.4f,%.4f,%d", header="x,y,z,label", comments="")
    job = directory / "points.toml"
    job.write_text(
        f"""
        [job]
        name = "{NAME}"
        [model]
        kind = "softmax"
        [data]
        source = "{data}"
        classes = {[str(label) for label in range(CLASSES)]}
        chunk-rows = 100
        [train]
        epochs = {EPOCHS}
        batch-size = {EXAMPLES_AT_ONCE}
        staleness = 0
        [optimizer]
        lr = 0.5
        [eval]
        every = "20 epochs"
        holdout = 0.2
        """
    )
    return job
