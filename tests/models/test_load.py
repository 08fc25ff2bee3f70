import json
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GraniteConfig,
    set_seed,
)

from plaudit.errors import ConfigError, ModelError
from plaudit.models.load import embedding_rows, grow_embedding, load_model


@pytest.fixture
def reward_folder(tmp_path, make_model):
    """A saved reward model, in float32."""
    make_model(seed=3).save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def test_a_bf16_checkpoint_loads_in_float32(base_folder):
    assert load_file(base_folder / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    model = load_model(str(base_folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "auto"])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_another_precision_can_be_asked_for(base_folder, name, dtype):
    assert load_model(str(base_folder), model_init_kwargs={name: dtype}).dtype == torch.bfloat16


def test_an_unknown_precision_is_refused(base_folder):
    with pytest.raises(ConfigError, match="expected one of auto, bfloat16, float16, float32, got 'bf16'"):
        load_model(str(base_folder), model_init_kwargs={"dtype": "bf16"})


def test_the_number_of_labels_cannot_be_overridden(base_folder):
    with pytest.raises(ConfigError, match=r"model_init_kwargs\['num_labels'\]: a reward model has exactly one label"):
        load_model(str(base_folder), model_init_kwargs={"num_labels": 2})
    options = {"num_labels": 1}
    assert load_model(str(base_folder), model_init_kwargs=options).config.num_labels == 1
    assert options == {"num_labels": 1}  # the caller's dict is left alone


def test_two_quantisation_configs_are_refused(base_folder):
    with pytest.raises(ConfigError, match="`quantization_config` is set both"):
        load_model(str(base_folder), model_init_kwargs={"quantization_config": 1}, quantization_config=2)


def test_the_backbone_is_the_checkpoints_and_the_head_is_new(base_folder):
    model = load_model(str(base_folder))
    stored = load_file(base_folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name != "score.weight":
            assert torch.equal(parameter, stored[name].float()), name
    assert model.score.weight.shape == (1, 32)
    assert model.score.weight.std() > 0.005  # drawn, not zero


def test_a_new_head_is_drawn_from_the_random_state(base_folder):
    heads = []
    for seed in (1, 1, 2):
        set_seed(seed)
        heads.append(load_model(str(base_folder)).score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_existing_head_is_kept_bit_for_bit(reward_folder):
    stored = load_file(reward_folder / "model.safetensors")["score.weight"]
    for new_head in (True, False):
        assert torch.equal(load_model(str(reward_folder), new_head=new_head).score.weight, stored)


def test_for_scoring_a_checkpoint_without_a_head_is_refused(base_folder):
    with pytest.raises(ModelError, match=r"is no reward model: its checkpoint has no head \(score.weight\)"):
        load_model(str(base_folder), new_head=False)


def test_an_architecture_without_a_sequence_classifier_is_named_with_what_to_use(tmp_path):
    GraniteConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path / "granite")
    with pytest.raises(ModelError, match=r"no sequence classifier for the architecture 'granite'.*Qwen3, Llama"):
        load_model(str(tmp_path / "granite"))


def test_a_head_with_two_labels_is_refused_unless_it_may_be_replaced(tmp_path, tiny_config):
    set_seed(0)
    two = AutoModelForSequenceClassification.from_config(tiny_config(num_labels=2))
    two.save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match=r"has a head with 2 labels.*'ignore_mismatched_sizes': True"):
        load_model(str(tmp_path / "two"))
    model = load_model(str(tmp_path / "two"), model_init_kwargs={"ignore_mismatched_sizes": True})
    assert model.score.weight.shape == (1, 32)
    assert torch.equal(model.model.norm.weight, two.model.norm.weight)


def test_a_base_encoder_gets_a_head(tmp_path):
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)

    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "bert")
    assert load_model(str(tmp_path / "bert")).classifier.out_features == 1


def test_weights_missing_from_the_backbone_are_warned_of_by_name(reward_folder, caplog):
    path = reward_folder / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    weights["model.layers.9.mlp.up_proj.weight"] = weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        load_model(str(reward_folder))
    text = caplog.text
    assert f"1 weights of the backbone are not in the checkpoint and start at random, among them {name}" in text
    assert "1 weights of the checkpoint have no place in Qwen3ForSequenceClassification" in text


def test_a_base_model_is_loaded_without_a_warning(base_folder, caplog):
    with caplog.at_level(logging.WARNING):
        load_model(str(base_folder))
    assert not caplog.records


def test_an_adapter_that_does_not_name_its_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match="does not name the base model"):
        load_model(str(tmp_path))


def test_an_embedding_grows_to_what_is_asked_for_and_keeps_its_rows(make_model):
    model = make_model()
    before = model.get_input_embeddings().weight.clone()
    grow_embedding(model, 320, frozen_base=True, reason="nothing")  # large enough: nothing to do
    grow_embedding(model, 323, frozen_base=False, reason="three tokens")
    assert embedding_rows(model) == 323
    assert torch.equal(model.get_input_embeddings().weight[:320], before)
    assert model.config.vocab_size == 323


def test_a_frozen_embedding_does_not_grow(make_model):
    with pytest.raises(ModelError, match="three tokens needs 3 more embedding rows.*under PEFT or quantisation"):
        grow_embedding(make_model(), 323, frozen_base=True, reason="three tokens")


@pytest.mark.parametrize("for_scoring", [True, False])
def test_an_adapter_without_its_head_on_a_base_without_one_is_refused_for_scoring(base_folder, tmp_path, for_scoring):
    model = get_peft_model(load_model(str(base_folder)), LoraConfig(target_modules=["q_proj"]))
    model.peft_config["default"].task_type = "SEQ_CLS"  # as someone's script may say, with PEFT none the wiser
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="its checkpoint has no head"):
        load_model(str(tmp_path / "adapter"), is_trainable=not for_scoring, new_head=not for_scoring)


@pytest.mark.parametrize("kept_whole", [None, ["lm_head"]])
def test_an_adapter_of_a_language_model_is_refused(base_folder, tmp_path, kept_whole):
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    config = LoraConfig(task_type="CAUSAL_LM", modules_to_save=kept_whole)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapter: this adapter has no reward head .*base is no reward model"):
        load_model(str(tmp_path / "adapter"))


def test_a_name_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(ModelError, match="nowhere: no model could be loaded from there"):
        load_model(str(tmp_path / "nowhere"))


def test_what_the_options_say_of_the_hub_holds_for_the_config_too(base_folder):
    inner = base_folder.rename(base_folder.with_name("inner"))
    outer = inner.with_name("outer")
    outer.mkdir()
    inner.rename(outer / "inner")
    assert load_model(str(outer), model_init_kwargs={"subfolder": "inner"}).config.model_type == "qwen3"


def test_weights_that_are_cut_off_are_named(base_folder):
    path = base_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="base: its weights could not be loaded"):
        load_model(str(base_folder))


def test_an_adapter_names_itself_and_its_base_where_that_is_gone(base_folder, tmp_path, make_trainer):
    trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig())
    trainer.save_model()
    folder = trainer.args.output_dir
    base_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is an adapter on the base model .*, which its adapter_config.json names"):
        load_model(folder)
    weights = tmp_path / "run" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="run: its adapter's weights could not be loaded"):
        load_model(folder)


def test_the_head_of_an_adapter_is_not_said_to_be_new(base_folder, make_trainer, caplog):
    with caplog.at_level("INFO", logger="plaudit"):
        trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig())
        assert "new reward head" in caplog.text
        trainer.save_model()
        caplog.clear()
        load_model(trainer.args.output_dir)
    assert "new reward head" not in caplog.text
