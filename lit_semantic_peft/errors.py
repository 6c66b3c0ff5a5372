"""The exceptions that the command line turns into an exit status: bad input, and an audit that warns."""

LARGEST_SEED = 2**32 - 1
"""As numpy and Lightning take it."""


class InputError(ValueError):
    """Bad input: a file, a setting or a combination of settings that cannot be used as it is.

    The message is written for the user of the command line: it names the argument in backticks, what was expected,
    what was given, and what to do. The command line prints it without a traceback and exits with status 2. Any other
    exception from this package is a bug.
    """


def require_seed(seed: int, setting: str = "seed") -> None:
    """Refuses a seed that a random generator does not take.

    Args:
        seed: The seed.
        setting: Its name.

    Raises:
        InputError: If it is not in [0, `LARGEST_SEED`].
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"`{setting}` must be at least 0 and at most {LARGEST_SEED}, got {seed}")


class AuditWarning(Exception):
    """An audit of the trained adapter warns, so that what comes after the training must not go on.

    Everything is written by then. The command line prints the message and exits with status 3.
    """
