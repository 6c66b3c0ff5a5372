"""The exceptions that the command line turns into an exit status: bad input, and an audit that warns."""


class InputError(ValueError):
    """Bad input: a file, a setting or a combination of settings that cannot be used as it is.

    The message is written for the user of the command line: it names the argument in backticks, what was expected,
    what was given, and what to do. The command line prints it without a traceback and exits with status 2. Any other
    exception from this package is a bug.
    """


class AuditWarning(Exception):
    """An audit of the trained adapter warns, so that what comes after the training must not go on.

    Everything is written by then. The command line prints the message and exits with status 3.
    """
