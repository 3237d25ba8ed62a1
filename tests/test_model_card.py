"""The model card of an adapter's folder, read by the hub's own library."""

from common import files

import pytest
from huggingface_hub import ModelCard

from formats.model_card import add_results, write_card


def test_the_hub_reads_what_it_needs(tmp_path):
    settings = {"data": ["a|b.jsonl", "c"], "val": None}
    write_card(tmp_path, "Qwen/Qwen2.5-Coder-1.5B-Instruct", "Hints of a.jsonl.", settings)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-Coder-1.5B-Instruct" and card.data.library_name == "peft"
    assert "| data | a\\|b.jsonl c |\n| val | none |" in card.text and "Hints of a.jsonl." in card.text


@pytest.mark.parametrize("model", ["starter", "models/mine", "/models/mine"])
def test_a_path_is_no_base_model_for_the_hub(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    write_card(tmp_path, model, "x", {})
    assert ModelCard.load(tmp_path / "README.md").data.base_model is None


def test_results_are_added_once_and_leave_the_adapter_the_same(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    before = files.checksum(tmp_path)
    write_card(tmp_path, "a/b", "x", {"rank": 4})
    add_results(tmp_path, "| 1 |")
    add_results(tmp_path, "| 2 |")
    text = (tmp_path / "README.md").read_text()
    assert text.endswith("| rank | 4 |\n\n## Success\n\n| 2 |\n") and "| 1 |" not in text
    (tmp_path / "README.md").write_text(text + "\n## Limits\n\nIt guesses.\n", encoding="utf-8")
    add_results(tmp_path, "| 3 |")
    changed = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert changed == text.replace("| 2 |", "| 3 |") + "\n## Limits\n\nIt guesses.\n"
    assert files.checksum(tmp_path) == before                  # so an evaluation with this adapter still resumes


def test_a_folder_without_a_card_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"README\.md: no such file; give an adapter's folder"):
        add_results(tmp_path, "")
