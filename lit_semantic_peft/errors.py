"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """Bad input: a file, a setting or a combination of settings that cannot be used as it is.

    The message is written for the user of the command line: it names the argument in backticks, what was expected,
    what was given, and what to do. The command line prints it without a traceback and exits with status 2. Any other
    exception from this package is a bug.
    """
