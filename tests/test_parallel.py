"""Two, three and four gloo processes under torchrun give what one process gives."""

import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import make as recorded
from formats.records import read_trajectories
from lora import read_adapter
from model import Config, Llama
from test_distill import record, tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent


def instrument(change, die=10**9):
    """Prepares distill.py: it leaves its first gradients in first.pt, starts with a B that is not zero, so that A has
    gradients, too, writes a checkpoint after every update, and kills its last process after `die` updates. change: as
    setattr."""
    import os
    import signal
    import sys
    from pathlib import Path

    import torch

    import distill
    from scaling import parallel
    from training import trainer
    real, add_adapter, calls = torch.nn.utils.clip_grad_norm_, trainer.add_adapter, []

    def clip(parameters, norm):
        calls.append(1)
        if len(calls) == 1:
            gradients = [parallel.full_tensor(p.grad) for p in parameters]
            file = Path(sys.argv[sys.argv.index("--out") + 1]) / "first.pt"
            if parallel.RANK == 0 and not file.exists():
                torch.save(gradients, file)
        if len(calls) > die and parallel.RANK == parallel.WORLD - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(parameters, norm)

    def add(*arguments):
        for p in add_adapter(*arguments)[1::2]:
            torch.nn.init.normal_(p, std=0.01)

    change(torch.nn.utils, "clip_grad_norm_", clip)
    change(trainer, "add_adapter", add)
    change(trainer.time, "time", iter(range(0, 10**6, 100)).__next__)
    for module in distill, trainer:
        change(module, "fast_bfloat16", lambda: False)          # float32, to compare


SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
{inspect.getsource(instrument)}
import distill
instrument(setattr, int(sys.argv.pop()))
distill.command_line.run_stage(distill.main)
"""


def run(processes, script, *arguments):
    """A script in that many processes under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return subprocess.run(list(map(str, [sys.executable, *torchrun, script, *arguments])), cwd=ROOT,
                          capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})


def alone(stage, *arguments, prepare=lambda change: None):
    """A stage in this process → what `run` returns."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [stage, *map(str, arguments)])
        prepare(patch.setattr)
        importlib.import_module(stage.removesuffix(".py")).main()
    return SimpleNamespace(returncode=0, stdout=out.getvalue(), stderr=err.getvalue())


def distill(folder, processes, *arguments, die=10**9):
    if processes == 1:
        return alone("distill.py", *arguments, prepare=instrument)
    (folder / "script.py").write_text(SCRIPT)
    return run(processes, folder / "script.py", *arguments, die)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model and data, and the adapter that one process makes."""
    from agent.chat import Chat
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "model").mkdir()
    tiny_checkpoint(folder / "model")
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    chat = Chat(ROOT / "starter")
    records = [record(chat, n, steps=1 + n % 3) | fields for n in range(7)]
    (folder / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    command = ["--model", folder / "model", "--data", folder / "d.jsonl", "--rank", 3, "--alpha", 256, "--lr", 1e-3,
               "--no-decay", "--warmup", 2, "--epochs", 3, "--batch", 4, "--lora-dropout", 0.1, "--kl-temperature", 2,
               "--hint-dropout", 0.5, "--val", folder / "d.jsonl", "--out"]
    done = distill(folder, 1, *command, folder / "one")
    assert done.returncode == 0, done.stderr
    return folder, command


def same(folder, a, b):
    for x, y in zip(torch.load(folder / a / "first.pt"), torch.load(folder / b / "first.pt"), strict=True):
        assert x.shape == y.shape and (x - y).norm() <= 1e-5 * x.norm()
    losses = [[json.loads(line) for line in open(folder / out / "log.jsonl")] for out in (a, b)]
    assert len(losses[0]) == len(losses[1]) >= 9 and "validation_loss" in losses[0][-1]
    for x, y in zip(*losses):
        tolerance = 1e-5 if x["update"] == 1 else 1e-4
        assert x.keys() == y.keys() and all(y[k] == pytest.approx(x[k], rel=tolerance) for k in x)
    (config, one), (other, two) = read_adapter(folder / a), read_adapter(folder / b)
    assert config == other and one.keys() == two.keys()
    for name in one:
        for x, y in zip(one[name][:2], two[name][:2]):
            assert x.shape == y.shape                           # Adam makes much of small gradients
            assert (x - y).norm() <= 1e-3 * x.norm(), name


@pytest.mark.parametrize("processes, row", [(1, 300), (4, 300)])
def test_many_processes_or_rows_make_the_adapter_that_one_makes(prepared, processes, row):
    """With dropout, too: its masks depend neither on the process nor on the row; a trajectory has up to 200 tokens."""
    folder, command = prepared
    done = distill(folder, processes, *command, folder / f"of{processes}", "--row", row)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("adapter of rank 3", done.stdout)) == 1
    same(folder, "one", f"of{processes}")


def test_two_processes_learn_by_cross_entropy_what_one_learns(prepared):
    folder, command = prepared
    for processes in 1, 2:
        done = distill(folder, processes, *command, folder / f"entropy{processes}", "--loss", "ce")
        assert done.returncode == 0, done.stderr
    same(folder, "entropy1", "entropy2")


def test_a_rank_without_other_processes_means_nothing():
    show = "from scaling import parallel; print(parallel.RANK, parallel.WORLD, parallel.LOCAL)"
    environment = os.environ | {"RANK": "3", "LOCAL_RANK": "2"}
    shown = subprocess.check_output([sys.executable, "-c", show], cwd=ROOT, env=environment, text=True)
    assert shown == "0 1 0\n"


PARTS = """
import sys
sys.path.insert(0, {root!r})
from scaling import parallel
import torch, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
from lora import add_adapter, save_adapter, trainable

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

parallel.start()
open("/proc/self/clear_refs", "w").write("5")     # the peak so far, of importing, is forgotten
before = peak()
model = parallel.load(sys.argv[1], whole=False)
add_adapter(model, 4, 8)
model = parallel.shard(model, sys.argv[1])
sum(p.to_local().sum() for p in model.parameters())     # what is memory-mapped is read now
torch.save(peak() - before, sys.argv[2] + f"/peak{{parallel.RANK}}.pt")
for p in trainable(model):
    p.data.to_local().fill_(parallel.RANK)
save_adapter(model, sys.argv[2], write=parallel.RANK == 0)
parallel.stop()
"""


def test_each_process_reads_its_rows_of_the_weights_and_writes_its_rows_of_the_adapter(tmp_path):
    shape = dict(vocab_size=20000, hidden_size=768, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=12,
                 num_key_value_heads=4)
    whole = Llama(Config(**shape)).hf_state_dict()
    save_file(whole, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": "llama"}))
    (tmp_path / "script.py").write_text(PARTS.format(root=str(ROOT)))
    (tmp_path / "out").mkdir()
    done = run(3, tmp_path / "script.py", tmp_path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    size = sum(weight.nbytes for weight in whole.values())
    for rank in range(3):                                       # its part, and what Python and PyTorch need
        assert size / 3 < torch.load(tmp_path / "out" / f"peak{rank}.pt") < 0.75 * size
    _, adapter = read_adapter(tmp_path / "out")
    assert len(adapter) == 4 * 7 + 1
    for A, B, _ in adapter.values():
        for half in (A, B):
            owner = torch.arange(len(half)) // -(-len(half) // 3)                       # as torch.chunk divides
            assert torch.equal(half, owner.float()[:, None].expand_as(half))


def test_an_adapter_on_lm_head_alone_is_trained_by_many_processes_too(prepared):
    folder, command = prepared
    for processes in (1, 2):
        done = distill(folder, processes, *command, folder / f"head{processes}", "--targets", "lm_head")
        assert done.returncode == 0, done.stderr
    same(folder, "head1", "head2")


def test_after_a_process_is_killed_another_number_of_them_resumes_and_makes_the_same_adapter(prepared):
    """The adapter's rank is 3: of four processes one holds nothing of its A."""
    folder, command = prepared
    for processes, die, updates in ((4, 3, 3), (2, 3, 6)):
        done = distill(folder, processes, *command, folder / "killed", die=die)
        assert done.returncode != 0 and "RuntimeError" not in done.stderr, done.stderr
        assert len(list((folder / "killed" / "unfinished" / "checkpoint0").glob("*/.metadata"))) == 1
        assert not (folder / "killed" / "adapter_model.safetensors").exists()
        log = (folder / "killed" / "unfinished" / "checkpoint0.jsonl").read_text().splitlines()
        assert [json.loads(line)["update"] for line in log] == list(range(1, updates + 1))
    done = distill(folder, 1, *command, folder / "killed")
    assert done.returncode == 0, done.stderr
    # The second one resumed after three updates, this one after six.
    assert re.search(r"(\d+)/\d+ \[", done.stderr)[1] == "6", done.stderr
    same(folder, "one", "killed")


@pytest.fixture
def collect(prepared, tmp_path):
    """collect(processes, out, …) → the records by id, or None if it `says` why it fails."""
    folder, _ = prepared
    (tmp_path / "data").mkdir()
    (tmp_path / "tools.py").write_text('"""Tools."""\ndef look(x):\n    """Looks."""\n    return x\n')
    tasks = [{"id": f"t{n}", "group": "g", "template": "p", "question": f"What is {n}?", "answer": "1"}
             for n in range(11)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))

    def records(processes, out, *more, stage="collect.py", says=None):
        arguments = ("--model", folder / "model", "--tools", tmp_path / "tools.py",
                     "--data", tmp_path / "data", "--tasks", tmp_path / "tasks.jsonl", "--trials", 2,
                     "--temperature", 0, "--max-steps", 2, "--max-new-tokens", 5, "--out", tmp_path / out, *more)
        done = run(processes, stage, *arguments) if processes > 1 else alone(stage, *arguments)
        if says:
            assert done.returncode and says in done.stderr and "RuntimeError" not in done.stderr, done.stderr
            return None
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"{out}: 22 trajectories, ") == 1              # one process reports
        return {r["id"]: r for r in read_trajectories(tmp_path / out)}          # which refuses an id that comes twice
    return records


def logits_of(model, adapters, tp):
    """The logits of a model that `tp` processes share, and how many of its blocks' parameters this one holds."""
    from argparse import Namespace

    import torch

    from scaling import parallel
    parallel.start()
    parallel.join_replica(tp)
    sampler, _ = parallel.sampler(Namespace(model=model, adapter=adapters, batch=4, max_length=64, max_new_tokens=9,
                                            temperature=0.0, top_p=1.0, tp=tp, dtype=None))
    with torch.inference_mode():
        logits = sampler.model(torch.arange(3, 40)[None])
    return logits, sum(p.numel() for p in sampler.model.layers.parameters())


LOGITS = f"""
import json
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from scaling import parallel
{inspect.getsource(logits_of)}
for out, model, adapters in json.loads(sys.argv[1]):
    torch.save(logits_of(model, adapters, 2), f"{{out}}.{{parallel.RANK}}")
parallel.stop()
"""


def test_a_model_split_over_processes_computes_the_same(prepared, collect, tmp_path):
    folder, command = prepared
    adapter = ["--adapter", folder / "one"]
    one = collect(1, "one.jsonl", *adapter)
    two = collect(4, "two.jsonl", *adapter, "--tp", 2)                          # two replicas, each of two processes
    assert one.keys() == two.keys() and len(one) == 22
    assert all(one[key]["steps"] == two[key]["steps"] for key in one)
    assert any(s["token_ids"]["monologue"] for r in one.values() for s in r["steps"])
    # This one's biases are added once, not by each process; it has no adapter and no tied weights.
    shape = dict(vocab_size=1536, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, attention_bias=True, mlp_bias=True)
    biased, script = tmp_path / "biased", tmp_path / "logits.py"
    biased.mkdir()
    save_file(Llama(Config(**shape)).hf_state_dict(), biased / "model.safetensors")
    (biased / "config.json").write_text(json.dumps(shape | {"model_type": "llama"}))
    script.write_text(LOGITS)
    jobs = [(tmp_path / "tied", folder / "model", [folder / "one"]), (tmp_path / "biases", biased, [])]
    done = run(2, script, json.dumps(jobs, default=str))
    assert done.returncode == 0, done.stderr
    for out, model, adapters in jobs:
        logits, parameters = logits_of(model, adapters, 1)
        for rank in range(2):
            other, held = torch.load(f"{out}.{rank}")
            assert (other - logits).abs().max() <= 1e-5 * logits.abs().max() and held < 0.6 * parameters


def test_many_processes_collect_each_task_once_also_after_one_died(collect, tmp_path):
    one, two = collect(1, "one.jsonl"), collect(2, "two.jsonl")
    three = collect(3, "three.jsonl", stage="evaluate.py")
    assert one.keys() == three.keys() and all(one[key]["steps"] == three[key]["steps"] for key in one)
    assert one.keys() == two.keys() and len(one) == 22
    assert all(one[key]["steps"] == two[key]["steps"] for key in one)
    assert sorted(p.name for p in tmp_path.glob("two.jsonl*")) == ["two.jsonl", "two.jsonl.args"]

    collect(2, "two.jsonl", "--seed", 5, says="two.jsonl: made with other arguments (seed)")

    lines = (tmp_path / "two.jsonl").read_text().splitlines(keepends=True)   # three died
    (tmp_path / "two.jsonl").write_text("".join(lines[:5]))
    (tmp_path / "two.jsonl.rank1").write_text("".join(lines[4:9]))              # one of its lines was gathered already
    (tmp_path / "two.jsonl.rank2").write_text("".join(lines[9:12]) + lines[12][:40])
    again = collect(2, "two.jsonl")
    assert again.keys() == one.keys() and list(again)[:5] == [json.loads(line)["id"] for line in lines[:5]]
    assert sorted(p.name for p in tmp_path.glob("two.jsonl*")) == ["two.jsonl", "two.jsonl.args"]


def logits_and_gradients(paths):
    """{path: its logits; path + " gradients": those of an adapter}, of models that the processes share, if many."""
    import torch

    from lora import add_adapter, trainable
    from scaling import parallel
    tokens, results = torch.arange(3, 60)[None], {}
    for path in paths:
        model = parallel.load(path, whole=False)
        if parallel.MANY:
            parallel.split(model, path)
        with torch.no_grad():
            results[path] = model(tokens)
        model = parallel.load(path, whole=False)
        torch.manual_seed(0)
        add_adapter(model, 4, 8)
        model = parallel.shard(model, path)
        model.lm_head(model.hidden(tokens)).logsumexp(-1).sum().backward()
        results[path + " gradients"] = torch.cat([parallel.full_tensor(p.grad).flatten() for p in trainable(model)])
    return results


TWO = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from scaling import parallel
{inspect.getsource(logits_and_gradients)}
parallel.start()
parallel.join_replica(2)
torch.save(logits_and_gradients(sys.argv[2:]), sys.argv[1] + str(parallel.RANK))
parallel.stop()
"""


def test_every_type_of_model_is_the_same_in_two_processes(tmp_path):
    """Its logits, split by --tp, and its gradients under FSDP2: biases, norms of queries and keys, sliding windows."""
    names = ("mistral", "qwen2", "qwen3-new", "contradictory")
    paths = [str(recorded.checkpoint(name, tmp_path)) for name in names]
    (tmp_path / "script.py").write_text(TWO)
    done = run(2, tmp_path / "script.py", tmp_path / "two.", *paths)
    assert done.returncode == 0, done.stderr
    one = logits_and_gradients(paths)
    for two in (torch.load(tmp_path / f"two.{rank}") for rank in range(2)):
        assert one.keys() == two.keys()
        assert all((one[key] - two[key]).norm() <= 1e-5 * one[key].norm() and one[key].norm() > 0 for key in one)
