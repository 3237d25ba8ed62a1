"""Chat templates and tokenizers in the forms that models come with. Every prompt grows at its end alone, in sampling as
in training."""
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from agent import protocol
from agent.chat import Chat

STARTER = Path(__file__).resolve().parent.parent / "starter"
TASK = "What did it open at?"

# Removes earlier thinking, and begins only the latest response with an empty think block.
QWEN_3 = """{%- set last = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set text = m.content.split('</think>')[-1].lstrip('\\n') %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > last.user %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

# A header with today's date and the tools, trimmed messages.
LLAMA_32 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{{- '<|system|>Today: ' + date_string + '\\n' }}
{%- if tools is not none %}{{- 'Tools: ' + tools | tojson(indent=2) }}{% endif %}
{%- if documents is not none %}{{- 'Documents' }}{% endif %}
{{- '<|end|>' }}
{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content | trim + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""

# Puts the system message into the user's first one, strips, insists on the order of roles.
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{- bos_token }}
{%- for m in rest %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}
{{- '[INST] ' + (system + '\\n\\n' if loop.first and system else '') + m['content'].strip() + ' [/INST]' }}
{%- else %}{{- ' ' + m['content'].strip() + eos_token }}{% endif %}
{%- endfor %}"""

# Has no system role and calls the assistant "model".
GEMMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{% endif %}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""

# Marks the assistant's words, as trainers want it.
MARKED = """{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}
{%- else %}{% generation %}{{ '<|assistant|>' + m.content + '<|end|>' }}{% endgeneration %}{% endif %}{% endfor %}"""

FORMS = {"Qwen 3": QWEN_3, "Llama 3.2": LLAMA_32, "Mistral": MISTRAL, "Gemma": GEMMA, "marked": MARKED}


def chat_with(folder, template, tokenizer=None, **config):
    (folder / "tokenizer.json").write_text(tokenizer or (STARTER / "tokenizer.json").read_text())
    names = {"bos_token": "<|user|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **names}))
    (folder / "config.json").write_text(json.dumps(config))
    return Chat(folder)


def said(chat, text, tag):
    return chat.encode_template(f"{text}\n</{tag}>")


def trajectory(chat, ending=()):
    return [{"monologue": "", "code": "", "observation": f"saw {n}", "hint": {"text": "Print it."} if n == 1 else None,
             "token_ids": {"monologue": [*said(chat, f"look {n}", "inner_monologue"), *ending],
                           "code": said(chat, f"print({n})", "python")}}
            for n in range(3)]


def prompts(chat, steps):
    """Each prompt with what was sampled from it, and the finished trajectory."""
    asked = [(chat.prompt(TASK, ["HINT"], steps[:n + 1], name)[0], steps[n]["token_ids"][name])
             for n in range(3) for name in ("monologue", "code")]
    return asked, *chat.prompt(TASK, ["HINT"], steps)


@pytest.mark.parametrize("template", FORMS.values(), ids=FORMS)
def test_each_prompt_begins_with_the_one_before_and_what_was_sampled(tmp_path, template):
    chat = chat_with(tmp_path, template)
    asked, whole, spans = prompts(chat, trajectory(chat))
    for (prompt, sampled), longer in zip(asked, [prompt for prompt, _ in asked[1:]] + [whole]):
        assert longer[:len(prompt) + len(sampled)] == prompt + sampled
    for (prompt, sampled), (start, end) in zip(asked, spans.values()):
        assert whole[:start] == prompt and whole[start:end] == sampled


@pytest.mark.parametrize("form", [name for name in FORMS if name not in ("Qwen 3", "marked")])
def test_the_finished_trajectory_is_what_the_template_alone_writes(tmp_path, form):
    import jinja2
    chat = chat_with(tmp_path, FORMS[form])
    steps = trajectory(chat)
    responses = lambda n, name: chat.decode(steps[n]["token_ids"][name])
    messages = protocol.conversation(TASK, ["HINT"], steps, None, str, str, responses)
    reference = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(FORMS[form])
    text = reference.render(messages=messages, tools=None, documents=None, strftime_now=lambda form: "26 Jul 2024",
                            bos_token="<|user|>", eos_token="<|end|>")
    assert chat.decode(prompts(chat, steps)[1]) == text


def test_qwen_3_samples_every_response_after_the_empty_think_block_it_is_learned_with(tmp_path):
    chat = chat_with(tmp_path, QWEN_3)
    asked, whole, _ = prompts(chat, trajectory(chat))
    opening = "<|im_start|>assistant\n<think>\n\n</think>\n\n<"
    assert chat.decode(whole).count(opening) == 6 == chat.decode(whole).count("<|im_start|>assistant")
    endings = opening + "inner_monologue>\n", opening + "python>\n"
    assert all(chat.decode(prompt).endswith(endings) for prompt, _ in asked)
    assert chat.decode(chat.ask("Is it?")).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


MESSAGE = "{% for m in messages %}{{ '<|' + m.role + '|>' + BEFORE + m.content + '<|end|>' }}{% endfor %}"


@pytest.mark.parametrize("template, becomes", [
    ("{{ messages | length }} messages" + MESSAGE.replace("BEFORE", "''"), "'2 messages.*' becomes '4 messages"),
    (MESSAGE.replace("BEFORE", "('now: ' if loop.revindex == 2 else '')"), "'now: "),
    (MESSAGE.replace("BEFORE", "('' if loop.last else 'then: ')"), "becomes 'then: ")])
def test_a_template_that_rewrites_earlier_messages_is_refused_in_one_line(tmp_path, template, becomes):
    with pytest.raises(ValueError, match=f"rewrites earlier messages .*{becomes}") as error:
        chat_with(tmp_path, template)
    assert "\n" not in str(error.value)


def test_a_template_that_wants_another_order_of_roles_or_repeats_a_message_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the chat template: .*only questions"):
        chat_with(tmp_path, "{% for m in messages %}"
                            "{{ m.content if m.role == 'user' else raise_exception('only questions') }}{% endfor %}")
    with pytest.raises(ValueError, match="leaves out a part of the messages, repeats it"):
        chat_with(tmp_path, "{{ messages[0].content }}{% for m in messages %}{{ m.content }}{% endfor %}")


def test_the_date_is_the_same_whenever_a_stage_runs(tmp_path):
    assert "Today: 26 Jul 2024\n<|end|>" in chat_with(tmp_path, LLAMA_32).render(("q",))


@pytest.mark.parametrize("call, text", [
    ("tojson", '{"b": "é", "a": 1}'),
    ("tojson(true)", '{"b": "\\u00e9", "a": 1}'),
    ("tojson(false)", '{"b": "é", "a": 1}'),
    ("tojson(indent=2)", '{\n  "b": "é",\n  "a": 1\n}'),
    ("tojson(separators=(',', ':'), sort_keys=true)", '{"a":1,"b":"é"}')])
def test_tojson_takes_the_arguments_that_transformers_gives_it(tmp_path, call, text):
    template = "{{ {'b': 'é', 'a': 1} | CALL }}{% for m in messages %}{{ m.content }}{% endfor %}".replace("CALL", call)
    assert chat_with(tmp_path, template).render(("q",)) == text + "q"


@pytest.mark.parametrize("space", ["", " ", "\n"])
def test_a_turn_that_the_model_ended_itself_is_not_ended_twice(tmp_path, space):
    chat = chat_with(tmp_path, LLAMA_32.replace("trim + '<|end|>", f"trim + {space!r} + '<|end|>"))
    end = chat.tokenizer.token_to_id("<|end|>")
    asked, whole, _ = prompts(chat, trajectory(chat, ending=[end]))
    for (prompt, sampled), longer in zip(asked, [prompt for prompt, _ in asked[1:]] + [whole]):
        assert longer[:len(prompt) + len(sampled)] == prompt + sampled
    spaced = chat.decode(prompts(chat, trajectory(chat))[1])
    assert chat.decode(whole) == spaced.replace(f"</inner_monologue>{space}<|end|>", "</inner_monologue><|end|>")


def test_a_hint_that_ends_with_the_tag_around_it_does_not_swallow_that_tag(tmp_path):
    chat = chat_with(tmp_path, GEMMA)
    steps = [step | {"hint": {"text": "End with </hint>"}} for step in trajectory(chat)]
    assert "End with </hint>\n</hint>\n" in chat.decode(chat.prompt(TASK, [], steps)[0])


# ---- tokenizers

def test_a_token_beyond_the_models_vocabulary_is_refused_only_when_it_is_fed(tmp_path):
    tokenizer = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    known = tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken("QQQ")])
    chat = chat_with(tmp_path, GEMMA, tokenizer.to_str(), vocab_size=known)
    assert max(chat.ask("Is it?")) < known
    with pytest.raises(ValueError, match=f"tokenizer.json: the token 'QQQ' has id {known}, but the model's vocabulary"):
        chat.ask("QQQ")
    with pytest.raises(ValueError, match="the token 'QQQ'"):
        chat_with(tmp_path, "QQQ" + GEMMA, tokenizer.to_str(), vocab_size=known)


@pytest.mark.parametrize("form", ["Prepend", "Metaspace", "Metaspace at the first"])
def test_a_llama_2_tokenizer_puts_no_space_around_outside_text(tmp_path, form):
    """The finished trajectory reads as the tokenizer alone reads what the template writes, and so do its tokens."""
    letters = sorted({chr(c) for c in range(32, 127)} - {" "} | {"▁", "\n"})
    vocabulary = {t: n for n, t in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if form == "Prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = "always" if form == "Metaspace" else "first"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Replace("▁", " ")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": MISTRAL, **names}))
    chat = Chat(tmp_path)
    steps = trajectory(chat)
    whole = prompts(chat, steps)[1]
    assert "<task_description>\nWhat did it open at?\n</task_description>" in chat.decode(whole)
    assert "<hint>\nPrint it.\n</hint>" in chat.decode(whole)
    responses = lambda n, name: chat.decode(steps[n]["token_ids"][name])
    messages = protocol.conversation(TASK, ["HINT"], steps, None, str, str, responses)
    text = chat.template.render(messages=messages, tools=None, documents=None, **chat.names)
    assert whole == tokenizer.encode(text, add_special_tokens=False).ids
