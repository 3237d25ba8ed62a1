"""What --plan says is what training really takes: peaks measured by PyTorch's profiler, in one process and under FSDP2 in two."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import plan
from lora import TARGETS
from model import Config, Llama

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = argparse.Namespace(rank=16, alpha=32, lora_dropout=0.05, targets=TARGETS, kl_temperature=2.0, loss="kl", adapter=[], batch=4, epochs=2, plan=[1, 1])
DEEP = dict(vocab_size=2000, hidden_size=256, intermediate_size=704, num_hidden_layers=9, num_attention_heads=8, num_key_value_heads=2)
WIDE = dict(vocab_size=1000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8)
WORDY = dict(vocab_size=60000, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2)
SCRIPT = """
import json, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from torch.profiler import ProfilerActivity, profile, record_function
import distill, parallel
from lora import add_adapter, adapters, trainable
from test_plan import SETTINGS

folder, lengths = sys.argv[1], json.loads(sys.argv[2])
parallel.start()
model = parallel.load(folder, whole=False)
add_adapter(model, SETTINGS.rank, SETTINGS.alpha, SETTINGS.lora_dropout)
model = parallel.share_out(model, folder).train()
static = sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes for p in model.parameters())
optimizer = torch.optim.AdamW(trainable(model), lr=1e-4)
mine = parallel.share(lengths)
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
    for _ in range(4):
        with record_function("update"):
            with torch.no_grad(), adapters(model, newest=False):
                hidden = distill.hidden_at(model, [([1] * n, list(range(n - m, n))) for n, _, m, _ in mine])
            rows = [([1] * n, list(range(n - m, n)), [1] * m, [k / m] * m) for _, n, m, k in mine]
            distill.loss_of(model, rows, hidden.clone(), SETTINGS.kl_temperature)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
live, peaks = 0, []
for event in sorted((e for e in profiler.profiler.kineto_results.events() if e.name() in ("[memory]", "update")), key=lambda e: e.start_ns()):
    if event.name() == "update":
        peaks.append(live)
    else:
        live += event.nbytes()
        peaks[-1:] = [max(peaks[-1], live)] if peaks else []
peak = min(peaks[1:])           # AdamW's moments are there from the first update on
if parallel.RANK == 0:
    print("peak", static + peak)
parallel.stop()
"""


@pytest.mark.parametrize("shape, lengths, processes", [
    (DEEP, [(900, 300, 60, 2), (700, 200, 40, 1)], 1),
    (WORDY, [(500, 300, 200, 4)], 1),
    (WIDE, [(200, 100, 30, 1), (200, 100, 30, 1)], 2),
])
def test_peak_memory_is_as_planned(shape, lengths, processes, tmp_path):
    torch.manual_seed(0)
    save_file(Llama(Config(**shape)).hf_state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": "llama"}))
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))
    launch = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launch, tmp_path / "script.py", tmp_path, json.dumps(lengths)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split("peak ")[1])
    parts, *_ = plan.distillation(plan.config_of(tmp_path), processes, SETTINGS, lengths, torch.float32, on_gpu=False)
    late = (processes > 1) * size_of_a_block(shape)                    # gloo's thread may let go of a gathered block late
    assert 0.9 * sum(parts.values()) < measured < 1.1 * sum(parts.values()) + late


def size_of_a_block(shape):
    return sum(p.nbytes for p in Llama(Config(**shape)).layers[0].parameters())


def test_operations_are_those_of_the_matrix_products():
    config = Config(**DEEP)
    parts, teacher, student, _ = plan.distillation(config, 1, SETTINGS, [(900, 300, 60, 2)], torch.float32, on_gpu=False)
    weights = sum(p.numel() for p in Llama(config).layers.parameters() if p.ndim > 1)
    assert 2 * weights * 900 < teacher < 1.5 * 2 * weights * 900                       # and attention
    assert 4 * weights * 300 < student < 2 * 4 * weights * 300                         # frozen weights have no gradient; and adapters, attention, logits
    assert parts["weights"] == sum(p.numel() for p in Llama(config).parameters()) * 4


def test_it_says_what_would_make_it_fit(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(WIDE | {"model_type": "llama", "num_hidden_layers": 60}))
    args = argparse.Namespace(**vars(SETTINGS) | {"model": tmp_path, "plan": [1, 1.6], "tp": 1, "max_length": 2048, "batch": 8})
    assert not plan.print_distillation(args) and "it does NOT fit; it would on 2 such GPUs" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(WIDE | {"model_type": "llama"}))
    args.plan = [1, 0.2]
    assert not plan.print_collection(args)
    said = capsys.readouterr().out
    batch = int(said.split("with --batch ")[1].split()[0])
    assert plan.print_collection(argparse.Namespace(**vars(args) | {"batch": batch})) and not plan.print_collection(argparse.Namespace(**vars(args) | {"batch": batch + 1}))
    with pytest.raises(ValueError, match="--plan: give GPUS GIB"):
        plan.print_collection(argparse.Namespace(**vars(args) | {"plan": [8]}))
