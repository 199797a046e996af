"""Checks that the options of several commands share."""


def check_at_least(options: object, **least: int) -> None:
    """Raise unless each named option has at least its least value.

    Args:
        options: dataclass that has the named fields.
        **least: name of a field -> its least value.

    Raises:
        ValueError: an option is smaller.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
