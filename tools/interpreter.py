"""The sandbox's interpreter: runs the agent's code, step by step, in one namespace."""
import json
import linecache
import os
import random
import select
import sys
import threading
import types
import warnings
from collections.abc import Callable

from tools.explain import REDEFINED, explain, own


class Completed(BaseException):
    """Raised by complete_task to leave the step's code."""


def interpret(requests: int, replies: int, output: int, functions: dict[str, Callable], limit: int) -> None:
    """Runs code forever. It may break this process in any way: its warden then starts another."""
    def reply(*parts):
        os.write(replies, b"\n" + json.dumps([nonce, *parts]).encode() + b"\n")     # whatever was written before

    def complete_task(report, answer):
        """Ends the task with a report of what was done and the answer."""
        texts = cut(str(report), bound), cut(str(answer), bound)
        if not console.closed:
            console.flush()
        reply(*texts)
        select.select([requests], [], [])                # the step is over, even if the code catches what is raised
        raise Completed

    complete_task.__qualname__ = "complete_task"         # what a TypeError calls it
    bound = 8 * limit                                    # below a reply's mebibyte; the warden cuts to the limit
    sys.argv = sys.orig_argv = [""]
    random.seed(0)                                       # the same in every run, as a fixed hash seed is
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    given = functions | {"complete_task": complete_task}
    module = sys.modules["tools"]                        # what `from tools import complete_task` reads
    quiet(given)
    for step, line in enumerate(open(requests), 1):
        nonce, code = json.loads(line)
        for names in vars(main), vars(module):           # also what an earlier step has redefined
            names.update(given)
        os.dup2(output, 1)
        os.dup2(output, 2)
        console = sys.stdout = sys.stderr = opened()
        name = f"<python {step}>"                        # so that tracebacks find the lines of earlier steps
        linecache.cache[name] = len(code), None, code.splitlines(True), name
        try:
            exec(compile(code, name, "exec"), vars(main))
        except Completed:
            pass
        except BaseException as error:
            console = opened() if console.closed else console
            try:
                console.write(cut(explain(error, given), bound))
            except BaseException:                        # say its text does not fit into memory
                console.write(f"{type(error).__name__}, with a text that cannot be shown\n")
        console = opened() if console.closed else console            # by the code
        if redefined := [name for name in given if vars(main).get(name) is not given[name]]:
            console.write(REDEFINED.format(", ".join(redefined)))
        console.flush()
        reply()


def opened():
    """The step's output as a text file."""
    return open(1, "w", buffering=1, errors="backslashreplace", closefd=False)


def quiet(given):
    """Makes Python leave our paths out of what it writes on its own account, or not write it."""
    sys.unraisablehook = lambda _: None                  # an exception in a __del__, mostly the library's
    threading.excepthook = lambda thread: (
        issubclass(thread.exc_type, (Completed, SystemExit)) or sys.stderr.write(explain(thread.exc_value, given)))
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")      # after asyncio.run has failed
    whole = warnings.formatwarning
    warnings.formatwarning = lambda message, category, filename, *rest: (
        whole(message, category, filename, *rest) if own(filename) else f"{category.__name__}: {message}\n")


def cut(text: str, limit: int, dropped: int = 0) -> str:
    """The text, or its beginning and its end with a note of how much is missing; `dropped` characters already are."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half + dropped:,} characters left out …]\n{text[-half:]}"
