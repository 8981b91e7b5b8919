"""The errors a reader of the console can act on."""


class InputError(ValueError):
    """Bad input that was found before any expensive work."""


class TrainingError(RuntimeError):
    """A training that can't go on; what it has learnt until its last checkpoint is kept."""


class LabellerError(RuntimeError):
    """A labeller that can't go on; the answers that it has given are kept."""
