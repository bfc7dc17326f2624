"""What can be wrong with what a worker is given.

ValueError
└── JobError     the job file, a --set or a setting is wrong      exit code 2
    └── ModelError   a model of the user's own fails or misbehaves
Exception
└── DataError    the training data cannot be read                 exit code 14
"""


class JobError(ValueError):
    """A job file or setting that cannot be used; the message names it, its value and the remedy."""


class ModelError(JobError):
    """A model that raised, or returned something that no model returns."""


class DataError(Exception):
    """Training data that cannot be read.

    `path` is the file as it was given, or what stands in its place ("digits", "labels"); `line` is
    the true 1-based line of the file where there is one; `reason` says what is wrong and what to do.
    """

    def __init__(self, path: str, line: int | None, reason: str) -> None:
        super().__init__(path, line, reason)
        self.path = path
        self.line = line
        self.reason = reason

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{where}: {self.reason}"
