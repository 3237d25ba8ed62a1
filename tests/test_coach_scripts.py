"""The coaching scripts, coach.sh and coach_toolqa.sh, with stages that only note their command lines.

Every flag is known, and every file that a stage reads was written by a stage before it.
"""

from common import command_line

import json
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
printf '%q ' "$@" >> {log}; echo >> {log}
out=; for word in "$@"; do [ "$before" = --out ] && out=$word; before=$word; done
case $out in
    "" | data/*) ;;
    *.jsonl) mkdir -p "$(dirname "$out")"; echo '{{"template": "coffee: opening price", "success": true}}' > "$out";;
    *) mkdir -p "$out"; touch "$out"/{{arguments.json,log.jsonl}};;
esac
if [[ -n "${{NOTHING:-}}" && $out == *$NOTHING* ]]; then : > "$out"; fi
"""
STAGES = {f"{module.__name__}.py": module for module in (collect, distill, evaluate, lora, review)}
READ = (    # the options that name outputs of earlier stages
    "adapter", "adapters", "data", "balance", "resample", "corrected", "control", "trajectories", "table", "tasks")


class Parsed(Exception):
    pass


def commands(script, tmp_path, **environment):
    """Runs a script → the stages that it called, [(module, parsed arguments)], in order."""
    log = tmp_path / "log"
    for name in ("python", "torchrun"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(STAGE.format(log=log))
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment |= {"RUN": str(tmp_path / "run"), "PATH": path, "PYTHON": "python"}
    done = subprocess.run(["bash", ROOT / script], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called = []
    for line in log.read_text().splitlines():
        words = shlex.split(line)
        at = next(n for n, word in enumerate(words) if word.endswith(".py"))
        if module := STAGES.get(words[at]):
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


def rehearsal(folder):
    """Tasks of three groups in `folder`; test-unseen's template is not in train-unseen."""
    folder.mkdir()
    for split in ("train", "test", "train-unseen", "test-unseen"):
        template = "closing price" if split == "test-unseen" else "opening price"
        tasks = [{"id": f"{group} {n}", "group": group, "template": f"{group}: {template}",
                  "question": f"{folder.name} {n}"} for group in ("agenda", "coffee", "flights") for n in range(4)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))


def rehearsals(tmp_path):
    """The tasks of each round. Returns the environment that names them."""
    for name in ("data", "data-2", "data-3"):
        rehearsal(tmp_path / name)
    return {"DATA": str(tmp_path / "data")}


SMALL = {"MODEL": "small", "ONLY": "coffee flights", "EACH": "3", "HINTS": "hints/toolqa", "HUMANEVAL": "README.md"}


@pytest.mark.parametrize("script, environment, stages", [
    ("coach.sh", {}, {"collect": 7, "review": 4, "distill": 3, "evaluate": 7}),
    ("coach.sh", {"NOTHING": "flagged"}, {"collect": 3, "review": 2, "distill": 1, "evaluate": 5}),
    ("coach_toolqa.sh", {"SIZE": "8B", "OTHERS": "gpt-4o", "HUMANEVAL": "README.md", "GSM8K": "LICENSE"},
     {"collect": 12, "review": 4, "distill": 6, "evaluate": 20}),
    ("coach_toolqa.sh", {"SPLIT": "-unseen"}, {"collect": 12, "review": 4, "distill": 6, "evaluate": 11}),
    ("coach_toolqa.sh", SMALL, {"collect": 5, "review": 2, "distill": 3, "evaluate": 12}),
    ("coach_toolqa.sh", SMALL | {"NOTHING": "corrected"}, {"collect": 5, "review": 2, "distill": 1, "evaluate": 8}),
    ("coach_toolqa.sh", SMALL | {"ALL": "1"}, {"collect": 10, "review": 4, "distill": 7, "evaluate": 20}),
])
def test_every_flag_is_known_and_every_file_was_made_before(script, environment, stages, tmp_path, monkeypatch):
    if script == "coach_toolqa.sh":
        environment = environment | rehearsals(tmp_path)
    # What the scripts themselves write.
    made = {str(tmp_path / f"data{n}/world") for n in ("", "-2", "-3")}
    made |= {str(tmp_path / f"run/{name}.jsonl") for name in ("unseen/hinted", "unseen/test", "tasks/train",
                                                             "tasks/train2", "tasks/train3", "tasks/test")}
    counts = dict.fromkeys(stages, 0)
    for module, words in commands(script, tmp_path, **environment):
        args = parsed(module, words, monkeypatch)
        for name in READ:
            value = args.get(name) or []
            for path in value if isinstance(value, list) else [value]:
                assert str(path) in made or not str(path).startswith(str(tmp_path)), (words, name)
        assert not args.get("hint_dir") or (ROOT / args["hint_dir"]).is_dir()
        if module is distill:
            assert args["data"] and {str(a) for a in args["adapter"]} <= made
        made.add(str(args["out"]))
        counts[module.__name__] += 1
    assert counts == stages


def test_a_small_run_plays_the_chosen_tasks_and_new_ones_in_later_rounds(tmp_path):
    data = rehearsals(tmp_path)
    test, new = tmp_path / "data/test.jsonl", tmp_path / "data-2/train.jsonl"
    new.write_text(new.read_text().replace('"data-2 1"', r'"what is \"data 1\"?"')    # a test task's question …
                   .replace('"data-2 0"', r'"what is \"data 0\"?"'))                 # … and one that begins like it
    test.write_text(test.read_text().replace('"data 1"', r'"what is \"data 1\"?"'))
    assert r'"what is \"data 1\"?"' in test.read_text()
    commands("coach_toolqa.sh", tmp_path, **SMALL, ALL="1", **data)
    chosen = {"tasks/train": "012", "tasks/train2": "02", "tasks/train3": "012", "tasks/test": "0123",
              "unseen/test": "0123"}
    for name, numbers in chosen.items():
        played = [json.loads(line)["id"] for line in open(tmp_path / "run" / f"{name}.jsonl")]
        prefix = f"round{name[-1]}-" if name[-1].isdigit() else ""
        assert played == [f"{prefix}{group} {n}" for group in ("coffee", "flights") for n in numbers]


def test_a_small_run_learns_round_3_by_cross_entropy_and_chooses_no_epochs(tmp_path, monkeypatch):
    called = commands("coach_toolqa.sh", tmp_path, **SMALL, **rehearsals(tmp_path))
    learned = [parsed(module, words, monkeypatch) for module, words in called if module is distill]
    assert [(args["loss"], args["epochs"]) for args in learned] == [("kl", None), ("kl", None), ("ce", None)]


def test_a_share_of_the_templates_and_of_their_tasks(tmp_path):
    data = rehearsals(tmp_path)
    share = SMALL | {"ONLY": "", "SIZE": "small", "EVERY": "4", "EACH_TEST": "2"}
    commands("coach_toolqa.sh", tmp_path, **share, **data)
    for name, numbers in {"train": "012", "test": "01"}.items():
        tasks = [json.loads(line)["id"] for line in open(tmp_path / f"run/tasks/{name}.jsonl")]
        assert tasks == [f"coffee {n}" for n in numbers]        # the fourth of six templates


def test_the_papers_rounds_play_all_tasks(tmp_path):
    data = rehearsals(tmp_path)
    called = commands("coach_toolqa.sh", tmp_path, **data)
    for name in ("train", "test"):
        assert (tmp_path / f"run/tasks/{name}.jsonl").read_text() == (tmp_path / f"data/{name}.jsonl").read_text()
    played = {words[words.index("--tasks") + 1] for module, words in called if module is collect and "--tasks" in words}
    assert played == {str(tmp_path / "run/tasks/train.jsonl")}


def test_a_group_without_tasks_is_named(tmp_path):
    environment = os.environ | SMALL | rehearsals(tmp_path) | {"ONLY": "tea", "RUN": str(tmp_path / "run")}
    done = subprocess.run(["bash", ROOT / "coach_toolqa.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f'{tmp_path}/data, ONLY="tea", EVERY=1: train.jsonl would be empty\n'


def test_a_path_with_spaces_is_refused_before_anything_is_written(tmp_path):
    for script in "coach_toolqa.sh", "coach.sh":
        environment = os.environ | SMALL | {"RUN": str(tmp_path / "my run")}
        done = subprocess.run(["bash", ROOT / script], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"RUN={tmp_path}/my run: ")
    assert not list(tmp_path.iterdir())


def test_tasks_without_spaces_between_fields_are_chosen_alike(tmp_path):
    environment = rehearsals(tmp_path)
    for file in tmp_path.glob("data*/*.jsonl"):
        lines = map(json.loads, file.read_text().splitlines())
        file.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    commands("coach_toolqa.sh", tmp_path, **SMALL | environment | {"ONLY": "coffee"})
    chosen = [json.loads(line) for line in open(tmp_path / "run/tasks/train.jsonl")]
    assert chosen and {task["group"] for task in chosen} == {"coffee"}


@pytest.mark.parametrize("environment, message", [
    ({"ONLY": "coffee", "MODEL": ""}, "SIZE=small, or ONLY without SIZE: give MODEL"),
    ({"SIZE": "70b"}, "SIZE=70b: 70B, 8B or small"),
    ({"SIZE": "8B", "GSM8K": "none.jsonl"}, "none.jsonl: no such file"),
    ({"SIZE": "8B", "DATA": "none"}, "none: no train.jsonl; tools/import_toolqa.py makes it (docs/toolqa.md)"),
])
def test_what_is_missing_is_named_before_anything_is_played(environment, message, tmp_path):
    environment = os.environ | {"RUN": str(tmp_path / "run")} | environment
    done = subprocess.run(["bash", ROOT / "coach_toolqa.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"{message}\n"
