class PreflightError(RuntimeError):
    """A run that cannot succeed: says what is missing and what to do, in one line."""
