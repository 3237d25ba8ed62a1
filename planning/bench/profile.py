"""Where the time of a decoding step goes on a CPU."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pkgutil import resolve_name
from unittest.mock import patch

from model import Llama

REST = "the rest"                                               # residuals, embedding, the sampler's own Python
PARTS = {
    "products by weights and adapters": ("model.linear", "engine.lora_layer.linear", "engine.lora_layer.add_linear"),
    "adapters, beside products": ("engine.lora_layer.LoraLinear.forward",),
    "attention": ("engine.sampler.decode_attention",),
    "copies to and from the cache": (),                         # what `attend` does beside attention
    "norms, rotary embedding, SiLU": ("model.RMSNorm.forward", "model.rotate", "model.MLP.forward"),
    "sampling": ("engine.sampler.draw",)}


class Profile:
    """Seconds spent in parts of a program, each without the parts that it calls."""

    def __init__(self):
        self.seconds, self.stack, self.since = Counter(), [], 0.0

    def switch(self):
        """The time since the last switch belongs to the part that runs."""
        now = time.perf_counter()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def part(self, name: str, function: Callable) -> Callable:
        """The function; its time counts for that part."""
        @wraps(function)
        def run(*arguments, **options):
            self.switch()
            self.stack.append(name)
            try:
                return function(*arguments, **options)
            finally:
                self.switch()
                self.stack.pop()
        return run


def profile(work: Callable, n: int) -> dict[str, float]:
    """Calls work n times → {part: seconds of a call}."""
    clock, hidden = Profile(), Llama.hidden

    def hidden_and_copies(model, tokens, positions, attend, at):
        return hidden(model, tokens, positions, clock.part("copies to and from the cache", attend), at)

    with ExitStack() as stack:
        stack.enter_context(patch("model.Llama.hidden", hidden_and_copies))
        for name, places in PARTS.items():
            for place in places:
                stack.enter_context(patch(place, clock.part(name, resolve_name(place))))
        for _ in range(n):
            clock.part(REST, work)()
    return {name: clock.seconds[name] / n for name in (*PARTS, REST)}
