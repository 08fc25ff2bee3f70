import json

import pytest
from transformers import AutoConfig

from plaudit.checkpoint.metadata import (
    library_versions,
    read_metadata,
    rendering_metadata,
    set_contract,
    template_hash,
    training_dtype,
    write_metadata,
)
from plaudit.data.render import render
from plaudit.errors import CheckpointError

METADATA = {"loss_type": "bradley_terry", "training": {"weights": "float32"}, "remark": "Grüße"}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The folder of `somebody/adapter` in a cache of the hub's files."""
    cache = tmp_path / "cache" / "models--somebody--adapter"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return cache / "snapshots" / "abc"


def test_metadata_is_read_as_it_was_written_from_a_folder_and_from_the_hub(tmp_path, hub_cache):
    for folder, name in ((tmp_path, str(tmp_path)), (hub_cache, "somebody/adapter")):
        write_metadata(folder, METADATA)
        assert read_metadata(name) == METADATA
    assert "Grüße" in (tmp_path / "reward.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["", "missing", "nobody/nothing"])
def test_where_there_is_no_metadata_it_is_empty(tmp_path, place):
    name = place if "/" in place else str(tmp_path / place)
    assert read_metadata(name) == {}
    assert training_dtype(name) == "auto"


@pytest.mark.parametrize("content", ['{"versions": {"plau', "[]", ""])
def test_damaged_metadata_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "reward.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"reward\.json is not whole"):
        read_metadata(tmp_path)


def test_the_precision_of_training_is_that_of_an_adapters_base(tmp_path, hub_cache):
    for folder, name in ((tmp_path, tmp_path), (hub_cache, "somebody/adapter")):
        write_metadata(folder, METADATA)
        assert training_dtype(name) == "auto"  # a whole model is stored in it
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        assert training_dtype(name) == "float32"
        write_metadata(folder, {})
        assert training_dtype(name) == "auto"


def test_the_contract_is_in_the_saved_config(tmp_path, tiny_config):
    config = tiny_config(num_labels=2)
    set_contract(config, "score", 1.5, 0.5)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["id2label"], saved["label2id"]) == ({"0": "LABEL_0"}, {"LABEL_0": 0})
    assert (saved["problem_type"], saved["value_head_prefix"]) == ("regression", "score")
    assert (saved["mean"], saved["std"]) == (1.5, 0.5)
    assert AutoConfig.from_pretrained(tmp_path).num_labels == 1


def test_rendering_metadata_records_the_special_tokens_that_are_there(tokenizer, new_tokenizer):
    (ids,) = render(tokenizer, ["Is the sky blue?"])
    described = rendering_metadata(tokenizer, ids, conversational=False, max_length=7)
    assert described == {
        "sequences": "texts", "chat_template": template_hash(tokenizer), "bos": None, "eos": "<eos>", "pad": "<pad>",
        "max_length": 7,
    }  # fmt: skip
    with_bos = new_tokenizer(bos="<bos>")
    (ids,) = render(with_bos, ["Is the sky blue?"])
    assert rendering_metadata(with_bos, ids, conversational=False, max_length=None)["bos"] == "<bos>"
    described = rendering_metadata(tokenizer, ids[1:-1], conversational=True, max_length=None)
    assert (described["sequences"], described["bos"], described["eos"]) == ("conversations", None, None)


def test_the_hash_of_a_template_changes_with_it(tokenizer):
    before = template_hash(tokenizer)
    tokenizer.chat_template += " "
    assert len(before) == 64
    assert template_hash(tokenizer) != before
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    assert len(template_hash(tokenizer)) == 64
    tokenizer.chat_template = None
    assert template_hash(tokenizer) is None


def test_versions_are_those_of_what_decides_a_score():
    assert library_versions().keys() == {"plaudit", "transformers", "peft", "tokenizers", "torch"}
