"""A model behind an OpenAI-compatible endpoint, in the sampler's place: `--model openai:NAME`.

    OPENAI_API_KEY=… python evaluate.py --model openai:gpt-4o --tasks test.jsonl --hints combined --out gpt-4o.jsonl
    python evaluate.py --model openai:my-model --base-url http://localhost:8000/v1 --prefill …         vLLM and others

An endpoint does not report token ids, so its trajectories can be read, judged and evaluated, but not distilled. The key
comes from the environment and is sent only in the request's header.
"""

import functools
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from agent.protocol import RESPONSES, conversation, disarmed
from formats.records import mismatch

COUNT = (None, int)
CHOICE = {"message": {"content": (None, str)}, "finish_reason?": (None, str)}
ANSWER = {"choices": [CHOICE], "usage?": (None, {"prompt_tokens?": COUNT, "completion_tokens?": COUNT})}
TRIES = 8                                               # of one request
PAUSE = 1.0                                             # seconds before the second try, doubled each time
TOO_LONG = re.compile("context.?length|maximum context|context window|too long|too many tokens", re.I)


@dataclass
class Said:
    """A response: its text, and the tokens as billed."""
    text: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(eq=False)
class Request:
    """The counterpart of sampler.Request; `prompt` is messages, `stop` the text of the closing tag."""
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
    """The counterpart of chat.Chat: the same conversations, as messages instead of token ids."""

    def __init__(self, prefill: bool = False):
        """prefill: start the response with its tag."""
        self.prefill = prefill

    def prompt(self, question: str, hints: list[str], steps: list[dict],
               ask: str | None = None) -> tuple[list[dict], dict]:
        steps = [step | {"token_ids": {}} for step in steps]    # a local model may have said both in one turn

        def said(n, name):
            return f"{disarmed(steps[n][name])}\n</{RESPONSES[name][0]}>"

        messages = conversation(question, hints, steps, ask, outside=disarmed, hinted=str, said=said)
        if ask and self.prefill:
            messages.append({"role": "assistant", "content": f"<{RESPONSES[ask][0]}>\n"})
        return messages, {}

    def ask(self, text: str) -> list[dict]:
        return [{"role": "user", "content": text}]

    def closes(self, tag: str) -> str:
        return f"</{tag}>"

    def heard(self, prompt: list[dict], said: Said) -> tuple[str, None, tuple[int, int]]:
        """A response → its text, no token ids, and the tokens that were read and written."""
        return said.text, None, (said.input_tokens, said.output_tokens)


class TooLong(Exception):
    """A prompt with its response does not fit into the model's context."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would take the key to another host."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(NoRedirects)


class Endpoint:
    """The counterpart of sampler.Sampler: `add` requests, and `step` returns those that have ended. At most `parallel`
    requests are sent at a time."""

    def __init__(self, name: str, base_url: str, parallel: int):
        self.name, self.url = name, base_url.rstrip("/") + "/chat/completions"
        self.pool, self.pending = ThreadPoolExecutor(parallel), set()

    @property
    def idle(self) -> bool:
        return not self.pending

    def add(self, request: Request) -> None:
        self.pending.add(self.pool.submit(self.complete, request))

    def step(self) -> list[Request]:
        """Raises ValueError if the endpoint refuses a request or does not answer after all tries."""
        done, self.pending = wait(self.pending, timeout=0.05, return_when=FIRST_COMPLETED)
        try:
            return [future.result() for future in done]
        except ValueError:
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def complete(self, request: Request) -> Request:
        """Sends a request and fills in its response."""
        body = {"model": self.name, "messages": request.prompt, "max_tokens": request.max_new_tokens,
                "temperature": request.temperature, "top_p": request.top_p, "seed": crc32(str(request.seed).encode())}
        if request.stop:
            body["stop"] = [request.stop]
        if request.prompt[-1]["role"] == "assistant":   # its response has been started
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        try:
            answer = self.post(json.dumps(body).encode())
        except TooLong:
            request.ended = "length"
            return request
        if wrong := mismatch(answer, ANSWER) or (None if answer["choices"] else ("choices", "empty")):
            raise ValueError(f"{self.url}: not an answer of a chat endpoint (field {wrong[0]!r}: {wrong[1]}): "
                             f"{json.dumps(answer)[:200]}")
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text = (choice["message"]["content"] or "").encode(errors="replace").decode()   # JSON can hold half a character
        if choice.get("stop_reason") == request.stop and request.stop not in text:      # vLLM leaves the tag out
            text += request.stop
        request.new_ids = Said(text, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
        request.ended = "length" if choice.get("finish_reason") == "length" else "stop"
        return request

    def post(self, body: bytes) -> dict:
        """The answer to a request. A server that has too much to do now (429, 5xx) is asked again later."""
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
                if e.code in (400, 413) and TOO_LONG.search(problem):
                    raise TooLong from None
                if e.code != 429 and e.code < 500:
                    break
                after = e.headers.get("Retry-After", "")
                pause = float(after) if re.fullmatch("[0-9]{1,4}", after) else pause
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as e:
                problem = f"{getattr(e, 'reason', e)}"  # no server there, a broken connection, half an answer
            if attempt + 1 < TRIES:
                time.sleep(pause)
        problem = " ".join(problem.split())[:300]
        raise ValueError(f"{self.url}: {problem.replace(key, '(the key)') if key else problem}")


def secret() -> str:
    """The key, or "". Raises ValueError, which does not show it, if it cannot be sent."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():
        raise ValueError("OPENAI_API_KEY: holds a character that a header cannot carry")
    return key


def is_remote(model: str | Path) -> bool:
    """Is --model behind an endpoint?"""
    return str(model).startswith("openai:")


def engine(args: Namespace) -> tuple[Endpoint, Callable]:
    """The endpoint, and a function that makes its requests, from the options of options.add_arguments."""
    url = args.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not re.match("https?://", url):
        raise ValueError(f"--base-url {url}: should begin with http:// or https://")
    if args.adapter or args.tp > 1 or hasattr(args, "dtype"):
        raise ValueError(f"--model {args.model}: a model behind an endpoint takes no --adapter, no --dtype and no --tp")
    secret()
    request = functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                                top_p=args.top_p)
    return Endpoint(args.model.removeprefix("openai:"), url, args.batch), request
