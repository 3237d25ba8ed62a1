"""Stages killed at random moments, and a full disk: nothing is lost, repeated or half-written.

    KILLS=50 python -m pytest tests/test_crash.py          more kills than in the everyday run
"""

from common import ROOT

import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from formats.records import read_trajectories
from test_distill import record, tiny_checkpoint

KILLS = int(os.environ.get("KILLS", 1))
AGENT = "--model model --tools tools.py --data data --temperature 0 --max-steps 3 --max-new-tokens 12 --batch 4"
COMMANDS = {
    "collect": f"collect.py {AGENT} --tasks tasks.jsonl --trials 2 --out {{out}}.jsonl",
    "resample": f"collect.py {AGENT} --resample flagged.jsonl --samples 6 --out {{out}}.jsonl",
    "evaluate": f"evaluate.py {AGENT} --tasks tasks.jsonl --out {{out}}.jsonl",
    "review": "review.py played.jsonl --hint-dir round2 --out {out}.jsonl",
    "distill": "distill.py --model model --data played.jsonl --rank 2 --lr 1e-3 --epochs 3 --batch 6 --out {out}",
}


def start(name, folder, out, **how):
    script, *arguments = COMMANDS[name].format(out=out).split()
    return subprocess.Popen([sys.executable, ROOT / script, *arguments], cwd=folder, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **how)


def finish(name, folder, out):
    """Runs the stage to its end, in this process, which has imported everything already."""
    script, *arguments = COMMANDS[name].format(out=out).split()
    torch.set_num_threads(1)                                # as `start` does
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [script, *arguments])
        importlib.import_module(script.removesuffix(".py")).main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything the stages read, and what unbroken runs make of it."""
    from agent.chat import Chat
    folder = tmp_path_factory.mktemp("crash")
    for name in ("model", "data", "round2"):
        (folder / name).mkdir()
    tiny_checkpoint(folder / "model")
    (folder / "tools.py").write_text('"""Tools."""\ndef look(x):\n    """Looks."""\n    return x\n')
    (folder / "round2" / "all.md").write_text("+++\nregex = 'look'\n+++\nDo not look.\n")
    fields = {"seed": 1, "answer": "", "stop": "complete",
              "usage": {"input_tokens": 1, "output_tokens": 1, "seconds": 1.0}}
    played = [record(Chat(ROOT / "starter"), n) | fields for n in range(40)]
    for t in played:
        for step in t["steps"]:
            step["code"] = "x = look(3)"
    flagged = [t | {"hint": {"name": "a", "text": "b"}, "steps": t["steps"][:1]} for t in played[:5]]
    tasks = [{"id": f"t{n}", "group": "g", "template": "p", "question": f"What is {n}?", "answer": "1"}
             for n in range(12)]
    for file, records in (("played", played), ("flagged", flagged), ("tasks", tasks)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in records))
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """What the unbroken runs write."""
    for name in COMMANDS if KILLS > 1 else ["collect", "distill"]:
        finish(name, folder, f"{name}-whole")


def has_begun(name, folder, out):
    """Has the stage written something? review.py writes everything at its end."""
    if name == "distill":
        return any((folder / out / "unfinished" / "teacher").glob("*"))
    file = folder / f"{out}.jsonl"
    return name == "review" or file.exists() and b"\n" in file.read_bytes()


def records_of(file):
    """{id: record}; reading refuses an id that comes twice."""
    return {t["id"]: t | {"usage": None, "adapters": None} for t in read_trajectories(file)}


@pytest.mark.parametrize("name", COMMANDS if KILLS > 1 else ["collect", "distill"])
def test_killed_and_started_again_a_stage_ends_like_an_unbroken_run(name, folder, whole):
    """The first kill comes as soon as something has been written, the others up to half a second later."""
    rng, out = random.Random(name), f"{name}-killed"
    for kill in range(KILLS):
        process = start(name, folder, out)
        while process.poll() is None and not has_begun(name, folder, out):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5) * (kill > 0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert kill or process.returncode == -signal.SIGKILL, "it ended before it was killed"
    finish(name, folder, out)
    if name == "distill":
        file = "adapter_model.safetensors"
        one, two = ((folder / f"{name}-{how}" / file).read_bytes() for how in ("whole", "killed"))
        assert one == two
    else:
        one, two = (records_of(folder / f"{name}-{how}.jsonl") for how in ("whole", "killed"))
        assert one == two and len(one) == {"collect": 24, "resample": 30, "evaluate": 36, "review": 40}[name]


@pytest.mark.parametrize("name", ["collect", "distill", "review"] if KILLS > 1 else ["collect", "distill"])
def test_a_full_disk_is_one_line_and_whole_files(name, folder, whole):
    limit = {"collect": 5000, "review": 20_000, "distill": 20_000}[name]
    limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    process = start(name, folder, f"{name}-full", preexec_fn=limited)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in errors, errors
    assert f"{name}-full" in errors.strip().splitlines()[-1]
    if name != "distill":
        content = (folder / f"{name}-full.jsonl").read_bytes()
        assert content.endswith(b"\n") and 0 < len(read_trajectories(folder / f"{name}-full.jsonl")) < 40
    finish(name, folder, f"{name}-full")
    if name == "distill":
        one, two = ((folder / f"{name}-{how}" / "adapter_model.safetensors").read_bytes() for how in ("whole", "full"))
        assert one == two
    else:
        assert records_of(folder / f"{name}-full.jsonl") == records_of(folder / f"{name}-whole.jsonl")


def test_ctrl_c_while_pytorch_loads_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run([sys.executable, "collect.py", "--help"], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 130 and done.stderr == "\nstopped before anything was done\n"


def test_ctrl_c_ends_in_a_line_that_says_how_to_go_on(folder, whole):
    process = start("collect", folder, "collect-interrupted")
    while process.poll() is None and not has_begun("collect", folder, "collect-interrupted"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.strip().splitlines()[-1].startswith("stopped; ")
    finish("collect", folder, "collect-interrupted")
    assert records_of(folder / "collect-interrupted.jsonl") == records_of(folder / "collect-whole.jsonl")
