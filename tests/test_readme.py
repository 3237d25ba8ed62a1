"""The README's example, run as it stands there; and that what the documentation names exists."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from desk.tables import percent
from formats.records import read_trajectories

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "starter/README.md"]
OTHERS_FLAGS = {"--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id",
                "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--mem",
                "--kill-on-bad-exit",                                                              # torchrun's, Slurm's
                "--max-lora-rank", "--generation-config", "--tensor-parallel-size",
                "--enable-auto-tool-choice", "--tool-call-parser"}                                 # vLLM's


def test_the_example_of_the_readme_takes_the_hints_out_of_the_prompt(tmp_path):
    example = re.search(r"runs on the starter:\n\n(.*?)\n\n(?=\S)", (ROOT / "README.md").read_text(), re.S)[1]
    for name in ("collect.py", "distill.py", "evaluate.py", "starter", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = f"set -eu\npython() {{ {sys.executable} \"$@\"; }}\n" + textwrap.dedent(example)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    results = (read_trajectories(tmp_path / "mine" / f"{name}.jsonl") for name in ("before", "after"))
    before, after = (percent(result)[0] for result in results)
    assert before <= 5 and after >= 75


def test_links_in_the_documentation_lead_somewhere():
    broken = []
    for text in TEXTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"<!--.*?-->", "", text.read_text(), flags=re.S)):
            path, _, anchor = link.partition("#")
            target = text.parent / path if path else text
            if link.startswith("https:"):
                continue
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.M) if anchor and target.is_file() else []
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            if not target.exists() or anchor and anchor not in anchors:
                broken.append(f"{text.relative_to(ROOT)}: {link}")
    assert not broken


def test_commands_and_flags_in_the_documentation_exist():
    sources = "".join(file.read_text() for file in ROOT.rglob("*.py") if not {".venv", "tests"} & {*file.parts})
    unknown = []
    for text in TEXTS:
        prose = re.sub(r"<!--.*?-->", "", text.read_text(), flags=re.S)
        commands = {name for name in re.findall(r"python ([\w/]+\.py)", prose) if not name.startswith("mine/")}
        modules = {name.replace(".", "/") for name in re.findall(r"python -m ([\w.]+)", prose)} - {"pytest"}
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) - OTHERS_FLAGS
        unknown += [f"{text.relative_to(ROOT)}: {name}" for name in commands if not (ROOT / name).is_file()]
        unknown += [f"{text.relative_to(ROOT)}: {name}" for name in modules
                    if not (ROOT / f"{name}.py").is_file() and not (ROOT / name / "__main__.py").is_file()]
        unknown += [f"{text.relative_to(ROOT)}: {flag}" for flag in flags if f'"{flag}"' not in sources]
    assert not unknown


def test_the_figures_are_those_of_the_result_files():
    sys.path.insert(0, str(ROOT / "docs"))
    import draw
    assert (files := list((ROOT / "docs/results").glob("*.jsonl")))
    for file in files:
        assert (ROOT / f"docs/images/{file.stem}.svg").read_text() == draw.draw(draw.read_results(file))


@pytest.mark.parametrize("row, file", {
    "the model | none": "none-test", "the model | for this type of task": "task-test",
    "the model | all (one task of each type)": "combined-41", "after round 1 | none": "round1-three-epochs-test",
    "after round 2 | none": "round2-three-epochs-test", "after round 3 | none": "round3-three-epochs-test"}.items())
def test_a_row_of_the_readmes_first_table_is_what_its_result_file_holds(row, file):
    records = [json.loads(line) for line in open(ROOT / f"docs/results/rehearsal/{file}.jsonl")]
    n, right = len(records), sum(record["success"] for record in records)
    p, tokens = right / n, sum(record["usage"]["input_tokens"] for record in records) / n
    rows = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    success, read = rows[0].replace("*", "").split(" | ")
    assert success in (f"{right} of {n}", f"{100 * p:.1f} ± {100 * (p * (1 - p) / (n - 1)) ** 0.5:.1f} %")
    assert read == f"{tokens:,.0f}"


def test_the_readmes_rows_of_the_starter_are_those_of_the_result_file():
    readme = (ROOT / "README.md").read_text()
    assert (agents := [json.loads(line) for line in open(ROOT / "docs/results/starter.jsonl")])
    for agent in agents:
        figures = f"{agent['success']:.1f} ± {agent['error']:.1f} % | {agent['input_tokens']:,} |"
        assert re.search(rf"^\| {agent['agent']} \| .* \| {re.escape(figures)}$", readme, re.M), agent
