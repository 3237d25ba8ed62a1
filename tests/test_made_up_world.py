"""Made-up worlds: every recipe, filled in by the rules, gives the answer that was computed from the data.

    python -m pytest tests/test_made_up_world.py
"""

from common import ROOT

import ast
import inspect
import json
import os
import random
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from agent.hints import hints_for, load_hints
from formats.records import read_tasks
from recipes import find_values, follow, read_hints, read_recipes
from starter import made_up_world
from tools.sandbox import World as Sandboxes

SEEDS = range(4)
MANY = range(4, 44)     # of these only what can be seen without running them


def build(out, seed=0, **environment):
    command = [sys.executable, ROOT / "starter" / "made_up_world.py", "--out", out, "--seed", str(seed)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="module", params=SEEDS)
def world(request, tmp_path_factory):
    """A directory with a world."""
    out = tmp_path_factory.mktemp("made-up")
    result = build(out, request.param)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def many():
    return {seed: made_up_world.make_world(seed) for seed in MANY}


def tasks_of(files, *splits):
    return [json.loads(line) for split in splits or ("train", "test") for line in files[f"{split}.jsonl"].splitlines()]


def tools_of(files):
    return {node.name for node in ast.parse(files["tools.py"]).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


def test_every_recipe_gives_the_answer_of_every_task(world):
    recipes = read_recipes(world / "hints")
    with Sandboxes(tools=world / "tools.py", data=world / "world") as sandboxes:
        tasks = read_tasks(world / "train.jsonl") + read_tasks(world / "test.jsonl")
        for template, recipe in recipes.items():
            with sandboxes.start() as box:
                for task in (t for t in tasks if t["template"] == template):
                    assert follow(recipe, task["question"], box.run)[1] == task["answer"], task


def test_the_stages_read_its_hints_and_tasks(world):
    sections = load_hints(world / "hints")
    for task in read_tasks(world / "test.jsonl"):
        assert [hint["kind"] for hint in hints_for(task, sections, "task")] == ["tools", "practice"]
    assert len(hints_for(task, sections, "combined")) == 3 + 12


def test_recipes_have_the_agreed_form(many, tmp_path):
    for seed, files in many.items():
        (tmp_path / str(seed)).mkdir()
        for name in (name for name in files if name.endswith(".md")):
            (tmp_path / str(seed) / Path(name).name).write_text(files[name])
        for sections in read_hints(tmp_path / str(seed)).values():
            lines = list(sections.values())[0]
            assert list(sections)[0].startswith("tools: ") and len(lines) <= 8 and max(map(len, lines)) <= 120
        thoughts = [steps[0][0] for steps in read_recipes(tmp_path / str(seed)).values()]
        assert len(set(thoughts)) == len(thoughts) == 12
        for template, steps in read_recipes(tmp_path / str(seed)).items():
            assert 2 <= len(steps) <= 4 and "complete_task(" in steps[-1][1] and "," not in template
            for thought, code in steps:
                lines = code.splitlines()
                assert re.fullmatch(r"[a-z]+( [a-z]+){2,7}", thought), thought
                assert len(lines) <= 8 and all(len(line) <= 70 and line.isascii() for line in lines), code
                slots = [re.fullmatch(r'[a-z]+ = "\.\.\."', line) is not None for line in lines]
                assert slots == sorted(slots, reverse=True) and code.count('"..."') == sum(slots), code


def test_splits_have_their_sizes_and_no_question_comes_twice(many):
    for files in many.values():
        tasks = tasks_of(files)
        assert len(tasks_of(files, "train")) == 120 and len(tasks_of(files, "test")) == 60
        assert len({task["id"] for task in tasks}) == len({task["question"] for task in tasks}) == 180
        assert len({task["group"] for task in tasks}) == 3 and len({task["template"] for task in tasks}) == 12
        asked = {(task["template"], *sorted(value for _, value in find_values(task["question"])[1])) for task in tasks}
        assert len(asked) == 180


def test_every_template_is_worded_in_three_ways_and_guessing_does_not_pay(many):
    for files in many.values():
        wordings, answers = {}, {}
        for task in tasks_of(files):
            question = task["question"]
            for _, value in sorted(find_values(question)[1], key=lambda found: -len(found[1])):
                question = question.replace(value, "_")
            wordings.setdefault(task["template"], set()).add(question.replace('"', ""))
            answers.setdefault(task["template"], []).append(task["answer"])
        assert {len(found) for found in wordings.values()} == {3}, wordings
        assert all(max(map(given.count, given)) <= 5 for given in answers.values())


def test_values_in_questions_can_be_told_from_words(many):
    for task in sum(map(tasks_of, many.values()), []):
        tokens, found = find_values(task["question"])
        rest = task["question"].split(" ", 1)[1]
        for _, value in found:
            rest = rest.replace(value, "", 1)
            assert 1 <= len(value.split()) <= 5 and value[-1].isalnum()
        assert found[0][0] > 0 and not re.search(r"[A-Z0-9]", rest), task["question"]
        assert len(task["question"]) <= 110


def test_the_same_seed_gives_the_same_files_and_another_seed_another_world(tmp_path):
    assert build(tmp_path, 5, PYTHONHASHSEED="7").returncode == 0
    assert build(tmp_path, 5, PYTHONHASHSEED="8").returncode == 0       # the same world may be written again
    written = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*.*")}
    assert written == made_up_world.make_world(5)
    assert not set(made_up_world.make_world(6).values()) & set(written.values())


def test_two_seeds_have_other_tools(many):
    names = {seed: tools_of(files) for seed, files in many.items()}
    assert all(4 <= len(found) <= 8 for found in names.values())
    for one, other in combinations(MANY, 2):
        assert len(names[one] & names[other]) <= 1, (one, other)


def test_seeds_differ_in_their_tools_and_templates(many):
    """Each form of tool and each kind of template occurs in some of the worlds."""
    drawn, groups = set(), [made_up_world.Group(random.Random(f"{seed} {domain}"), domain, "links") for seed in range(4)
                            for domain in made_up_world.DOMAINS.splitlines()]
    for group in groups:
        drawn |= {("find", group.find), ("cell", group.cell), ("link", group.link), ("note", group.note)}
    tables = {"find": made_up_world.FINDS, "cell": made_up_world.CELLS, "link": made_up_world.LINKED,
              "note": made_up_world.NOTED}
    assert drawn == {(what, form) for what, forms in tables.items() for form in forms}
    openings = {task["question"].split()[0] for task in sum(map(tasks_of, many.values()), [])}
    assert len(openings) >= 10 and len({group.columns["k"] for group in groups}) >= 5


@pytest.mark.parametrize("extra, kinds", [
    ("", made_up_world.TABLE), ("links", made_up_world.LINKS), ("notes", made_up_world.NOTES)])
def test_every_kind_of_template_fits_every_form_of_tools(extra, kinds, tmp_path):
    """All kinds in one group, for as many groups as it takes to meet each form of row."""
    met, rng = set(), random.Random(extra)
    while met < set(made_up_world.CELLS):
        made = made_up_world.make_group(rng, rng.choice(made_up_world.DOMAINS.splitlines()), extra, kinds)
        if not made or made[0].cell in met:
            continue
        group, hints, drawn = made
        met.add(group.cell)
        out = tmp_path / group.cell
        (out / "hints").mkdir(parents=True)
        (out / "world").mkdir()
        (out / "hints" / f"{group.name}.md").write_text(hints)
        (out / "tools.py").write_text(made_up_world.MODULE + group.source)
        (out / "world" / "data.json").write_text(json.dumps({group.name: group.data()}))
        recipes = read_recipes(out / "hints")
        with Sandboxes(tools=out / "tools.py", data=out / "world") as sandboxes:
            for tasks in drawn:
                with sandboxes.start() as box:
                    for task in tasks[:3]:
                        _, answer = follow(recipes[task["template"]], task["question"], box.run)
                        assert answer == task["answer"], task


def test_tools_are_documented_and_say_what_was_wrong(world):
    recipes = "\n".join(code for steps in read_recipes(world / "hints").values() for _, code in steps)
    hints = "\n".join(file.read_text() for file in (world / "hints").glob("*.md"))
    names = {}
    exec(compile((world / "tools.py").read_text(), "tools.py", "exec"), names)
    names["_open"](world / "world")
    tools = {name: tool for name, tool in names.items() if inspect.isfunction(tool) and not name.startswith("_")}
    assert set(re.findall(r"\b(\w+_\w+)\(", recipes)) - {"complete_task", "part_of"} == set(tools)
    for name, tool in tools.items():
        assert tool.__doc__ and f"{name}(" in hints
        with pytest.raises((ValueError, TypeError), match="there is no column|nothing is known|argument"):
            tool(*["nonsense"] * tool.__code__.co_argcount) if tool.__code__.co_argcount else tool(1)


@pytest.mark.parametrize("prepare, message", [
    (lambda out: out.write_text(""), "made_up_world.py: "),
    (lambda out: [(out / "hints").mkdir(parents=True), (out / "hints" / "mine.md").write_text("")],
     "mine.md: belongs to another world; remove it or give another --out"),
])
def test_a_directory_that_cannot_be_used_ends_in_one_line(prepare, message, tmp_path):
    prepare(tmp_path / "out")
    result = build(tmp_path / "out")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and message in result.stderr


def test_nothing_is_shared_with_the_training_of_the_starter():
    """The judge neither imports the script that makes the training data, nor is imported by it."""
    trained_on, made_up = ((ROOT / "starter" / name).read_text() for name in ("samples.py", "made_up_world.py"))
    assert "samples" not in made_up and "made_up_world" not in trained_on
