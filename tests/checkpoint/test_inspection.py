"""Each layer of the contract that the files show is broken in turn, and must be the one that is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit.checkpoint.inspection import SavedModel, inspect_files
from plaudit.errors import CheckpointError


def found(folder):
    return {finding.layer: finding for finding in inspect_files(SavedModel(folder))}


def broken(folder):
    return {layer: finding.message for layer, finding in found(folder).items() if finding.holds is False}


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_every_layer_of_a_saved_model_holds(request, kind):
    findings = found(request.getfixturevalue(kind))
    own = {"full": {"configuration"}, "adapter": {"base tokenizer"}}[kind]
    assert findings.keys() == {"weights", "labels", "head", "tokenizer", "padding"} | own
    assert all(finding.holds for finding in findings.values())


# Weights


def test_a_language_model_is_no_reward_model(base_folder):
    findings = broken(base_folder)
    assert findings.keys() == {"weights"}
    assert "this is a language model (Qwen3ForCausalLM)" in findings["weights"]


def test_the_head_of_a_language_model_is_found(full, change_weights):
    change_weights(full / "model.safetensors", lambda weights: weights.update({"lm_head.weight": torch.zeros(2, 2)}))
    assert "`lm_head`" in broken(full)["weights"]


def test_another_architecture_is_found(full, change_json):
    change_json(full / "config.json", architectures=["Qwen3ForTokenClassification"])
    assert "expected one <X>ForSequenceClassification" in broken(full)["weights"]


def test_a_file_that_is_cut_short_is_named(full):
    path = full / "model.safetensors"
    content = path.read_bytes()
    for length in (len(content) - 10, 20, 3):
        path.write_bytes(content[:length])
        assert "model.safetensors is not whole" in broken(full)["weights"]


def test_shards_are_those_that_the_index_names(full):
    model = AutoModelForSequenceClassification.from_pretrained(full)
    (full / "model.safetensors").unlink()
    model.save_pretrained(full, max_shard_size="20KB")
    shards = sorted(full.glob("model-*.safetensors"))
    assert len(shards) > 2
    save_file({"stale.weight": torch.zeros(2)}, full / "model-of-an-earlier-run.safetensors")
    assert SavedModel(full).shapes.keys() == model.state_dict().keys()
    shards[1].unlink()
    assert f"{shards[1].name}: there are no such weights" in broken(full)["weights"]


def test_a_configuration_that_is_missing_or_damaged_is_named(full):
    (full / "config.json").write_text('{"id2label": ')
    assert "config.json is not whole" in broken(full)["weights"]
    (full / "config.json").unlink()
    assert "neither config.json nor adapter_config.json" in broken(full)["weights"]


@pytest.mark.parametrize("content", ['{"versions": {"plau', "[]", ""])
def test_damaged_metadata_is_named(full, adapter, content):
    for folder in (full, adapter):
        (folder / "reward.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"reward\.json is not whole"):
            SavedModel(folder).metadata  # noqa: B018  # it is read here
        assert "reward.json is not whole" in broken(folder)["tokenizer"]


# Labels and head


def test_two_labels_are_found(full, change_json):
    change_json(full / "config.json", id2label={"0": "a", "1": "b"})
    assert "2 labels" in broken(full)["labels"]
    change_json(full / "config.json", id2label=None)  # transformers' own default
    assert "2 labels" in broken(full)["labels"]


def test_an_adapter_for_another_task_is_found(adapter, change_json):
    change_json(adapter / "adapter_config.json", task_type="CAUSAL_LM")
    assert "CAUSAL_LM, expected SEQ_CLS" in broken(adapter)["labels"]


def test_a_lost_head_is_found(full, adapter, change_weights):
    change_weights(full / "model.safetensors", lambda weights: weights.pop("score.weight"))
    assert "makes a random one" in broken(full)["head"]
    change_weights(adapter / "adapter_model.safetensors", lambda w: w.pop("base_model.model.score.weight"))
    assert "without its head" in broken(adapter)["head"]


def test_a_head_that_an_adapter_lacks_may_lie_in_its_base(adapter, base_folder, change_weights):
    heads = {}
    change_weights(
        adapter / "adapter_model.safetensors", lambda w: heads.update(head=w.pop("base_model.model.score.weight"))
    )
    change_weights(base_folder / "model.safetensors", lambda weights: weights.update({"score.weight": heads["head"]}))
    assert found(adapter)["head"].holds


def test_a_head_of_two_rows_is_found(full, change_weights):
    def widen(weights):
        weights["score.weight"] = weights["score.weight"].repeat(2, 1)

    change_weights(full / "model.safetensors", widen)
    assert "[2, 32]" in broken(full)["head"]


def folder_of(path, shapes, **files):
    path.mkdir()
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path / files.pop("weights"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return SavedModel(path)


def test_the_head_is_found_among_all_that_is_kept_whole(tmp_path):
    own = "base_model.model."
    shapes = {f"{own}model.embed_tokens.weight": [9, 4], f"{own}score.weight": [1, 4], f"{own}model.norm.weight": [4]}
    config = {"modules_to_save": ["embed_tokens", "norm"]}
    weights = "adapter_model.safetensors"
    assert folder_of(tmp_path / "a", shapes, weights=weights, adapter_config=config).head == f"{own}score.weight"
    del shapes[f"{own}score.weight"]
    assert folder_of(tmp_path / "b", shapes, weights=weights, adapter_config=config).head is None


@pytest.mark.parametrize(
    ("kind", "shapes", "head"),
    [
        # Funnel's head has two layers, of which the first has the longer name
        ("classifier", {"linear_hidden.weight": [4, 4], "linear_out.weight": [1, 4]}, "classifier.linear_out.weight"),
        ("logits_proj", {"weight": [1, 4]}, "logits_proj.weight"),  # XLNet's
    ],
)
def test_the_head_is_found_under_the_name_in_the_config(tmp_path, kind, shapes, head):
    shapes = {f"{kind}.{name}": shape for name, shape in shapes.items()} | {"sequence_summary.weight": [1, 4]}
    files = {"weights": "model.safetensors", "config": {"value_head_prefix": kind}}
    assert folder_of(tmp_path / "model", shapes, **files).head == head


# Tokenizer, padding and configuration


def test_a_folder_without_a_tokenizer_is_found(full):
    (full / "tokenizer_config.json").unlink()
    for _ in ("with metadata", "without"):
        assert "there is no tokenizer" in broken(full)["tokenizer"]
        (full / "reward.json").unlink(missing_ok=True)


def test_a_changed_chat_template_is_found(full):
    (full / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat template is not the one of training" in broken(full)["tokenizer"]


def test_a_pad_token_that_is_eos_is_found(full, change_json):
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(full)
    change_json(full / "config.json", pad_token_id=tokenizer.eos_token_id)
    assert "pad is EOS" in broken(full)["padding"]


def test_a_pad_token_that_is_another_or_missing_is_found(full):
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.pad_token = "<|im_start|>"
    tokenizer.save_pretrained(full)
    assert "pad was '<pad>' and is '<|im_start|>'" in broken(full)["tokenizer"]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(full)
    assert "has no pad token" in broken(full)["padding"]


def test_a_pad_token_that_the_config_does_not_name_is_found(full, change_json):
    change_json(full / "config.json", pad_token_id=7)
    assert "pad_token_id=7" in broken(full)["padding"]


def test_entries_that_vllm_and_openrlhf_read_are_missed(full, change_json):
    change_json(full / "config.json", problem_type=None, mean=None)
    message = broken(full)["configuration"]
    assert 'problem_type="regression"' in message
    assert "value_head_prefix, mean and std" in message


# An adapter's base


def test_an_adapter_that_names_no_base_leaves_the_layer_open(adapter, change_json):
    change_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    finding = found(adapter)["base tokenizer"]
    assert finding.holds is None
    assert "names no base model" in finding.message


def test_a_base_without_a_tokenizer_leaves_the_layer_open(adapter, base_folder):
    for path in (*base_folder.glob("token*"), *base_folder.glob("chat*")):
        path.unlink()
    finding = found(adapter)["base tokenizer"]
    assert finding.holds is None
    assert "no tokenizer files" in finding.message


def test_a_base_with_another_template_is_found_with_the_ways_out(adapter, base_folder):
    (base_folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    message = broken(adapter)["base tokenizer"]
    assert "another chat template" in message
    assert "plaudit merge" in message
    assert "reward_processing_classes" in message


def test_the_parameters_of_a_local_base_are_counted(adapter, base_folder):
    own = sum(weight.numel() for weight in load_file(adapter / "adapter_model.safetensors").values())
    base = sum(weight.numel() for weight in load_file(base_folder / "model.safetensors").values())
    assert SavedModel(adapter).parameters() == own + base


def test_the_parameters_of_a_base_of_the_hub_are_counted_once_it_was_downloaded(
    adapter, base_folder, change_json, monkeypatch
):
    before = SavedModel(adapter).parameters()
    asked = []

    def cached(*name, revision):
        asked.append((*name, revision))
        return str(base_folder / "config.json")

    monkeypatch.setattr("plaudit.checkpoint.inspection.try_to_load_from_cache", cached)
    change_json(adapter / "adapter_config.json", base_model_name_or_path="somebody/model", revision="abc")
    assert SavedModel(adapter).parameters() == before
    assert asked == [("somebody/model", "config.json", "abc")]
