"""What can be wrong with what a worker is given.

ValueError
└── JobError     the job file, a --set or a setting is wrong      exit code 2
    └── ModelError   a model of the user's own fails or misbehaves
Exception
├── DataError    the training data cannot be read                 exit code 14
└── TrainingDiverged   the losses are no longer those of a model that learns   exit code 16
"""


class JobError(ValueError):
    """A job file or setting that cannot be used; the message names it, its value and the remedy."""


class ModelError(JobError):
    """A model that raised, or returned something that no model returns."""


class DataError(Exception):
    """Training data that cannot be read.

    `path` is the file as it was given, or what stands in its place ("digits", "labels"); `line` is
    the true 1-based line of the file where there is one, `row` the 1-based row of a file that has no
    lines; `column` is the name of the column; `reason` says what is wrong and what to do.
    """

    def __init__(
        self, path: str, line: int | None, reason: str, *, column: str | None = None, row: int | None = None
    ) -> None:
        super().__init__(path, line, reason)
        self.path = path
        self.line = line
        self.reason = reason
        self.column = column
        self.row = row

    def __str__(self) -> str:
        line = "" if self.line is None else f", line {self.line}"
        row = "" if self.row is None else f", row {self.row}"
        column = "" if self.column is None else f', column "{self.column}"'
        return f"{self.path}{line}{row}{column}: {self.reason}"


class TrainingDiverged(Exception):
    """Training has run away: at `step` the `loss` of a mini-batch, None if there was none, is too large.

    `reason` says what was found, `refused` why the job could not go back to a checkpoint, if it was asked to,
    and `unscaled` what is wrong with the sizes of the columns, if anything is known of them; the message also
    says what to do.
    """

    def __init__(
        self, step: int, loss: float | None, reason: str, *, refused: str = "", unscaled: str = ""
    ) -> None:
        super().__init__(step, loss, reason)
        self.step = step
        self.loss = loss
        self.reason = reason
        self.refused = refused
        self.unscaled = unscaled

    def __str__(self) -> str:
        loss = "" if self.loss is None else f" (loss {self.loss:.4g})"
        found = f"training diverged at step {self.step}{loss}: {self.reason}"
        lower = "lower [optimizer] lr, scale the features, or limit gradients with [optimizer] clip-norm"
        or_lower = "or lower [optimizer] lr, or limit gradients with [optimizer] clip-norm"
        remedy = f"{self.unscaled}; {or_lower}" if self.unscaled else lower
        if self.refused:
            return f"{found}; it does not go back: {self.refused}; {remedy}"
        return (
            f'{found}; {remedy}; or set [train] on-divergence = "lower-rate", to go back to the last '
            "checkpoint and on with a lower rate"
        )
