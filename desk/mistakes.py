"""Mistakes: the Markdown files of the later rounds. Each holds a detector and the hint against what it detects
(paper §3.2).

    +++
    templates = ["opening price"]             # or groups = […]; without either, all tasks
    regex = 'complete_task'                   # the detector: one of DETECTORS, or judge = '…'
    +++
    Print what you looked up before you complete the task.

A new kind of detector is a function and its line in DETECTORS. docs/hints.md shows one.
"""

from common import files

import re
import signal
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from formats import records

PATIENCE = 5                                      # seconds that a detector may take for one step

Detect = Callable[[dict, dict], Any]              # detect(trajectory, step) → true if the step has the mistake


# ---- kinds of detectors

def search_code(pattern: str, place: str) -> Detect:
    """`regex = '…'` flags a step if the pattern occurs in its code."""
    compiled = compile_pattern(pattern, place)
    return lambda trajectory, step: compiled.search(step["code"])


def call_function(source: str, place: str) -> Detect:
    """`python = '…'` flags a step if the coach's own function detect(trajectory, step) says so. It is trusted code."""
    namespace = {"re": re}
    with patience(place):
        exec(compile(source, place, "exec"), namespace)
    if not callable(namespace.get("detect")):
        raise ValueError(f"{place}: no function detect(trajectory, step)")
    return namespace["detect"]


# Field of the header → a function of the field's text and of its place ("FILE, field 'NAME'") that returns `detect`,
# or raises ValueError if the text is wrong. `judge = '…'` is missing here: a model decides that, in judge.py.
DETECTORS = {
    "regex": search_code,
    "python": call_function,
}


def compile_pattern(pattern: str, place: str) -> re.Pattern:
    """A regular expression in which ^ and $ match at every line. Raises ValueError, naming the place."""
    try:
        return re.compile(pattern, re.M)
    except re.error as e:
        raise ValueError(f"{place}: {e}") from None


# ---- a time limit and errors for the coach's own code

class TooSlow(BaseException):
    """Not an Exception, so that a detector that catches every Exception does not catch it."""


@contextmanager
def patience(place: str) -> Iterator[None]:
    """Runs a coach's own code for at most PATIENCE seconds. Raises ValueError, naming the place, if it takes longer or
    fails."""
    def too_slow(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    try:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        yield
    except TooSlow:
        raise ValueError(f"{place}: no answer after {PATIENCE} seconds") from None
    except (Exception, SystemExit) as e:
        raise ValueError(f"{place}: {type(e).__name__}: {e}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ---- mistakes

class Mistake:
    """One file: which steps have the mistake, and the hint against it."""

    def __init__(self, file: Path):
        """Raises ValueError, naming the file, the field and what is wrong."""
        self.file, self.name = file, file.stem
        header, self.hint = read_parts(file)
        kinds = [*DETECTORS, "judge"]
        check_fields(file, header, {"groups": [str], "templates": [str]} | dict.fromkeys(kinds, str))
        self.groups, self.templates = header.get("groups"), header.get("templates")
        given = [kind for kind in kinds if kind in header]
        detector_and_judge = len(given) == 2 and given[1] == "judge"
        if len(given) != 1 and not detector_and_judge:
            raise ValueError(f"{file}: give one of {listed(kinds)}, or a detector and the judge that is compared with "
                             f"it, not {' and '.join(given) or 'none'}")
        self.kind = given[0]
        self.place = f"{file}, field {self.kind!r}"
        self.judge = header.get("judge")                              # the description for the LLM judge, or None
        self.detect = DETECTORS[self.kind](header[self.kind], self.place) if self.kind in DETECTORS else None

    def concerns(self, task: dict) -> bool:
        """Is the mistake looked for in this task?"""
        return ((self.groups is None or task["group"] in self.groups)
                and (self.templates is None or task["template"] in self.templates))

    def first_step(self, trajectory: dict) -> int | None:
        """The number of the first step that has the mistake, or None. Raises ValueError if the detector fails."""
        if not self.concerns(trajectory["task"]):
            return None
        key = trajectory["id"]                                     # a detector may change the record
        for n, step in enumerate(trajectory["steps"]):
            with patience(f"{self.place}: on step {n + 1} of {key}"):
                found = bool(self.detect(trajectory, step))
            if found:
                return n
        return None


def load_mistakes(directory: str | Path) -> list[Mistake]:
    """All mistakes of a round, <directory>/*.md. Raises ValueError if there is none."""
    paths = sorted(Path(directory).glob("*.md"))
    if not paths:
        raise ValueError(f"{directory}: no *.md file with a mistake there")
    return [Mistake(file) for file in paths]


def read_parts(file: Path) -> tuple[dict, str]:
    """A mistake's file → its header and its hint."""
    parts = re.split(r"^\+\+\+[ \t]*$", files.read_text(file), flags=re.M)
    if len(parts) != 3 or parts[0].strip():
        raise ValueError(f"{file}: a mistake begins with a header between two lines of +++, and its hint stands below")
    try:
        header = tomllib.loads(parts[1])
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{file}: the header between the +++ lines is not TOML: {e}") from None
    hint = parts[2].strip()
    if not hint:
        raise ValueError(f"{file}: no hint below the header")
    return header, hint


def check_fields(file: Path, header: dict, schema: dict) -> None:
    """Raises ValueError if the header has a field that the schema lacks, or one of another type."""
    if unknown := header.keys() - schema.keys():
        raise ValueError(f"{file}, field {min(unknown)!r}: unknown; there are {listed(list(schema))}")
    if wrong := records.mismatch(header, {f"{field}?": kind for field, kind in schema.items()}):
        raise ValueError(f"{file}, field {wrong[0]!r}: {wrong[1]}")


def listed(names: list[str]) -> str:
    """["a", "b", "c"] → "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]])


# ---- flagged states

class Finding(NamedTuple):
    """A mistake in a trajectory, and the number of the first step that has it."""
    trajectory: dict
    mistake: Mistake
    step: int


def flag(trajectory: dict, mistake: Mistake, n: int) -> dict:
    """The flagged state: the trajectory cut before step n, the mistake that was made there, and the hint against it."""
    rejected = {k: trajectory["steps"][n][k] for k in ("monologue", "code", "observation")}
    return {k: v for k, v in trajectory.items() if k != "targets"} | {
        "id": f"{trajectory['id']}!{mistake.name}",
        "steps": trajectory["steps"][:n],
        "mistake": {"name": mistake.name, "step": n, "rejected": rejected},
        "hint": {"name": mistake.name, "text": mistake.hint}}
