"""`python -m benchmarks NAME [options]`: each benchmark is a module with a `main(arguments)`."""

import sys

from benchmarks import (
    csv_memory,
    ctr,
    dense,
    durability,
    heartbeats,
    hostile,
    models,
    online,
    optimizers,
    parquet,
    pushes_per_second,
    screenshots,
    sizing,
    sparse,
    staleness,
    tls,
)
from benchmarks.experiments import command as experiments

BENCHMARKS = {
    "csv-memory": csv_memory.main,
    "ctr": ctr.main,
    "dense": dense.main,
    "durability": durability.main,
    "experiments": experiments.main,
    "heartbeats": heartbeats.main,
    "hostile": hostile.main,
    "models": models.main,
    "online": online.main,
    "optimizers": optimizers.main,
    "parquet": parquet.main,
    "screenshots": screenshots.main,
    "sizing": sizing.main,
    "small-pushes": pushes_per_second.main,
    "sparse": sparse.main,
    "staleness": staleness.main,
    "tls": tls.main,
}


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names; return the exit status."""
    if not arguments or arguments[0] not in BENCHMARKS:
        asked = arguments[0] if arguments else "none"
        names = ", ".join(BENCHMARKS)
        print(f"benchmark: {asked}; give one of: {names} (each has --help)", file=sys.stderr)
        return 2
    try:
        return BENCHMARKS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
