"""The README's example, run as it stands there, and what it promises."""
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import evaluate
from records import read_trajectories

ROOT = Path(__file__).resolve().parent.parent


def test_the_example_of_the_readme_takes_the_hints_out_of_the_prompt(tmp_path):
    example = re.search(r"complete, on the starter:\n\n(.*?)\n\n(?=\S)", (ROOT / "README.md").read_text(), re.S)[1]
    for name in ("collect.py", "distill.py", "evaluate.py", "starter", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = f"set -eu\npython() {{ {sys.executable} \"$@\"; }}\n" + textwrap.dedent(example)
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr[-2000:]
    before, after = (evaluate.percent(read_trajectories(tmp_path / "mine" / f"{name}.jsonl"))[0] for name in ("before", "after"))
    assert before <= 5 and after >= 75
