"""What MMEngine's `get_model` expects of each package."""


def register_all_modules(init_default_scope: bool = True) -> None:
    """Nothing to do, as importing mmdat registers all of it."""
