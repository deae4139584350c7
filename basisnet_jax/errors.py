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


def one_line(text: str) -> str:
    """The text with line breaks as `\\n`, and with bytes of file names that are no UTF-8 as `\\udcXX`.

    Example:
      >>> print(one_line("a\\nb"))
      a\\nb
    """
    lines = "\\n".join(text.splitlines())
    return lines.encode("utf-8", "backslashreplace").decode()
