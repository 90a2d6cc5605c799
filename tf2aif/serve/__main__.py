"""`python -m tf2aif.serve FOLDER`: serve one variant. This is what an image runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from ..errors import Tf2aifError
from .arguments import read_arguments
from .run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit code."""
    config = read_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        run(config, announce=lambda line: print(line, flush=True))
    except Tf2aifError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    # A hook or an engine that hangs must not keep the process from ending.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
