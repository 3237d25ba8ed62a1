"""What a model is told when its code fails: its own line and the message, at most five lines, none of our paths.

    print(explain(error, given))          # given: {name: function} of what the code is given, with complete_task

The code's file names begin with "<python ", one for each step; linecache knows their lines.
"""
import errno
import importlib.util
import inspect
import linecache
import re
import traceback

LINES = 5
PACKAGES = "numpy", "pandas", "scipy"                    # named where they are installed
SHELL = re.compile(r"\s*([!%]|(python3? -m )?pip3? )")   # a line that a notebook or a shell would take
NOTHING_PRINTED = "(nothing was printed: print(x) shows a value, x alone on the last line does not)\n"
REDEFINED = ("Note: complete_task and the tools are given and need no definition. "
             "The next step has the given {} again.\n")


def explain(error: BaseException, given: dict) -> str:
    """A few lines on an error that the agent's code has raised."""
    if isinstance(error, SystemExit):
        said = f"{error.code}\n" if isinstance(error.code, str) else ""     # sys.exit("no such day")
        return f"{said}The task goes on. Only complete_task(report, answer) ends it.\n"
    if isinstance(error, ImportError) and error.name:
        return explain_import(error, given)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if own(frame.filename)]
    if isinstance(error, SyntaxError) and not frames and own(error.filename):
        return explain_syntax(error)
    # Where this step's code stood and where the error was raised; the calls between are left out.
    places = [f'  File "<python>", line {frame.lineno}, in {frame.name}\n    {frame.line}'
              for frame in [*frames[:1], *frames[1:][-1:]]]
    message = "".join(traceback.format_exception_only(error)).splitlines()
    message = message[-1:] if isinstance(error, SyntaxError) else message[:LINES - 2 * len(places)]
    message[-1] += advice(error, given)
    header = ["Traceback (most recent call last):"] * (bool(places) and 2 * len(places) + len(message) < LINES)
    return "\n".join([*header, *places, *message, ""])


def own(filename: str | None) -> bool:
    return (filename or "").startswith("<python ")


def explain_import(error, given):
    """What can be imported here instead."""
    if not isinstance(error, ModuleNotFoundError):
        name = re.search(r"cannot import name '(\w+)'", str(error))
        what = f"{error.name} has no {name[1]}" if name else f"{error.name} cannot be imported"
        what += f"; the tools are {', '.join(given)}" if error.name == "tools" else ""
        return f"ImportError: {what}\n"
    there = " and ".join(["the standard library", *filter(importlib.util.find_spec, PACKAGES)])
    return (f"ModuleNotFoundError: there is no {error.name} here, only {there}; "
            "complete_task and the tools are defined already and need no import\n")


def explain_syntax(error):
    """The line that is not Python."""
    error.text = error.text or linecache.getline(error.filename, error.lineno or 0)
    if SHELL.match(error.text):
        return f"SyntaxError: {error.text.strip()[:80]}: there is no shell and no network here, only Python\n"
    lines = "".join(traceback.format_exception_only(error)).replace(f'"{error.filename}"', '"<python>"').splitlines()
    return "\n".join([*lines[:LINES - 1], *lines[LINES - 1:][-1:], ""])


def advice(error, given):
    """What the message itself does not say."""
    call = re.match(r"(\w+)\(\) (missing|takes|got) ", str(error)) if isinstance(error, TypeError) else None
    if call and call[1] in given:
        return f"; it is called as {call[1]}{inspect.signature(given[call[1]])}"
    offline = type(error).__module__ in ("urllib.error", "socket")
    if isinstance(error, OSError) and (offline or error.errno == errno.EPERM):
        return "; there is no shell, no network and no asyncio here"
    return ""
