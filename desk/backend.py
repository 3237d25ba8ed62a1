"""Where --model runs: here, or behind an OpenAI-compatible endpoint.

PyTorch takes seconds to import. So it is imported only where a model runs here, and reviewing starts at once.
"""

from argparse import Namespace
from collections.abc import Callable

from agent import endpoint
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
