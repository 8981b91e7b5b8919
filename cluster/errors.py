"""The errors a reader of the console can act on."""


class InputError(ValueError):
    """Bad input that was found before any expensive work."""
