"""Where a model runs: one process on a CPU or a GPU, or under torchrun many.

    torchrun --standalone --nproc-per-node 8 distill.py …                 each holds a part of every layer, FSDP2
    torchrun --standalone --nproc-per-node 8 collect.py … --tp 4          two replicas of the model, each split over four (tensor parallelism)

Without torchrun there is one process, and every function here does the plain thing.
"""

import contextlib
import ctypes
import functools
import os
import sys
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from lora import fold, load_adapter
from model import Llama, local_folder, read_weight, weight_files
from sampler import Request, Sampler

WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK, LOCAL = (int(os.environ.get(name, 0)) if WORLD > 1 else 0 for name in ("RANK", "LOCAL_RANK"))
MANY = WORLD > 1
TENSORS = PLANS = None                                              # this replica's process groups: sums of activations; what is run next


def device_and_dtype():
    """A GPU in bfloat16 where there is one (under torchrun this process's own), else the CPU in float32."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), torch.float32
    torch.cuda.set_device(LOCAL)
    torch.set_float32_matmul_precision("high")                         # adapters' products where agents play: TensorFloat-32, finer than bfloat16
    return torch.device("cuda", LOCAL), torch.bfloat16


def start():
    """Joins the other processes, if there are any."""
    if MANY and not dist.is_initialized():
        device, _ = device_and_dtype()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))      # some have more to do than others


def stop():
    """The end of a stage: nobody leaves before all are done, for torchrun stops the others when one fails. Under torchrun the process ends
    here: gloo's threads may still hold tensors, and abort it when the interpreter is taken down."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def freed_memory(keep):
    """glibc gives a large freed block back to the system and gets the next tensor's anew, page by page, cleared. Here it is told to `keep` what is
    freed, up to a gigabyte of it and but for distill.py's logits, or from now on to give back all that is large, and what it has kept."""
    with contextlib.suppress(AttributeError, OSError, TypeError):      # another C library
        glibc = ctypes.CDLL(None)
        glibc.mallopt(-1, 2 ** 30)                                     # M_TRIM_THRESHOLD
        glibc.mallopt(-3, 2 ** 24 if keep else 2 ** 21)                # M_MMAP_THRESHOLD: of what is larger nothing is kept
        if not keep:
            glibc.malloc_trim(0)


def load(path, adapters=(), whole=True, linear_dtype=None):
    """The model in the directory or hub id `path`, with its adapters stacked in order. Not `whole`: under torchrun the weights stay
    away until `share_out` or `split` gives every process its part. linear_dtype: of linear layers' weights, for one process on a CPU."""
    device, dtype = device_and_dtype()
    if device.type == "cpu":
        freed_memory(keep=True)
    alone = device.type == "cpu" and not MANY
    model = Llama.from_pretrained(path, dtype, "meta" if MANY and not whole else device, linear_dtype if alone else None)
    for adapter in adapters:
        load_adapter(model, adapter)
    fold(model)
    return model.eval()


# ---------------------------------------------------------------------------------------------------- replicas, each of --tp processes

def replica(tp):
    """(which replica this process belongs to, how many there are, whether it leads: the one that plays; the others only compute).
    Joins the processes of the replica. Raises ValueError if --tp does not divide the processes."""
    global TENSORS, PLANS
    if WORLD % tp:
        raise ValueError(f"--tp {tp}: the number of processes has to be a multiple of it, and is {WORLD}; start them with torchrun --nproc-per-node")
    if tp > 1:
        for first in range(0, WORLD, tp):                            # every process has to take part in making every group
            members = list(range(first, first + tp))
            groups = dist.new_group(members), dist.new_group(members, backend="gloo")
            if RANK in members:
                TENSORS, PLANS = groups
    return RANK // tp, WORLD // tp, RANK % tp == 0


def sampler(args):
    """Of the options that agent.add_arguments defines: the model, ready to sample, and what makes its requests."""
    model = load(args.model, args.adapter, whole=args.tp == 1)
    if args.tp > 1:
        split(model, args.model, RANK % args.tp, args.tp)
        fold(model)
    sampler = Sampler(model, args.batch, min(args.max_length, model.config.max_position_embeddings), ahead=False if args.tp > 1 else None)
    if args.tp > 1:
        sampler.announce = announce
    return sampler, functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)


def split(model, path, part, parts):
    """Tensor parallelism (Megatron's): of every block this process keeps 1 / parts of the heads and of the MLP's width, and the replica's
    processes add up what their o_proj and down_proj give. Embedding, norms and lm_head are whole everywhere. On plain tensors: DTensor's
    parallelize_module gives the same tokens, but its dispatch at each layer made one take 3.4 to 4.3 times as long (the starter, two CPU processes).

    The model was loaded without weights; of each tensor only the part is read. Raises ValueError if `parts` does not divide the model."""
    c, folder = model.config, local_folder(path)
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(c, name) % parts:
            raise ValueError(f"{folder / 'config.json'}: {name} is {getattr(c, name)}, which --tp {parts} does not divide")
    device, dtype = device_and_dtype()
    dimension = {**dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 0), "o_proj": 1, "down_proj": 1}
    shards = weight_files(folder)

    def mine(size):
        return slice(part * size // parts, (part + 1) * size // parts)

    for name, module in model.named_modules():
        d, split_along = dimension.get(name.split(".")[-1]), {}
        for kind, p in list(module.named_parameters(recurse=False)):
            at = {"weight": d, "bias": 0 if d == 0 else None, "frozen_A": 1 if d == 1 else None, "frozen_B": 0 if d == 0 else None}[kind]
            index = tuple(mine(n) if i == at else slice(None) for i, n in enumerate(p.shape))
            if p.is_meta and not (name == "lm_head" and c.tie_word_embeddings):
                full = f"{name}.{kind}"
                p = read_weight(shards, full if name == "lm_head" else f"model.{full}", p.shape, index).to(device, dtype)
                if kind == "bias" and d == 1 and part:               # added once
                    p = torch.zeros_like(p)
            else:
                p = p[index]
            split_along[kind] = torch.nn.Parameter(p.to(device).contiguous() if not p.is_meta else p, requires_grad=False)
        for kind, p in split_along.items():
            setattr(module, kind, p)
        if d == 1:
            module.register_forward_hook(lambda module, inputs, y: _sum(y))
    if c.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.frequencies = model.frequencies.to(device)
    model.config = replace(c, num_attention_heads=c.num_attention_heads // parts, num_key_value_heads=c.num_key_value_heads // parts,
                           intermediate_size=c.intermediate_size // parts)


def _sum(y):
    dist.all_reduce(y, group=TENSORS)
    return y


def announce(plan):
    """The leader says what is run next; the others hear it. None: nothing more."""
    said = [plan]
    dist.broadcast_object_list(said, src=dist.get_global_rank(PLANS, 0), group=PLANS)
    return said[0]


def dismiss():
    """The leader has nothing more to run."""
    if PLANS:
        announce(None)


def follow(args):
    """What a process does that does not lead: run what the leader runs, with its own part of the model, until there is no more."""
    sampler_, _ = sampler(args)
    while (plan := announce(None)) is not None:
        sampler_.run(plan)


# ---------------------------------------------------------------------------------------------------- FSDP2

def share_out(model, path):
    """Gives every process its part of a model that was loaded without its weights: FSDP2, block by block. From the checkpoint each
    process reads only its own rows of every tensor; the adapters, which every process has, are cut down to its rows."""
    device, _ = device_and_dtype()
    for block in model.layers:
        block.recompute = MANY or device.type == "cuda"
    if not MANY:
        return model
    from torch.distributed.device_mesh import init_device_mesh         # here, as they take a second to import
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor
    mesh = init_device_mesh(device.type, (WORLD,))
    model.frequencies = model.frequencies.to(device)
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")
    # With an adapter on lm_head alone no gradient runs through the blocks, and FSDP adds up gradients only where one does.
    model.embed_tokens.register_forward_hook(lambda module, inputs, y: y.requires_grad_() if torch.is_grad_enabled() else y)
    shards, weights = weight_files(local_folder(path)), {}
    for name, p in model.named_parameters():
        if p.is_meta:
            rows = -(-p.shape[0] // WORLD)                            # as torch.chunk divides
            part = slice(min(RANK * rows, p.shape[0]), min((RANK + 1) * rows, p.shape[0]))
            local = read_weight(shards, name if name.startswith("lm_head") else f"model.{name}", p.shape, part).to(device, p.dtype)
            local = DTensor.from_local(local, mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
            weights[name] = torch.nn.Parameter(local, requires_grad=False)
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    model.load_state_dict(weights, strict=False, assign=True)
    return model


def wait():
    """Until all processes are here."""
    if MANY:
        dist.barrier()


def share(items):
    """This process's part of a list."""
    return items[RANK::WORLD]


def total(x):
    """The sum of a tensor over all processes."""
    if MANY:
        dist.all_reduce(x)
    return x


def most(n):
    """The largest that any process says."""
    if MANY:
        dist.all_reduce(n := torch.tensor(n, device=device_and_dtype()[0]), dist.ReduceOp.MAX)
    return int(n)


def agree(x):
    """What the first process says."""
    said = [x]
    if MANY:
        dist.broadcast_object_list(said)
    return said[0]


def whole(tensor):
    """A tensor of which every process has a part, in one piece."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
