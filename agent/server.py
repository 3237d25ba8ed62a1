"""A model with its adapters behind an OpenAI-compatible endpoint: the server to agent/endpoint.py's client.

    python -m agent.server --model M --adapter round1                serves "round1" at http://127.0.0.1:8000/v1
    python evaluate.py --model openai:round1 --base-url http://127.0.0.1:8000/v1 --prefill --tasks test.jsonl …

POST /v1/chat/completions, with streaming, and GET /v1/models. A thread per connection reads requests and writes
answers; the main thread samples, and batches all requests that are there (engine/sampler.py). There is no
authentication: whoever reaches the port may use the model. What would change an answer and is not implemented (several
choices, penalties) is refused by name. --log keeps the requests with their answers, as tools/from_chats.py reads them.
"""

from common import command_line, files

import contextlib
import json
import queue
import re
import socket
import sys
import threading
import time
import uuid
from argparse import Namespace
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agent import logged, tool_calls
from agent.chat import Chat
from agent.endpoint import is_remote
from agent.protocol import RESPONSES
from agent.responses import before_stop
from agent.served_prompts import Prompts
from formats.chats import MESSAGE, TOOL, check_messages, normal_message
from formats.records import mismatch
from formats.weights import local_folder
from scaling import parallel

FLAG, COUNT, NUMBER = (None, bool), (None, int), (None, int, float)
BODY = {"model": str, "messages": [MESSAGE | {"content?": (None, str, [{"type": str, "text": str}])}],
        "tools?": (None, [TOOL]), "parallel_tool_calls?": FLAG, "max_tokens?": COUNT, "max_completion_tokens?": COUNT,
        "temperature?": NUMBER, "top_p?": NUMBER, "stop?": (None, str, [str]), "seed?": COUNT, "stream?": FLAG,
        "stream_options?": (None, {"include_usage?": FLAG}), "continue_final_message?": FLAG,
        "add_generation_prompt?": FLAG, "chat_template_kwargs?": (None, {"enable_thinking?": FLAG})}
HARMLESS = {"user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"}
NEUTRAL = {"n": (1,), "top_k": (-1,), "repetition_penalty": (1,), "tool_choice": ("none", "auto"),
           "response_format": ({"type": "text"},)}                      # of any other field: null, false, 0 or empty
PATHS = "POST /v1/chat/completions and GET /v1/models"
LONGEST_BODY = 2 ** 24                                                  # bytes
CLOSES = {f"</{tag}>": tag for tag, _ in RESPONSES.values()}


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
        self.status, self.body = status, {"error": error}


def read_request(body: bytes, model: str) -> Namespace:
    """The body of a request for an answer. Raises Refused, naming the field."""
    try:
        whole = json.dumps(json.loads(body), ensure_ascii=False)
        asked = json.loads(whole.encode(errors="replace"))              # JSON can hold half a character
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
    if not isinstance(asked, dict):
        raise Refused("the body is not a JSON object")
    if wrong := mismatch(asked, BODY):
        raise Refused(f"{wrong[0]}: {wrong[1]}", wrong[0])
    if asked["model"] != model:
        raise Refused(f"The model {asked['model']!r} does not exist; this server has {model!r}", "model", 404,
                      "model_not_found")
    for name, value in asked.items():
        known = f"{name}?" in BODY or name in BODY or name in HARMLESS
        if not known and value and value not in NEUTRAL.get(name, ()):
            raise Refused(f"Unsupported parameter: {name!r}", name, code="unsupported_parameter")

    def choice(name, default, low, high):
        value = default if asked.get(name) is None else asked[name]
        if not low <= value <= high:
            raise Refused(f"{name} is {value}, but should be from {low} to {high}", name)
        return value

    unlimited = 2 ** 31                                                 # tokens: until the context is full
    messages = [m | {"role": "system"} if m["role"] == "developer" else m for m in asked["messages"]]
    if not messages:
        raise Refused("messages: give at least one", "messages")
    if wrong := check_messages(messages):
        raise Refused(f"{wrong[0]}: {wrong[1]}", wrong[0])
    for n, m in enumerate(messages):
        if m.get("content") is None and not m.get("tool_calls"):
            raise Refused(f"messages[{n}].content: missing", f"messages[{n}].content")
    messages = [normal_message({k: m[k] for k in m if f"{k}?" in MESSAGE or k in MESSAGE}) for m in messages]
    tools = asked.get("tools") or []
    continues = bool(asked.get("continue_final_message"))
    calling = bool(tools) or any(m["role"] == "tool" or "tool_calls" in m for m in messages)
    if continues and (messages[-1]["role"] != "assistant" or asked.get("add_generation_prompt") or calling):
        raise Refused("continue_final_message needs a last message of the assistant, and neither tools, tool calls nor "
                      "add_generation_prompt", "continue_final_message")
    calls = 0 if asked.get("tool_choice") == "none" else 1 if asked.get("parallel_tool_calls") is False else unlimited
    stop = [asked["stop"]] if isinstance(asked.get("stop"), str) else asked.get("stop") or []
    if "" in stop:
        raise Refused("stop: an empty text", "stop")
    limit = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
    thinking = bool((asked.get("chat_template_kwargs") or {}).get("enable_thinking"))
    return Namespace(body=asked, messages=messages, tools=tools, calling=calling, calls=calls if tools else 0,
                     thinking=thinking, continues=continues, stop=stop, seed=asked.get("seed"),
                     max_new_tokens=choice(limit, unlimited, 1, unlimited), top_p=choice("top_p", 1.0, 0, 1),
                     temperature=choice("temperature", 1.0, 0, 100), stream=bool(asked.get("stream")),
                     report_usage=bool((asked.get("stream_options") or {}).get("include_usage")))


class Batch:
    """What samples. The main thread calls `run`; the others add requests, and hear of each new token."""

    def __init__(self, chat: Chat, engine, request: Callable):
        """engine, request: as scaling.parallel.sampler returns them."""
        self.chat, self.engine, self.request, self.inbox = chat, engine, request, queue.SimpleQueue()

    def run(self) -> None:
        """Samples forever. Raises what the sampler raises."""
        while True:
            while not self.inbox.empty() or self.engine.idle:
                self.engine.add(self.inbox.get())
            for request in self.engine.step():
                request.key.put(None)

    def add(self, prompt: list[int], asked: Namespace, given_up: Callable[[], bool]):
        """Starts a request. Its `key` is a queue with an item for each new token, and None at the end. Once
        `given_up`, it ends."""
        if len(prompt) > self.engine.max_length:
            raise Refused(f"the messages have {len(prompt)} tokens; the maximum context length is "
                          f"{self.engine.max_length} tokens", "messages", code="context_length_exceeded")
        heard, over = queue.SimpleQueue(), self.over(asked.stop, asked.calling)

        def stop(new_ids):
            heard.put(len(new_ids))
            return given_up() or over(new_ids)

        request = self.request(heard, prompt, max_new_tokens=asked.max_new_tokens, temperature=asked.temperature,
                               top_p=asked.top_p, seed=asked.seed, stop=stop)
        self.inbox.put(request)
        return request

    def over(self, stop: list[str], calling: bool) -> Callable[[list[int]], bool]:
        """Is a response over, judging by its ids? At a control token that is not one of the model's own words, or one
        of the texts in `stop`. calling: it may have tool calls, which have other control tokens, too."""
        if len(stop) == 1 and stop[0] in CLOSES:
            return self.chat.closes(CLOSES[stop[0]])                    # as without a server
        ends = calling and logged.stop_ids(self.chat) or {
            i for i in self.chat.ends if not logged.OWN_TAG.fullmatch(self.chat.special[i])}
        tail = 4 * max(map(len, stop), default=0) + 4                   # a character takes up to four tokens
        return lambda ids: ids[-1] in ends or (
            bool(stop) and any(text in self.chat.decode(ids[-tail:]) for text in stop))

    def text(self, request, stop: list[str], ended: bool) -> tuple[str, str | None]:
        """What a response says up to the text that stopped it, and that text. Unless it has ended, without what may yet
        become one, or a character."""
        text, _, _ = self.chat.heard(request.prompt, list(request.new_ids))
        return before_stop(text if ended else text.rstrip("\N{REPLACEMENT CHARACTER}"), stop, ended)

    def calls(self, text: str, asked: Namespace) -> tuple[str, list[dict]]:
        """What a response says apart from its tool calls, and these in OpenAI's form. The client sends both back, so
        the text or further calls are left out if the chat template cannot write them beside the first call."""
        said, found = tool_calls.split(self.chat, text) if asked.calls else (text, [])
        calls = [{"id": uuid.uuid4().hex[:9],                           # some of Mistral's templates want this length
                  "type": "function", "function": {
                      "name": name, "arguments": json.dumps(arguments, ensure_ascii=False).encode(
                          errors="replace").decode()}}                  # half a character
                 for name, arguments in found[:asked.calls]]
        for content, some in ((said, calls), ("", calls), (said, calls[:1])) if calls else ():
            answer = normal_message({"role": "assistant", "content": content, "tool_calls": some})
            with contextlib.suppress(ValueError):
                logged.writable(self.chat, [*asked.messages, answer], asked.tools)
                return content, some
        return ("", calls[:1]) if calls else (said, [])


class Handler(BaseHTTPRequestHandler):
    """One connection."""
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    log_message = lambda *_: None

    def do_GET(self):
        model = {"id": self.server.name, "object": "model", "created": self.server.started, "owned_by": "memento"}
        if self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [model]})
        elif self.path == f"/v1/models/{self.server.name}":
            self.answer(200, model)
        else:
            self.answer(404, Refused(f"there is no {self.path}; there are {PATHS}", status=404).body)

    def do_POST(self):
        try:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LONGEST_BODY:
                self.drain()
                raise Refused(f"a body needs a Content-Length of at most {LONGEST_BODY} bytes", status=413)
            body = self.rfile.read(int(length))
            if self.headers.get("Origin"):                              # any page in the user's browser could ask
                raise Refused("requests of web pages are refused; call the model from your own server", status=403)
            if self.path != "/v1/chat/completions":
                raise Refused(f"there is no {self.path}; there are {PATHS}", status=404)
            asked = read_request(body, self.server.name)
            try:
                prompt = self.server.prompts.encode(asked)
            except ValueError as e:
                raise Refused(str(e), "messages") from None
            self.complete(asked, self.server.batch.add(prompt, asked, self.is_gone))
        except Refused as e:
            self.answer(e.status, e.body)

    def complete(self, asked, request):
        """Answers with the response, in pieces if asked for a stream; its tool calls are the last piece."""
        common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.server.name}
        sent = ""

        def piece(delta, **more):
            choice = {"index": 0, "delta": delta, "finish_reason": None} | more
            self.event(common | {"object": "chat.completion.chunk", "choices": [choice]})

        if asked.stream:
            self.start_events()
            piece({"role": "assistant", "content": ""})
        for _ in iter(request.key.get, None):
            if asked.stream:
                text, _ = self.server.batch.text(request, asked.stop, False)
                if asked.calls:
                    text = re.split("[<{[`]", text)[0].rstrip()         # what follows may be a call
                if len(text) > len(sent):
                    piece({"content": text[len(sent):]})
                    sent = text
        text, stopped_by = self.server.batch.text(request, asked.stop, True)
        self.server.prompts.remember(asked, text, stopped_by, list(request.new_ids))
        with self.server.prompts.lock:
            text, calls = self.server.batch.calls(text, asked)
        reason = "tool_calls" if calls and request.ended == "stop" else request.ended
        end = {"finish_reason": reason, "stop_reason": stopped_by}
        read, written = len(request.prompt), len(request.new_ids)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        message = {"content": text or None, "tool_calls": calls} if calls else {"content": text}
        choice = {"index": 0, "message": {"role": "assistant"} | message, **end}
        answer = common | {"object": "chat.completion", "choices": [choice], "usage": usage}
        if not asked.continues and not self.is_gone():
            self.server.log(asked.body, answer)
        if not asked.stream:
            return self.answer(200, answer)
        if len(text) > len(sent):
            piece({"content": text[len(sent):]})
        if calls:
            piece({"tool_calls": [{"index": n} | call for n, call in enumerate(calls)]})
        piece({}, **end)
        if asked.report_usage:
            self.event(common | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.event("[DONE]")

    def drain(self) -> None:
        """Reads what the client sends, at most 256 MiB or until it pauses for a second. Else it would not read our
        answer."""
        self.close_connection = True
        self.connection.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(2 ** 12):
                if not self.rfile.read1(2 ** 16):
                    break

    def is_gone(self) -> bool:
        """Has the client closed the connection?"""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:                                         # it is open and sends nothing
            return False
        except OSError:
            return True

    def answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def start_events(self) -> None:
        self.close_connection = True                                    # the end of the answer
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, content: dict | str) -> None:
        data = content if isinstance(content, str) else json.dumps(content)
        self.wfile.write(f"data: {data}\n\n".encode())


class Server(ThreadingHTTPServer):
    """What the handlers share."""
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], name: str, prompts: Prompts, batch: Batch | None,
                 output: files.Output | None = None):
        super().__init__(address, Handler)
        self.name, self.prompts, self.batch, self.started = name, prompts, batch, int(time.time())
        self.output, self.writing = output, threading.Lock()

    def log(self, request: dict, answer: dict) -> None:
        """Keeps a request with its answer if there is an `output`. A full disk is reported, and the client served."""
        if self.output:
            with self.writing:
                try:
                    self.output.write({"id": answer["id"], "request": request, "response": answer})
                except ValueError as e:
                    print(f"not logged: {e}", file=sys.stderr)

    def handle_error(self, *address):
        """A client that closes the connection is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*address)


def serve(args: Namespace) -> None:
    """Serves until it is interrupted."""
    chat = Chat(local_folder(args.model))
    name = args.name or Path([args.model, *args.adapter][-1]).resolve().name
    try:
        output = files.Output(args.log, {"model": args.model, "adapter": args.adapter}) if args.log else None
    except ValueError as e:
        raise ValueError(str(e).replace("remove it or give another --out", "give another --log")
                         .replace("--out", "--log")) from None
    try:
        server = Server((args.host, args.port), name, Prompts(chat), None, output)
    except OSError as e:
        raise ValueError(f"--host {args.host} --port {args.port}: {e.strerror or e}; give another one") from None
    defaults = {"tp": 1, "max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0}      # each request says its own
    server.batch = Batch(chat, *parallel.sampler(Namespace(**vars(args), **defaults)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{name!r} is at http://{args.host}:{server.server_address[1]}/v1; Ctrl-C ends this", flush=True)
    try:
        server.batch.run()
    except KeyboardInterrupt:
        print()


def main():
    parser = command_line.Parser(__doc__)
    add, number = parser.add_argument, command_line.number
    add("--model", required=True, help="directory or hub id in Hugging Face format")
    add("--adapter", action="append", default=[], metavar="DIR",
        help="directory of an adapter; can be repeated, in order")
    add("--name", help="what clients call the model [the last adapter's name, or the model's]")
    add("--host", default="127.0.0.1", help="the address to listen at; whoever reaches it may use the model")
    add("--port", type=number(int, 0, 65535), default=8000, help="0: a free one")
    add("--batch", type=number(int, 1), default=32, help="requests at a time; others wait")
    add("--max-length", type=number(int, 1), default=8192,
        help="maximum tokens of a prompt with its response; never above the model's own limit")
    add("--dtype", choices=("float32", "bfloat16"),
        help="precision of the weights and the computation; adapters are float32")
    add("--log", metavar="FILE", help="JSONL: append each request with its answer, for tools/from_chats.py")
    args = parser.parse_args()
    if is_remote(args.model):
        parser.error(f"--model {args.model} is behind a server already")
    serve(args)


if __name__ == "__main__":
    sys.argv[0] = "agent.server"                                        # the name in --help and error messages
    command_line.run_stage(main)
