"""The exceptions that are told in one line, without a traceback."""


class UserError(Exception):
    """A mistake of the user, who can mend it: exit code 2.

    Example:
      >>> import basisnet_jax
      >>> try:
      ...     basisnet_jax.load("nowhere")
      ... except UserError as error:
      ...     print(error)
      nowhere holds neither config.json nor model.json: expected a workdir or an export
    """


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
