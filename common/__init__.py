"""What every script uses: command lines and files that can be resumed.

Scripts import this package first (ruff's import order enforces this). From then on, Ctrl-C prints one line, even while
PyTorch is still being imported.
"""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _interrupted(*_):
    print("\nstopped before anything was done", file=sys.stderr, flush=True)
    os._exit(130)


_script = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
if ROOT in (_script.parent, _script.parent.parent):             # one of ours, not pytest or a notebook
    signal.signal(signal.SIGINT, _interrupted)
