"""Continuous batching: many prompts are continued together, one token each per step, over one KV cache.

    sampler = Sampler(model, batch=32, max_length=4096)
    new_ids = sampler.generate(prompts, max_new_tokens=64, temperature=0.7, stop_ids=[2])

A prompt pays only for the tokens that no slot of the cache has computed before: a conversation pays for its next turn,
and agents with the same hints pay for what differs. Shapes: N running requests, T tokens of a step, H query heads, G
key/value heads, S positions, D dimensions of a head, V tokens in the vocabulary.
"""

import contextlib
import math
import mmap
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.decoder import Decoder
from engine.kernels import causal_attention, decode_attention, unseen
from engine.sampling import draw, to_device

ADMITTED = 4096                                                 # prompt tokens of a step, unless one prompt has more


@dataclass(eq=False)
class Request:
    """A prompt to continue, and what came of it."""
    key: object                                                 # the caller's own name for it
    prompt: list[int]
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Callable[[list[int]], bool] = lambda new_ids: False   # asked after every new token
    seed: object = 0                                            # of this request's own random stream: number or string
    new_ids: list[int] = field(default_factory=list)
    ended: str = ""                                             # "stop", or "length": max_new_tokens, or a full cache
    passed_over: int = 0                                        # how often it was considered and not admitted

    def __post_init__(self):
        self.random = random.Random(self.seed)


@dataclass
class Decode:
    """The slots that run one token each. Their tokens are the first n of the step."""
    n: int
    first: int                                                  # the lowest of the slots …
    end: int                                                    # … and one more than the highest
    length: int                                                 # of the longest of them, in tokens
    shared: int                                                 # how many tokens all of them begin with


@dataclass
class Prefill:
    """A slot that runs several tokens: the step's tokens from `start` to `end`."""
    slot: int
    start: int
    end: int
    length: int                                                 # of the slot, with these tokens


@dataclass
class Step:
    """What runs through the model at once: the tokens of all running slots that have no keys and values yet."""
    tokens: np.ndarray                                          # (3, T): each one's id, slot and position there
    last: np.ndarray                                            # (N,) the index of each slot's last token
    copies: list[tuple[int, int, int]]                          # (to slot, from slot, n): beginnings to copy first
    decode: Decode | None
    prefills: list[Prefill]


NOTHING = (), (), list                                          # slots, requests, function that returns their tokens


class Sampler:
    """Continuous batching over the slots of one KV cache.

        sampler.add(Request(…)); …; while not sampler.idle: for request in sampler.step(): …

    A slot holds a running request, or what its last request left there. A later prompt with the same beginning takes
    over its keys and values, in the same slot or as a copy. So the model must not change: after `load_adapter`, make
    another sampler. `prefilled` counts the prompt tokens that were computed.

    ahead: compute the next token while the host looks at the last one (decoder.py) [on a GPU]."""

    def __init__(self, model: torch.nn.Module, batch: int = 32, max_length: int = 4096, ahead: bool | None = None):
        c, weight = model.config, model.embed_tokens.weight
        ahead = weight.is_cuda if ahead is None else ahead
        self.model, self.batch, self.max_length = model, batch, max_length
        shape = c.num_hidden_layers, 2, batch, c.num_key_value_heads, max_length + ahead, c.head_dim
        self.cache = zeros(shape, weight.dtype, weight.device)  # keys, values: (L, 2, slots, G, S, D)
        self.decoder = Decoder(model, self.cache) if ahead else None
        self.started = NOTHING                                  # a step whose tokens are not there yet
        self.ids = np.zeros((batch, max_length), dtype=np.int64)    # the tokens of each slot …
        self.length = np.zeros(batch, dtype=np.int64)           # … how many these are …
        self.cached = np.zeros(batch, dtype=np.int64)           # … and how many of them have their keys and values
        self.used = np.zeros(batch, dtype=np.int64)             # when the slot last ran
        self.requests = [None] * batch
        self.queue = deque()
        self.clock = self.prefilled = 0
        self.copies = []                                        # for the next Step
        self.announce = lambda step: step                       # passes it to the processes that share the model

    @property
    def idle(self) -> bool:
        return not self.queue and not any(self.requests)

    def add(self, request: Request) -> None:
        """Queues a request. Raises ValueError if its prompt is empty or holds tokens that the model does not have."""
        if not request.prompt:
            raise ValueError(f"request {request.key!r}: the prompt is empty; "
                             "a model needs at least one token to continue")
        if min(request.prompt) < 0 or max(request.prompt) >= self.model.config.vocab_size:
            raise ValueError(f"request {request.key!r}: its prompt holds tokens that this model does not have; "
                             "was its beginning made with another model?")
        self.queue.append(request)

    def generate(self, prompts: list[list[int]], max_new_tokens: int = 64, temperature: float = 0.0, top_p: float = 1.0,
                 stop_ids: Iterable[int] = (), seed: object = 0) -> list[list[int]]:
        """Continues each prompt until a stop id, which is the last of its new ids, to max_new_tokens, or until its slot
        is full. Raises ValueError if a prompt is longer than a slot."""
        if longer := [len(prompt) for prompt in prompts if len(prompt) > self.max_length]:
            raise ValueError(f"a prompt has {longer[0]} tokens; this sampler's max_length is {self.max_length}")
        stop_ids = set(stop_ids)
        requests = [Request(i, prompt, max_new_tokens, temperature, top_p, lambda ids: ids[-1] in stop_ids,
                            f"{seed}/{i}") for i, prompt in enumerate(prompts)]
        for request in requests:
            self.add(request)
        while not all(request.ended for request in requests):
            self.step()
        return [request.new_ids for request in requests]

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Admits queued requests into free slots and computes a new token for every running request. Returns the
        requests that ended.

        With `ahead`, tokens are handed out one step later. Admitting requests interrupts the decoder, so they wait up
        to eight steps, or until they are an eighth of those running."""
        running = sum(r is not None for r in self.requests)
        waiting = min(len(self.queue), self.batch - running)
        if self.decoder and running and 8 * waiting < running and (self.clock % 8 or not waiting):
            return self._step_ahead()
        started, self.started = self.started, NOTHING
        ended = self._hand_out(*started) + self._admit()
        slots = np.array([s for s in range(self.batch) if self.requests[s]], dtype=np.int64)
        if not len(slots):
            return ended
        slots = slots[np.argsort(self.length[slots] - self.cached[slots] > 1, kind="stable")]   # decoding ones first
        requests = [self.requests[s] for s in slots]
        tokens = draw(self.run(self.announce(self._plan(slots))), *self._rules(requests))
        self.clock += 1
        self.cached[slots] = self.length[slots]
        self.used[slots] = self.clock
        return ended + self._hand_out(slots, requests, tokens.tolist)           # the one wait for the device

    def _step_ahead(self):
        """Starts a step in which every request decodes. Then hands out the tokens of the step before."""
        before, self.started = self.started, NOTHING
        unknown = self.length == self.cached                    # slots whose last token is still being computed
        slots = np.array([s for s, r in enumerate(self.requests) if r and self.cached[s] < self.max_length
                          and len(r.new_ids) + unknown[s] < r.max_new_tokens], dtype=np.int64)
        if len(slots):
            requests, positions = [self.requests[s] for s in slots], self.cached[slots]
            tokens = np.where(unknown[slots], -1, self.ids[slots, positions])
            wait = self.decoder.start(slots, positions, tokens, self._rules(requests), self._shared(slots))
            self.started = slots, requests, wait
            self.clock += 1
            self.cached[slots] += 1
            self.used[slots] = self.clock
        return self._hand_out(*before)

    def _rules(self, requests):
        """Their temperatures, their top_p, and a random number from each one's own stream."""
        return zip(*((r.temperature, r.top_p, r.random.random()) for r in requests))

    def _hand_out(self, slots, requests, wait):
        """Gives the requests in these slots their new tokens, which `wait` returns. Returns the requests that ended."""
        ended = []
        for slot, request, token in zip(slots, requests, wait()):
            if request.ended:                                   # by the token before, after this one was started
                continue
            if token >= self.model.config.vocab_size:           # see `draw`
                raise ValueError("the model's logits are NaN; are its weights, or an adapter's, damaged?")
            request.new_ids.append(token)
            if request.stop(request.new_ids):
                request.ended = "stop"
            elif len(request.new_ids) >= request.max_new_tokens or self.length[slot] == self.max_length:
                request.ended = "length"
            if request.ended:
                self.requests[slot] = None
                self.cached[slot] = self.length[slot]           # without this token's own keys and values
                ended.append(request)
            else:
                self.ids[slot, self.length[slot]] = token
                self.length[slot] += 1
        return ended

    def _common(self, prompt):
        """(slots,) how many tokens at their beginning each slot and the prompt have in common."""
        differ = self.ids[:, :len(prompt)] != np.array(prompt)
        return np.minimum(np.where(differ.any(1), differ.argmax(1), len(prompt)), self.length)

    def _admit(self):
        """Gives free slots to queued requests: first to those that were passed over most often (in units of `batch`),
        then to those with the longest cached beginning. Returns the requests that cannot run."""
        free, ended, later, pending = [s for s in range(self.batch) if not self.requests[s]], [], [], 0
        considered = [self.queue.popleft() for _ in range(min(len(self.queue), 2 * self.batch) if free else 0)]
        for request in [r for r in considered if len(r.prompt) > self.max_length]:
            request.ended = "length"
            ended.append(request)
        considered = [r for r in considered if not r.ended]
        wanted = self.batch - len(free) + len(considered)       # the decoder computes all slots up to a power of two
        lowest = max(8, 1 << (wanted - 1).bit_length()) if self.decoder else self.batch
        if len(considered) > 1:
            cached = {id(r): np.minimum(self._common(r.prompt), self.cached).max() for r in considered}
            considered.sort(key=lambda r: (-(r.passed_over // self.batch), -cached[id(r)]))
        for request in considered:
            common = self._common(request.prompt)
            ready = np.minimum(common, self.cached)             # with keys and values
            soon = common.max() - ready.max() > 16              # another request computes it in this very step
            n = len(request.prompt)
            kept = min(int(ready.max()), n - 1)                 # one token is left to compute
            if not free or pending and pending + n - kept > ADMITTED or soon:
                later.append(request)
                request.passed_over += 1
                continue
            # A slot whose whole content the prompt continues, or else, of the lowest, the one that has waited longest.
            slot = max(free, key=lambda s: (ready[s] if ready[s] == self.cached[s] else 0, s < lowest, -self.used[s]))
            source = ready.argmax()
            if source != slot:
                self.copies.append((slot, int(source), kept))
            self.ids[slot, :n], self.length[slot], self.cached[slot] = request.prompt, n, kept
            self.requests[slot] = request
            free.remove(slot)
            pending += n - kept
        self.prefilled += pending
        self.queue.extendleft(reversed(later))
        return ended

    def _shared(self, slots):
        """How many tokens with keys and values all these slots begin with."""
        n = self.cached[slots].min() if len(slots) > 1 else 0
        differ = (self.ids[slots, :n] != self.ids[slots[0], :n]).any(0)
        return int(differ.argmax() if differ.any() else n)

    def _plan(self, slots):
        """The Step in which these slots' tokens without keys and values run; slots with one such token come first."""
        counts = self.length[slots] - self.cached[slots]
        ends = counts.cumsum()
        token_slots = np.repeat(slots, counts)
        positions = np.arange(len(token_slots)) + np.repeat(self.length[slots] - ends, counts)
        tokens = np.stack((self.ids[token_slots, positions], token_slots, positions))
        n = int((counts == 1).sum())
        first = slots[:n]                                       # in ascending order
        decode = Decode(n, int(first[0]), int(first[-1]) + 1, int(self.length[first].max()),
                        self._shared(first)) if n else None
        prefills = [Prefill(int(slot), int(end - count), int(end), int(self.length[slot]))
                    for slot, count, end in zip(slots[n:], counts[n:], ends[n:])]
        copies, self.copies = self.copies, []
        return Step(tokens, ends - 1, copies, decode, prefills)

    @torch.inference_mode()
    def run(self, step: Step) -> torch.Tensor:
        """Runs a step's tokens through the model and keeps their keys and values → the logits (N, V) after the last
        token of each slot."""
        for slot, source, n in step.copies:
            self.cache[:, :, slot, :, :n] = self.cache[:, :, source, :, :n]
        tokens, slots, positions = to_device(torch.from_numpy(step.tokens), self.cache.device)
        last = to_device(torch.from_numpy(step.last), self.cache.device)
        attend_decode = self._decode_attention(step.decode, slots, positions) if step.decode else None

        def attend(layer, q, k, v, window):                     # q (1, H, T, D); k, v (1, G, T, D)
            keys, values = self.cache[layer]
            keys[slots, :, positions], values[slots, :, positions] = k[0].transpose(0, 1), v[0].transpose(0, 1)
            y = [attend_decode(layer, q, window)] if attend_decode else []
            for p in step.prefills:
                seen = keys[None, p.slot, :, :p.length], values[None, p.slot, :, :p.length]
                y.append(causal_attention(q[:, :, p.start:p.end], *seen, window))
            return torch.cat(y, dim=2)

        return self.model.lm_head(self.model.hidden(tokens[None], positions[None], attend, at=last)[0])

    def _decode_attention(self, decode, slots, positions):
        """attend(layer, q, window) for the first tokens of q (1, H, T, D), those that decode: one batched product."""
        n, first, end, length, shared = decode.n, decode.first, decode.end, decode.length, decode.shared
        if end - first < 4 * n:                                 # a range of slots, some of them without a query
            width, span, place = end - first, slice(first, end), slots[:n] - first
        else:                                                   # a copy of the few scattered slots
            width, span, place = n, slots[:n], torch.arange(n, device=slots.device)
        hide = {}
        for window in set(self.model.config.windows):
            hide[window] = torch.zeros(width, 1, 1, length, device=slots.device)
            hide[window][place, 0, 0] = unseen(positions[:n], length, window)

        def attend(layer, q, window):
            keys, values = self.cache[layer]
            groups = keys.shape[1]
            queries = q.new_zeros(width, groups, q.shape[1] // groups, q.shape[-1])
            queries[place] = q[0, :, :n].transpose(0, 1).unflatten(1, queries.shape[1:3])
            y = decode_attention(queries, keys[span, :, shared:length], values[span, :, shared:length], hide[window],
                                 common=self.cache[layer, :, first, :, :shared])
            return y[place].flatten(1, 2).transpose(0, 1)[None]

        return attend


def zeros(shape: tuple, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, since masked positions are read and must hold no NaN. On a CPU, only the pages that are written take
    memory, so a cache for many long slots needs no more than its tokens do. Raises MemoryError."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(f"the cache would have {size / 2 ** 30:,.0f} GiB") from None
    with contextlib.suppress(AttributeError, OSError):         # systems without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)                     # or a single token takes 2 MiB in every layer and head
    return torch.frombuffer(pages, dtype=dtype).view(shape)
