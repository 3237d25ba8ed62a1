"""Examples packed into rows: what a process computes at a time, without padding.

A row is one sequence of tokens with several examples one after the other; attention does not cross from one to the
next. Examples that begin alike, as the teacher's do with their hints, share that beginning, which is computed once.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.kernels import causal_attention, fast_bfloat16, packed_attention
from formats.config import Config
from training.examples import Example


@dataclass
class Row:
    """The `shared` tokens with which all examples begin, then the remaining tokens of each example."""
    examples: list[Example]
    shared: int = 0

    @property
    def length(self) -> int:
        """How many tokens the row computes."""
        return self.shared + sum(len(x.tokens) - self.shared for x in self.examples)

    @property
    def learned(self) -> int:
        """Tokens of learned actions."""
        return sum(len(x.at) for x in self.examples)

    @property
    def adapters(self) -> float:
        """How many adapters the teacher of its examples has; it is the same for all."""
        return self.examples[0].adapters


def row_limits(config: Config, device_type: str, processes: int, row: int | None = None) -> tuple[int, int]:
    """How many tokens a row may have in the teacher's passes and in the student's: `row` if it is given, else as many
    as are fast. GPUs that share a model gather its weights for every row. In a single process the student's rows are
    shorter, since its activations are kept (on a CPU, those of all blocks)."""
    if row:
        return row, row
    if device_type == "cuda":
        return (2 ** 14, 2 ** 14) if processes > 1 else (2 ** 13, 2 ** 12)
    teacher, student = 2 ** (22 if fast_bfloat16() else 21), 2 ** (21 if processes > 1 else 18)
    return teacher // config.hidden_size, student // config.hidden_size


def pack(examples: Sequence[Example], limit: int) -> list[Row]:
    """Rows of at most `limit` tokens, in order, by teacher. A longer example has a row of its own."""
    rows = []
    for x in sorted(examples, key=lambda x: x.adapters):
        if rows and rows[-1].adapters == x.adapters and rows[-1].length + len(x.tokens) <= limit:
            rows[-1].examples.append(x)
        else:
            rows.append(Row([x]))
    return rows


def pack_by_prefix(examples: Sequence[Example], limit: int) -> list[Row]:
    """Rows of at most `limit` tokens, or of a single example. Examples that begin alike share a row, unless separate
    rows would hold fewer tokens."""
    rows = []
    for x in sorted(examples, key=lambda x: (x.adapters, x.tokens)):
        if rows and rows[-1].adapters == x.adapters:
            joint = Row([*rows[-1].examples, x], common_prefix(rows[-1], x))
            if joint.length <= min(limit, rows[-1].length + len(x.tokens)):
                rows[-1] = joint
                continue
        rows.append(Row([x], len(x.tokens)))                    # alone, all of it can still be shared
    return [row if len(row.examples) > 1 else Row(row.examples) for row in rows]


def common_prefix(row: Row, x: Example) -> int:
    """How many tokens a row's examples and x begin with in common. Each keeps at least one token of its own."""
    prefix = row.examples[-1].tokens[:-1][:row.shared]
    return len(os.path.commonprefix([x.tokens[:-1], prefix]))


def longest_row(examples: Sequence[Example], limit: int) -> tuple[Row, float]:
    """The longest of the teacher's rows, and how many rows of that length hold as many tokens as all rows."""
    rows = pack_by_prefix(examples, limit)
    longest = max(rows, key=lambda row: row.length)
    return longest, sum(row.length for row in rows) / longest.length


def hidden_states(model: torch.nn.Module, row: Row, causal: Callable = causal_attention) -> torch.Tensor:
    """What lm_head reads at the tokens of learned actions → (N, C). causal: the attention within an example."""
    shared, lengths = row.shared, [len(x.tokens) - row.shared for x in row.examples]
    tokens = row.examples[0].tokens[:shared] + [token for x in row.examples for token in x.tokens[shared:]]
    positions = torch.cat([torch.arange(shared), *(torch.arange(shared, shared + n) for n in lengths)])
    at, offset = [], 0                                          # offset: where the row has an example's position 0
    for x, length in zip(row.examples, lengths):
        at += [i if i < shared else offset + i for i in x.at]
        offset += length
    attend = packed_attention(lengths, shared, causal)
    tokens, at = (torch.tensor(x, device=model.device) for x in (tokens, at))
    return model.hidden(tokens[None], positions[None].to(model.device), attend, at)[0]
