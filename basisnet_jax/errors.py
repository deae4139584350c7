"""The exceptions that are told in one line, without a traceback."""


class UserError(Exception):
    """A mistake of the user, who can mend it: exit code 2."""


class Unfinished(Exception):
    """Some of many runs failed or were stopped: exit code 1."""


class LostProcess(Exception):
    """Another process of this run is gone: exit code 1."""
