class UserError(Exception):
    """What the user can mend: one line says what is wrong and what to do. Tools print no traceback."""
