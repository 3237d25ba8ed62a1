"""How fast, how much memory, how far from the limit of this machine.

    python bench.py                     everything
    python bench.py collect decode      some of it: limits, collect, batch, decode, distill, plan, sandbox

Random weights of a chosen size, nothing is downloaded. The peers are what people use today, transformers and peft, and are measured
only where they are installed. Each measurement is a process of its own, so that its peak memory is its own; ours and the peer's
alternate, and the ratio of the medians is printed. Same weights, same work, and the outputs are compared. On a GPU memory is the GPU's, and
what is compiled for it is compiled before the time starts.
"""

from common.command_line import Parser, number, run_stage

import argparse
import concurrent.futures
import gc
import importlib.util
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from engine import decoder
from model import Config, Llama, Request, Sampler
from scaling import parallel

ROOT = Path(__file__).resolve().parent
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
SMALL = dict(vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2)
LARGE = dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=8, num_attention_heads=32, num_key_value_heads=8)
WORDY = dict(vocab_size=128256, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=4)
if DEVICE == "cuda":                                                   # Llama-3.2-1B with a small vocabulary, Llama-3.1-8B, a quarter of its blocks
    SMALL = dict(vocab_size=8192, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8)
    LARGE = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    WORDY = LARGE | dict(num_hidden_layers=8)
    decoder.STEPS_BEFORE_COMPILING = 0


def checkpoint(folder, config):
    """Writes a model with random weights in Hugging Face format, and the starter's tokenizer; returns its directory."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Llama(Config(**config, max_position_embeddings=8192)).to(DTYPE)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5) if p.ndim > 1 else torch.nn.init.ones_(p)
    torch.nn.init.normal_(model.lm_head.weight, std=3 * config["hidden_size"] ** -0.5)         # far from ties
    folder.mkdir()
    save_file(model.hf_state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "starter" / name).read_bytes())
    return folder


# ---- the machine's limits ------------------------------------------------------------------------------------------

def best(work, n=5):
    """Seconds of the fastest of n runs."""
    seconds = []
    for _ in range(n):
        began = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def product_rate(dtype):
    """Floating-point operations a second in a large matrix product."""
    n = 8192 if DEVICE == "cuda" else 2048
    a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * n ** 3 / best(lambda: a @ b.T)                          # as a linear layer's: without instructions for bfloat16, a @ b would take minutes


def memory_rate(n=5):
    """Bytes a second in a large copy (read and written) or a large sum, whichever are more."""
    x = torch.ones(2 ** 28, device=DEVICE)
    y = torch.empty_like(x)
    return max(2 * 4 * len(x) / best(lambda: y.copy_(x), n), 4 * len(x) / best(lambda: x.sum(), n))


def limits():
    """Operations a second in float32 and in bfloat16, bytes a second."""
    return product_rate(torch.float32), product_rate(torch.bfloat16), memory_rate()


# ---- sampling ------------------------------------------------------------------------------------------------------

def conversations(agents, turns, shared, own, seed=0):
    """For each agent its first prompt, and for each turn how many tokens it answers and what it then gets to see."""
    rng = random.Random(seed)
    ids = lambda n: [rng.randrange(3, SMALL["vocab_size"]) for _ in range(n)]
    common = ids(shared)
    return [(common + ids(rng.randint(*own)), [(min(150, max(4, int(rng.lognormvariate(3.3, 0.7)))), ids(rng.randint(10, 40))) for _ in range(turns)])
            for _ in range(agents)]


def ours_sampling(folder, plan, warm_up):
    """warm_up: another plan, with which a GPU's kernels are compiled before the time starts."""
    sampler = Sampler(parallel.load(folder), batch=min(64, len(plan)), max_length=2048)
    if DEVICE == "cuda":
        played(sampler, warm_up)
    began = time.perf_counter()
    answers = played(sampler, plan)
    return {"seconds": time.perf_counter() - began, "units": sum(len(a) for turns in answers for a in turns), "output": answers}


def played(sampler, plan):
    """The answers, of each agent one for each turn."""
    answers = [[] for _ in plan]
    ask = lambda i, prompt: sampler.add(Request(i, prompt, plan[i][1][len(answers[i])][0]))
    for i, (prompt, _) in enumerate(plan):
        ask(i, prompt)
    while not sampler.idle:
        for done in sampler.step():
            answers[done.key].append(done.new_ids)
            if len(answers[done.key]) < len(plan[done.key][1]):
                ask(done.key, done.prompt + done.new_ids + plan[done.key][1][len(answers[done.key]) - 1][1])
    return answers


def peer_sampling(folder, plan, warm_up):
    """transformers' generate on the left-padded batch at every turn; a row that has its answer waits for the others."""
    from transformers import AutoModelForCausalLM, StoppingCriteria

    class Enough(StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            return torch.tensor([ids.shape[1] - width >= n for n in wanted], device=ids.device)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).to(DEVICE).eval()
    if DEVICE == "cuda":
        model.generate(torch.tensor([warm_up[0][0]], device=DEVICE), do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    began, answers, rows = time.perf_counter(), [[] for _ in plan], [prompt for prompt, _ in plan]
    for turn in range(len(plan[0][1])):
        width, wanted = max(map(len, rows)), [turns[turn][0] for _, turns in plan]
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=DEVICE)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=DEVICE)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max(wanted), eos_token_id=None, pad_token_id=0,
                                 stopping_criteria=[Enough()])[:, width:].tolist()
        for i, n in enumerate(wanted):
            answers[i].append(out[i][:n])
            rows[i] = rows[i] + out[i][:n] + plan[i][1][turn][1]
    return {"seconds": time.perf_counter() - began, "units": sum(len(a) for turns in answers for a in turns), "output": answers}


def ours_decode(folder):
    """One sequence; every token reads every weight once. → the bytes that are read for a token, and of some rounds the tokens a second and, right
    after them, the bytes a second that the memory gives: other users of the machine slow down both."""
    model = parallel.load(folder)
    weights = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "embed" not in name)
    n = 200 if DEVICE == "cuda" else 10
    sampler = Sampler(model, batch=1, max_length=256)
    for prompt in ([5, 6, 7], [5, 6, 9]):                             # of the second one a part is there already, as it will be of those that count
        sampler.generate([prompt], max_new_tokens=8)

    def tokens_a_second():
        began = time.perf_counter()
        sampler.generate([[5, 6, 8]], max_new_tokens=n)
        return n / (time.perf_counter() - began)

    return {"bytes": weights, "rounds": [(tokens_a_second(), memory_rate(2)) for _ in range(10)]}


# ---- distilling ----------------------------------------------------------------------------------------------------

RANK, ALPHA, LR, EPOCHS = 16, 32, 1e-4, 2


def held(model):
    """Bytes in memory once all of the model's weights are, and the code: on the GPU, or of this process. The peak is measured from here on: loading is not the work."""
    for p in model.parameters():
        p.sum()                                                       # a mapped file's pages come when they are read
    torch.optim.AdamW([torch.zeros(1)])                               # the first optimizer of a process imports a compiler, 70 MB
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return torch.cuda.memory_allocated() if DEVICE == "cuda" else resident("VmRSS")


def resident(what):
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM). getrusage's figure would be that of the process that started it, where that is larger."""
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))


def records(trajectories, steps, hints=1500):
    """Trajectories of random tokens: those of hints, 20 of question, each step some 20 of monologue, 50 of code, 20 of observation."""
    from agent.chat import Chat
    rng, chat = random.Random(0), Chat(ROOT / "starter")
    words = sorted(w for w in chat.tokenizer.get_vocab() if w.isalpha() and len(w) > 2)
    text = lambda n: " ".join(rng.choice(words) for _ in range(n // 2))
    tag = lambda name: [chat.tokenizer.token_to_id(f"</{name}>")]
    ids = lambda n: [rng.randrange(300, 1500) for _ in range(n)]
    step = lambda: {"monologue": "", "code": "", "observation": text(20), "hint": None,
                    "token_ids": {"monologue": ids(rng.randint(10, 30)) + tag("inner_monologue"), "code": ids(rng.randint(30, 70)) + tag("python")}}
    hints = [{"name": "all", "kind": "tools", "text": text(hints)}]
    return chat, [{"id": str(i), "task": {"question": text(20)}, "hints": hints, "success": True, "steps": [step() for _ in range(steps)]}
                  for i in range(trajectories)]


def ours_distill(folder, trajectories, steps, row=None):
    import distill
    distill.FUSED_AFTER = 0
    chat, data = records(trajectories, steps)
    load = lambda: parallel.load(folder, whole=False, linear_dtype=torch.bfloat16 if distill.fast_bfloat16() else None)
    args = argparse.Namespace(rank=RANK, alpha=ALPHA, model=folder, lora_dropout=0.0, targets=distill.TARGETS, lr=LR, decay=False, warmup=0, epochs=EPOCHS,
                              batch=trajectories * steps, loss="kl", kl_temperature=2.0, hint_dropout=1.0, seed=0, row=row)
    if DEVICE == "cuda":
        with tempfile.TemporaryDirectory() as out:
            distill.train(load(), chat, data, args, Path(out))
        gc.collect()
    model = load()
    before, began = held(model), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        log = distill.train(model, chat, data, args, Path(out))
    seconds = time.perf_counter() - began
    rows = distill.together([distill.example(chat, r)[:2] for r in data], distill.row_limits(model.config, DEVICE, 1, row)[0])
    flops = model_flops(model, rows, [distill.example(chat, r, 1.0) for r in data])
    return {"seconds": seconds, "units": EPOCHS * trajectories * steps, "output": log[0]["loss"], "flops": flops, "held": before}


def model_flops(model, rows, examples):
    """Floating-point operations of distilling, of the teacher's rows once and the student's examples in each epoch, counted as
    model-flops utilisation counts them (Chowdhery et al., 2022, Appendix B): 2 a weight and token forward, and 2 for each gradient;
    frozen weights need none. Of the attention's products the causal half; the last block behind its attention only where it is read."""
    behind = model.layers[-1].self_attn.o_proj, model.layers[-1].mlp
    count = lambda parts, learns: sum(p.numel() for part in parts for p in part.parameters() if p.ndim > 1 and p.requires_grad == learns)
    (frozen, trained), (frozen_last, trained_last) = ([count(parts, learns) for learns in (False, True)] for parts in ([model.layers], behind))
    head = count([model.lm_head], False) + count([model.lm_head], True)
    attention = lambda n: 2 * n * n * model.config.num_attention_heads * model.config.head_dim * model.config.num_hidden_layers
    forward = lambda n: 2 * (frozen - frozen_last) * n + attention(n)
    teacher = sum(forward(common) + sum(forward(len(x[0])) - forward(common) + 2 * frozen_last * len(x[1]) for x in row) for common, row in rows)
    return teacher + EPOCHS * sum((4 * (frozen - frozen_last) + 6 * (trained - trained_last)) * len(x[0]) + 3 * attention(len(x[0]))
                                  + (4 * frozen_last + 6 * trained_last + 6 * head) * len(x[1]) for x in examples)


def peer_distill(folder, trajectories, steps, row=None):
    """The paper's loss with peft: one action at a time, the hints' prompt run for each, full logits, gradients accumulated. `row` is ours alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from distill import fast_bfloat16
    chat, data = records(trajectories, steps)
    layers = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj lm_head".split()
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).to(DEVICE),
                           LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.02)

    def learn(record, n):
        """Adds the gradients of a record's action n. Returns its loss."""
        def logits(hints):
            ids, spans = chat.prompt(record["task"]["question"], hints, record["steps"][:n + 1])
            out = model(torch.tensor([ids], device=DEVICE)).logits[0]
            return torch.cat([out[a - 1:b - 1] for a, b in (spans[n, "monologue"], spans[n, "code"])]).float() / 2.0
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda" or fast_bfloat16()):
            with torch.no_grad(), model.disable_adapter():
                p = logits([record["hints"][0]["text"]]).log_softmax(-1)
            q = logits([]).log_softmax(-1)
            loss = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
        (loss / (trajectories * steps)).backward()
        return loss.item()

    if DEVICE == "cuda":
        learn(data[0], 0)
        optimizer.zero_grad()
    before, began, losses = held(model), time.perf_counter(), []
    for _ in range(EPOCHS):
        losses += [learn(record, n) for record in data for n in range(steps)]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {"seconds": time.perf_counter() - began, "units": len(losses), "output": float(np.mean(losses[:trajectories * steps])), "held": before}


# ---- what --plan says ----------------------------------------------------------------------------------------------

def training(folder, fsdp):
    """Updates of distill.py with the paper's settings, the student sees all hints: that is what --plan's memory is for. What it held, what
    an update takes; and the same as planned, the time as operations."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import distill
    from planning import plan
    chat, data = records(6, 4, hints=3000)
    args = argparse.Namespace(rank=128, alpha=256, model=folder, lora_dropout=0.05, targets=distill.TARGETS, lr=1e-5, decay=False, warmup=30, epochs=2,
                              batch=8, loss="kl", kl_temperature=2.0, hint_dropout=0.0, seed=0, row=None)
    ends = []
    register_optimizer_step_post_hook(lambda *_: (torch.cuda.synchronize(), ends.append(time.perf_counter())))
    parallel.MANY = fsdp                                               # also for one process
    parallel.start()
    model = parallel.load(folder, whole=False)
    with tempfile.TemporaryDirectory() as out:
        distill.train(model, chat, data, args, Path(out))
    examples = [(distill.example(chat, r), distill.example(chat, r, 1.0)) for r in data]
    lengths = sorted((len(taught[0]), len(bare[0]), len(taught[1]), 4) for taught, bare in examples)[-2:]
    row, _ = distill.longest([taught[:2] for taught, _ in examples], distill.row_limits(Config(**LARGE), "cuda", 1)[0])
    parts, _, flops, *_ = plan.distillation(Config(**LARGE), 1, args, lengths, row)
    if fsdp:
        parts["gathered"] = plan.distillation(Config(**LARGE), 2, args, lengths, row)[0]["gathered"]
    return {"seconds": ends[5] - ends[4], "planned": sum(parts.values()), "flops": flops}


def sampling(folder):
    """32 agents with prompts of 3,000 tokens: what that holds and how fast tokens come, and the same as planned."""
    from planning import plan
    args = argparse.Namespace(tp=1, batch=32, max_length=4096)
    sampler = Sampler(parallel.load(folder), args.batch, args.max_length)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, LARGE["vocab_size"]) for _ in range(3000)] for _ in range(args.batch)]
    texts = sampler.generate(prompts, max_new_tokens=10, temperature=0.7)
    again = [prompt + text for prompt, text in zip(prompts, texts)]
    sampler.generate(again, max_new_tokens=200, temperature=0.7)      # from here on all decode at once, in sizes that are compiled
    began = time.perf_counter()
    texts = sampler.generate(again, max_new_tokens=200, temperature=0.7)
    seconds = time.perf_counter() - began
    parts, _, read = plan.collection(plan.config_of(folder), args)
    return {"rate": sum(map(len, texts)) / seconds, "planned": sum(parts.values()), "read": read - parts["KV cache"] / 2 + parts["KV cache"] * 3100 / 4096}


# ---- the sandbox ---------------------------------------------------------------------------------------------------

def sandbox(data):
    from tools.sandbox import World
    with World(ROOT / "tools" / "toolqa.py", data) as world:
        with world.start() as box:
            box.run("1")
        starts, n = [], 400
        for _ in range(20):
            began = time.perf_counter()
            with world.start() as box:
                box.run("1")
                starts.append(time.perf_counter() - began)
        boxes = [world.start() for _ in range(2)]
        began = time.perf_counter()
        for i in range(n // 2):
            for box in boxes:
                box.send("print(1 + 1)")
            for box in boxes:
                assert box.receive().text.strip() == "2"
        seconds = time.perf_counter() - began
        for box in boxes:
            box.close()
    return {"steps": n / seconds, "start": statistics.median(starts)}


# ---- the table -----------------------------------------------------------------------------------------------------

def measured(function, *arguments):
    """… and the most memory it held: on the GPU, or of this process."""
    result = function(*arguments)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else resident("VmHWM")
    return result | {"memory": peak} if isinstance(result, dict) else result


def alone(function, *arguments):
    """Calls it in a new process."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, function, *arguments).result()


def against(title, unit, repeats, ours, peer, same, *arguments):
    """Prints a line of the table for ours and the peer's, measured in turn."""
    runs = {ours: [], peer: []}
    installed = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))
    for _ in range(repeats):
        for function in runs:
            if function is ours or installed:
                runs[function].append(alone(function, *arguments))
    rates = {f: statistics.median(r["units"] / r["seconds"] for r in results) for f, results in runs.items() if results}
    memory = {f: max(r["memory"] for r in results) / 2 ** 30 for f, results in runs.items() if results}
    line = f"{title}: {rates[ours]:,.1f} {unit}/s, peak memory {memory[ours]:.2f} GiB"
    if installed:
        line += f"; the peer {rates[peer]:,.1f} {unit}/s, {memory[peer]:.2f} GiB: {rates[ours] / rates[peer]:.1f} times as fast, "
        line += f"{memory[ours] / memory[peer]:.0%} of the memory; "
        if all("held" in r for results in runs.values() for r in results):
            more = {f: max(r["memory"] - r["held"] for r in results) / 2 ** 30 for f, results in runs.items()}
            line += f"beyond the loaded model {more[ours]:.2f} and {more[peer]:.2f} GiB, {more[ours] / more[peer]:.0%}; "
        line += same(runs[ours][0]["output"], runs[peer][0]["output"])
    print(line, flush=True)
    return runs[ours]


def same_text(a, b):
    pairs = [(x, y) for p, q in zip(a, b) for x, y in zip(p, q)]
    return f"{sum(x == y for x, y in pairs)} of {len(pairs)} answers are the same"


def same_loss(a, b):
    return f"first loss {a:.5f} and {b:.5f}"


JOBS = ["limits", "collect", "batch", "decode", "distill", *["plan"] * (DEVICE == "cuda"), "sandbox"]       # on a CPU tests/test_plan.py sees to the plan


def main():
    parser = Parser(__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)} [all]")
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "starter" / "world", help="of the starter world, for the sandbox's job")
    args = parser.parse_args()
    jobs = args.jobs or JOBS
    if unknown := set(jobs) - set(JOBS):
        parser.error(f"no job {min(unknown)!r}; there are {', '.join(JOBS)}")
    if "sandbox" in jobs and not (args.data / "world.sqlite").exists():
        parser.error(f"--data {args.data}: no world.sqlite there; python tools/starter_world.py --out data/starter makes it")
    float32, bfloat16, memory = alone(limits)
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else f'CPU, {torch.get_num_threads()} threads'}; torch {torch.__version__}; "
          f"matrix product {float32 / 1e9:,.0f} GFLOP/s in float32, {bfloat16 / 1e9:,.0f} in bfloat16; memory {memory / 1e9:,.1f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if {"collect", "batch"} & set(jobs):
            small = checkpoint(folder / "small", SMALL)
        if "collect" in jobs:
            against("collect: 64 agents, 4 turns, 600 shared prompt tokens", "tokens", args.repeats, ours_sampling, peer_sampling, same_text,
                    small, conversations(64, 4, 600, (20, 60)), conversations(64, 4, 600, (20, 60), seed=1))
        if "batch" in jobs:
            against("batch: 32 prompts of 10 to 400 tokens, one turn", "tokens", args.repeats, ours_sampling, peer_sampling, same_text,
                    small, conversations(32, 1, 0, (10, 400)), conversations(32, 1, 0, (10, 400), seed=1))
        if "decode" in jobs:
            large = checkpoint(folder / "large", LARGE)
            runs = [alone(ours_decode, large) for _ in range(args.repeats)]
            rates, limits_ = zip(*(pair for run in runs for pair in run["rounds"]))
            size, shares = runs[0]["bytes"], sorted(rate * runs[0]["bytes"] / limit for rate, limit in zip(rates, limits_))
            print(f"decode: one sequence, {size / 2 ** 30:.2f} GiB of weights: {statistics.median(rates):.1f} tokens/s, {statistics.median(rates) * size / 1e9:.1f} GB/s, "
                  f"{statistics.median(shares):.0%} of the memory's right after ({len(shares)} rounds, {shares[len(shares) // 10]:.0%} to {shares[-1 - len(shares) // 10]:.0%} without a tenth at each end)", flush=True)
        if "distill" in jobs:
            wordy = checkpoint(folder / "wordy", WORDY)
            for steps, trajectories, row in ((4, 32, None), (4, 32, 512), (1, 64, None)) if DEVICE == "cuda" else ((4, 4, None), (1, 8, None)):
                runs = against(f"distill{f' with --row {row}' if row else ''}: trajectories of {steps} actions, 1,500 tokens of hints, {WORDY['vocab_size']:,} words",
                               "actions", args.repeats, ours_distill, peer_distill, same_loss, wordy, trajectories, steps, row)
                rate = max(r["flops"] / r["seconds"] for r in runs)
                print(f"    {rate / 1e9:,.0f} GFLOP/s of the model's own: {rate / max(bfloat16, float32):.0%} of the matrix product's", flush=True)
        if "plan" in jobs:
            large = folder / "large" if (folder / "large").exists() else checkpoint(folder / "large", LARGE)
            os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
            for title, fsdp in (("distill.py, one process", False), ("the same with FSDP2", True)):
                r = alone(training, large, fsdp)
                print(f"plan: {title}, {r['memory'] / 2 ** 30:.2f} GiB, planned {r['planned'] / 2 ** 30:.2f}; an update {r['seconds']:.2f} s, "
                      f"{r['flops'] / r['seconds'] / 1e12:,.0f} TFLOP/s of those planned", flush=True)
            r = alone(sampling, large)
            print(f"plan: 32 agents of 3,000 tokens, {r['memory'] / 2 ** 30:.2f} GiB, planned {r['planned'] / 2 ** 30:.2f}; {r['rate']:,.0f} tokens/s, "
                  f"{r['rate'] / 32 * r['read'] / memory:.0%} of what the memory allows", flush=True)
    if "sandbox" in jobs:
        r = alone(sandbox, args.data)
        print(f"sandbox: {r['steps']:,.0f} steps/s on two processes, a trajectory's process starts in {r['start'] * 1000:.0f} ms", flush=True)


if __name__ == "__main__":
    run_stage(main)
