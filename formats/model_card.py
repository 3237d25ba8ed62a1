"""The README.md of an adapter's folder, as the Hugging Face hub expects it: a model card."""

from common.files import write_whole

import json
import re
from pathlib import Path

RESULTS = re.compile(r"^## Success$.*?(?=^## |\Z)", re.M | re.S)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")                         # the hub takes no local path as base_model


def write_card(folder: str | Path, base_model: str, text: str, settings: dict) -> None:
    """Writes <folder>/README.md. text: what the adapter is. settings: what it was made with, {name: value}."""
    header = {"base_model": base_model} if HUB_ID.fullmatch(base_model) and not Path(base_model).exists() else {}
    header |= {"library_name": "peft", "tags": ["lora", "memento"]}
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", "",
             f"# {Path(folder).resolve().name}", "", text, "", "## Settings", "", "| | |", "|---|---|",
             *(f"| {name} | {cell(value)} |" for name, value in settings.items())]
    write_whole({Path(folder) / "README.md": "\n".join(lines) + "\n"})


def add_results(folder: str | Path, table: str) -> None:
    """Puts a table of success rates into the card: in the place of an earlier one, or at the end.

    Raises ValueError if the folder has no card."""
    card = Path(folder) / "README.md"
    if not card.is_file():
        raise ValueError(f"{card}: no such file; give an adapter's folder that distill.py or lora.py stack has written")
    text, section = card.read_text(encoding="utf-8"), f"## Success\n\n{table}\n"
    if earlier := RESULTS.search(text):
        after = text[earlier.end():]
        text = text[:earlier.start()] + section + ("\n" if after else "") + after
    else:
        text = text.rstrip("\n") + f"\n\n{section}"
    write_whole({card: text})


def cell(value) -> str:
    """A value in a Markdown table."""
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return " ".join(map(str, values)).replace("|", "\\|") or "none"
