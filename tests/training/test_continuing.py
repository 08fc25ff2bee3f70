"""The first loss of a continued run is the last evaluation of the saved one; a head is drawn anew only if asked."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from plaudit.errors import ConfigError, ModelError
from plaudit.models.adapters import base_model
from plaudit.models.load import load_model
from plaudit.models.reward_head import bind_reward_forward, reset_head

QUANTIZATIONS = {
    "4-bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "4-bit nested": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "8-bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
}
KINDS = {
    "full": dict,
    "LoRA": lambda: {"peft_config": LoraConfig(target_modules="all-linear")},
    "DoRA": lambda: {"peft_config": LoraConfig(use_dora=True)},
    **{
        f"{name} QLoRA": lambda made=made: {"peft_config": LoraConfig(), "quantization_config": made()}
        for name, made in QUANTIZATIONS.items()
    },
}


@pytest.fixture
def finished(make_trainer, base_folder, text_rows):
    """Trains, evaluates, saves; gives the folder and the loss of that evaluation."""

    def trained(kind="LoRA", **options):
        options = {"max_steps": 4, "learning_rate": 1e-2} | options
        trainer = make_trainer(model=str(base_folder), eval_dataset=text_rows, **KINDS[kind]() | options)
        start = trainer.evaluate()["eval_loss"]
        trainer.train()
        last = trainer.evaluate()["eval_loss"]
        assert last < start - 0.05
        trainer.save_model()
        return trainer.args.output_dir, last

    return trained


def first_loss(trainer):
    trainer.train()
    return trainer.state.log_history[0]["loss"]


WHOLE = {"per_device_train_batch_size": 10, "max_steps": 1}  # the evaluated rows in one step


@pytest.mark.parametrize("layout", ["forest", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_the_last_evaluation(make_trainer, finished, kind, layout):
    folder, last = finished(kind, batch_layout=layout)
    options = {name: value for name, value in KINDS[kind]().items() if name == "quantization_config"}
    again = make_trainer(model=folder, batch_layout=layout, gradient_checkpointing=True, **options, **WHOLE)
    assert again.layout == layout
    assert first_loss(again) == pytest.approx(last, rel=2e-6)  # float32's rounding in another shape of batch


def test_the_first_loss_is_the_last_evaluation_where_reward_json_says_how_the_base_was_quantised(
    make_trainer, finished
):
    folder, last = finished("4-bit QLoRA")
    path = Path(folder, "reward.json")
    described = QUANTIZATIONS["4-bit"]().to_dict()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": described}))
    assert first_loss(make_trainer(model=folder, **WHOLE)) == pytest.approx(last, rel=2e-6)


def test_the_first_loss_is_the_last_evaluation_through_pefts_own_call(make_trainer, finished):
    folder, last = finished()
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, is_trainable=True, dtype=torch.float32
    )
    again = make_trainer(model=model, processing_class=AutoTokenizer.from_pretrained(folder), **WHOLE)
    assert first_loss(again) == pytest.approx(last, rel=2e-6)


def test_the_head_of_a_reward_model_is_kept_for_an_adapter_too(make_trainer, finished):
    folder, last = finished("full")
    again = make_trainer(model=folder, peft_config=LoraConfig(), **WHOLE)
    assert first_loss(again) == pytest.approx(last, rel=2e-6)


# Only if asked


def head_of(trainer):
    head = base_model(trainer.model).score
    return getattr(head, "modules_to_save", {"default": head})["default"].weight.detach().clone()


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_a_head_is_drawn_anew_from_the_seed_if_asked(make_trainer, finished, kind):
    folder, _ = finished(kind)
    kept = head_of(make_trainer(model=folder))
    drawn = [head_of(make_trainer(model=folder, reinit_head=True, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], kept)
    assert 0.01 < drawn[0].std() < 0.03  # as a new head's: initializer_range is 0.02
    backbones = [
        {n: p for n, p in make_trainer(model=folder, reinit_head=asked).model.named_parameters() if "score" not in n}
        for asked in (False, True)
    ]
    assert all(torch.equal(value, backbones[1][name]) for name, value in backbones[0].items())


def test_a_new_head_trains_and_is_saved(make_trainer, finished):
    folder, _ = finished()
    trainer = make_trainer(model=folder, reinit_head=True, max_steps=1)
    drawn = head_of(trainer)
    trainer.train()
    assert not torch.equal(head_of(trainer), drawn)
    trainer.save_model()
    assert torch.equal(head_of(make_trainer(model=trainer.args.output_dir)), head_of(trainer))


def test_a_head_with_a_bias_is_drawn_anew_with_a_bias_of_zero(make_model):
    model = make_model()
    model.score = torch.nn.Linear(32, 1)
    bind_reward_forward(model)
    reset_head(model, 0)
    assert model.score.bias.item() == 0


# Quantised


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_quantised_base_trains_alike_in_both_layouts(make_trainer, base_folder, text_rows, name, checkpointing):
    seen = {}
    for layout in ("forest", "padded"):
        trainer = make_trainer(
            model=str(base_folder), peft_config=LoraConfig(target_modules="all-linear"), batch_layout=layout,
            quantization_config=QUANTIZATIONS[name](), gradient_checkpointing=checkpointing, max_steps=3,
            eval_dataset=text_rows, eval_strategy="steps", eval_steps=1, learning_rate=1e-3,
        )  # fmt: skip
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        after = dict(trainer.model.named_parameters())
        moved = {n for n, value in before.items() if not torch.equal(after[n], value)}
        assert moved == {n for n, p in after.items() if p.requires_grad}  # adapter and head, all of it
        assert any(".layers.0." in n for n in moved)
        assert any("score" in n for n in moved)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        seen[layout] = (losses, trainer.predict(trainer.train_dataset).predictions)
    assert seen["forest"][0] == pytest.approx(seen["padded"][0], rel=5e-6)
    assert seen["forest"][1] == pytest.approx(seen["padded"][1], abs=5e-6)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_quantised_weights_cannot_train_in_full(make_trainer, base_folder, name):
    with pytest.raises(ConfigError, match=r"quantised weights cannot train.*peft_config=LoraConfig\(\).*--use_peft"):
        make_trainer(model=str(base_folder), quantization_config=QUANTIZATIONS[name]())


def test_a_quantised_model_object_takes_an_adapter(make_trainer, base_folder, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(
        base_folder, num_labels=1, dtype=torch.float32, quantization_config=QUANTIZATIONS["4-bit"]()
    )
    with pytest.raises(ConfigError, match="quantised weights cannot train"):
        make_trainer(model=model, processing_class=tokenizer)
    make_trainer(model=model, processing_class=tokenizer, peft_config=LoraConfig(), max_steps=1).train()


def test_an_embedding_does_not_grow_beside_quantised_weights(make_trainer, base_folder, new_tokenizer):
    tokenizer = new_tokenizer(extra=tuple(f"<|{n}|>" for n in range(30)), pad=None)
    with pytest.raises(ModelError, match="under PEFT or quantisation"):
        make_trainer(
            model=str(base_folder), peft_config=LoraConfig(), quantization_config=QUANTIZATIONS["4-bit"](),
            processing_class=tokenizer,
        )  # fmt: skip


def test_a_run_in_bf16_takes_the_forest_on_a_quantised_base(make_trainer, base_folder):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16", bnb_4bit_quant_storage="bfloat16"
    )
    trainer = make_trainer(
        model=str(base_folder), peft_config=LoraConfig(), quantization_config=quantization, bf16=True, max_steps=1,
        model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    trainer.train()
    assert trainer.layout == "forest"


def test_the_seed_of_a_loaded_base_draws_the_same_head_quantised_or_not(base_folder):
    heads = []
    for config in (None, QUANTIZATIONS["4-bit"]()):
        torch.manual_seed(5)
        heads.append(load_model(str(base_folder), quantization_config=config).score.weight)
    assert torch.equal(*heads)
