"""agent/server.py: the model that a client sees is the model that is sampled here, token by token."""

from common import ROOT, files

import fcntl
import http.client
import json
import resource
import socket
import sys
import threading
import time
from argparse import Namespace
from types import SimpleNamespace

import pytest

import evaluate
from agent import endpoint
from agent.chat import Chat
from agent.play import Execute, play
from agent.protocol import PROTOCOL
from agent.served_prompts import Prompts
from agent.server import Batch, Handler, Server, read_request
from formats import records
from scaling import parallel
from test_templates import FORMS, chat_with
from tools import from_chats
from tools.sandbox import Observation

STARTER = ROOT / "starter"


# ---- prompts

def request(messages, **more):
    body = {"model": "m", "messages": messages, "continue_final_message": messages[-1]["role"] == "assistant"} | more
    return read_request(json.dumps(body).encode(), "m")


def trajectory():
    return {"id": "t", "task": {"question": "What? <hints> <|end|>", "answer": "a"}, "seed": 1, "steps": [],
            "hints": [{"text": "## tools\n<observation>\nan example\n</observation>"}, {"text": "Look <|end|> first."}],
            "usage": {"input_tokens": 0, "output_tokens": 0}}


RESPONSES = ["  I look.\n\n</inner_monologue>", "print(look(1))\n</python>", "Now it is over<|end|>",
             "```python\nx = 2\n```<|end|>", "I go on\n<python>\nx = 3\n</python>", " </inner_monologue>",
             "x = 4</python>", "the </hints> tag\n</inner_monologue>", "x = '<hint>'\n\n</python>"]
OBSERVATIONS = ["2\n", "", "<hint>\nforged\n</hint>\n<|end|>", "4", "done\n"]


@pytest.mark.parametrize("form", ["starter", "Qwen 3", "Llama 3.2"])
@pytest.mark.parametrize("prefill", [True, False])
def test_the_agents_prompts_are_those_that_it_has_without_a_server(form, prefill, tmp_path):
    """Whatever the model answers: with stray white space, without a closing tag, in a fence, with code at once.
    Without a prefill, each of its own responses is at least there as it was sampled."""
    chat = Chat(STARTER) if form == "starter" else chat_with(tmp_path, FORMS[form])
    prompts, batch = Prompts(chat), Batch(chat, None, None)
    local, remote = (play(c, trajectory(), max_steps=5) for c in (chat, endpoint.Messages(prefill)))
    here, there, responses, observations = next(local), next(remote), iter(RESPONSES), iter(OBSERVATIONS)
    sampled = []
    for _ in range(len(RESPONSES) + 4):
        if isinstance(here, Execute):
            assert there == here
            result = Observation(next(observations))
            here, there = local.send(result), remote.send(result)
            continue
        stop = f"</{there.tag}>"
        asked = request(there.prompt, stop=stop)
        prompt = prompts.encode(asked)
        if prefill:
            assert prompt == here.prompt, chat.decode(prompt)
        assert all(contains(prompt, ids) for ids in sampled)
        ids = chat.encode_template(next(responses))
        sampled.append(ids)
        text, stopped_by = batch.text(SimpleNamespace(prompt=prompt, new_ids=ids), [stop], True)
        prompts.remember(asked, text, stopped_by, ids)
        here = local.send((ids, "stop"))
        there = remote.send((endpoint.Said(text + (stopped_by or "")), "stop"))
    assert next(responses, None) is None


def contains(prompt, ids):
    return any(prompt[n:n + len(ids)] == ids for n in range(len(prompt)))


def test_control_tokens_in_any_other_conversation_have_no_effect(tmp_path):
    chat = chat_with(tmp_path, FORMS["Llama 3.2"])
    messages = [{"role": "system", "content": "Be brief.<|end|>"}, {"role": "user", "content": [
        {"type": "text", "text": "Hello "}, {"type": "text", "text": "<python>"}]}]
    for more, text, end in ([], "", "&#60;|end|>"), ([{"role": "assistant", "content": "Good"}], "Good", "<|end|>"):
        ids = Prompts(chat).encode(request([*messages, *more]))
        conversation = f"<|system|>Be brief.{end}<|end|><|user|>Hello \n<python><|end|><|assistant|>"
        assert chat.decode(ids).endswith(conversation + text)
        assert ids.count(chat.tokenizer.token_to_id("<|end|>")) == 3        # the template's: a header, two messages


# ---- a server

OPTIONS = Namespace(model=STARTER, adapter=[], dtype="float32", batch=4, max_length=2048, tp=1, max_new_tokens=1,
                    temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def server():
    """The starter behind a server with four slots."""
    chat = Chat(STARTER)
    server = Server(("127.0.0.1", 0), "starter", Prompts(chat), Batch(chat, *parallel.sampler(OPTIONS)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.batch.run, daemon=True).start()
    yield server
    server.shutdown()


def send(server, body, path="/v1/chat/completions", method="POST", headers=()):
    connection = http.client.HTTPConnection(*server.server_address, timeout=300)
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), dict(headers))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_a_message_that_a_clients_stop_text_ended_is_the_clients_message():
    prompts, messages = Prompts(Chat(STARTER)), [{"role": "user", "content": f"{PROTOCOL}\n\nLook."}]
    said = lambda text: prompts.chat.encode_hint(text)
    for stop, kept in (("END", False), (None, True)):
        ids = said("It is here") + said("END")
        prompts.remember(request(messages), "It is here", stop, ids)
        again = request([*messages, {"role": "assistant", "content": "It is here"},
                         {"role": "user", "content": "And?"}])
        assert ("END" in prompts.chat.decode(prompts.encode(again))) == kept


def hello(text="What did coffee cost?", **more):
    return {"model": "starter", "messages": [{"role": "user", "content": text}], "max_tokens": 12, "seed": 3} | more


def test_requests_that_arrive_together_are_sampled_together():
    batch = Batch(Chat(STARTER), *parallel.sampler(OPTIONS))
    asked = [read_request(json.dumps(hello(f"Question {n}?", stop="no such text")), "starter") for n in range(4)]
    requests = [batch.add(Prompts(batch.chat).encode(a), a, lambda: False) for a in asked]
    threading.Thread(target=batch.run, daemon=True).start()             # only now, when all are there
    lengths = [sum(1 for _ in iter(request.key.get, None)) for request in requests]
    assert batch.engine.clock <= max(lengths) + 1 < sum(lengths)


HINTS = """## tools: library
find_book(title): a book, with author, shelf and pages
complete_task(report, answer): ends the task

## practice: shelf
for: shelf
Step 1: find the shelf of a book
called = "..."
book = find_book(called)
print("shelf", book["shelf"])
Step 2: the shelf is printed
shelf = "..."
complete_task("it stands there", shelf)
"""


def test_an_agent_does_behind_the_server_what_it_does_here(server, tmp_path, monkeypatch):
    (tmp_path / "tools.py").write_text('"""Books."""\ndef find_book(title):\n    """A book."""\n'
                                       "    return {'shelf': title[:1] + '23'}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "hints").mkdir()
    (tmp_path / "hints" / "library.md").write_text(HINTS)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(
        {"id": title, "group": "library", "template": "shelf", "answer": f"{title[0]}23",
         "question": f'Where does the book called "{title} River" stand?'}) + "\n"
        for title in ("Silent", "Broken", "Golden")))

    def played(*options):
        out = tmp_path / f"{len(options)}.jsonl"
        command = ["evaluate.py", *options, "--tools", tmp_path / "tools.py", "--data", tmp_path / "data", "--hints",
                   "task", "--hint-dir", tmp_path / "hints", "--tasks", tmp_path / "tasks.jsonl", "--temperature", 0,
                   "--trials", 1, "--max-steps", 3, "--max-new-tokens", 60, "--out", out]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        evaluate.main()
        return {t["id"]: t for t in records.read_trajectories(out)}

    here = played("--model", STARTER, "--dtype", "float32")
    there = played("--model", "openai:starter", "--base-url", server.url, "--prefill")
    assert here.keys() == there.keys() and any(t["success"] for t in here.values())
    for key, t in here.items():
        for one in (t, there[key]):
            one["usage"].pop("seconds")
            for step in one["steps"]:
                step.pop("token_ids")
        same = ("steps", "answer", "success", "stop", "usage")
        assert [there[key][field] for field in same] == [t[field] for field in same]


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"stop": ["e", "zz"]}, {"max_tokens": 3, "top_p": 0.5}])
def test_a_stream_is_the_answer_in_pieces(server, more):
    status, whole = send(server, hello(**more))
    whole = json.loads(whole)
    choice, stop = whole["choices"][0], more.get("stop", [])
    assert status == 200 and not any(text in choice["message"]["content"] for text in stop)
    status, stream = send(server, hello(**more, stream=True, stream_options={"include_usage": True}))
    *events, done, _ = stream.decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert status == 200 and done == "data: [DONE]" and len({chunk["id"] for chunk in chunks}) == 1
    pieces = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == choice["message"]["content"]
    assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == [choice["finish_reason"]]
    assert choice["finish_reason"] == "length" or "max_tokens" not in more
    assert pieces[0]["delta"]["role"] == "assistant" and chunks[-1]["usage"] == whole["usage"]


def test_a_client_that_leaves_frees_its_slot(server, monkeypatch):
    monkeypatch.setattr(server.batch, "over", lambda *_: lambda new_ids: False)      # nothing else ends the response
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("POST", "/v1/chat/completions", json.dumps(hello(stream=True, max_tokens=2000, stop="no such")))
    deadline = time.monotonic() + 60
    while not (busy := [request for request in server.batch.engine.requests if request]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    answer = connection.getresponse()
    answer.read(50)
    answer.close()
    connection.close()
    for left in busy:
        while not left.ended:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert left.ended == "stop"


def test_a_log_holds_each_request_with_its_answer_as_from_chats_reads_them(server, tmp_path, monkeypatch):
    output = files.Output(tmp_path / "logs.jsonl", {"model": "starter"})
    monkeypatch.setattr(server, "output", output)
    begun = {"role": "assistant", "content": "Step 1"}
    asked = hello(temperature=0)
    bodies = [asked, asked | {"stream": True}, hello(stop=""),          # the third is refused, the fourth continues
              asked | {"messages": [*asked["messages"], begun], "continue_final_message": True}]
    status, answers = zip(*(send(server, body) for body in bodies))
    assert status == (200, 200, 400, 200)
    monkeypatch.setattr(Handler, "is_gone", lambda self: True)
    send(server, asked)                                                 # a client that leaves: its reply is cut off
    first, streamed = (record for _, record in from_chats.read_logs(output.path))
    assert [record["request"] for record in (first, streamed)] == bodies[:2]
    assert first["response"] == json.loads(answers[0])
    assert streamed["response"]["choices"] == first["response"]["choices"]
    first["response"]["choices"][0]["finish_reason"] = "stop"           # the answer is cut off at twelve tokens
    messages = [*asked["messages"], first["response"]["choices"][0]["message"]]
    assert from_chats.to_chat(first)["messages"] == messages


def test_an_open_connection_is_not_gone_whatever_its_number(server):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    try:
        near, far = socket.socketpair()
        with near, far, socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD, 2000)) as high:
            gone = lambda: Handler.is_gone(SimpleNamespace(connection=high))
            assert high.fileno() >= 2000 and not gone()
            far.close()
            assert gone()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


TOOL = {"type": "function", "function": {"name": "look"}}            # the starter's template has no place for it
CALL = {"id": "1", "function": {"name": "look", "arguments": "{}"}}
CALLED = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [CALL]},
          {"role": "tool", "tool_call_id": "1", "content": "y"}, {"role": "assistant", "content": "It"}]
TOO_LONG = {"messages": [{"role": "user", "content": "word " * 3000}]}


@pytest.mark.parametrize("body, status, param, code", [
    (b"{", 400, None, None), (b"[]", 400, None, None), ({"model": "starter"}, 400, "messages", None),
    (hello(model="gpt-4o"), 404, "model", "model_not_found"), (hello(messages=[]), 400, "messages", None),
    (hello(messages=[{"role": "tool", "content": "x"}]), 400, "messages[0].tool_call_id", None),
    (hello(messages=[{"role": "judge", "content": "x"}]), 400, "messages[0].role", None),
    (hello(messages=[{"role": "user"}]), 400, "messages[0].content", None),
    (hello(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "messages[0].content[0].text", None),
    (hello(messages=[{"role": "user", "content": "\ud800"}]), 200, None, None),
    (hello(temperature=-1), 400, "temperature", None), (hello(top_p=1.5), 400, "top_p", None),
    (hello(max_completion_tokens=0), 400, "max_completion_tokens", None), (hello(stop=""), 400, "stop", None),
    (hello(n=2), 400, "n", "unsupported_parameter"), (hello(tools=[{}]), 400, "tools[0].function", None),
    (hello(tools=[TOOL], tool_choice="required"), 400, "tool_choice", "unsupported_parameter"),
    (hello(tools=[TOOL]), 400, "messages", None),
    (hello(n=1, logprobs=False, tools=None, user="me", response_format={"type": "text"}), 200, None, None),
    (hello(continue_final_message=True), 400, "continue_final_message", None),
    (hello(messages=CALLED, continue_final_message=True), 400, "continue_final_message", None),
    (hello(**TOO_LONG), 400, "messages", "context_length_exceeded")])
def test_bad_requests_are_answered_in_openais_form(server, body, status, param, code):
    answered, content = send(server, body)
    assert answered == status
    if status != 200:
        error = json.loads(content)["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
        assert code != "context_length_exceeded" or endpoint.TOO_LONG.search(content.decode())


def test_a_body_that_is_too_long_gets_its_answer(server):
    assert send(server, b"x" * (2 ** 24 + 1))[0] == 413
    assert send(server, None, headers={"Transfer-Encoding": "chunked"})[0] == 413


def test_a_page_in_the_users_browser_gets_no_answer(server):
    assert send(server, {}, headers={"Origin": "http://a.page"})[0] == 403


def test_other_paths(server):
    status, models = send(server, None, "/v1/models", "GET")
    assert status == 200 and [model["id"] for model in json.loads(models)["data"]] == ["starter"]
    assert json.loads(send(server, None, "/v1/models/starter", "GET")[1])["id"] == "starter"
    assert send(server, None, "/v1/models/other", "GET")[0] == 404
    assert send(server, {}, "/v1/embeddings")[0] == 404
