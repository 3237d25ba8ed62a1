"""Decoding: how long a step takes, as a share of the memory's limit and beside transformers' generate.

A step computes the next token of every agent. It has to read all weights of the linear layers, and of adapters that are
not folded into them, once. These bytes, divided by the bytes that this machine copies in a second, are the limit. The
keys and values that a step reads as well are not counted, so long contexts of many agents cannot reach it.

Both sides are timed from the second new token on, and the median step counts. So prompts are not part of it.
"""

from common import ROOT

import statistics
import time
import warnings
from argparse import Namespace
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path

import torch
from tokenizers import Tokenizer

from formats.config import Config
from formats.weights import local_folder
from lora import add_adapter, save_adapter
from model import Llama, Request, Sampler, fastest_dtype
from planning.bench.harness import DEVICE, DTYPE, LARGE, PEERS, alone, checkpoint, process
from planning.bench.limits import memory_rate
from planning.bench.profile import profile
from scaling import parallel

UNTIMED = 2                                                     # new tokens before the first timed step


def compare(args: Namespace, folder: Path) -> None:
    """The job `decode`: one sequence, a model with random weights."""
    model = checkpoint(folder / "large", LARGE)
    for dtype in args.dtype or [name_of(DTYPE)]:
        measure(args, model, dtype, "", [(f"decode: one sequence, random weights, {dtype}", [[5, 6, 7]])])


def compare_real(args: Namespace, folder: Path) -> None:
    """The job `real`: a model from its folder or hub id, with and without an adapter, several numbers of agents."""
    model = local_folder(args.model)
    longest = max(args.shared) + args.own + UNTIMED + 2 * args.steps
    if longest > (positions := Config.from_json(model / "config.json").max_position_embeddings):
        raise ValueError(f"--shared, --own and --steps: {longest} tokens; this model sees at most {positions}")
    for dtype in args.dtype or dict.fromkeys((name_of(fastest_dtype(model, DEVICE)), "float32")):
        for rank in args.rank:
            adapter = str(folder / f"rank{rank}") if rank else ""
            if rank and not Path(adapter).exists():
                alone(make_adapter, model, rank, adapter)
            measure(args, model, dtype, adapter, [
                (f"{Path(args.model).name}, {dtype}, {f'adapter of rank {rank}' if rank else 'no adapter'}, "
                 f"{shared} + {args.own} tokens, {agents} agent{'s' * (agents > 1)}",
                 prompts(model, agents, shared, args.own)) for shared in args.shared for agents in args.agents])


def measure(args: Namespace, model: Path, dtype: str, adapter: str, works: list) -> None:
    """Prints a line for each (title, prompts): ours, and in turn transformers or ours without a special case."""
    rival = f"without {args.without}" if args.without else "transformers" if PEERS else ""
    disabled = (args.without,) if args.without else ()
    with process() as here, process(*disabled) as there:
        for title, texts in works:
            work = model, dtype, adapter, texts, args.steps
            runs, others = [], []
            for _ in range(args.repeats):
                runs.append(here.submit(ours, *work, args.profile).result())
                if rival:
                    others.append(there.submit(ours if args.without else peer, *work).result())
            print(line(title, rival, runs, others), flush=True)
            if args.profile:
                print(shares(runs), flush=True)


def prompts(model: Path, agents: int, shared: int, own: int) -> list[list[int]]:
    """Prompts that begin with the same tokens, followed by each agent's own: text of hints, as agents see it."""
    text = "\n".join(file.read_text() for file in sorted((ROOT / "hints" / "toolqa" / "round1").glob("*.md")))
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    ids = list(islice(cycle(ids), shared + agents * own))
    return [ids[:shared] + ids[shared + i * own:shared + (i + 1) * own] for i in range(agents)]


def make_adapter(model: Path, rank: int, folder: str) -> None:
    """Writes a random adapter on every linear layer whose updates are about a hundredth of the layers' outputs."""
    torch.manual_seed(0)
    llama = Llama.from_pretrained(model)
    for p in add_adapter(llama, rank, 2 * rank)[1::2]:          # each B
        torch.nn.init.normal_(p, std=1e-3)
    save_adapter(llama, folder)


# ---- ours ----------------------------------------------------------------------------------------------------------

@lru_cache(1)
def our_model(model, dtype, adapter, agents):
    """As scaling/parallel.py loads it for a sampler."""
    llama = parallel.load(model, [adapter] if adapter else [], dtype=getattr(torch, dtype))
    parallel.pack_weights(llama, agents)
    return llama


def ours(model: Path, dtype: str, adapter: str, texts: list[list[int]], steps: int, with_profile: bool = False) -> dict:
    """Continues all texts by `steps` timed tokens, greedily → the seconds of the median step, the bytes of weights that
    it reads, the bytes that the machine copies in a second right after, the new tokens, and the profile of as many
    steps more."""
    llama = our_model(model, dtype, adapter, len(texts))
    room = UNTIMED + 2 * steps + len(texts)                     # prompts that are admitted first run ahead
    sampler = Sampler(llama, len(texts), max(map(len, texts)) + room)
    requests = [Request(i, text, room) for i, text in enumerate(texts)]
    for request in requests:
        sampler.add(request)
    while min(len(r.new_ids) for r in requests) < UNTIMED:
        sampler.step()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        sampler.step()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "bytes": bytes_read(llama), "copied": memory_rate(2),
            "output": [r.new_ids[:UNTIMED + steps] for r in requests],
            "profile": profile(sampler.step, steps) if with_profile else {}}


def bytes_read(llama):
    """Bytes of the weights that a step reads: of the linear layers. It reads only some rows of the embedding."""
    linears = [m for m in llama.modules() if isinstance(m, torch.nn.Linear)]
    return sum(p.numel() * p.element_size() for m in linears for p in m.parameters())


# ---- transformers' generate ----------------------------------------------------------------------------------------

@lru_cache(1)
def peer_model(model, dtype, adapter):
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar
    disable_progress_bar()
    warnings.simplefilter("ignore")                             # names of arguments that change in its next version
    llama = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).to(DEVICE).eval()
    llama.generation_config = GenerationConfig()                # the model's own may have a repetition penalty
    if adapter:
        from peft import PeftModel
        llama = PeftModel.from_pretrained(llama, adapter).eval()
    return llama


def peer(model: Path, dtype: str, adapter: str, texts: list[list[int]], steps: int) -> dict:
    """The same by `generate` → the seconds of the median step and the new tokens. It computes a common beginning of the
    texts, which are equally long, once; the cache then holds a copy for each."""
    from transformers import DynamicCache, StoppingCriteria

    class Clock(StoppingCriteria):
        def __call__(self, ids, scores, **options):
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    llama, times = peer_model(model, dtype, adapter), []
    ids = torch.tensor(texts, device=DEVICE)
    cache, same = DynamicCache(config=llama.config), (ids == ids[0]).all(0).tolist() + [False]
    if shared := min(same.index(False), ids.shape[1] - 1):
        with torch.inference_mode():
            llama(input_ids=ids[:1, :shared], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ids))
    with torch.inference_mode():
        out = llama.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=False,
                             max_new_tokens=UNTIMED + steps, eos_token_id=None, pad_token_id=0,
                             stopping_criteria=[Clock()])
    seconds = [end - start for start, end in zip(times[UNTIMED - 1:], times[UNTIMED:])]
    return {"seconds": statistics.median(seconds), "output": out[:, ids.shape[1]:].tolist()}


# ---- what is printed -----------------------------------------------------------------------------------------------

def line(title: str, rival: str, runs: list[dict], others: list[dict]) -> str:
    """A measurement's medians. runs: ours; others: the rival's."""
    seconds = statistics.median(r["seconds"] for r in runs)
    limit = statistics.median(r["bytes"] / r["copied"] for r in runs)
    share = statistics.median(r["bytes"] / r["copied"] / r["seconds"] for r in runs)
    agents = len(runs[0]["output"])
    text = (f"{title}: {seconds * 1000:.1f} ms a step, {agents / seconds:,.0f} tokens/s, {share:.0%} of the memory's "
            f"limit ({runs[0]['bytes'] / 1e9:.2f} GB, {limit * 1000:.1f} ms)")
    if others:
        other = statistics.median(r["seconds"] for r in others)
        text += (f"; {rival} {other * 1000:.1f} ms: {other / seconds:.2f} times as fast; "
                 f"{agreement(runs[0]['output'], others[0]['output'])}")
    return text


def agreement(answers: list[list[int]], others: list[list[int]]) -> str:
    """How many greedy answers are equal, and where the others differ first."""
    firsts = [next(n for n, pair in enumerate(zip(a, b)) if pair[0] != pair[1])
              for a, b in zip(answers, others, strict=True) if a != b]
    text = f"{len(answers) - len(firsts)} of {len(answers)} answers of {len(answers[0])} tokens are equal"
    if firsts:
        text += f", the others in their first {min(firsts)} or more (median {statistics.median_low(firsts)})"
    return text


def shares(runs: list[dict]) -> str:
    """Where a step's time goes: the median of each part, and its share of their sum."""
    parts = {name: statistics.median(r["profile"][name] for r in runs) for name in runs[0]["profile"]}
    total = sum(parts.values())
    return "\n".join(f"    {name:32}{seconds * 1000:8.2f} ms {seconds / total:6.1%}" for name, seconds in parts.items())


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
