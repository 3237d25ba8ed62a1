"""Where --model runs: here, or behind an OpenAI-compatible endpoint.

PyTorch takes seconds to import. It is imported late here, so that review.py starts at once.
"""

from common import files

from argparse import Namespace
from collections.abc import Callable, Iterable

from agent import endpoint, rollouts
from agent.chat import Chat


def chat_with(args: Namespace) -> Chat | endpoint.Messages:
    """What turns conversations into the model's prompts."""
    if endpoint.is_remote(args.model):
        return endpoint.Messages(args.prefill)
    from formats.weights import local_folder
    return Chat(local_folder(args.model))


def start_engine(args: Namespace) -> tuple[object, Callable]:
    """What samples (engine.sampler.Sampler or endpoint.Endpoint), and what makes its requests."""
    if endpoint.is_remote(args.model):
        return endpoint.engine(args)
    from scaling import parallel
    return parallel.sampler(args)


def play_planned(planned: Iterable[dict], args: Namespace, chat: Chat | endpoint.Messages,
                 player: Callable, report: Callable) -> None:
    """Plays what is planned (agent/rollouts.py) and writes it to args.out, in one process or, under torchrun, in many.
    Then prints report(), once."""
    from scaling import parallel
    replica, replicas, leads = parallel.replica(args.tp)
    planned, missing = list(planned), 0
    if leads:                                                   # before the others wait for this process: it may fail
        unused = ["hint_dir"] * (args.hints == "none") + ["base_url"] * (not endpoint.is_remote(args.model))
        output = files.Output(args.out, {k: v for k, v in vars(args).items() if k not in unused}, replica, replicas)
        missing = sum(t["id"] not in output.done for t in planned)
    parallel.start()
    parallel.join_replica(args.tp)
    if parallel.all_reduce_max(missing):                        # a finished run loads no model
        if leads:
            rollouts.play_all(planned, args, output, chat, start_engine, player)
            output.sync()
            parallel.dismiss()
        else:
            parallel.follow(args)
    parallel.wait()
    if parallel.RANK == 0:
        output.gather()
        print(report())
    parallel.stop()                                             # under torchrun this does not return
