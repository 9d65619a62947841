"""`kubenetmon` and `python -m kubenetmon`: parse, run, and turn every error into one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kubenetmon import cli
from kubenetmon.errors import KubenetmonError, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 cannot go on, 2 bad input, 130 interrupted."""
    try:
        return cli.run(sys.argv[1:] if arguments is None else arguments)
    except KubenetmonError as error:
        print(printable(f"kubenetmon: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough.
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
