"""Success rates, their standard errors, the table."""
import json
import math
import re
import sys

import numpy as np
import pytest

import evaluate
from agent.hints import load_hints
from desk.tables import changes, percent, table, unfinished
from formats.records import read_tasks


def results(rates, group="coffee", tokens=100):
    """Trajectories of 10 tasks, of which rates[k] succeed in trial k."""
    return [{"id": f"{group}{n}#{k}",
             "task": {"id": f"{group}{n}", "group": group, "template": "p", "question": "q", "answer": "a"},
             "seed": 0, "hints": [], "steps": [], "answer": "", "success": n < rate, "stop": "complete",
             "usage": {"input_tokens": tokens, "output_tokens": 5, "seconds": 0.5}}
            for k, rate in enumerate(rates) for n in range(10)]


def test_success_is_in_percent_with_the_standard_error_over_trials():
    mean, error = percent(results([8, 9, 10]))
    rates = np.array([80, 90, 100])
    assert mean == pytest.approx(rates.mean()) and error == pytest.approx(rates.std(ddof=1) / math.sqrt(3))
    assert math.isnan(percent(results([8]))[1])
    yelp = [t for t in results([4, 2, 3], "yelp") if t["task"]["id"] < "yelp5"]     # of five tasks 4, 2 and 3 succeed
    both = results([8, 9, 10]) + yelp
    rates = np.array([80 + 80, 90 + 40, 100 + 60]) / 2              # a group counts as one, whatever its size
    assert percent(both) == pytest.approx((rates.mean(), rates.std(ddof=1) / math.sqrt(3)))


def test_the_table_has_a_row_a_file_and_a_column_a_group(tmp_path):
    files = {"none": results([0, 0]), "task": results([10, 10]) + results([5, 5], "yelp", tokens=300)}
    for name, trajectories in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trajectories))
    lines = table([tmp_path / "none.jsonl", tmp_path / "task.jsonl"]).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["agent", "coffee", "yelp", "all", "input tokens", "output tokens", "seconds"]
    assert rows[2] == ["none", "0.0 ± 0.0", "", "0.0 ± 0.0", "100", "5", "0.50"]
    assert rows[3] == ["task", "100.0 ± 0.0", "50.0 ± 0.0", "75.0 ± 0.0", "200", "5", "0.50"]
    assert len({len(line) for line in lines}) == 1


def test_unfinished_results_are_recognized():
    whole = results([8, 9, 10])
    assert not unfinished(whole) and unfinished(whole[:-1]) and unfinished(whole + results([1], "yelp"))


def test_names_of_groups_that_columns_have_and_bars_do_not_spoil_the_table(tmp_path):
    played = results([10], "all") + results([0], "b|c")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(t) + "\n" for t in played))
    head, _, row = table([tmp_path / "a.jsonl"]).splitlines()
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", head)[1:5]] == ["agent", "group all", "b\\|c", "all"]
    assert [cell.strip() for cell in row.split("|")[1:5]] == ["a", "100.0", "0.0", "50.0"]


def test_what_changed_from_one_file_to_the_next_is_counted(tmp_path):
    """Ten tasks in two trials: 8 and 9 right, then 6 and 10; and tasks that the second file does not have."""
    earlier, later = results([8, 9]) + results([3], "yelp"), results([6, 10])
    for t in later[5:10]:
        t["task"]["template"] = "other"
    for t in earlier[5:10]:
        t["task"]["template"] = "other"
    for name, trajectories in ("a", earlier), ("b", later), ("c", results([1], "dblp")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trajectories))
    assert changes([tmp_path / f"{name}.jsonl" for name in "abc"]) == (
        "a → b: of 20 trials, 1 became right and 2 wrong; worse: other 3 → 1 of 5")


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    task = {"id": "a", "group": "g", "template": "t", "question": "q", "answer": "1"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n", encoding="utf-8-sig")
    (tmp_path / "g.md").write_text("## tools: a\nlook(x)\n", encoding="utf-8-sig")
    assert read_tasks(tmp_path / "tasks.jsonl") == [task]
    assert [section["name"] for section in load_hints(tmp_path)] == ["g/a"]


def test_a_table_goes_to_the_page_and_the_card(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(t) + "\n" for t in results([8, 9])))
    (tmp_path / "README.md").write_text("# round1\n")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--table", str(tmp_path / "a.jsonl"), "--html",
                                      str(tmp_path / "run.html"), "--card", str(tmp_path)])
    evaluate.main()
    shown = table([tmp_path / "a.jsonl"])
    assert shown in capsys.readouterr().out and shown in (tmp_path / "README.md").read_text()
    assert "Coaching, round by round" in (tmp_path / "run.html").read_text()
