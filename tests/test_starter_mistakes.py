"""Every mistake in hints/starter/round2 and later: found in a trajectory that has it, not in one that follows round 1's
recipe."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from desk.mistakes import load_mistakes
from recipes import fill, read_recipes
from tools.sandbox import World

ROOT = Path(__file__).resolve().parent.parent
RECIPES = read_recipes(ROOT / "hints" / "starter" / "round1")
LATER_ROUNDS = sorted((ROOT / "hints" / "starter").glob("round[2-9]"))
MISTAKES = {f"{folder.name}/{m.name}": m for folder in LATER_ROUNDS for m in load_mistakes(folder)}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """{template: a trajectory that does what its recipe says}, played in the sandbox on training tasks."""
    out, trajectories = tmp_path_factory.mktemp("world"), {}
    subprocess.run([sys.executable, ROOT / "tools" / "starter_world.py", "--out", out], check=True, capture_output=True)
    tasks = {t["template"]: t for t in map(json.loads, open(out / "train.jsonl"))}
    with World(ROOT / "tools" / "toolqa.py", out / "world") as world:
        for template in {t for m in MISTAKES.values() for t in m.templates}:
            text, steps = tasks[template]["question"], []
            with world.start() as box:
                for thought, code in RECIPES[template]:
                    code = fill(code, text)
                    text, completed, _ = box.run(code)
                    steps.append({"monologue": thought, "code": code, "observation": text, "hint": None,
                                  "token_ids": {}})
            assert completed[1] == tasks[template]["answer"]
            trajectories[template] = {"id": f"{template}#0", "task": tasks[template], "hints": [], "steps": steps,
                                      "success": True}
    return trajectories


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_where_it_is_and_nowhere_else(name, played):
    mistake = MISTAKES[name]
    template, = mistake.templates
    good = played[template]
    assert mistake.first_step(good) is None
    n = next(i for i, (thought, _) in enumerate(RECIPES[template])
             if mistake.hint.startswith(f"Step {i + 1}: {thought}"))
    spoiled = {"monologue": lambda s: s + " them", "code": lambda s: s.replace("print(", "print(len(", 1) + ")"}
    if '"..."' in mistake.hint:
        spoiled |= {"value": lambda s: re.sub(r' = ".', ' = "', s, count=1)}
    for part, change in spoiled.items():
        bad = copy.deepcopy(good)
        field = "code" if part == "value" else part
        bad["steps"][n][field] = change(bad["steps"][n][field])
        assert bad["steps"][n] != good["steps"][n] and mistake.first_step(bad) == n, part


@pytest.mark.parametrize("name", MISTAKES)
def test_a_hint_is_the_step_as_round_1_has_it(name):
    mistake = MISTAKES[name]
    template, = mistake.templates
    assert mistake.hint in [f"Step {i + 1}: {thought}\n{code}" for i, (thought, code) in enumerate(RECIPES[template])]
