"""Chat templates with tools, in the forms that models come with, and conversations that they write.

tests/recordings/make.py has transformers write them; tests/test_chats.py compares.
"""

import copy
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

STARTER = Path(__file__).resolve().parent.parent / "starter"

# Tools in the system message, calls between tags, results that follow each other in one turn of the user.
QWEN_25 = """{%- if tools %}
{{- '<|system|>' + (messages[0].content if messages[0].role == 'system' else 'Be helpful.') }}
{{- '\\n\\nTools:' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{- '<|end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|system|>' + messages[0].content + '<|end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' or m.role == 'assistant' and not m.tool_calls %}
{{- '<|' + m.role + '|>' + m.content + '<|end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|assistant|>' }}{% if m.content %}{{- m.content + '\\n' }}{% endif %}
{%- for call in m.tool_calls %}
{{- '' if loop.first else '\\n' }}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}{{- '<|end|>\\n' }}
{%- elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|user|>' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""

# The same, but only the latest reply begins with an empty think block.
QWEN_3 = QWEN_25.replace("'<|assistant|>' }}{% if m.content", "'<|assistant|>' + think }}{% if m.content").replace(
    "{%- for m in messages %}\n", "{%- for m in messages %}\n"
    "{%- set think = '<think>\\n\\n</think>\\n\\n' if loop.last and m.role == 'assistant' else '' %}\n").replace(
    "'<|' + m.role + '|>' + m.content", "'<|' + m.role + '|>' + think + m.content").replace(
    "'<|assistant|>' }}{% endif %}", "'<|assistant|>' + ('<think>\\n\\n</think>\\n\\n' if enable_thinking is defined "
    "and not enable_thinking else '') }}{% endif %}")

# Tools in the first message of the user, one call a turn, trimmed texts, results as JSON.
LLAMA_31 = """{%- set ns = namespace(tools=tools) %}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|assistant|>\\n\\n{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|end|>' }}
{%- elif m.role == 'tool' %}{{- '<|system|>\\n\\n' + (m.content | tojson) + '<|end|>' }}
{%- else %}
{{- '<|' + m.role + '|>\\n\\n' }}
{%- if m.role == 'user' and ns.tools %}
{%- for tool in ns.tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}{% set ns.tools = none %}{% endif %}
{{- m.content | trim + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n\\n' }}{% endif %}"""

# Writes the arguments as they are given: a text.
RAW_ARGUMENTS = QWEN_25.replace("(call.function.arguments | tojson)", "call.function.arguments")
# Writes a second end behind the conversation.
END_OF_TEXT = QWEN_25 + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"

FORMS = {"Qwen 2.5": QWEN_25, "Qwen 3": QWEN_3, "Llama 3.1": LLAMA_31, "raw arguments": RAW_ARGUMENTS,
         "end of text": END_OF_TEXT}
TAGS = "<tool_call>", "</tool_call>", "<think>", "</think>", "<|endoftext|>"


def tool(name, *parameters):
    properties = {name: {"type": "string", "description": f"the {name}"} for name in parameters}
    return {"type": "function", "function": {"name": name, "description": f"Calls {name}.", "parameters": {
        "type": "object", "properties": properties, "required": list(parameters)}}}


def call(key, name, **arguments):
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": key, "type": "function", "function": {"name": name, "arguments": text}}


SINGLE = {"id": "single", "tools": [tool("find_order", "order"), tool("refund", "order", "amount")],
          "hints": [{"name": "tone", "text": "## Tone\nBe kind & brief."},
                    {"name": "forms", "text": "## Forms\nUse é."}],
          "messages": [
              {"role": "system", "content": "You work for a shop."},
              {"role": "user", "content": "Where is my order A-1?"},
              {"role": "assistant", "content": None,
               "tool_calls": [call("1", "find_order", order='A-1 "Zoë"', n=[1.5])]},
              {"role": "tool", "tool_call_id": "1", "content": '{"state": "sent."}'},
              {"role": "assistant", "content": "It is on its way.\n\nAnything else?"},
              {"role": "user", "content": [{"type": "text", "text": text} for text in ("Refund it.", "Please.")]},
              {"role": "assistant", "content": "", "tool_calls": [call("2", "refund", order="A-1", amount=3)]},
              {"role": "tool", "tool_call_id": "2", "content": "done"},
              {"role": "assistant", "content": ""}]}
PARALLEL = copy.deepcopy(SINGLE) | {"id": "parallel"}
PARALLEL["messages"][2] |= {"content": "Let me look.", "tool_calls": [call("1", "find_order", order="A-1"),
                                                                      call("x", "find_order")]}
PARALLEL["messages"].insert(4, {"role": "tool", "tool_call_id": "x", "content": "which order?"})
CHATS = {"Qwen 2.5": [SINGLE, PARALLEL], "Qwen 3": [PARALLEL], "Llama 3.1": [SINGLE], "raw arguments": [SINGLE],
         "end of text": [PARALLEL]}


def tokenizer() -> Tokenizer:
    """The starter's, with a few tags as tokens, which are not marked as special, as in Qwen's."""
    made = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    made.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return made


def as_the_template_takes_it(record: dict, form: str) -> list[dict]:
    """The messages with the hints, written by hand as transformers' documentation asks for it."""
    messages = copy.deepcopy(record["messages"])
    messages[0]["content"] += "".join("\n\n" + hint["text"] for hint in record["hints"])
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
        message["content"] = message["content"] or ""
        for made in message.get("tool_calls", []) if form != "raw arguments" else []:
            made["function"]["arguments"] = json.loads(made["function"]["arguments"])
    return messages
