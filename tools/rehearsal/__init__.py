"""ToolQA's corpora and questions, made up. One file per group, with `write_corpus`, `draw_tasks`, `TEMPLATES`."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A kind of question. Its name and its numbers of tasks are those of the authors' released questions;
    the wordings are ours."""

    name: str
    counts: tuple[int, int, int]                       # tasks in train, val and test
    unseen: tuple[int, int, int]                       # the same in train-unseen, val-unseen and test-unseen
    wordings: tuple[str, ...]
    arguments: object                                  # how the group draws what a wording's braces stand for
    answer: Callable                                   # the raw rows → the answer; None if it is ambiguous or empty

    @property
    def size(self) -> int:
        """How many tasks are needed: both ways of splitting share them."""
        return max(sum(self.counts), sum(self.unseen))


def rounded(value: float | None, digits: int) -> str | None:
    """The value with this many decimals; None where rounding is ambiguous (12.25), or for "-0.0"."""
    if value is None or abs(value * 10 ** digits % 1 - 0.5) < 1e-6:
        return None
    text = f"{value:.{digits}f}"
    return None if value < 0 and float(text) == 0 else text


def mean(numbers: Sequence[float]) -> float | None:
    """The mean; None if there are no numbers."""
    return math.fsum(numbers) / len(numbers) if numbers else None


def only_largest(scores: Iterable[tuple]) -> object:
    """The key with the largest score, of pairs (score, key); None if two keys share it."""
    scores = sorted(scores, reverse=True)
    tied = len(scores) > 1 and abs(scores[0][0] - scores[1][0]) < 1e-9
    return scores[0][1] if scores and not tied else None


def with_unit(number: str | None, unit: str) -> str | None:
    return None if number is None else f"{number}{unit}"


def draw(rng: random.Random, templates: Sequence[Template], corpus: object) -> dict[str, list[tuple[dict, object]]]:
    """{template's name: [(arguments, answer), …]}, as many as the template needs, or fewer if 300 attempts
    per task do not yield them; none twice.

    template.arguments(rng, corpus) draws a dict for the wordings; template.answer(corpus, **dict) answers it.
    """
    drawn = {}
    for template in templates:
        tasks = {}
        for _ in range(300 * template.size):
            arguments = template.arguments(rng, corpus)
            answer = None if arguments is None else template.answer(corpus, **arguments)
            if answer is not None:
                tasks.setdefault(tuple(arguments.values()), (arguments, answer))
            if len(tasks) == template.size:
                break
        drawn[template.name] = list(tasks.values())
    return drawn


def settled(answer: Callable, key: Callable) -> Callable:
    """answer(rows), or None if it depends on which of several rows with the same key(row) counts."""
    def same(rows, **wanted):
        found = answer(rows, **wanted)
        if found is None:
            return None
        first, last = ({key(row): row for row in some} for some in (reversed(rows), rows))
        return found if all(answer(list(some.values()), **wanted) == found for some in (first, last)) else None
    return same


def the_only(values: Iterable) -> object:
    """The single value; None if there is none, if it is empty, or if there are two."""
    values = set(values)
    return (values.pop() or None) if len(values) == 1 else None


def all_best(scores: Iterable[tuple], most: int = 4) -> str | list[str] | None:
    """The key with the largest score, of pairs (score, key); a list if several share it, None if they are too many."""
    scores = list(scores)
    largest = max(score for score, _ in scores) if scores else None
    best = sorted({key for score, key in scores if abs(score - largest) < 1e-9})
    return None if not 0 < len(best) <= most else best[0] if len(best) == 1 else best


def miles(a: Sequence[float], b: Sequence[float]) -> float:
    """The distance between two places (latitude, longitude), on a globe with a radius of 3,959 miles."""
    north_a, east_a, north_b, east_b = map(math.radians, (*a, *b))
    half = math.sin((north_b - north_a) / 2) ** 2 + (
        math.cos(north_a) * math.cos(north_b) * math.sin((east_b - east_a) / 2) ** 2)
    return 2 * 3959 * math.asin(math.sqrt(half))
