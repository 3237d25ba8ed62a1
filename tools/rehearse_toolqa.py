"""ToolQA's rehearsal: made-up corpora of the same shape in one world, and tasks in the paper's proportions.

    python tools/rehearse_toolqa.py --out data/rehearsal --seed 0
    python tools/rehearse_toolqa.py --out data/rehearsal-full --groups flights --scale 1

writes, in --out,
    external_corpus/…    the corpora, in ToolQA's own file formats
    world/world.sqlite   what tools/import_toolqa.py makes of them: --tools tools/toolqa.py --data data/rehearsal/world
    train.jsonl, val.jsonl, test.jsonl
    train-unseen.jsonl, val-unseen.jsonl, test-unseen.jsonl: the templates of this test do not occur in training

The templates have the same names as the real questions', so hints/toolqa serves both. Answers are computed from the
raw rows, never through the tools. Where an answer would be ambiguous (a tie, a last decimal that depends on the way of
rounding) or empty, other arguments are drawn.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import command_line, files

import importlib
import itertools
import random
from collections.abc import Sequence

from tools import import_toolqa

GROUPS = import_toolqa.GROUPS                          # each is a file of tools/rehearsal


def split_tasks(group, templates, drawn, rng):
    """{split: its tasks, template by template}. Both ways of splitting deal out the same tasks, each at most once.

    drawn: {template's name: [(arguments, answer), …]}. Raises ValueError naming the template that has too few.
    """
    splits = {split: [] for split in import_toolqa.SPLITS}
    for template in templates:
        pool = drawn[template.name]
        if len(pool) < template.size:
            raise ValueError(f"{group}: {template.name}: {len(pool)} unambiguous tasks, but {template.size} are "
                             "needed; take another --scale or --seed")
        pool = [{"group": group, "template": f"{group}: {template.name}",
                 "question": rng.choice(template.wordings).format(**arguments), "answer": answer}
                for arguments, answer in rng.sample(pool, template.size)]
        for kind, counts in (("", template.counts), ("-unseen", template.unseen)):
            rest = iter(pool)
            for split, count in zip(("train", "val", "test"), counts):
                splits[split + kind] += itertools.islice(rest, count)
    return {split: [{"id": f"{group}-{split}-{n:03}", **task} for n, task in enumerate(tasks, 1)]
            for split, tasks in splits.items()}


def rehearse(out: Path, seed: int = 0, groups: Sequence[str] = GROUPS, scale: float = 0.025) -> dict[str, list[dict]]:
    """Writes it all, the tasks last. Returns {split: its tasks}. Raises ValueError if `out` is not empty."""
    if not 0 < scale <= 1:
        raise ValueError(f"--scale {scale:g}: give more than 0 and at most 1, which is ToolQA's own size")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty; remove it or take another --out")
    tasks = {split: [] for split in import_toolqa.SPLITS}
    for group in groups:
        module, folder = importlib.import_module(f"tools.rehearsal.{group}"), out / "external_corpus" / group
        folder.mkdir(parents=True)
        module.write_corpus(folder, random.Random(f"{seed} {group} corpus"), scale)
        rng = random.Random(f"{seed} {group} tasks")
        for split, some in split_tasks(group, module.TEMPLATES, module.draw_tasks(folder, rng), rng).items():
            tasks[split] += some
    import_toolqa.import_corpora(out / "external_corpus", out / "world", groups)
    files.write_whole({out / f"{split}.jsonl": files.as_lines(some) for split, some in tasks.items()})
    return tasks


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the corpora, the world and the tasks")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other corpora and tasks")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS, help="some of the groups")
    parser.add_argument("--scale", type=float, default=0.025, help="size of the corpora; 1: ToolQA's 4 million flights")
    args = parser.parse_args()
    tasks = rehearse(args.out, args.seed, [group for group in GROUPS if group in args.groups], args.scale)
    paths = ", ".join(f"{split}.jsonl ({len(some)} tasks)" for split, some in tasks.items())
    print(f"{args.out}: world/world.sqlite, {paths}")


if __name__ == "__main__":
    command_line.run_stage(main)
