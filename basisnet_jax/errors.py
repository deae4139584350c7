"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake of the user: the command line prints its one line and exits with code 2."""
