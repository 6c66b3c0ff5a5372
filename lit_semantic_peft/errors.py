"""The one exception that means: something the user gave cannot be used."""


class InputError(ValueError):
    """Bad input: a file, a setting or a combination of settings that cannot be used as it is.

    The message is written for the person who typed the command: it names the argument in backticks, what was
    expected, what came, and what to do. The command line prints it without a traceback and exits with status 2.
    Everything else that is raised in this package is a bug.
    """
