"""The starter's vocabulary: 1,536 tokens, made for copying.

    python starter/tokenizer.py            writes starter/tokenizer.json and tokenizer_config.json

A word has the same tokens wherever it stands: the space before it is a token of its own, numbers are cut into pairs of
digits, and the punctuation of code comes in fixed groups. So copying `2014-03-05` from a question into code is copying
tokens. The pieces of words are learned from the documentation of Python's standard library. Each phrase of
agent/protocol.py is one token.
"""

import json
import pkgutil
import re
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from agent import protocol

HERE = Path(__file__).resolve().parent
VOCABULARY = 1536
GROUPS = [' = "', '"\n', '("', '", "', '")\n', '"))\n', '"])\n', '")', '"]\n', '["', '"] ', ')\n', '))\n', ' = ',
          ' == ', ' + ', ' - ', ' * ', ' / ', ' > ', ' < ', ', ', ': ', ':\n', '\n    ', '...', '()', '[0]',
          'Step ', '## ']
PIECES = "|".join([*(re.escape(g).replace("\\\n", "\n") for g in sorted(GROUPS, key=len, reverse=True)),
                   r"[A-Za-z]+", r"\d{1,2}", r"\s", r"[^\sA-Za-z\d]"])
TEMPLATE = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def special_tokens():
    """The roles, and every phrase of agent/protocol.py exactly as it stands there."""
    phrases = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", protocol.PROTOCOL + "\n\n", protocol.THINK,
               protocol.CODE]
    for tag in protocol.TAGS:
        phrases += [f"<{tag}>\n", f"\n</{tag}>\n", f"</{tag}>"]
    return phrases


def corpus():
    """The standard library's docstrings, then each group and each pair of digits, often enough to become a token."""
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(json.__file__).parent.parent)])):
        source = Path(json.__file__).parent.parent / f"{module}.py"
        if source.exists() and not module.startswith("_"):
            yield " ".join(re.findall(r'"""(.*?)"""', source.read_text(errors="ignore"), re.S))
    for piece in GROUPS + [f"{i:02d}" for i in range(100)]:
        yield "~".join([piece] * 20000)


def main():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = special_tokens()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[AddedToken(t, special=True, normalized=False) for t in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=8, show_progress=False))
    tokenizer.save(str(HERE / "tokenizer.json"))
    (HERE / "tokenizer_config.json").write_text(json.dumps(
        {"eos_token": "<|end|>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=1))


if __name__ == "__main__":
    main()
