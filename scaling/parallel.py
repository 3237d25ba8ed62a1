"""Where a model runs: one process on a CPU or a GPU, or under torchrun many.

    torchrun --standalone --nproc-per-node 8 distill.py …                 each holds a part of every layer, FSDP2
    torchrun --standalone --nproc-per-node 8 collect.py … --tp 4          two replicas of the model, each split over four (tensor parallelism)

Without torchrun there is one process, and every function here does the plain thing.
"""

import functools
import os
import sys
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.kernels import keep_freed_memory, pack
from engine.sampler import Request, Sampler
from lora import fold, load_adapter
from model import Llama, fastest_dtype, local_folder, read_weight, weight_files

WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK, LOCAL = (int(os.environ.get(name, 0)) if WORLD > 1 else 0 for name in ("RANK", "LOCAL_RANK"))
MANY = WORLD > 1
REPLICA = None                                                      # with --tp: the processes that hold one model together, a DeviceMesh


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
        backend = "cpu:gloo,cuda:nccl" if device_and_dtype()[0].type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))    # some have more to do than others


def stop():
    """The end of a stage: nobody leaves before all are done, for torchrun stops the others when one fails. Under torchrun the process ends
    here: gloo's threads may still hold tensors, and abort it when the interpreter is taken down."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def load(path, adapters=(), whole=True, linear_dtype=None, dtype=None):
    """The model in the directory or hub id `path`, with its adapters stacked in order. Not `whole`: under torchrun the weights stay
    away until `share_out` or `split` gives every process its part. linear_dtype: of linear layers' weights, for one process on a CPU.
    dtype: of all weights [bfloat16 on a GPU, float32 on a CPU]."""
    device, default = device_and_dtype()
    dtype = dtype or default
    if device.type == "cpu":
        keep_freed_memory()
    alone = device.type == "cpu" and not MANY
    model = Llama.from_pretrained(path, dtype, "meta" if MANY and not whole else device, linear_dtype if alone else None)
    for adapter in adapters:
        load_adapter(model, adapter, path)
    fold(model)
    return model.eval()


# ---------------------------------------------------------------------------------------------------- replicas, each of --tp processes

def replica(tp):
    """(which replica this process belongs to, how many there are, whether it leads: the one that plays; the others only compute).
    Joins the processes of the replica. Raises ValueError if --tp does not divide the processes."""
    global REPLICA
    if WORLD % tp:
        raise ValueError(f"--tp {tp}: the number of processes has to be a multiple of it, and is {WORLD}; start them with torchrun --nproc-per-node")
    if tp > 1:
        from torch.distributed.device_mesh import init_device_mesh  # here and below, as they take a second to import
        REPLICA = init_device_mesh(device_and_dtype()[0].type, (WORLD // tp, tp), mesh_dim_names=("replica", "part"))["part"]
    return RANK // tp, WORLD // tp, RANK % tp == 0


def sampler(args):
    """Of the options that agent/options.py defines: the model, ready to sample, and what makes its requests."""
    dtype = getattr(torch, args.dtype) if hasattr(args, "dtype") else fastest_dtype(args.model, device_and_dtype()[0].type)
    model = load(args.model, args.adapter, whole=args.tp == 1, dtype=dtype)
    if args.tp > 1:
        split(model, args.model)
        fold(model)
    pack(model)
    sampler = Sampler(model, args.batch, min(args.max_length, model.config.max_position_embeddings), ahead=False if args.tp > 1 else None)
    if args.tp > 1:
        sampler.announce = announce
    return sampler, functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)


def split(model, path):
    """Tensor parallelism (Megatron's): of every block this process keeps its part of the heads and of the MLP's width, and the replica's
    processes add up what their o_proj and down_proj give. Embedding, norms and lm_head are whole everywhere. DTensor says whose is what; what is
    computed is computed on plain tensors: its dispatch at each layer made a token take 3.4 to 4.3 times as long (the starter, two CPU processes).

    The model was loaded without weights. Raises ValueError if the replica's processes do not divide it."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    c, parts = model.config, REPLICA.size()
    sizes = {name: getattr(c, name) for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
    for name, size in sizes.items():
        if size % parts:
            raise ValueError(f"{local_folder(path) / 'config.json'}: {name} is {size}, which --tp {parts} does not divide")
    outputs, inputs = {"weight": 0, "bias": 0, "frozen_B": 0}, {"weight": 1, "frozen_A": 1}
    along = {**dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), outputs), **dict.fromkeys(("o_proj", "down_proj"), inputs)}

    def parameters():
        for name, module in model.named_modules():
            for kind, p in list(module.named_parameters(recurse=False)):
                yield module, along.get(name.split(".")[-1], {}), kind, p

    for module, dimension, kind, p in parameters():
        part = distribute_tensor(p, REPLICA, [Shard(dimension[kind]) if kind in dimension else Replicate()], src_data_rank=None)
        part = part if p.is_meta else part.to_local().clone()          # of an adapter, which all have read, the rest goes
        module.register_parameter(kind, torch.nn.Parameter(part, requires_grad=False))
    read_parts(model, path)
    for module, dimension, kind, p in parameters():
        local = p.to_local() if hasattr(p, "to_local") else p
        if dimension is inputs and kind == "bias" and REPLICA.get_local_rank():                  # what all have is added by one of them
            local.zero_()
        module.register_parameter(kind, torch.nn.Parameter(local, requires_grad=False))
        if dimension is inputs and kind == "weight":
            module.register_forward_hook(lambda module, inputs, y: total(y, REPLICA.get_group()))
    model.config = replace(c, **{name: size // parts for name, size in sizes.items()})


def announce(plan):
    """The leader says what is run next; the others hear it. None: nothing more."""
    said, group = [plan], REPLICA.get_group()
    dist.broadcast_object_list(said, src=dist.get_global_rank(group, 0), group=group)
    return said[0]


def dismiss():
    """The leader has nothing more to run."""
    if REPLICA:
        announce(None)


def follow(args):
    """What a process does that does not lead: run what the leader runs, with its own part of the model, until there is no more."""
    sampler_, _ = sampler(args)
    while (plan := announce(None)) is not None:
        sampler_.run(plan)


# ---------------------------------------------------------------------------------------------------- FSDP2

def share_out(model, path):
    """Gives every process its part of a model that was loaded without its weights: FSDP2, block by block. The adapters, which every
    process has, are cut down to its rows."""
    device, _ = device_and_dtype()
    for block in model.layers:
        block.recompute = MANY or device.type == "cuda"
    if not MANY:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    mesh = init_device_mesh(device.type, (WORLD,))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")
    # With an adapter on lm_head alone no gradient runs through the blocks, and FSDP adds up gradients only where one does.
    model.embed_tokens.register_forward_hook(lambda module, inputs, y: y.requires_grad_() if torch.is_grad_enabled() else y)
    read_parts(model, path)
    return model


def read_parts(model, path):
    """Reads from the checkpoint, of every weight that is a DTensor without memory, this process's part and no more."""
    from torch.distributed.tensor import DTensor
    device, _ = device_and_dtype()
    tied, shards, weights = model.config.tie_word_embeddings, weight_files(local_folder(path)), {}
    for name, p in model.named_parameters():
        if p.is_meta and not (tied and name == "lm_head.weight"):
            mesh, held, part = p.device_mesh, p.to_local().shape, []
            for size, here in zip(p.shape, held):                     # as torch.chunk divides; the last ones may hold less, or nothing
                first = 0 if here == size else min(-(-size // mesh.size()) * mesh.get_local_rank(), size)
                part.append(slice(first, first + here))
            local = read_weight(shards, name if name.startswith("lm_head") else f"model.{name}", p.shape, tuple(part)).to(device, p.dtype).contiguous()
            local = DTensor.from_local(local, mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
            weights[name] = torch.nn.Parameter(local, requires_grad=False)
    if tied:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    model.load_state_dict(weights, strict=False, assign=True)
    model.frequencies = model.frequencies.to(device)


def wait():
    """Until all processes are here."""
    if MANY:
        dist.barrier()


def share(items):
    """This process's part of a list."""
    return items[RANK::WORLD]


def total(x, group=None):
    """The sum of a tensor over all processes, or those of a group; in its place."""
    if MANY:
        dist.all_reduce(x, group=group)
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
