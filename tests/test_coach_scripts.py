"""The coaching scripts, coach.sh and coach_toolqa.sh, with stages that only note their command lines: every flag is known, every file was made before."""

from common import command_line

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import collect
import distill
import evaluate
import lora
import review

ROOT = Path(__file__).resolve().parent.parent
STAGE = """#!/usr/bin/env bash
line=$(printf '%q ' "$@"); echo "$line" >> {log}    # one write: stages run beside each other
out=; for word in "$@"; do [ "$before" = --out ] && out=$word; before=$word; done
case $out in
    "") ;;
    *.jsonl) mkdir -p "$(dirname "$out")"; touch "$out";;
    *) mkdir -p "$out"; touch "$out"/{{arguments.json,log.jsonl}};;
esac
"""
READ = ("adapter", "adapters", "data", "balance", "resample", "corrected", "control", "trajectories", "table")    # what names outputs of earlier stages


class Parsed(Exception):
    pass


def commands(script, tmp_path, **environment):
    """Runs a script → the stages that it called, [(module, parsed arguments)], in order."""
    log = tmp_path / "log"
    for name in ("python", "torchrun"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(STAGE.format(log=log))
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    environment |= {"RUN": str(tmp_path / "run"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python"}
    done = subprocess.run(["bash", ROOT / script], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called = []
    for line in log.read_text().splitlines():
        words = shlex.split(line)
        at = next(n for n, word in enumerate(words) if word.endswith(".py"))
        if module := {"collect.py": collect, "distill.py": distill, "evaluate.py": evaluate, "lora.py": lora, "review.py": review}.get(words[at]):
            called.append((module, words[at + 1:]))
        else:
            assert words[at:] == ["tools/starter_world.py", "--out", "data/starter"]
    return called


def parsed(module, words, monkeypatch):
    real = command_line.Parser.parse_args

    def stop(self, *arguments):
        raise Parsed(real(self, *arguments))
    monkeypatch.setattr(command_line.Parser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    with pytest.raises(Parsed) as found:
        module.main()
    monkeypatch.undo()
    return vars(found.value.args[0])


@pytest.mark.parametrize("script, environment, stages", [
    ("coach.sh", {}, {"collect": 9, "review": 4, "distill": 5, "lora": 2, "evaluate": 7}),
    ("coach_toolqa.sh", {"SIZE": "8B", "OTHERS": "gpt-4o", "HUMANEVAL": "h.gz", "GSM8K": "g.jsonl"}, {"collect": 12, "review": 4, "distill": 6, "evaluate": 17}),
    ("coach_toolqa.sh", {"SPLIT": "-unseen"}, {"collect": 12, "review": 4, "distill": 6, "evaluate": 11}),
])
def test_every_flag_is_known_and_every_file_was_made_before(script, environment, stages, tmp_path, monkeypatch):
    made, counts = set(), dict.fromkeys(stages, 0)
    for module, words in commands(script, tmp_path, **environment):
        args = parsed(module, words, monkeypatch)
        for name in READ:
            value = args.get(name) or []
            for path in value if isinstance(value, list) else [value]:
                assert str(path) in made or not str(path).startswith(str(tmp_path)), (words, name)
        if module is distill:
            assert args["data"] and {str(a) for a in args["adapter"]} <= made
        made.add(str(args["out"]))
        counts[module.__name__] += 1
    assert counts == stages
