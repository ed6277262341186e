"""The exceptions that users see as a single line. No other module defines exceptions for bad input."""


class SublimError(Exception):
    """Bad input: the message is one line that names what was wrong, where, and the valid choices.

    The command line prints it and exits with code 2; nothing has been written when it is raised.
    """


def said_of(error: Exception) -> str:
    """What an exception of others' code says, as one line that is never empty."""
    return " ".join(f"{type(error).__name__} {error}".split())[:300]


class DeadEnd(SublimError):
    """The work was done and led nowhere, such as a teacher of whose answers the filter leaves none.

    Done again it ends the same, so a sweep tells of it and goes on, where any other error stops.
    """


class TooLong(SublimError):
    """A text does not fit the model that is to read it."""


class OutOfMemory(SublimError):
    """A GPU has no room for some work. With the GPU to itself the same work may fit."""
