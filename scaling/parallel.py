"""Where a model runs: in one process on a CPU or a GPU, or in many under torchrun.

    torchrun --standalone --nproc-per-node 8 distill.py …             every process holds a shard of every layer (FSDP2)
    torchrun --standalone --nproc-per-node 8 collect.py … --tp 4      two replicas of the model, each on four processes
                                                                      (tensor parallelism)

Without torchrun there is one process, and no function here communicates.
"""

from common import files

import functools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from engine.kernels import pack_weights
from engine.sampler import Request, Sampler, Step
from formats.weights import hf_name, local_folder, read_weight, weight_files
from lora import fold, load_adapter
from model import Llama, fastest_dtype

WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK, LOCAL = (int(os.environ.get(name, 0)) if WORLD > 1 else 0 for name in ("RANK", "LOCAL_RANK"))
MANY = WORLD > 1
REPLICA = None                                                  # with --tp: the DeviceMesh of this model's processes


def this_device() -> torch.device:
    """A GPU where there is one (under torchrun this process's own), else the CPU."""
    if not torch.cuda.is_available():
        report_unused_gpu()
        return torch.device("cpu")
    if LOCAL >= torch.cuda.device_count():
        raise ValueError(f"torchrun started more processes here than there are GPUs ({torch.cuda.device_count()}); "
                         "--nproc-per-node sets their number")
    torch.cuda.set_device(LOCAL)
    return torch.device("cuda", LOCAL)


@functools.cache
def report_unused_gpu() -> None:
    """Says that PyTorch cannot use this machine's GPU. Under torchrun, raises ValueError."""
    if Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        problem = ("this PyTorch cannot use this machine's GPU: it is built for the CPU or for another driver "
                   "(docs/scaling.md, Versions); CUDA_VISIBLE_DEVICES= computes on the CPU")
        if MANY:
            raise ValueError(problem)
        print(f"WARNING: {problem}", file=sys.stderr)


def start(patience: timedelta = timedelta(days=1)) -> None:
    """Joins the other processes, if there are any. patience: how long one may wait for the others."""
    if MANY and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if this_device().type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=patience)


def stop() -> None:
    """Ends a stage. No process leaves before all are done, because torchrun stops the others when one fails. Under
    torchrun the process exits here: gloo's threads may still hold tensors, and would abort a normal exit."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def load(path: str | Path, adapters: Sequence[str | Path] = (), whole: bool = True,
         linear_dtype: torch.dtype | None = None, dtype: torch.dtype | None = None) -> Llama:
    """The model in the directory or hub id `path`, with its adapters stacked in order.

    whole: true adds the adapters to float32 weights (`lora.fold`). False keeps them apart, since a teacher may have
    only the first ones, and under torchrun loads no weights; `shard` or `split` then gives every process its part.
    dtype: of all weights [bfloat16 on a GPU, float32 on a CPU]. linear_dtype: of linear layers' weights, where a single
    process runs on a CPU."""
    device = this_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if device.type == "cuda":                                   # adapters on bfloat16 weights: TensorFloat-32
        torch.set_float32_matmul_precision("highest" if dtype == torch.float32 else "high")
    alone = device.type == "cpu" and not MANY
    model = Llama.from_pretrained(path, dtype, "meta" if MANY and not whole else device,
                                  linear_dtype if alone else None)
    check_order(adapters)
    for adapter in adapters:
        load_adapter(model, adapter, path)
    if whole:
        fold(model)
    return model


def check_order(adapters: Sequence[str | Path]) -> None:
    """Warns of an adapter that distill.py has trained on top of others than those before it. Only the names of their
    folders count."""
    for n, adapter in enumerate(adapters):
        note, name = Path(adapter) / "arguments.json", lambda paths: " ".join(Path(p).name for p in paths)
        below = files.read_json(note).get("adapter") if note.is_file() else None
        if RANK == 0 and isinstance(below, list) and name(below) != name(adapters[:n]):
            print(f"WARNING: {adapter} was trained on top of {name(below) or 'the model alone'} and is now on top of "
                  f"{name(adapters[:n]) or 'the model alone'}; give all adapters in the order of their rounds",
                  file=sys.stderr)


# ---- sampling: replicas, each on --tp processes --------------------------------------------------------------------

def replica(tp: int) -> tuple[int, int, bool]:
    """This process's replica, how many there are, and whether this process leads: the leader plays, the others only
    compute.

    Raises ValueError if the number of processes is not a multiple of --tp."""
    if WORLD % tp:
        raise ValueError(f"--tp {tp}: the number of processes has to be a multiple of it, but is {WORLD}; "
                         "start them with torchrun --nproc-per-node")
    return RANK // tp, WORLD // tp, RANK % tp == 0


def join_replica(tp: int) -> None:
    """Joins the processes of this process's replica."""
    global REPLICA
    if tp > 1:
        from torch.distributed.device_mesh import DeviceMesh  # here and below, as they take a second to import
        group, _ = dist.new_subgroups(tp, timeout=timedelta(days=1))    # some processes have more to do than others
        REPLICA = DeviceMesh.from_group(group, this_device().type)


def sampler(args: Namespace) -> tuple[Sampler, Callable[..., Request]]:
    """A sampler of the model that the options of agent/options.py name, and what makes a request for it.

    Raises ValueError if --tp is given but this process belongs to no replica."""
    if args.tp > 1 and REPLICA is None:
        raise ValueError("--tp: only the model that plays the tasks of collect.py and evaluate.py is split")
    device = this_device().type
    dtype = getattr(torch, args.dtype) if args.dtype else fastest_dtype(args.model, device)
    model = load(args.model, args.adapter, whole=args.tp == 1, dtype=dtype)
    if args.tp > 1:
        split(model, args.model)
        fold(model)
    pack_weights(model, args.batch)
    engine = Sampler(model, args.batch, min(args.max_length, model.config.max_position_embeddings),
                     ahead=False if args.tp > 1 else None)
    if args.tp > 1:
        engine.announce = announce
    return engine, functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                                     top_p=args.top_p)


def split(model: Llama, path: str | Path) -> None:
    """Tensor parallelism (Shoeybi et al., 2019): this process keeps its share of the heads and of the MLP's width in
    every block, and the replica's processes add up the outputs of o_proj and of down_proj. Embedding, norms and lm_head
    are whole in every process.

    DTensor says which part belongs to which process. The products are of plain tensors: with DTensor's dispatch in each
    layer, a token took 3.4 to 4.3 times as long (the starter, two CPU processes).

    The model was loaded without weights. Raises ValueError if --tp does not divide it."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    c, parts = model.config, REPLICA.size()
    sizes = {name: getattr(c, name) for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
    for name, size in sizes.items():
        if size % parts:
            config_json = local_folder(path) / "config.json"
            raise ValueError(f"{config_json}: {name} is {size}, which --tp {parts} does not divide")
    outputs, inputs = {"weight": 0, "bias": 0, "frozen_B": 0}, {"weight": 1, "frozen_A": 1}    # dimensions
    split_along = {**dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), outputs),
                   **dict.fromkeys(("o_proj", "down_proj"), inputs)}

    def parameters():
        for name, module in model.named_modules():
            for kind, p in list(module.named_parameters(recurse=False)):
                yield module, split_along.get(name.split(".")[-1], {}), kind, p

    for module, dimension, kind, p in parameters():
        placement = Shard(dimension[kind]) if kind in dimension else Replicate()
        part = distribute_tensor(p, REPLICA, [placement], src_data_rank=None)
        part = part if p.is_meta else part.to_local().clone()          # of an adapter: frees the rest of it
        module.register_parameter(kind, torch.nn.Parameter(part, requires_grad=False))
    read_parts(model, path)
    for module, dimension, kind, p in parameters():
        local = p.to_local() if hasattr(p, "to_local") else p
        if dimension is inputs and kind == "bias" and REPLICA.get_local_rank():
            local.zero_()                                              # one process adds the bias
        module.register_parameter(kind, torch.nn.Parameter(local, requires_grad=False))
        if dimension is inputs and kind == "weight":
            module.register_forward_hook(lambda module, inputs, y: all_reduce_sum(y, REPLICA.get_group()))
    model.config = replace(c, **{name: size // parts for name, size in sizes.items()})


def announce(step: Step | None) -> Step | None:
    """The leader tells the other processes of its replica what it runs next; they call this to hear it. None: the
    end."""
    said, group = [step], REPLICA.get_group()
    dist.broadcast_object_list(said, src=dist.get_global_rank(group, 0), group=group)
    return said[0]


def dismiss() -> None:
    """Tells the other processes of the replica that the leader has nothing more to run."""
    if REPLICA:
        announce(None)


def follow(args: Namespace) -> None:
    """The work of a process that does not lead: it runs what the leader runs, on its own part of the model."""
    engine, _ = sampler(args)
    while (step := announce(None)) is not None:
        engine.run(step)


# ---- training: FSDP2 -----------------------------------------------------------------------------------------------

def shard(model: Llama, path: str | Path) -> Llama:
    """Gives every process its shard of a model that was loaded without weights (FSDP2, block by block), and cuts the
    adapters, which every process has read, down to its rows. Blocks are recomputed in the backward pass under FSDP and
    on a GPU. A single process keeps its model."""
    device = this_device()
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
    # With an adapter on lm_head alone, no gradient flows through the blocks, and FSDP reduces gradients only where one
    # does.
    model.embed_tokens.register_forward_hook(
        lambda module, inputs, y: y.requires_grad_() if torch.is_grad_enabled() else y)
    read_parts(model, path)
    return model


def read_parts(model: Llama, path: str | Path) -> None:
    """Reads this process's shard, and no more, of every weight that is a DTensor without memory."""
    from torch.distributed.tensor import DTensor
    device = this_device()
    tied, shards, weights = model.config.tie_word_embeddings, weight_files(local_folder(path)), {}
    for name, p in model.named_parameters():
        if p.is_meta and not (tied and name == "lm_head.weight"):
            mesh, held, part = p.device_mesh, p.to_local().shape, []
            for size, here in zip(p.shape, held):                     # as torch.chunk divides: the last may hold less
                first = 0 if here == size else min(-(-size // mesh.size()) * mesh.get_local_rank(), size)
                part.append(slice(first, first + here))
            local = read_weight(shards, hf_name(name), p.shape, tuple(part)).to(device, p.dtype).contiguous()
            local = DTensor.from_local(local, mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
            weights[name] = torch.nn.Parameter(local, requires_grad=False)
    if tied:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    model.load_state_dict(weights, strict=False, assign=True)
    model.frequencies = model.frequencies.to(device)


# ---- collectives; with one process, each returns what it was given -------------------------------------------------

def wait() -> None:
    """Returns when all processes have called it."""
    if MANY:
        dist.barrier()


def share(items: Sequence) -> Sequence:
    """This process's part of a list."""
    return items[RANK::WORLD]


def all_reduce_sum(x: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The sum of a tensor over all processes, or over a group's; in place."""
    if MANY:
        dist.all_reduce(x, group=group)
    return x


def all_reduce_max(n: int) -> int:
    """The largest n of all processes."""
    if MANY:
        dist.all_reduce(n := torch.tensor(n), dist.ReduceOp.MAX)        # on the CPU: no GPU has to wait
    return int(n)


def broadcast(x: object) -> object:
    """The first process's x, in all processes."""
    said = [x]
    if MANY:
        dist.broadcast_object_list(said)
    return said[0]


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor in one piece."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
