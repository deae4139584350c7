"""The process of the command. While it still imports, Ctrl-C ends it without a traceback: nothing has begun."""

import signal
import sys


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a verb runs, see `interrupts.handled`
    from basisnet_jax import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
