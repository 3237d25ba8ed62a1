"""Command lines: numbers within limits, defaults in --help, and one line for every error."""

from common import ROOT

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """A type for argparse: it turns a text into an int or a float from `low` to `high`."""
    def parse(text):
        try:
            value = kind(text)
            if low <= value <= high and abs(value) < 2 ** 63 and math.isfinite(value):     # what PyTorch can count
                return value
        except (ValueError, OverflowError):
            pass
        what = "a whole number" if kind is int else "a number"
        limits = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} {limits}")
    return parse


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line gives a one-line error, and descriptions keep their line breaks."""

    def __init__(self, description: str | None = None, **others):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **others)

    def add_argument(self, *names, **options):
        """An option's help ends with its default."""
        if options.get("default") not in (None, "", []):
            default = options["default"]
            several = isinstance(default, (list, tuple))
            shown = " ".join(map(str, default)) if several else str(default).removeprefix(f"{ROOT}/")
            options["help"] = f"{options.get('help', '')} [{shown}]".strip()
        return super().add_argument(*names, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see --help\n")


OUT_OF_MEMORY = re.compile("out of memory|not enough memory|allocate memory|size calculation overflow")
LOST = re.compile("closed by peer|reset by peer|Broken pipe")     # what gloo says when another process has ended


class Abandoned(ValueError):
    """Bad input that is found while other threads wait for an endpoint; the process ends without them."""


def run_stage(main: Callable[[], None]) -> None:
    """Calls a stage's main. Bad input ends in one line and exit status 2, Ctrl-C in one line and status 130.

    With DEBUG set in the environment, errors keep their traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = Path(sys.argv[0]).name
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("DEBUG"):
            raise
        print(f"{name}: {' '.join(str(error).split(chr(10)))}", file=sys.stderr, flush=True)
        if isinstance(error, Abandoned):
            os._exit(2)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:                  # PyTorch reports a lack of memory as a RuntimeError
        memory = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))
        lost = "WORLD_SIZE" in os.environ and LOST.search(str(error))
        if os.environ.get("DEBUG") or not (memory or lost):
            raise
        if lost and not memory:
            print(f"{name}: another process ended; its message says why", file=sys.stderr, flush=True)
            os._exit(2)                                           # gloo's threads would abort a normal exit
        print(f"{name}: out of memory ({' '.join(str(error).split())[:150]}); a smaller --batch, --row or --max-length "
              "needs less memory, and --plan shows how much (where this script has them); what was written is kept",
              file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        what = str(stopped) or "what was written is kept; the same command resumes from there"
        print(f"\nstopped; {what}", file=sys.stderr, flush=True)
        os._exit(130)                                             # without the threads that wait for an endpoint
