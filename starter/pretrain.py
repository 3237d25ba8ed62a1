"""Trains the starter, a tiny Llama that knows no tool, no fact and no English. All it can do is follow hints.

    python starter/pretrain.py --print 5                    prints samples as the model sees them
    python starter/pretrain.py --tokens 45e6 --out starter  trains (hours on two CPU cores)

The samples are those of starter/samples.py. The loss covers only the actions. The training writes config.json and
model.safetensors, saves a checkpoint every 200 updates, and resumes from it when the same command is run again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, command_line, files

import json
import multiprocessing
import random
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from agent.chat import Chat
from model import Config, Llama
from starter.samples import ROWS, World, batch, evaluated, sample, vocabulary_pieces

CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=192,
              intermediate_size=512, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=48,
              rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=8192, tie_word_embeddings=True,
              dtype="float32")
# (until this fraction of the training, tokens per row, rows per update)
PHASES = [(0.05, 128, 32), (0.25, 256, 32), (0.60, 512, 16), (1.00, 768, 12)]
LATER = [(0.85, 512, 16), (1.00, 768, 12)]             # with --init
MATRIX_LR, EMBEDDING_LR = 0.02, 0.004                  # peak rates of Muon and AdamW
WARMUP, DECAY = 100, 0.85                              # updates; the last part of the training, over which rates fall


def schedule(total, phases=PHASES):
    """(length, rows, tokens before) of each update when training on `total` tokens."""
    done, updates = 0, []
    while done < total:
        _, length, rows = next(phase for phase in phases if done < phase[0] * total)
        updates.append((length, rows, done))
        done += length * rows
    return updates


def orthogonalized(g, iterations=5):
    """g (N, R, C) with each matrix's singular values near 1: Newton-Schulz iteration, as in Muon (K. Jordan, 2024)."""
    x = g.bfloat16()
    if wide := x.shape[1] > x.shape[2]:
        x = x.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).contiguous()
    for _ in range(iterations):
        a = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if wide else x).float()


class Muon:
    """Momentum, orthogonalized, for the weight matrices of the blocks."""

    def __init__(self, parameters, momentum=0.95):
        self.groups = {}
        for p in parameters:
            self.groups.setdefault(p.shape, []).append(p)
        self.momentum = momentum
        self.state = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr):
        for shape, parameters in self.groups.items():
            g, m = torch.stack([p.grad for p in parameters]), self.state[shape]
            m.lerp_(g, 1 - self.momentum)
            update = orthogonalized(g.lerp(m, self.momentum)) * max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(parameters, update):
                p.mul_(1 - 0.01 * lr).sub_(u, alpha=lr)


def produce(queue, seed, start, updates, forbidden):
    torch.set_num_threads(1)
    chat = Chat(ROOT / "starter")
    for index in range(start, len(updates)):
        queue.put(batch(chat, f"{seed} {index}", *updates[index][:2], forbidden))


def loss_of(model, ids, targets):
    """Mean cross-entropy at the targets, the logits there, and the flat positions of the targets."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(ids)
        keep = (targets != -100).flatten().nonzero().squeeze(1)
        logits = model.lm_head(hidden.flatten(0, 1)[keep]).float()
    return F.cross_entropy(logits, targets.flatten()[keep]), logits, keep


@torch.no_grad()
def check(model, batches):
    """The fraction of rows in which every learned token is the likeliest."""
    rows = right = 0
    for ids, targets in batches:
        ids, targets = torch.from_numpy(ids), torch.from_numpy(targets)
        _, logits, keep = loss_of(model, ids, targets)
        wrong = torch.zeros(targets.numel(), dtype=torch.bool)
        wrong[keep] = logits.argmax(-1) != targets.flatten()[keep]
        right += (~wrong.view(targets.shape).any(1)).sum().item()
        rows += len(ids)
    return right / rows


def grown(weights, layers):
    """The weights {name: tensor} of a deeper model that computes the same.

    Copies of the middle block follow it; their outputs are zero.
    """
    have = sum(k.endswith("input_layernorm.weight") for k in weights)
    middle, out = have // 2, {}
    for name, weight in weights.items():
        if not (block := re.match(r"model\.layers\.(\d+)\.", name)):
            out[name] = weight
            continue
        rest, i = name[block.end():], int(block[1])
        out[f"model.layers.{i + (layers - have) * (i > middle)}.{rest}"] = weight
        for added in range(middle + 1, middle + 1 + layers - have) if i == middle else ():
            output = rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            out[f"model.layers.{added}.{rest}"] = torch.zeros_like(weight) if output else weight
    return out


def save(model, out):
    files.write_whole({out / "model.safetensors": lambda part: save_file(model.hf_state_dict(), part,
                                                                         metadata={"format": "pt"})})


def main():
    p = command_line.Parser(__doc__)
    p.add_argument("--print", type=int, default=0, metavar="N", help="print N samples and stop")
    p.add_argument("--tokens", type=command_line.number(float, 1e4), default=45e6, help="length of the training")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--init", type=Path, metavar="FILE",
                   help="begin with the weights of this model.safetensors, which may have fewer blocks, "
                        "and train on rows of 512 and 768 tokens")
    p.add_argument("--mean", action="store_true",
                   help="write the mean of --init's weights and the trained ones, which is better than either")
    p.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates; at most 0.6 with --init")
    p.add_argument("--out", type=Path, default=ROOT / "runs" / "starter")
    p.add_argument("--checkpoint", type=Path,
                   help="resume from this file [OUT/checkpoint.pt, which is saved every 200 updates]")
    p.add_argument("--compile", action="store_true", help="torch.compile: about 1.3 times faster, needs a C++ compiler")
    args = p.parse_args()
    if args.init and not args.init.is_file():
        raise ValueError(f"{args.init}: no such file")
    chat, forbidden = Chat(ROOT / "starter"), evaluated()
    if args.print:
        for i in range(args.print):
            rng = random.Random(f"{args.seed} print {i}")
            ids, _ = sample(World(rng, vocabulary_pieces(chat), forbidden), chat, 512)
            print(f"--- sample {i}\n{chat.decode(ids)}\n")
        return

    torch.manual_seed(args.seed)
    tokenizer = chat.tokenizer
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": tokenizer.token_to_id("<|end|>")}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    model = Llama(Config.from_json(args.out / "config.json"))
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    for p in matrices:
        torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    for block in model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    torch.nn.init.normal_(model.embed_tokens.weight, std=0.05)
    muon, adam = Muon(matrices), torch.optim.AdamW(rest, lr=1, betas=(0.9, 0.95), weight_decay=0.0)
    updates, start = schedule(args.tokens, LATER if args.init else PHASES), 0
    try:
        before = grown(load_file(args.init), config["num_hidden_layers"]) if args.init else {}
        model.load_state_dict({k.removeprefix("model."): v for k, v in before.items()}, strict=False)
    except Exception as e:
        raise ValueError(f"{args.init}: not weights of such a model ({' '.join(str(e).split())[:100]})") from None
    file = args.checkpoint or args.out / "checkpoint.pt"
    if file.exists():
        try:
            state = torch.load(file)
            start = state["update"]
            model.load_state_dict(state["model"])
            muon.state = state["muon"]
            adam.load_state_dict(state["adam"])
        except Exception as e:
            raise ValueError(f"{file}: not a checkpoint of this training ({type(e).__name__}); "
                             "remove it, and the same command starts again") from None
    file = args.out / "checkpoint.pt"
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, updates {start} to {len(updates)}, "
          f"{args.tokens / 1e6:.0f}M tokens; "
          f"{len(forbidden.names)} names and {len(forbidden.texts)} texts are kept out")
    if args.compile:
        torch._dynamo.config.recompile_limit = 64                     # a graph for each layer and length
        model.hidden = torch.compile(model.hidden, dynamic=False)
    held_out = {kind: [batch(chat, f"held out {i}", 512, 16, forbidden, kind=kind) for i in range(3)] for kind in ROWS}
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue(8)
    producer = spawn.Process(target=produce, args=(queue, args.seed, start, updates, forbidden), daemon=True)
    producer.start()
    began, losses = time.time(), []
    try:
        for update, (length, rows, done) in list(enumerate(updates))[start:]:
            scale = min(1, (update + 1) / WARMUP, (1 - done / args.tokens) / DECAY) * args.rate
            ids, targets = (torch.from_numpy(x) for x in queue.get())
            loss, _, _ = loss_of(model, ids, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rest, 1.0)
            muon.step(MATRIX_LR * scale)
            adam.param_groups[0]["lr"] = EMBEDDING_LR * scale
            adam.step()
            model.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if (update + 1) % 50 == 0:
                rate = (done - updates[start][2]) / (time.time() - began)
                line = (f"update {update + 1}  {done / 1e6:.1f}M tokens  loss {np.mean(losses):.4f}  "
                        f"{rate:,.0f} tokens/s  rate {scale:.2f}")
                losses = []
                if (update + 1) % 200 == 0 or update + 1 == len(updates):
                    right = (f"{kind} {check(model, batches):.2f}" for kind, batches in held_out.items())
                    line += f"  right: {', '.join(right)}"
                    state = {"update": update + 1, "model": model.state_dict(), "muon": muon.state,
                             "adam": adam.state_dict()}
                    files.write_whole({file: lambda part: torch.save(state, part)})
                    save(model, args.out)
                print(line, flush=True)
    finally:
        producer.kill()
    if args.mean:
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                if f"model.{name}" in before:
                    weight.lerp_(before[f"model.{name}"], 0.5)
    save(model, args.out)
    print(f"wrote {args.out}/model.safetensors")


if __name__ == "__main__":
    command_line.run_stage(main)
