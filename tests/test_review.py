"""Mistakes, their detectors, and the states they flag."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from desk import report
import review
from test_distill import tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent

STEP = {"monologue": "m", "observation": "o", "hint": None, "token_ids": {}}


def trajectory(*codes, group="coffee", template="opening price"):
    return {"id": "t#0", "task": {"id": "t", "group": group, "template": template}, "success": False,
            "steps": [STEP | {"code": code} for code in codes]}


def mistake(tmp_path, header, hint="Print what you looked up."):
    file = tmp_path / "print-it.md"
    file.write_text(f"+++\n{header}\n+++\n{hint}\n")
    return review.Mistake(file)


def test_a_regex_flags_the_first_step_whose_code_it_finds(tmp_path):
    m = mistake(tmp_path, "regex = '^complete_task'")
    assert m.first_step(trajectory("x = 1", "y = 2\ncomplete_task(1, 2)", "complete_task(1, 2)")) == 1
    assert m.first_step(trajectory("x = 1")) is None


def test_a_python_filter_sees_the_record_and_the_step(tmp_path):
    m = mistake(tmp_path, "python = '''\nimport ast\ndef detect(trajectory, step):\n    return not trajectory['success'] and len(ast.parse(step['code']).body) == 2\n'''")
    assert m.first_step(trajectory("x = 1", "y = 2; z = 3")) == 1
    assert m.first_step(trajectory("y = 2; z = 3") | {"success": True}) is None


def test_a_mistake_concerns_its_groups_and_templates_only(tmp_path):
    m = mistake(tmp_path, "groups = ['flights']\nregex = 'x'")
    assert m.first_step(trajectory("x")) is None and m.first_step(trajectory("x", group="flights")) == 0
    m = mistake(tmp_path, "templates = ['opening price']\nregex = 'x'")
    assert m.first_step(trajectory("x")) == 0 and m.first_step(trajectory("x", template="other")) is None


def test_a_flagged_state_is_cut_before_the_bad_step(tmp_path):
    state = review.flag(trajectory("a", "b", "c"), mistake(tmp_path, "regex = 'b'"), 1)
    assert [s["code"] for s in state["steps"]] == ["a"]
    assert state["mistake"] == {"name": "print-it", "step": 1, "rejected": {"monologue": "m", "code": "b", "observation": "o"}}
    assert state["hint"] == {"name": "print-it", "text": "Print what you looked up."} and state["id"] == "t#0!print-it"


@pytest.mark.parametrize("content, message", [
    ("no header", "between two lines of"), ("+++\nregex = \n+++\nhint", "not TOML"), ("+++\nregex = 'x'\n+++\n", "no hint below"),
    ("+++\n+++\nhint", "exactly one of regex"), ("+++\nregex = 'x'\npython = 'y'\n+++\nhint", "exactly one of regex"),
    ("+++\nregex = '('\n+++\nhint", "field 'regex'"), ("+++\nregexp = 'x'\n+++\nhint", "field 'regexp': unknown"),
    ("+++\npython = 'def detect(:'\n+++\nhint", "field 'python': SyntaxError"), ("+++\npython = 'x = 1'\n+++\nhint", "no function detect")])
def test_a_broken_mistake_file_is_named(tmp_path, content, message):
    file = tmp_path / "bad.md"
    file.write_text(content)
    with pytest.raises(ValueError) as error:
        review.Mistake(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_a_detector_that_raises_is_named_with_the_step(tmp_path):
    m = mistake(tmp_path, "python = 'def detect(trajectory, step): return step[\"nothing\"]'")
    with pytest.raises(ValueError, match=r"print-it\.md, field 'python': on step 1 of t#0: KeyError"):
        m.first_step(trajectory("x"))


def test_what_a_hint_does_is_counted_over_rollouts(tmp_path):
    import json
    m = mistake(tmp_path, "regex = 'x'")
    full = lambda n, success: trajectory("x") | {"id": f"t{n}#0", "success": success, "task": {"id": f"t{n}", "group": "coffee", "template": "p", "question": "q", "answer": "a"}, "seed": 0, "hints": [],
                                                 "answer": "", "stop": "complete", "usage": {}}
    found = [(full(n, n == 0), m, 0) for n in range(3)]
    hinted = [{"monologue": "", "code": "x", "observation": "", "hint": {"name": "print-it", "text": m.hint}, "token_ids": {}}]
    records = [full(n, n > 0) | {"id": f"t{n}#0!print-it~{k}", "targets": [0], "steps": hinted} for n in range(3) for k in range(2)]
    (tmp_path / "corrected.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    corrected = review.outcomes(tmp_path / "corrected.jsonl", found)
    row = review.effects([m], found, corrected, {})["print-it"]
    assert row["before"] == [[True], [False], [False]] and row["with"] == [[False] * 2, [True] * 2, [True] * 2] and row["without"] == []
    corrected["t0#0", m.name][0]["stop"] = ""                         # made without --rollout: some actions end the task, the others might have succeeded
    assert review.effects([m], found, corrected, {})["print-it"]["with"] == []
    corrected["t0#0", m.name][0]["stop"] = "complete"
    with pytest.raises(ValueError, match="t0#0!print-it~0 goes on from a state that is not flagged here"):
        review.outcomes(tmp_path / "corrected.jsonl", found[1:])
    with pytest.raises(ValueError, match="t0#0!print-it~0 was made with a hint"):
        review.outcomes(tmp_path / "corrected.jsonl", found, control=True)
    m.hint += " Now."
    with pytest.raises(ValueError, match="t0#0!print-it~0 was made with another wording of .*print-it.md"):
        review.outcomes(tmp_path / "corrected.jsonl", found)
    (tmp_path / "control.jsonl").write_text("".join(json.dumps(r | {"steps": [hinted[0] | {"hint": None}]}) + "\n" for r in records))
    control = review.outcomes(tmp_path / "control.jsonl", found, control=True)
    with pytest.raises(ValueError, match="t0#0!print-it~0 was made without a hint"):
        review.outcomes(tmp_path / "control.jsonl", found)
    row = review.effects([m], found, corrected, control)["print-it"]
    assert row["without"] == row["with"] == [[False] * 2, [True] * 2, [True] * 2] and report.gain(row) == 0
    assert report.gain(row | {"without": []}) == pytest.approx(1 / 3) and report.gain(row | {"with": []}) is None


def test_two_texts_side_by_side():
    assert review.side_by_side("a b\nc", "one two three", 7) == "a b     │ one two\nc       │   three"


def test_a_hint_is_tried_on_the_states_that_it_flags(tmp_path, monkeypatch, capsys):
    """With the starter: mistake, hint and what the agent does with the hint, side by side in the terminal and in the page."""
    import json
    import sys
    (tmp_path / "hint.md").write_text('+++\nregex = "guess"\n+++\nStep 1: look up the price\non = "..."\nrow = look_up(on)\nprint("price", row)\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "tools.py").write_text('def look_up(day):\n    """The row of a day."""\n    return "of " + day\n')
    records = [trajectory("guess(1)") | {"id": f"t{n}#0", "task": {"id": f"t{n}", "group": "coffee", "template": "p", "question": f"What did it cost on 2014-03-0{n + 1}?", "answer": "a"}, "seed": 0,
                                         "hints": [], "answer": "", "stop": "complete", "usage": {}, "success": n == 1} for n in range(3)]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    monkeypatch.setattr(sys, "argv", ["review.py", *map(str, (tmp_path / "seen.jsonl", "--try", tmp_path / "hint.md", "--model", "starter", "--tools", tmp_path / "tools.py", "--data", tmp_path / "data",
                                                             "--temperature", 0, "--states", 2, "--html", tmp_path / "page.html"))])
    monkeypatch.chdir(review.Path(review.__file__).parent)
    review.main()
    said = capsys.readouterr().out
    assert "3 trajectories, 2 failed; flagged: 3 states in 3 trajectories" in said and "1 of them in successes" in said
    assert "of 2 failures that it concerns it flags 2" in said and "of 1 successes that it concerns it flags 1" in said and "✗ t0#0, step 1: guess(1)" in said
    assert said.count("=== t") == 2 and "=== t1#0" not in said         # failures first, two states
    for day in ("2014-03-01", "2014-03-03"):
        assert f'│ on = "{day}"' in said and f"→ price of {day}" in said
    assert "row = look_up(on)" in (tmp_path / "page.html").read_text()


def test_printed_controls_have_no_power_over_the_terminal():
    assert review.harmless("\x1b]0;x\x07é\t日本\n\u202e\u2028") == "\\x1b]0;x\\x07é\t日本\n\\u202e\\u2028"


def test_a_local_model_judges_and_what_it_says_without_a_verdict_is_counted_and_asked_for_once(tmp_path):
    """A model with random weights says nothing that can be read as a verdict: three tries a step, none of them guessed, and none again in a rerun."""
    (tmp_path / "model").mkdir()
    tiny_checkpoint(tmp_path / "model")
    (tmp_path / "round2").mkdir()
    (tmp_path / "round2" / "vague.md").write_text("+++\njudge = 'It is vague.'\n+++\nSay what you mean.\n")
    trajectories = [trajectory("x = 1", "y = 2") | {"id": f"t{n}#0", "task": trajectory()["task"] | {"question": "?", "answer": "1"}, "seed": 0, "hints": [], "answer": "",
                                                    "stop": "complete", "usage": {}} for n in range(3)]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trajectories))
    command = [sys.executable, "review.py", tmp_path / "seen.jsonl", "--hint-dir", tmp_path / "round2", "--judge", tmp_path / "model", "--max-new-tokens", "20", "--out", tmp_path / "flagged.jsonl"]
    said = [subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True) for _ in range(2)]
    for run in said:
        assert run.returncode == 2 and "flagged: 0 states" in run.stdout and "6 verdicts of the judge could not be read, they flag nothing" in run.stdout, run.stderr
        assert "there is nothing to correct" in run.stderr
    verdicts = [json.loads(line) for line in (tmp_path / "flagged.jsonl.verdicts").open()]
    assert len(verdicts) == 6 and all(v["verdict"] is None and "reasoning" in v for v in verdicts)


def test_a_hints_effect_is_compared_on_the_states_that_were_played_on():
    """Of two flagged states one was played on, a failure before: the other one, a success, counts in none of the rates."""
    class M:
        name = "m"
    t, u = ({"id": f"t{n}#0", "task": {"id": f"t{n}"}, "success": n == 1} for n in range(2))
    played = lambda *successes: [{"success": s, "stop": "complete"} for s in successes]
    found = [(t, M, 0), (u, M, 0)]
    row = review.effects([M], found, {("t0#0", "m"): played(True, False)}, {})["m"]
    assert row["flagged"] == [[False], [True]] and row["before"] == [[False]] and row["with"] == [[True, False]] and report.gain(row) == 0.5
    row = review.effects([M], found, {("t0#0", "m"): played(True), ("t1#0", "m"): played(False)}, {("t0#0", "m"): played(False)})["m"]
    assert row["without"] == [[False]] and row["with"] == [[True]] and report.gain(row) == 1
