"""The error that is meant for the person who caused it."""


class InputError(ValueError):
    """Bad input: a file, a field, a value. The message is one line and ends with the fix.

    The command line prints it without a traceback and exits with status 2.
    """


def one_of(name: str, value: object, known: list[str]) -> InputError:
    """`value` is not one of the known names: say so, and which are."""
    return InputError(f"{name} = {value!r} is not known; use one of: {', '.join(sorted(known))}")
