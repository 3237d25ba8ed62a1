"""Measures speed and memory, and compares them with this machine's limits and with other people's code.

    python -m planning.bench                     everything
    python -m planning.bench collect decode      some of it: limits, collect, batch, decode, distill, plan, sandbox

The models have random weights of a chosen size; nothing is downloaded. The peers are what people use today,
transformers and peft. They are measured only where they are installed, with the same weights and the same work, and the
outputs are compared. Each measurement runs in a process of its own, so that its peak memory is its own. Our code and
the peer alternate, and the ratio of the medians is printed. On a GPU, the memory is the GPU's, and everything that is
compiled is compiled before the clock starts.
"""

from common import ROOT
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
from engine.kernels import fast_bfloat16
from lora import TARGETS
from model import Config, Llama, Request, Sampler
from scaling import parallel
from training import trainer
from training.examples import to_example
from training.packing import longest_row, pack_by_prefix, row_limits

DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)


def shape(vocabulary, hidden, intermediate, layers, heads, kv_heads):
    return dict(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads)


SMALL = shape(8192, 384, 1024, 6, 6, 2)
LARGE = shape(32000, 2048, 5632, 8, 32, 8)
LARGE_VOCABULARY = shape(128256, 1024, 2816, 4, 16, 4)
if DEVICE == "cuda":
    SMALL = shape(8192, 2048, 8192, 16, 32, 8)                      # Llama-3.2-1B with a small vocabulary
    LARGE = shape(128256, 4096, 14336, 32, 32, 8)                   # Llama-3.1-8B
    LARGE_VOCABULARY = LARGE | dict(num_hidden_layers=8)            # a quarter of its blocks
    decoder.STEPS_BEFORE_COMPILING = 0


def checkpoint(folder, config):
    """Writes a model with random weights in Hugging Face format, and the starter's tokenizer; returns its directory."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Llama(Config(**config, max_position_embeddings=8192)).to(DTYPE)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5) if p.ndim > 1 else torch.nn.init.ones_(p)
    torch.nn.init.normal_(model.lm_head.weight, std=3 * config["hidden_size"] ** -0.5)      # far from ties
    folder.mkdir()
    save_file(model.hf_state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6}))
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
    return 2 * n ** 3 / best(lambda: a @ b.T)       # without bfloat16 instructions, a @ b would take minutes


def memory_rate(n=5):
    """Bytes a second in a large copy (read and written) or in a large sum, whichever is more."""
    x = torch.ones(2 ** 28, device=DEVICE)
    y = torch.empty_like(x)
    return max(2 * 4 * len(x) / best(lambda: y.copy_(x), n), 4 * len(x) / best(lambda: x.sum(), n))


def limits():
    """Operations a second in float32 and in bfloat16, bytes a second."""
    return product_rate(torch.float32), product_rate(torch.bfloat16), memory_rate()


# ---- sampling ------------------------------------------------------------------------------------------------------

def conversations(agents, turns, shared, own, seed=0):
    """For each agent its first prompt, and for each turn how many tokens it answers and the tokens it then sees."""
    rng = random.Random(seed)
    ids = lambda n: [rng.randrange(3, SMALL["vocab_size"]) for _ in range(n)]
    common = ids(shared)
    turn = lambda: (min(150, max(4, int(rng.lognormvariate(3.3, 0.7)))), ids(rng.randint(10, 40)))
    return [(common + ids(rng.randint(*own)), [turn() for _ in range(turns)]) for _ in range(agents)]


def ours_sampling(folder, work, warm_up):
    """warm_up: other conversations, with which a GPU's kernels are compiled before the time starts."""
    sampler = Sampler(parallel.load(folder), batch=min(64, len(work)), max_length=2048)
    if DEVICE == "cuda":
        played(sampler, warm_up)
    began = time.perf_counter()
    answers = played(sampler, work)
    return {"seconds": time.perf_counter() - began, "units": sum(len(a) for turns in answers for a in turns),
            "output": answers}


def played(sampler, work):
    """The answers: for each agent, one per turn."""
    answers = [[] for _ in work]
    ask = lambda i, prompt: sampler.add(Request(i, prompt, work[i][1][len(answers[i])][0]))
    for i, (prompt, _) in enumerate(work):
        ask(i, prompt)
    while not sampler.idle:
        for done in sampler.step():
            answers[done.key].append(done.new_ids)
            if len(answers[done.key]) < len(work[done.key][1]):
                ask(done.key, done.prompt + done.new_ids + work[done.key][1][len(answers[done.key]) - 1][1])
    return answers


def peer_sampling(folder, work, warm_up):
    """transformers' generate on the left-padded batch at every turn; a row that has its answer waits for the others."""
    from transformers import AutoModelForCausalLM, StoppingCriteria

    class Enough(StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            return torch.tensor([ids.shape[1] - width >= n for n in wanted], device=ids.device)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).to(DEVICE).eval()
    if DEVICE == "cuda":
        model.generate(torch.tensor([warm_up[0][0]], device=DEVICE), do_sample=False, max_new_tokens=8,
                       eos_token_id=None, pad_token_id=0)
    began, answers, rows = time.perf_counter(), [[] for _ in work], [prompt for prompt, _ in work]
    for turn in range(len(work[0][1])):
        width, wanted = max(map(len, rows)), [turns[turn][0] for _, turns in work]
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=DEVICE)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=DEVICE)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max(wanted),
                                 eos_token_id=None, pad_token_id=0, stopping_criteria=[Enough()])[:, width:].tolist()
        for i, n in enumerate(wanted):
            answers[i].append(out[i][:n])
            rows[i] = rows[i] + out[i][:n] + work[i][1][turn][1]
    return {"seconds": time.perf_counter() - began, "units": sum(len(a) for turns in answers for a in turns),
            "output": answers}


def ours_decode(folder):
    """Decodes one sequence; every token reads every weight once → the bytes read for a token, and rounds of (tokens per
    second, bytes per second of a copy right after them). Other users of the machine slow down both."""
    model = parallel.load(folder)
    weights = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "embed" not in name)
    n = 200 if DEVICE == "cuda" else 10
    sampler = Sampler(model, batch=1, max_length=256)
    for prompt in ([5, 6, 7], [5, 6, 9]):       # a part of the second one is cached, as of those that are timed
        sampler.generate([prompt], max_new_tokens=8)

    def tokens_a_second():
        began = time.perf_counter()
        sampler.generate([[5, 6, 8]], max_new_tokens=n)
        return n / (time.perf_counter() - began)

    return {"bytes": weights, "rounds": [(tokens_a_second(), memory_rate(2)) for _ in range(10)]}


# ---- distilling ----------------------------------------------------------------------------------------------------

RANK, ALPHA, LR, EPOCHS = 16, 32, 1e-4, 2


def held(model):
    """Bytes in memory once the model's weights and the code are loaded: on the GPU, or in this process. The peak is
    measured from here on, because loading is not part of the work."""
    for p in model.parameters():
        p.sum()                                                     # a mapped file's pages are loaded when read
    torch.optim.AdamW([torch.zeros(1)])                             # a process's first optimizer imports 70 MB of code
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return torch.cuda.memory_allocated() if DEVICE == "cuda" else resident("VmRSS")


def resident(what):
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM). getrusage would report those of the process that
    started it, if they are more."""
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))


def records(trajectories, steps, hints=1500):
    """Trajectories of random tokens: `hints` in the hints, 20 in the question, and in each step about 20 in the
    monologue, 50 in the code and 20 in the observation."""
    from agent.chat import Chat
    rng, chat = random.Random(0), Chat(ROOT / "starter")
    words = sorted(w for w in chat.tokenizer.get_vocab() if w.isalpha() and len(w) > 2)
    text = lambda n: " ".join(rng.choice(words) for _ in range(n // 2))
    tag = lambda name: [chat.tokenizer.token_to_id(f"</{name}>")]
    ids = lambda n: [rng.randrange(300, 1500) for _ in range(n)]
    step = lambda: {"monologue": "", "code": "", "observation": text(20), "hint": None,
                    "token_ids": {"monologue": ids(rng.randint(10, 30)) + tag("inner_monologue"),
                                  "code": ids(rng.randint(30, 70)) + tag("python")}}
    hints = [{"name": "all", "kind": "tools", "text": text(hints)}]
    return chat, [{"id": str(i), "task": {"question": text(20)}, "hints": hints, "success": True,
                   "steps": [step() for _ in range(steps)]} for i in range(trajectories)]


def ours_distill(folder, trajectories, steps, row=None):
    trainer.COMPILE_AFTER = 0
    chat, data = records(trajectories, steps)
    load = lambda: parallel.load(folder, whole=False, linear_dtype=torch.bfloat16 if fast_bfloat16() else None)
    args = argparse.Namespace(rank=RANK, alpha=ALPHA, model=folder, lora_dropout=0.0, targets=TARGETS, lr=LR,
                              decay=False, warmup=0, epochs=EPOCHS,
                              batch=trajectories * steps, loss="kl", kl_temperature=2.0, hint_dropout=1.0, seed=0,
                              row=row)
    if DEVICE == "cuda":
        with tempfile.TemporaryDirectory() as out:
            trainer.train(load(), chat, data, args, Path(out))
        gc.collect()
    model = load()
    before, began = held(model), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        log = trainer.train(model, chat, data, args, Path(out))
    seconds = time.perf_counter() - began
    rows = pack_by_prefix([to_example(chat, r) for r in data], row_limits(model.config, DEVICE, 1, row)[0])
    flops = model_flops(model, rows, [to_example(chat, r, 1.0) for r in data])
    return {"seconds": seconds, "units": EPOCHS * trajectories * steps, "output": log[0]["loss"], "flops": flops,
            "held": before}


def model_flops(model, rows, examples):
    """Floating-point operations of distilling: the teacher's rows once, the student's examples in each epoch. They are
    counted as for model-flops utilisation (Chowdhery et al., 2022, Appendix B): 2 per weight and token forward, and 2
    for each gradient, which frozen weights do not need. Only the causal half of attention's products counts, and what
    follows attention in the last block counts only where it is read."""
    c, last = model.config, model.layers[-1]

    def count(modules):
        """(frozen, trained) weights."""
        weights = [p for module in modules for p in module.parameters() if p.ndim > 1]
        return [sum(p.numel() for p in weights if p.requires_grad == learns) for learns in (False, True)]

    frozen, trained = count([model.layers])
    frozen_last, trained_last = count([last.self_attn.o_proj, last.mlp])
    head = sum(count([model.lm_head]))
    attention = lambda n: 2 * n * n * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    forward = lambda n: 2 * (frozen - frozen_last) * n + attention(n)
    teacher = sum(forward(row.shared) + sum(forward(len(x.tokens)) - forward(row.shared) + 2 * frozen_last * len(x.at)
                                            for x in row.examples) for row in rows)
    student = sum((4 * (frozen - frozen_last) + 6 * (trained - trained_last)) * len(x.tokens)
                  + 3 * attention(len(x.tokens))
                  + (4 * frozen_last + 6 * trained_last + 6 * head) * len(x.at) for x in examples)
    return teacher + EPOCHS * student


def peer_distill(folder, trajectories, steps, row=None):
    """The paper's loss with peft: one action at a time, each with a pass over the prompt with hints, full logits,
    gradients accumulated. `row` only concerns ours."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

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
    return {"seconds": time.perf_counter() - began, "units": len(losses),
            "output": float(np.mean(losses[:trajectories * steps])), "held": before}


# ---- what --plan says ----------------------------------------------------------------------------------------------

def training(folder, fsdp):
    """Updates of distill.py with the paper's settings while the student sees all hints, as --plan assumes for memory →
    the seconds of an update, and the bytes and operations that were planned."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from planning import plan
    chat, data = records(6, 4, hints=3000)
    args = argparse.Namespace(rank=128, alpha=256, model=folder, lora_dropout=0.05, targets=TARGETS, lr=1e-5,
                              decay=False, warmup=30, epochs=2,
                              batch=8, loss="kl", kl_temperature=2.0, hint_dropout=0.0, seed=0, row=None)
    ends = []
    register_optimizer_step_post_hook(lambda *_: (torch.cuda.synchronize(), ends.append(time.perf_counter())))
    parallel.MANY = fsdp                                               # also for one process
    parallel.start()
    model = parallel.load(folder, whole=False)
    with tempfile.TemporaryDirectory() as out:
        trainer.train(model, chat, data, args, Path(out))
    examples = [(to_example(chat, r), to_example(chat, r, 1.0)) for r in data]
    lengths = sorted((len(taught.tokens), len(bare.tokens), len(taught.at), 4) for taught, bare in examples)[-2:]
    row, _ = longest_row([taught for taught, _ in examples], row_limits(Config(**LARGE), "cuda", 1)[0])
    parts, _, flops, *_ = plan.distillation(Config(**LARGE), 1, args, lengths, row)
    if fsdp:
        parts["gathered"] = plan.distillation(Config(**LARGE), 2, args, lengths, row)[0]["gathered"]
    return {"seconds": ends[5] - ends[4], "planned": sum(parts.values()), "flops": flops}


def sampling(folder):
    """32 agents with prompts of 3,000 tokens → tokens per second, and the bytes that were planned."""
    from planning import plan
    args = argparse.Namespace(tp=1, batch=32, max_length=4096)
    sampler = Sampler(parallel.load(folder), args.batch, args.max_length)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, LARGE["vocab_size"]) for _ in range(3000)] for _ in range(args.batch)]
    texts = sampler.generate(prompts, max_new_tokens=10, temperature=0.7)
    again = [prompt + text for prompt, text in zip(prompts, texts)]
    sampler.generate(again, max_new_tokens=200, temperature=0.7)    # from now on all decode at once, compiled
    began = time.perf_counter()
    texts = sampler.generate(again, max_new_tokens=200, temperature=0.7)
    seconds = time.perf_counter() - began
    parts, _, read = plan.collection(plan.config_of(folder), args)
    return {"rate": sum(map(len, texts)) / seconds, "planned": sum(parts.values()),
            "read": read - parts["KV cache"] / 2 + parts["KV cache"] * 3100 / 4096}


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
    """The function's result, with the most memory it held: on the GPU, or of this process."""
    result = function(*arguments)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else resident("VmHWM")
    return result | {"memory": peak} if isinstance(result, dict) else result


def alone(function, *arguments):
    """Calls the function in a new process."""
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
        line += (f"; the peer {rates[peer]:,.1f} {unit}/s, {memory[peer]:.2f} GiB: "
                 f"{rates[ours] / rates[peer]:.1f} times as fast, {memory[ours] / memory[peer]:.0%} of the memory; ")
        if all("held" in r for results in runs.values() for r in results):
            more = {f: max(r["memory"] - r["held"] for r in results) / 2 ** 30 for f, results in runs.items()}
            line += (f"beyond the loaded model {more[ours]:.2f} and {more[peer]:.2f} GiB, "
                     f"{more[ours] / more[peer]:.0%}; ")
        line += same(runs[ours][0]["output"], runs[peer][0]["output"])
    print(line, flush=True)
    return runs[ours]


def same_text(a, b):
    pairs = [(x, y) for p, q in zip(a, b) for x, y in zip(p, q)]
    return f"{sum(x == y for x, y in pairs)} of {len(pairs)} answers are the same"


def same_loss(a, b):
    return f"first loss {a:.5f} and {b:.5f}"


# On a CPU, tests/test_plan.py checks the plan.
JOBS = ["limits", "collect", "batch", "decode", "distill", *["plan"] * (DEVICE == "cuda"), "sandbox"]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)} [all]")
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "starter" / "world",
                        help="the starter world's data, for the sandbox job")
    args = parser.parse_args()
    jobs = args.jobs or JOBS
    if unknown := set(jobs) - set(JOBS):
        parser.error(f"no job {min(unknown)!r}; there are {', '.join(JOBS)}")
    if "sandbox" in jobs and not (args.data / "world.sqlite").exists():
        parser.error(f"--data {args.data}: no world.sqlite there; "
                     "python tools/starter_world.py --out data/starter makes it")
    float32, bfloat16, memory = alone(limits)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; matrix product {float32 / 1e9:,.0f} GFLOP/s in float32, "
          f"{bfloat16 / 1e9:,.0f} in bfloat16; memory {memory / 1e9:,.1f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if {"collect", "batch"} & set(jobs):
            compare_sampling(jobs, checkpoint(folder / "small", SMALL), args.repeats)
        if "decode" in jobs:
            print_decoding(checkpoint(folder / "large", LARGE), args.repeats)
        if "distill" in jobs:
            compare_distilling(checkpoint(folder / "vocabulary", LARGE_VOCABULARY), args.repeats,
                               max(float32, bfloat16))
        if "plan" in jobs:
            large = folder / "large"
            check_plans(large if large.exists() else checkpoint(large, LARGE), memory)
    if "sandbox" in jobs:
        rates = alone(sandbox, args.data)
        print(f"sandbox: {rates['steps']:,.0f} steps/s on two processes, a trajectory's process starts in "
              f"{rates['start'] * 1000:.0f} ms", flush=True)


def compare_sampling(jobs, small, repeats):
    for job, title, work in (("collect", "collect: 64 agents, 4 turns, 600 shared prompt tokens",
                              (64, 4, 600, (20, 60))),
                             ("batch", "batch: 32 prompts of 10 to 400 tokens, one turn", (32, 1, 0, (10, 400)))):
        if job in jobs:
            against(title, "tokens", repeats, ours_sampling, peer_sampling, same_text,
                    small, conversations(*work), conversations(*work, seed=1))


def print_decoding(large, repeats):
    runs = [alone(ours_decode, large) for _ in range(repeats)]
    size, rounds = runs[0]["bytes"], [pair for run in runs for pair in run["rounds"]]
    shares, rate = sorted(rate * size / limit for rate, limit in rounds), statistics.median(rate for rate, _ in rounds)
    tenth = len(shares) // 10
    print(f"decode: one sequence, {size / 2 ** 30:.2f} GiB of weights: {rate:.1f} tokens/s, "
          f"{rate * size / 1e9:.1f} GB/s, "
          f"{statistics.median(shares):.0%} of the memory bandwidth right after ({len(shares)} rounds, "
          f"{shares[tenth]:.0%} to {shares[-1 - tenth]:.0%} without a tenth at each end)", flush=True)


def compare_distilling(folder, repeats, limit):
    """limit: floating-point operations per second of the faster matrix product."""
    gpu, cpu = ((4, 32, None), (4, 32, 512), (1, 64, None)), ((4, 4, None), (1, 8, None))
    for steps, trajectories, row in gpu if DEVICE == "cuda" else cpu:
        title = (f"distill{f' with --row {row}' if row else ''}: trajectories of {steps} actions, "
                 "1,500 tokens of hints, "
                 f"a vocabulary of {LARGE_VOCABULARY['vocab_size']:,}")
        runs = against(title, "actions", repeats, ours_distill, peer_distill, same_loss, folder, trajectories, steps,
                       row)
        rate = max(r["flops"] / r["seconds"] for r in runs)
        print(f"    {rate / 1e9:,.0f} GFLOP/s of the model's operations: {rate / limit:.0%} of the matrix product's",
              flush=True)


def check_plans(large, memory):
    """memory: bytes per second."""
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    for title, fsdp in (("distill.py, one process", False), ("the same with FSDP2", True)):
        r = alone(training, large, fsdp)
        print(f"plan: {title}, {r['memory'] / 2 ** 30:.2f} GiB, planned {r['planned'] / 2 ** 30:.2f}; an update "
              f"{r['seconds']:.2f} s, {r['flops'] / r['seconds'] / 1e12:,.0f} TFLOP/s of the planned operations",
              flush=True)
    r = alone(sampling, large)
    print(f"plan: 32 agents of 3,000 tokens, {r['memory'] / 2 ** 30:.2f} GiB, planned {r['planned'] / 2 ** 30:.2f}; "
          f"{r['rate']:,.0f} tokens/s, {r['rate'] / 32 * r['read'] / memory:.0%} of what the memory allows", flush=True)


if __name__ == "__main__":
    run_stage(main)
