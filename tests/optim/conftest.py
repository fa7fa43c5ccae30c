from ..tiny import tiny  # noqa: F401
