"""Collecting for real: a model's agents with their tools, against a plain loop over transformers' generate.

Both sides run `serve` with the same prompts, stop conditions and sandbox. The loop computes one prompt after the other,
each as a whole, and plays only every eighth task, because it takes so long.
"""

from common.command_line import Parser

import shlex
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch

from agent import options
from agent.chat import Chat
from agent.play import play
from agent.rollouts import serve, trials
from engine.sampler import Request
from formats.records import read_tasks
from formats.weights import local_folder
from model import fastest_dtype
from planning.bench.decode import name_of, peer_model
from planning.bench.harness import DEVICE, against
from scaling import parallel
from tools.sandbox import World

EVERY = 8                                                       # the loop plays one of this many tasks


def compare_real(args: Namespace) -> None:
    """The job `real MODEL --play OPTIONS`, with collect.py's options."""
    parser = Parser("collect.py's options", prog="--play")
    options.add_arguments(parser)
    options.add_task_arguments(parser)
    how = parser.parse_args(shlex.split(args.play), Namespace(model=args.model))
    if not how.tasks:
        parser.error("name the --tasks to play")
    tasks = read_tasks(how.tasks)
    title = f"{Path(args.model).name}, {len(tasks)} tasks, {how.batch} agents at a time, hints: {how.hints}"
    against(args, title, "trajectories/min", ours, peer, same_answers, how, tasks)


def ours(how: Namespace, tasks: list[dict]) -> dict:
    """All tasks."""
    return played(how, tasks, *parallel.sampler(how))


def peer(how: Namespace, tasks: list[dict]) -> dict:
    """Every eighth task, by `Loop`."""
    dtype = how.dtype or name_of(fastest_dtype(how.model, DEVICE))
    loop = Loop(peer_model(local_folder(how.model), dtype, ""))
    return played(how, tasks[::EVERY], loop, lambda *work, **rules: Request(
        *work, how.max_new_tokens, how.temperature, how.top_p, **rules))


def played(how: Namespace, tasks: list[dict], sampler: object, request: Callable) -> dict:
    """The time in which the sampler plays the tasks, once it is loaded, and the answers."""
    chat = Chat(local_folder(how.model))
    with World(how.tools, how.data) as world:
        began = time.perf_counter()
        ended = list(serve(trials(tasks, how), lambda t: play(chat, t, how.max_steps), chat, sampler, request, world,
                           how.batch))
        seconds = time.perf_counter() - began
    output = {t["id"]: (t["answer"], t["success"]) for t in ended}
    return {"units": 60 * len(ended), "seconds": seconds, "output": output}


class Loop:
    """What `serve` asks of a sampler, by transformers' generate."""

    def __init__(self, model):
        self.model, self.queue = model, deque()

    @property
    def idle(self) -> bool:
        return not self.queue

    def add(self, request: Request) -> None:
        self.queue.append(request)

    def step(self) -> list[Request]:
        """Answers the request that has waited longest."""
        from transformers import StoppingCriteria

        if self.idle:
            return []
        request = self.queue.popleft()
        start = len(request.prompt)

        class Stop(StoppingCriteria):
            def __call__(self, ids, scores, **_):
                return torch.tensor([request.stop(ids[0, start:].tolist())], device=ids.device)

        ids = torch.tensor([request.prompt], device=DEVICE)
        sampling = {"temperature": request.temperature, "top_p": request.top_p} if request.temperature else {}
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=request.temperature > 0,
                                      max_new_tokens=request.max_new_tokens, eos_token_id=None, pad_token_id=0,
                                      stopping_criteria=[Stop()], **sampling)
        request.new_ids = out[0, start:].tolist()
        request.ended = "stop" if request.stop(request.new_ids) else "length"
        return [request]


def same_answers(answers: dict, loops: dict) -> str:
    right = [sum(success for _, success in some.values()) for some in (answers, loops)]
    same = sum(answers[key][0] == answer for key, (answer, _) in loops.items())
    return (f"{same} of {len(loops)} answers are the same; {right[0]} of {len(answers)} and {right[1]} of {len(loops)} "
            "are right")
