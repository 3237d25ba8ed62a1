"""A model behind an OpenAI-compatible endpoint, in the sampler's place: `--model openai:NAME`.

    OPENAI_API_KEY=… python evaluate.py --model openai:gpt-4o --tasks test.jsonl --hints combined --out gpt-4o.jsonl
    python evaluate.py --model openai:my-model --base-url http://localhost:8000/v1 --prefill …         vLLM and others

An endpoint does not report token ids, so its trajectories can be read, judged and evaluated, but not distilled. The key
comes from the environment and is sent only in the request's header.

One refused conversation ends its own trajectory and no other; a busy server is asked again for up to --patience
seconds; a parameter that the server rejects is not sent again. The openai package would take over only the second of
these, and brings six more packages.
"""

from common import command_line

import functools
import http.client
import json
import os
import re
import sys
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
CHOICE = {"message": {"content?": (None, str, list)}, "finish_reason?": (None, str)}
ANSWER = {"choices": [CHOICE], "usage?": (None, {"prompt_tokens?": COUNT, "completion_tokens?": COUNT})}
TRIES = 3                                               # of a request that is answered with nothing
PAUSE, LONGEST_PAUSE = 1.0, 60.0                        # seconds before the second try, doubled each time, at most …
PATIENCE = 300                                          # seconds of pauses for one request
TOO_LONG = re.compile("context.?(length|size)|maximum context|context window|too long|too many tokens|"
                      r"longer than the maximum|max_new_tokens\W+must be|maximum number of tokens|too large for model|"
                      "entity too large", re.I)
REFUSED = re.compile("content.?(filter|management|policy)|usage polic|content exists risk|data_inspection_failed|"
                     "flagged|moderation", re.I)
OUT_OF_RANGE = re.compile("too (large|small|high|low)|at (most|least)|(less|greater) than|between|range", re.I)
NO_QUOTA = re.compile("insufficient_quota|exceeded your current quota", re.I)
# A parameter, and what it is called by servers that do not know this name. None: they do without.
SUCCESSORS = {"max_tokens": "max_completion_tokens", "temperature": None, "top_p": None, "seed": None, "stop": None}
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "stop": None}


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


class Ended(Exception):
    """A conversation that this endpoint will never continue; str() of it is how its trajectory ends: "length", its
    prompt with a response does not fit into the model's context; "refused", a content filter or a rejected request;
    "empty", no text."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would take the key to another host."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(NoRedirects)


def short(problem: str) -> str:
    """A server's words on one line, without the key."""
    problem, key = " ".join(problem.split()), secret()
    return (problem.replace(key, "(the key)") if key else problem)[:300]


class Endpoint:
    """The counterpart of sampler.Sampler: `add` requests, and `step` returns those that have ended. At most `parallel`
    requests are sent at a time."""

    def __init__(self, name: str, base_url: str, parallel: int, patience: float = PATIENCE):
        self.name, self.url, self.patience = name, base_url.rstrip("/") + "/chat/completions", patience
        self.pool, self.pending = ThreadPoolExecutor(parallel), set()
        self.names, self.said = {name: name for name in SUCCESSORS}, set()
        self.accepted = set()                                   # the fields of requests that were answered

    @property
    def idle(self) -> bool:
        return not self.pending

    @property
    def rejected(self) -> dict[str, str | None]:
        """{parameter that this server rejects: what is sent instead}."""
        return {name: key for name, key in self.names.items() if key != name}

    def add(self, request: Request) -> None:
        self.pending.add(self.pool.submit(self.complete, request))

    def step(self) -> list[Request]:
        """Raises ValueError if the endpoint refuses a request or does not answer after all tries."""
        done, self.pending = wait(self.pending, timeout=0.05, return_when=FIRST_COMPLETED)
        try:
            return [future.result() for future in done]
        except ValueError as error:
            self.pool.shutdown(wait=False, cancel_futures=True)
            waiting = not all(future.done() for future in self.pending)
            raise command_line.Abandoned(str(error)) if waiting else error

    def complete(self, request: Request) -> Request:
        """Sends a request and fills in its response."""
        try:
            for _ in range(TRIES):
                choice, usage = self.answer(request)
                broken = choice.get("finish_reason") == "error" or choice.get("error")          # after half a sentence
                text = "" if broken else text_of(choice["message"].get("content"))
                if choice.get("stop_reason") == request.stop and request.stop not in text:      # vLLM leaves it out
                    text += request.stop
                if choice.get("finish_reason") == "content_filter":
                    raise Ended("refused")                  # half a sentence, perhaps
                if text:
                    break
            else:
                thought = any(choice["message"].get(name) for name in ("reasoning_content", "reasoning"))
                self.say(f"answers with {'thoughts and no text' if thought else 'no text'}: these trajectories end by "
                         "'empty'" + ("; a larger --max-new-tokens may help" if thought else ""))
                raise Ended("empty")
        except Ended as e:
            request.ended = str(e)
            return request
        request.new_ids = Said(text, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
        request.ended = "length" if choice.get("finish_reason") == "length" else "stop"
        return request

    def answer(self, request: Request) -> tuple[dict, dict]:
        """A server's answer: its choice and the usage. A server that has too much to do now (429, 5xx) is asked again
        later. Raises Ended if this conversation has no answer, ValueError if no request can succeed."""
        waited, pause = 0.0, PAUSE
        while True:
            body = self.body(request)
            status, answer, after = self.post(body)
            if status == 200:
                if wrong := mismatch(answer, ANSWER) or (None if answer["choices"] else ("choices", "empty")):
                    raise self.failed(f"not an answer of a chat endpoint (field {wrong[0]!r}: {wrong[1]}): "
                                      f"{json.dumps(answer)}")
                self.accepted |= body.keys()
                return answer["choices"][0], answer.get("usage") or {}
            problem = f"{status or ''} {answer}".strip()
            if status in (400, 413, 422, 500) and TOO_LONG.search(answer):
                raise Ended("length")
            if status in (400, 403, 422) and REFUSED.search(answer):
                raise Ended("refused")
            if status in (400, 422) and self.does_without(answer, body):
                continue
            if status in (400, 403, 413, 422) and self.accepted:        # others were answered: the fault is in this one
                self.say(f"rejects a conversation; its trajectory ends with 'refused' ({short(problem)})")
                raise Ended("refused")
            again = status is None or status in (408, 409, 429) or status >= 500
            seconds = min(max(pause, after), LONGEST_PAUSE)
            if not again or NO_QUOTA.search(answer) or waited + seconds > self.patience:
                raise self.failed(problem)
            if after > 10:
                self.say(f"asks us to wait, for {after:.0f} seconds")
            else:
                self.say(f"no answer now ({status or short(answer)}); asking again for up to {self.patience:g} seconds")
            time.sleep(seconds)
            waited, pause = waited + seconds, 2 * pause

    def body(self, request: Request) -> dict:
        """What is sent: no parameter at the value that it has anyway, and none that this server has rejected."""
        wanted = {"max_tokens": request.max_new_tokens, "temperature": request.temperature, "top_p": request.top_p,
                  "seed": crc32(str(request.seed).encode()), "stop": [request.stop] if request.stop else None}
        body = {"model": self.name, "messages": request.prompt}
        body |= {self.names[name]: value for name, value in wanted.items()
                 if self.names[name] and value != NEUTRAL.get(name, ...)}
        if request.prompt[-1]["role"] == "assistant":           # its response has been started
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return body

    def does_without(self, problem: str, sent: dict) -> bool:
        """Does the server reject a parameter that was sent? Then it is not sent again, or by its other name. Raises
        ValueError if it is the value that is rejected."""
        for name, successor in SUCCESSORS.items():
            key = next((key for key in (name, successor) if key in sent), None)
            if key and key not in self.accepted and re.search(rf"\b{key}\b", problem):
                if OUT_OF_RANGE.search(problem):
                    raise self.failed(f"we sent {key} = {sent[key]}, and the server says: {problem}")
                if self.names[name] == key:                     # no other request has found out before
                    self.names[name] = successor if key == name else None
                    self.say(f"rejects {key}; from now on we send " + (self.names[name] or "requests without it"))
                return True
        return False

    def say(self, message: str) -> None:
        """Says something about the endpoint, once."""
        if message not in self.said:
            self.said.add(message)
            print(f"{self.url}: {message}", file=sys.stderr)

    def failed(self, problem: str) -> ValueError:
        """The error of one line."""
        return ValueError(f"{self.url}: {short(problem)}")

    def post(self, body: dict) -> tuple[int | None, dict | str, float]:
        """Sends a body → the status, the answer (or, unless the status is 200, what went wrong), and the seconds to
        wait that the server asks for. None as status: no server there, a broken connection, half an answer."""
        headers, key = {"Content-Type": "application/json"}, secret()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            with OPENER.open(urllib.request.Request(self.url, json.dumps(body).encode(), headers), timeout=600) as sent:
                answer = json.load(sent)
        except urllib.error.HTTPError as e:
            after = e.headers.get("Retry-After", "")
            try:
                text = e.read(1000).decode(errors="replace")
            except (OSError, http.client.HTTPException):        # it breaks off
                text = ""
            return e.code, f"{e.reason}: {text}", float(after) if re.fullmatch("[0-9]{1,9}", after) else 0.0
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as e:
            return None, f"{getattr(e, 'reason', e)}", 0.0
        if isinstance(answer, dict) and answer.get("error"):    # some report an error with status 200
            error = answer["error"] if isinstance(answer["error"], dict) else {}
            code = error.get("code")
            return code if isinstance(code, int) and code >= 400 else 500, json.dumps(answer), 0.0
        return 200, answer, 0.0


def text_of(content: str | list | None) -> str:
    """A response's text: a text, or a list of parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    text = "".join(text for text in texts if isinstance(text, str))
    return text.encode(errors="replace").decode()               # JSON can hold half a character


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
    url = args.base_url or "https://api.openai.com/v1"
    if not re.match("https?://", url):
        raise ValueError(f"--base-url {url}: should begin with http:// or https://")
    if args.adapter or args.tp > 1 or args.dtype:
        raise ValueError(f"--model {args.model}: a model behind an endpoint takes no --adapter, no --dtype and no --tp")
    secret()
    request = functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                                top_p=args.top_p)
    return Endpoint(args.model.removeprefix("openai:"), url, args.batch, args.patience), request
