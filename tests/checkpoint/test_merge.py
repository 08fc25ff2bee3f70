import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from plaudit import RewardModel
from plaudit.checkpoint import reload
from plaudit.checkpoint.merge import merge_adapter
from plaudit.checkpoint.metadata import read_metadata
from plaudit.errors import CheckpointError, ConfigError, ModelError

TEXTS = ["Is the sky blue? Yes, the sky", "Is the dog green? No, it is", "sorry"]


def merge(adapter, output, **options):
    """Merge, with the reload in this process: a fresh one takes seconds, and has tests of its own."""
    return merge_adapter(
        adapter, output, reload=lambda request: reload.score(**json.loads(json.dumps(request))), **options
    )


def train(make_trainer, base_folder, tmp_path, *, dtype="float32", **options):
    trainer = make_trainer.func(
        tmp_path / "adapter", model=str(base_folder), max_steps=4, learning_rate=2e-2,
        model_init_kwargs={"dtype": dtype}, **{"peft_config": LoraConfig(init_lora_weights=False)} | options,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return Path(trainer.args.output_dir)


ADAPTERS = {
    "lora": LoraConfig(init_lora_weights=False),
    "dora": LoraConfig(init_lora_weights=False, use_dora=True),
    "rslora": LoraConfig(init_lora_weights=False, use_rslora=True, target_modules="all-linear"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_merged_model_scores_as_the_adapter_on_its_base(make_trainer, base_folder, tmp_path, kind):
    adapter = train(make_trainer, base_folder, tmp_path, peft_config=ADAPTERS[kind])
    output = tmp_path / "merged"
    result = merge(adapter, output)
    assert result.status == "verified", result.findings
    assert result.difference < 1e-5
    before, after = (RewardModel.from_pretrained(each).score(TEXTS) for each in (adapter, output))
    assert after == pytest.approx(before, abs=1e-5)
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1, dtype=torch.float32)
    merged = AutoModelForSequenceClassification.from_pretrained(output, num_labels=1)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base.get_parameter(name), merged.get_parameter(name))
    weights = load_file(output / "model.safetensors")
    assert not [name for name in weights if "lora" in name or "base_model" in name]


def test_a_merged_folder_meets_the_contract_and_keeps_the_scale(make_trainer, base_folder, tmp_path, text_rows):
    adapter = train(make_trainer, base_folder, tmp_path, eval_dataset=text_rows, eval_strategy="steps", eval_steps=4)
    merge(adapter, tmp_path / "merged")
    said, was = read_metadata(tmp_path / "merged"), read_metadata(adapter)
    assert said["rewards"] == was["rewards"]
    assert said["rewards"]["of"] == "evaluation"
    assert said["merged_from"] == str(adapter)
    assert said["verification"]["status"] == "verified"
    assert said["rendering"] == was["rendering"]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["mean"], config["std"]) == (was["rewards"]["mean"], was["rewards"]["std"])
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "eval_loss" in card


def test_the_merged_weights_have_the_precision_of_training_unless_another_is_asked_for(
    make_trainer, base_folder, tmp_path
):
    adapter = train(make_trainer, base_folder, tmp_path, dtype="bfloat16")
    for name, dtype in (("own", None), ("wide", "float32")):
        result = merge(adapter, tmp_path / name, dtype=dtype)
        assert result.status == "verified", result.findings
        kinds = {weight.dtype for weight in load_file(tmp_path / name / "model.safetensors").values()}
        assert kinds == {torch.float32 if dtype else torch.bfloat16} | ({torch.float32} if not dtype else set())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_dequantised_to_the_weights_that_the_adapter_was_trained_on(
    make_trainer, base_folder, tmp_path, bits
):
    quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    adapter = train(make_trainer, base_folder, tmp_path, quantization_config=quantization)
    assert read_metadata(adapter)["quantization"][f"load_in_{bits}bit"] is True
    result = merge(adapter, tmp_path / "merged")
    assert result.status == "verified", result.findings
    assert result.difference < 1e-4
    assert read_metadata(tmp_path / "merged")["quantization"] is None
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    before, after = (RewardModel.from_pretrained(each).score(TEXTS) for each in (adapter, tmp_path / "merged"))
    assert after == pytest.approx(before, abs=1e-4)
    # The adapter on the base as it was before it was quantised is another model.
    (adapter / "reward.json").unlink()
    assert RewardModel.from_pretrained(adapter, dtype="float32").score(TEXTS) != pytest.approx(before, abs=1e-3)


def test_a_merge_that_changes_scores_fails_loudly(make_trainer, base_folder, tmp_path, monkeypatch):
    adapter = train(make_trainer, base_folder, tmp_path)
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda *args, **kwargs: None)
    with pytest.raises(CheckpointError, match="does not score there"):
        merge(adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_whole_model_and_a_prefix_cannot_be_merged(make_trainer, base_folder, tmp_path):
    trainer = make_trainer(max_steps=1)
    trainer.save_model()
    with pytest.raises(ModelError, match="nothing to merge"):
        merge(trainer.args.output_dir, tmp_path / "merged")
    prefix = train(
        make_trainer, base_folder, tmp_path, peft_config=PrefixTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS")
    )
    with pytest.raises(ModelError, match="cannot be merged"):
        merge(prefix, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_nothing_is_overwritten(make_trainer, base_folder, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled_and_stays_the_one_it_was(make_trainer, base_folder, tmp_path, monkeypatch):
    """The folder may be a mount point, or the current folder."""
    adapter = train(make_trainer, base_folder, tmp_path)
    output = tmp_path / "merged"
    output.mkdir()
    before = output.stat().st_ino
    monkeypatch.chdir(output)
    assert merge(adapter, ".").status == "verified"
    assert output.stat().st_ino == before
    assert (output / "model.safetensors").is_file()


def test_an_adapter_in_the_home_folder_is_merged_in_the_precision_of_training(
    make_trainer, base_folder, tmp_path, monkeypatch
):
    train(make_trainer, base_folder, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert merge("~/adapter", tmp_path / "merged").difference < 1e-5
    assert RewardModel.from_pretrained("~/adapter").model.dtype == torch.float32


def test_a_merge_that_was_killed_while_it_wrote_is_done_again(make_trainer, base_folder, tmp_path):
    adapter = train(make_trainer, base_folder, tmp_path)
    half = tmp_path / "merged" / "_saving-model"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_text("half")
    assert merge(adapter, tmp_path / "merged").status == "verified"
    assert not half.exists()
