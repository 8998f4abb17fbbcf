"""The errors that are meant for somebody: for the person who caused one, and for who runs the store."""


class InputError(ValueError):
    """Bad input: a file, a field, a value. The message is one line and ends with the fix.

    The command line prints it without a traceback and exits with status 2.
    """


class StoreError(RuntimeError):
    """A store is gone, or cannot take more. The message is one line and ends with the fix.

    Nothing was changed that was not reported as done, but for an append that a lost connection has cut off: events with
    ids may be sent again. A service goes on without the store, and tries it again.
    """


def one_of(name: str, value: object, known: list[str]) -> InputError:
    """`value` is not one of the known names: say so, and which are."""
    return InputError(f"{name} = {value!r} is not known; use one of: {', '.join(sorted(known))}")
