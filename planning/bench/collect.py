"""Sampling: agents that take turns, a batch of prompts, long prompts with a sliding window, against transformers'
generate."""

import random
import time
from argparse import Namespace
from pathlib import Path

import torch

from model import Request, Sampler
from planning.bench.harness import DEVICE, DTYPE, SMALL, against, checkpoint
from scaling import parallel

JOBS = {                                                        # title, changes of SMALL, what `conversations` takes
    "collect": ("64 agents, 4 turns, 600 shared prompt tokens", {}, (64, 4, 600, (20, 60))),
    "batch": ("32 prompts of 10 to 400 tokens, one turn", {}, (32, 1, 0, (10, 400))),
    "window": ("8 prompts of 1,500 tokens, one turn, a sliding window of 512", {"sliding_window": 512},
               (8, 1, 0, (1500, 1500)))}


def compare(args: Namespace, job: str, folder: Path) -> None:
    """Prints the job's line. The model is written to a folder in `folder`."""
    title, changes, work = JOBS[job]
    against(args, f"{job}: {title}", "tokens/s", ours_sampling, peer_sampling, same_text,
            checkpoint(folder / job, SMALL | changes), conversations(*work), conversations(*work, seed=1))


def conversations(agents, turns, shared, own, seed=0):
    """For each agent its first prompt, and for each turn how many tokens it answers and the tokens it then sees."""
    rng = random.Random(seed)
    ids = lambda n: [rng.randrange(3, SMALL["vocab_size"]) for _ in range(n)]
    common = ids(shared)
    turn = lambda: (min(150, max(4, int(rng.lognormvariate(3.3, 0.7)))), ids(rng.randint(10, 40)))
    return [(common + ids(rng.randint(*own)), [turn() for _ in range(turns)]) for _ in range(agents)]


def ours_sampling(folder, work, warm_up):
    """warm_up: other conversations, with which a GPU's kernels are compiled before the time starts."""
    model, batch = parallel.load(folder), min(64, len(work))
    parallel.pack_weights(model, batch)
    sampler = Sampler(model, batch, max_length=2048)
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


def same_text(a, b):
    pairs = [(x, y) for p, q in zip(a, b) for x, y in zip(p, q)]
    return f"{sum(x == y for x, y in pairs)} of {len(pairs)} answers are the same"
