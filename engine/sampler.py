"""Continuous batching: many prompts are continued at a time, each a token a step, over one KV cache that conversations share.

    sampler = Sampler(model, batch=32, max_length=4096)
    new_ids = sampler.generate(prompts, max_new_tokens=64, temperature=0.7, stop_ids=[2])

A prompt pays only for the tokens that no slot of the cache has computed before: a conversation for its next turn, agents with the
same hints for what differs. Shapes: N running requests, G key/value heads, D dimensions a head, V words in the vocabulary.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
import torch

from engine.decoder import Decoder
from engine.kernels import causal_attention, causal_mask, decode_attention, unseen
from engine.sampling import draw, to_device


ADMITTED = 4096                                                  # a pass takes new prompts in until they are more tokens


@dataclass(eq=False)
class Request:
    """A prompt to continue, and what came of it."""
    key: object                                                 # the caller's own name for it
    prompt: list[int]
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Callable[[list[int]], bool] = lambda new_ids: False   # asked after every new token
    seed: object = 0                                            # of this request's own random stream: a number or a string
    new_ids: list[int] = field(default_factory=list)
    ended: str = ""                                             # "stop", or "length" when max_new_tokens or the cache is full

    def __post_init__(self):
        self.random = random.Random(self.seed)


class Sampler:
    """Continuous batching over the slots of one KV cache.

        sampler.add(Request(…)); …; while not sampler.idle: for request in sampler.step(): …

    A slot holds one running request, or what the last one left there: a later prompt that begins the same takes these keys and
    values over, its own slot's or a copy of another's. `prefilled` counts the prompt tokens that had to be computed.

    ahead: compute the next token while the host looks at the last one (decoder.py); None: on a GPU. The model stays as it is then."""

    def __init__(self, model, batch=32, max_length=4096, ahead=None):
        c, weight = model.config, model.embed_tokens.weight
        ahead = weight.is_cuda if ahead is None else ahead
        self.model, self.batch, self.max_length = model, batch, max_length
        self.cache = torch.empty(c.num_hidden_layers, 2, batch, c.num_key_value_heads, max_length + ahead, c.head_dim,
                                 dtype=weight.dtype, device=weight.device)      # keys and values: (L, 2, slots, G, S, D)
        self.cleared = 0                                        # what is masked must still be a number: zero up to here, or better
        self.decoder, self.under_way = None, None               # a step that is being computed: slots, requests, a function that waits for their tokens
        if ahead:
            self.decoder, self.cleared = Decoder(model, self.cache.zero_()), max_length
        self.ids = np.zeros((batch, max_length), dtype=np.int64)    # the tokens of each slot …
        self.length = np.zeros(batch, dtype=np.int64)           # … how many these are …
        self.cached = np.zeros(batch, dtype=np.int64)           # … and how many of them have their keys and values
        self.used = np.zeros(batch, dtype=np.int64)             # when the slot last ran
        self.requests = [None] * batch
        self.queue = deque()
        self.clock = self.prefilled = 0
        self.copies = []                                        # (slot, source, n): beginnings to take over before the next run
        self.announce = lambda plan: plan                       # tells other processes what is run next, if they hold parts of the model

    @property
    def idle(self):
        return not self.queue and not any(self.requests)

    def add(self, request):
        if not request.prompt:
            raise ValueError(f"request {request.key!r}: the prompt is empty; a model needs at least one token to continue")
        if min(request.prompt) < 0 or max(request.prompt) >= self.model.config.vocab_size:
            raise ValueError(f"request {request.key!r}: its prompt holds tokens that this model does not have; was its beginning made with another model?")
        self.queue.append(request)

    def generate(self, prompts, max_new_tokens=64, temperature=0.0, top_p=1.0, stop_ids=(), seed=0):
        """Continues each prompt (a list of ids) until a stop id, which is the last in its list of new ids, or to max_new_tokens."""
        stop_ids = set(stop_ids)
        requests = [Request(i, prompt, max_new_tokens, temperature, top_p, lambda ids: ids[-1] in stop_ids, f"{seed}/{i}")
                    for i, prompt in enumerate(prompts)]
        for request in requests:
            self.add(request)
        while not all(request.ended for request in requests):
            self.step()
        return [request.new_ids for request in requests]

    @torch.inference_mode()
    def step(self):
        """One new token for every running request, after queued ones have taken the free slots; with `ahead` these may have to wait for up
        to eight steps, and a token comes a step later than it is begun. Returns the requests that ended."""
        running = sum(r is not None for r in self.requests)
        waiting = min(len(self.queue), self.batch - running)
        if self.decoder and running and 8 * waiting < running and (self.clock % 8 or not waiting):     # new prompts wait until they are some
            return self._ahead()
        before, self.under_way = self.under_way, None
        ended = self._hand_out(before) + self._admit()
        slots = np.array([s for s in range(self.batch) if self.requests[s]], dtype=np.int64)
        if not len(slots):
            return ended
        slots = slots[np.argsort(self.length[slots] - self.cached[slots] > 1, kind="stable")]   # decoding ones first
        running = [self.requests[s] for s in slots]
        rules = zip(*((r.temperature, r.top_p, r.random.random()) for r in running))
        new = draw(self.run(self.announce(self._plan(slots))), *rules)
        self.clock += 1
        self.cached[slots] = self.length[slots]
        self.used[slots] = self.clock
        return ended + self._hand_out((slots, running, new.tolist))                # the one wait for the device

    def _ahead(self):
        """Starts a step in which all decode, then hands out the tokens of the one before."""
        before, self.under_way = self.under_way, None
        unknown = self.length == self.cached                    # slots whose last token is only being computed
        slots = np.array([s for s, r in enumerate(self.requests) if r and self.cached[s] < self.max_length
                          and len(r.new_ids) + unknown[s] < r.max_new_tokens], dtype=np.int64)
        if len(slots):
            running, columns = [self.requests[s] for s in slots], self.cached[slots]
            rules = zip(*((r.temperature, r.top_p, r.random.random()) for r in running))
            tokens = np.where(unknown[slots], -1, self.ids[slots, columns])
            self.under_way = slots, running, self.decoder.start(slots, columns, tokens, rules, self._shared(slots))
            self.clock += 1
            self.cached[slots] += 1
            self.used[slots] = self.clock
        return self._hand_out(before)

    def _hand_out(self, step):
        """Gives the requests of a step their tokens. Returns those that ended."""
        ended = []
        for slot, request, token in zip(step[0], step[1], step[2]()) if step else ():
            if request.ended:                                   # by the token before, when this one was under way already
                continue
            if token >= self.model.config.vocab_size:           # nothing is as large as what is no number
                raise ValueError("the model's logits are not numbers; are its weights, or an adapter's, damaged?")
            request.new_ids.append(token)
            if request.stop(request.new_ids):
                request.ended = "stop"
            elif len(request.new_ids) >= request.max_new_tokens or self.length[slot] == self.max_length:
                request.ended = "length"
            if request.ended:
                self.requests[slot] = None
                self.cached[slot] = self.length[slot]           # the token's own keys and values may be there; it is not
                ended.append(request)
            else:
                self.ids[slot, self.length[slot]] = token
                self.length[slot] += 1
        return ended

    def _common(self, prompt):
        """(slots,) how many tokens each slot's content and the prompt have in common at their beginnings."""
        differ = self.ids[:, :len(prompt)] != np.array(prompt)
        return np.minimum(np.where(differ.any(1), differ.argmax(1), len(prompt)), self.length)

    def _admit(self):
        """Gives free slots to queued requests, first to those with the longest cached beginning; returns those that cannot run."""
        free, ended, later, pending = [s for s in range(self.batch) if not self.requests[s]], [], [], 0
        window = [self.queue.popleft() for _ in range(min(len(self.queue), 2 * self.batch) if free else 0)]
        for request in [r for r in window if len(r.prompt) > self.max_length or r.max_new_tokens < 1]:
            request.ended = "length"
            ended.append(request)
        window = [r for r in window if not r.ended]
        if len(window) > 1:
            window.sort(key=lambda r: -np.minimum(self._common(r.prompt), self.cached).max())
        for request in window:
            common = self._common(request.prompt)
            ready = np.minimum(common, self.cached)             # the keys and values that are there
            if not free or pending > ADMITTED or common.max() - ready.max() > 16:   # another computes this beginning in this very
                later.append(request)                                           # step: take it from there in the next
                continue
            # A slot whose whole content the prompt continues, or else the one that has waited longest.
            slot = max(free, key=lambda s: (ready[s] if ready[s] == self.cached[s] else 0, -self.used[s]))
            source, n = ready.argmax(), len(request.prompt)
            kept = min(int(ready.max()), n - 1)                 # one token is left to compute
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
        """How many tokens whose keys and values are there all these slots begin with."""
        n = self.cached[slots].min() if len(slots) > 1 else 0
        differ = (self.ids[slots, :n] != self.ids[slots[0], :n]).any(0)
        return int(differ.argmax() if differ.any() else n)

    def _plan(self, slots):
        """What `run` needs to know: the tokens of these slots that have no keys yet, all in one row, decoding slots (one token) before others."""
        counts, ends = self.length[slots] - self.cached[slots], (self.length[slots] - self.cached[slots]).cumsum()
        row = np.repeat(slots, counts)                                                  # the slot of each token …
        column = np.arange(len(row)) + np.repeat(self.length[slots] - ends, counts)     # … and its position there
        decoding = slots[:int((counts == 1).sum())]
        N = len(decoding)
        plan = {"table": np.stack((self.ids[row, column], row, column)), "last": ends - 1, "copies": self.copies, "reach": int(self.length[slots].max()), "N": N,
                "prefills": [(int(slot), int(end - count), int(end), int(self.length[slot])) for slot, count, end in zip(slots[N:], counts[N:], ends[N:])]}
        if N:
            plan |= {"slots": (int(decoding.min()), int(decoding.max()) + 1), "lead": int(decoding[0]), "until": int(self.length[decoding].max()),
                     "shared": self._shared(decoding)}
        self.copies = []
        return plan

    @torch.inference_mode()
    def run(self, plan):
        """Runs the tokens of a plan through the model, keeps their keys and values; the logits (N, V) after the last token of each slot."""
        for slot, source, n in plan["copies"]:
            self.cache[:, :, slot, :, :n] = self.cache[:, :, source, :, :n]
        if plan["reach"] > self.cleared:
            self.cache[..., self.cleared:plan["reach"], :] = 0
            self.cleared = plan["reach"]
        tokens, row, column = to_device(torch.from_numpy(plan["table"]), self.cache.device)
        masks = [causal_mask(end - start, length, row.device) for _, start, end, length in plan["prefills"]]
        if N := plan["N"]:
            (low, high), lead, until, shared = (plan[key] for key in ("slots", "lead", "until", "shared"))
            if high - low < 4 * N:                              # over a range of slots; those without a query ride along
                width, span, place = high - low, slice(low, high), row[:N] - low
            else:                                               # over a copy of few scattered ones
                width, span, place = N, row[:N], torch.arange(N, device=row.device)
            hide = {window: torch.zeros(width, 1, 1, until, device=row.device) for window in set(self.model.config.windows)}
            for window in hide:
                hide[window][place, 0, 0] = unseen(column[:N], until, window)

        def attend(layer, q, k, v, window):                          # q (1, H, tokens, D); k, v (1, G, tokens, D)
            keys, values = self.cache[layer]
            keys[row, :, column], values[row, :, column] = k[0].transpose(0, 1), v[0].transpose(0, 1)
            out = []
            if N:                                               # one batched product for all that decode …
                queries = q.new_zeros(width, k.shape[1], q.shape[1] // k.shape[1], q.shape[-1])
                queries[place] = q[0, :, :N].transpose(0, 1).unflatten(1, queries.shape[1:3])
                y = decode_attention(queries, keys[span, :, shared:until], values[span, :, shared:until], hide[window],
                                     common=self.cache[layer, :, lead, :, :shared])
                out.append(y[place].flatten(1, 2).transpose(0, 1)[None])
            for (slot, start, end, length), mask in zip(plan["prefills"], masks):              # … the others one by one
                out.append(causal_attention(q[:, :, start:end], keys[None, slot, :, :length], values[None, slot, :, :length], window, mask))
            return torch.cat(out, dim=2)

        return self.model.lm_head(self.model.hidden(tokens[None], column[None], attend, at=to_device(torch.from_numpy(plan["last"]), row.device))[0])
