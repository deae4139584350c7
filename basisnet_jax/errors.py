"""The exceptions that are told in one line, without a traceback."""


class UserError(Exception):
    """A mistake of the user, who can mend it: exit code 2.

    `result` is what was computed and could not be written, as text: the command prints it.

    Example:
      >>> raise UserError("config.batch_size=-8, expected a whole number above 0")
      Traceback (most recent call last):
      basisnet_jax.errors.UserError: config.batch_size=-8, expected a whole number above 0
    """

    def __init__(self, message: str = "", *, result: str = ""):
        super().__init__(message)
        self.result = result


class Unfinished(Exception):
    """Some of many runs failed or were stopped: exit code 1."""


class LostProcess(Exception):
    """Another process of this run is gone: exit code 1."""
