"""A model behind an OpenAI-compatible endpoint, in the sampler's place: `--model openai:NAME`.

    OPENAI_API_KEY=… python evaluate.py --model openai:gpt-4o --tasks test.jsonl --hints combined --out gpt-4o.jsonl
    python evaluate.py --model openai:my-model --base-url http://localhost:8000/v1 --prefill …              vLLM and others

Its tokens are not ours to train on: such trajectories can be read, judged and evaluated, but not distilled. The key comes from the
environment and goes nowhere but into the request's header.
"""

import functools
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from zlib import crc32

import agent
from formats.records import mismatch

COUNT = (None, int)
ANSWER = {"choices": [{"message": {"content": (None, str)}, "finish_reason?": (None, str)}], "usage?": (None, {"prompt_tokens?": COUNT, "completion_tokens?": COUNT})}
TRIES, PAUSE = 8, 1.0                                                 # of a request; seconds before the second, doubled each time


@dataclass
class Said:
    """A response: its text, and the tokens as billed."""
    text: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(eq=False)
class Request:
    """What sampler.Request is to a local model; `prompt` is messages, `stop` the tag's closing text."""
    key: object
    prompt: list[dict]
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    stop: str = ""
    seed: object = 0
    new_ids: Said = field(default_factory=lambda: Said(""))
    ended: str = ""


class Messages:
    """What agent.Chat is to a local model: the same conversation as text."""

    def __init__(self, prefill=False):
        self.prefill = prefill

    def prompt(self, question, hints, steps, ask=None):
        tags = {name: tag for name, tag, _ in agent.RESPONSES}
        said = lambda n, name: f"{agent.disarmed(steps[n][name])}\n</{tags[name]}>"
        messages = agent.conversation(question, hints, steps, ask, agent.disarmed, str, said)
        if ask and self.prefill:
            messages.append({"role": "assistant", "content": f"<{tags[ask]}>\n"})
        return messages, {}

    def ask(self, text):
        return [{"role": "user", "content": text}]

    def closes(self, tag):
        return f"</{tag}>"

    def heard(self, prompt, said):
        """→ its text, no token ids, tokens read and written."""
        return said.text, None, (said.input_tokens, said.output_tokens)


class TooLong(Exception):
    """A prompt with its response does not fit into the model's context."""


class StayThere(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would take the key along to another host."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(StayThere)


class Endpoint:
    """The sampler's interface: `add` requests, `step` returns those that have ended. `parallel` requests are under way at a time."""

    def __init__(self, name, base_url, parallel):
        self.name, self.url = name, base_url.rstrip("/") + "/chat/completions"
        self.pool, self.pending = ThreadPoolExecutor(parallel), set()

    @property
    def idle(self):
        return not self.pending

    def add(self, request):
        self.pending.add(self.pool.submit(self.complete, request))

    def step(self):
        """Raises ValueError when the endpoint refuses a request or does not answer after all tries."""
        done, self.pending = wait(self.pending, timeout=0.05, return_when=FIRST_COMPLETED)
        try:
            return [future.result() for future in done]
        except ValueError:
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def complete(self, request):
        body = {"model": self.name, "messages": request.prompt, "max_tokens": request.max_new_tokens, "temperature": request.temperature, "top_p": request.top_p,
                "seed": crc32(str(request.seed).encode()), **({"stop": [request.stop]} if request.stop else {})}
        if request.prompt[-1]["role"] == "assistant":                  # the response has been started for it
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        try:
            answer = self.post(json.dumps(body).encode())
        except TooLong:
            request.ended = "length"
            return request
        if wrong := mismatch(answer, ANSWER) or (None if answer["choices"] else ("choices", "empty")):
            raise ValueError(f"{self.url}: not an answer of a chat endpoint (field {wrong[0]!r}: {wrong[1]}): {json.dumps(answer)[:200]}")
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text = (choice["message"]["content"] or "").encode(errors="replace").decode()                # JSON can hold half a character
        ended = "length" if choice.get("finish_reason") == "length" else "stop"
        if choice.get("stop_reason") == request.stop and request.stop not in text:            # vLLM tells what it stopped before
            text += request.stop
        request.new_ids, request.ended = Said(text, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0), ended
        return request

    def post(self, body):
        """The answer, after as many tries as it takes; what is too much for the server now (429, 5xx) is asked again later."""
        headers, key = {"Content-Type": "application/json"}, secret()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        for attempt in range(TRIES):
            pause = PAUSE * 2 ** attempt
            try:
                with OPENER.open(urllib.request.Request(self.url, body, headers), timeout=600) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as e:
                problem = f"{e.code} {e.reason}: {e.read(1000).decode(errors='replace')}"
                if e.code in (400, 413) and re.search("context.?length|maximum context|context window|too long|too many tokens", problem, re.I):
                    raise TooLong from None
                if e.code != 429 and e.code < 500:
                    break
                after = e.headers.get("Retry-After", "")
                pause = float(after) if re.fullmatch("[0-9]{1,4}", after) else pause
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as e:    # not there, cut off, half an answer
                problem = f"{getattr(e, 'reason', e)}"
            if attempt + 1 < TRIES:
                time.sleep(pause)
        problem = " ".join(problem.split())[:300]
        raise ValueError(f"{self.url}: {problem.replace(key, '(the key)') if key else problem}")


def secret():
    """The key, if there is one. Raises ValueError, without it, if no request can carry it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():
        raise ValueError("OPENAI_API_KEY: holds a character that a header cannot carry")
    return key


def elsewhere(model):
    return str(model).startswith("openai:")


def chat_with(args):
    """The conversation's form for --model."""
    if elsewhere(args.model):
        return Messages(args.prefill)
    from model import local_folder                                  # here, as PyTorch takes seconds to import, and review.py seldom needs it
    return agent.Chat(local_folder(args.model))


def engine(args):
    """Of the options that agent.add_arguments defines: what samples, and what makes its requests."""
    if not elsewhere(args.model):
        from scaling import parallel
        return parallel.sampler(args)
    url = args.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not re.match("https?://", url):
        raise ValueError(f"--base-url {url}: should begin with http:// or https://")
    if args.adapter or args.tp > 1:
        raise ValueError(f"--model {args.model}: a model behind an endpoint takes no --adapter and no --tp")
    secret()
    request = functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)
    return Endpoint(args.model.removeprefix("openai:"), url, args.batch), request
