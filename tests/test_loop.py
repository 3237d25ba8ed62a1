"""One small coaching round on the starter, with every script.

collect, distill, collect, review, resample, distill, evaluate
"""

from common import ROOT

import json
import subprocess
import sys

import pytest

import collect
import distill
import evaluate


@pytest.fixture
def stage(monkeypatch, capsys):
    """Runs a stage in this process and returns what it prints. tests/test_readme.py runs them as commands."""
    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        capsys.readouterr()
        module.main()
        return capsys.readouterr().out
    return run


def script(name, *arguments, status=0):
    run = subprocess.run([sys.executable, ROOT / name, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == status, run.stderr[-2000:]
    return run


def read(file):
    return [json.loads(line) for line in open(file)]


def test_one_small_coaching_round(tmp_path, stage):
    script("tools/starter_world.py", "--out", tmp_path)
    templates = ("opening price", "listing host")
    tasks = [t for t in read(tmp_path / "train.jsonl") if t["template"] in templates]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))
    agent = ["--model", ROOT / "starter", "--data", tmp_path / "world", "--temperature", 0.1, "--max-steps", 4,
             "--max-new-tokens", 160]
    learn = ["--model", ROOT / "starter", "--rank", 16, "--alpha", 256, "--lr", 1e-3, "--batch", 8,
             "--kl-temperature", 1, "--warmup", 5, "--hint-dropout", 0.5]

    stage(collect, *agent, "--tasks", tmp_path / "few.jsonl", "--hints", "task", "--trials", 2,
          "--out", tmp_path / "hinted.jsonl")
    hinted = read(tmp_path / "hinted.jsonl")
    assert len(hinted) == len({t["id"] for t in hinted}) == 2 * len(tasks) == 40
    assert sum(t["success"] for t in hinted) >= 36

    stage(distill, *learn, "--data", tmp_path / "hinted.jsonl", "--epochs", 4, "--out", tmp_path / "round1")
    adapted = [*agent, "--adapter", tmp_path / "round1"]
    stage(collect, *adapted, "--tasks", tmp_path / "few.jsonl", "--trials", 1, "--out", tmp_path / "seen.jsonl")
    seen = read(tmp_path / "seen.jsonl")
    assert all(t["hints"] == [] for t in seen) and sum(t["success"] for t in seen) >= 15

    hints = tmp_path / "round2"
    hints.mkdir()
    (hints / "say-more.md").write_text(
        "+++\ntemplates = ['opening price']\nregex = 'complete_task'\n+++\n"
        'Step 2: the first price is known\nprice = "..."\ncomplete_task("opening was", price)\n')
    script("review.py", tmp_path / "seen.jsonl", "--hint-dir", hints, "--out", tmp_path / "flagged.jsonl")
    flagged = read(tmp_path / "flagged.jsonl")
    assert flagged and all(t["mistake"]["step"] == len(t["steps"]) for t in flagged)
    # By the starter alone: with this short round's adapter it followed only 9 of 20 hints.
    again = [*agent, "--resample", tmp_path / "flagged.jsonl", "--samples", 2, "--rollout"]
    stage(collect, *again, "--out", tmp_path / "corrected.jsonl")
    stage(collect, *again, "--control", "--out", tmp_path / "control.jsonl")
    corrected, control = read(tmp_path / "corrected.jsonl"), read(tmp_path / "control.jsonl")
    assert len(control) == len(corrected) and all(t["stop"] for t in control + corrected)
    assert all(step["hint"] is None for t in control for step in t["steps"])
    said = script("review.py", tmp_path / "seen.jsonl", "--hint-dir", hints,
                  "--corrected", tmp_path / "corrected.jsonl", "--control", tmp_path / "control.jsonl",
                  "--html", tmp_path / "review.html").stdout
    for how, records in (("without", control), ("with", corrected)):
        right = sum(t["success"] for t in records)
        assert f"right {how} the hint {100 * right / len(records):.0f} % (" in said and f"n = {len(records)})" in said
    assert "does not help" not in said and "say-more" in (tmp_path / "review.html").read_text()
    assert len(corrected) == 2 * len(flagged)
    assert all(t["targets"] == [len(t["steps"]) - 1] for t in corrected)
    assert all(t["steps"][-1]["hint"]["name"] == "say-more" for t in corrected)
    followed = sum('complete_task("opening was"' in t["steps"][-1]["code"] for t in corrected)   # the hint's words;
    assert followed >= 0.8 * len(corrected)                                            # the recipe says "opened at"

    for t in corrected[::3]:
        t["success"] = False
    (tmp_path / "corrected.jsonl").write_text("".join(json.dumps(t) + "\n" for t in corrected))
    right = sum(t["success"] for t in corrected)
    said = stage(distill, *learn, "--verified", "--adapter", tmp_path / "round1", "--data",
                  tmp_path / "corrected.jsonl", "--balance", tmp_path / "hinted.jsonl", "--epochs", 2,
                  "--out", tmp_path / "round2-adapter")
    assert 0 < right < len(corrected) and said.startswith(f"{right} records and ")
    table = stage(evaluate, *adapted, "--adapter", tmp_path / "round2-adapter",
                   "--tasks", tmp_path / "few.jsonl", "--trials", 1, "--out", tmp_path / "evaluated.jsonl")
    assert "airbnb" in table and "coffee" in table and len(read(tmp_path / "evaluated.jsonl")) == 20
