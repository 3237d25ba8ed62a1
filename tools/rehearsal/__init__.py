"""ToolQA's corpora and questions, made up. One file per group, with `write_corpus`, `draw_tasks`, `TEMPLATES`."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A kind of question. Its name and its numbers of tasks are the paper's; the wordings are ours."""

    name: str
    counts: tuple[int, int, int]                       # tasks in train, val and test
    unseen: tuple[int, int, int]                       # the same in train-unseen, val-unseen and test-unseen
    wordings: tuple[str, ...]
    arguments: object                                  # how the group draws what a wording's braces stand for
    answer: Callable                                   # the raw rows → the answer; None if it is ambiguous or empty

    @property
    def size(self):
        """How many tasks are needed: both ways of splitting share them."""
        return max(sum(self.counts), sum(self.unseen))


def rounded(value: float | None, digits: int) -> str | None:
    """The value with so many decimals; None where the last one depends on how one computes (12.25), or for "-0.0"."""
    if value is None or abs(value * 10 ** digits % 1 - 0.5) < 1e-6:
        return None
    text = f"{value:.{digits}f}"
    return None if value < 0 and float(text) == 0 else text


def mean(numbers: Sequence[float]) -> float | None:
    """The mean; None if there are no numbers."""
    return math.fsum(numbers) / len(numbers) if numbers else None


def only_largest(scores: Iterable[tuple]):
    """The key with the largest score, of pairs (score, key); None if two keys share it."""
    scores = sorted(scores, reverse=True)
    tied = len(scores) > 1 and abs(scores[0][0] - scores[1][0]) < 1e-9
    return scores[0][1] if scores and not tied else None


def with_unit(number: str | None, unit: str) -> str | None:
    return None if number is None else f"{number}{unit}"
