"""What `save_model` proves: the saved model, reloaded by plain transformers, gives the rewards of the trained one."""

import json
import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BitsAndBytesConfig,
    GPT2Config,
    set_seed,
)

from plaudit import RewardTrainer
from plaudit.checkpoint import reload
from plaudit.checkpoint import verify as verification
from plaudit.checkpoint.metadata import read_metadata
from plaudit.errors import CheckpointError


@pytest.fixture
def in_process(monkeypatch):
    """The reload in this process: a fresh one takes seconds, and is tested in `tests/checkpoint`."""
    monkeypatch.setattr(
        verification, "reload_and_score", lambda request: reload.score(**json.loads(json.dumps(request)))
    )


def saved(trainer):
    trainer.train()
    trainer.save_model()
    return Path(trainer.args.output_dir)


KINDS = {
    "float32": {},
    "bf16 mixed": {"bf16": True},
    "bf16 weights": {"model_init_kwargs": {"dtype": "bfloat16"}},
    "LoRA": {"peft_config": LoraConfig(init_lora_weights=False)},
    "LoRA, bf16 weights": {
        "peft_config": LoraConfig(init_lora_weights=False),
        "model_init_kwargs": {"dtype": "bfloat16"},
    },
    "DoRA, bf16 mixed": {"peft_config": LoraConfig(init_lora_weights=False, use_dora=True), "bf16": True},
    "QLoRA": {
        "peft_config": LoraConfig(init_lora_weights=False),
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
    },
    "8 bits": {
        "peft_config": LoraConfig(init_lora_weights=False),
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
    },
    "LoRA beside layers of the backbone": {
        "peft_config": LoraConfig(init_lora_weights=False, modules_to_save=["embed_tokens", "norm"])
    },
    "with the embedding": {"peft_config": LoraConfig(init_lora_weights=False, modules_to_save=["embed_tokens"])},
    "prefix": {"peft_config": PrefixTuningConfig(num_virtual_tokens=2)},
    "prompt": {"peft_config": PromptTuningConfig(num_virtual_tokens=2)},
    "padded": {"batch_layout": "padded"},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_training_is_verified_after_an_evaluation(make_trainer, base_folder, text_rows, in_process, kind):
    trainer = make_trainer(
        model=str(base_folder), max_steps=3, learning_rate=2e-2, verify_on_save=True, eval_dataset=text_rows,
        eval_strategy="steps", eval_steps=3, **KINDS[kind],
    )  # fmt: skip
    folder = saved(trainer)
    result = trainer.verification
    assert result.status == "verified", result.findings
    assert result.difference <= result.tolerance
    if "weights" not in kind:
        assert result.difference < 1e-5
    described = read_metadata(folder)
    assert described["verification"]["status"] == "verified"
    assert described["verification"]["largest_difference"] == result.difference
    assert described["training"]["weights"] == ("bfloat16" if "weights" in kind else "float32")


OTHERS = {
    "an encoder": BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=128,
    ),
    "learned positions": GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_are_verified_too(make_trainer, tokenizer, in_process, kind):
    set_seed(0)
    config = OTHERS[kind]
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    trainer = make_trainer(model=model, processing_class=tokenizer, max_steps=2, verify_on_save=True, max_length=64)
    saved(trainer)
    assert trainer.verification.status == "verified", trainer.verification.findings
    assert trainer.verification.difference < 1e-5


def test_a_float32_head_stays_exact_in_the_file(make_trainer, base_folder, in_process):
    """A resumed run needs it; a loader that follows the backbone rounds it, and the fingerprint knows."""
    trainer = make_trainer(model=str(base_folder), max_steps=2, model_init_kwargs={"dtype": "bfloat16"})
    head = load_file(saved(trainer) / "model.safetensors")["score.weight"]
    assert head.dtype == torch.float32
    assert torch.equal(head, trainer.model.score.weight)


def test_the_description_tells_how_the_rewards_came_about(make_trainer, base_folder, chat_rows, tokenizer):
    trainer = make_trainer(model=str(base_folder), train_dataset=chat_rows, max_steps=1, max_length=100)
    described = read_metadata(saved(trainer))
    assert described["versions"].keys() == {"plaudit", "transformers", "peft", "tokenizers", "torch"}
    assert described["loss_type"] == "bradley_terry"
    assert described["head"] == {"name": "score", "trained_in": "float32"}
    assert described["training"] == {
        "weights": "float32", "precision": "float32", "attention": trainer.model.config._attn_implementation,
        "layout": "forest", "processes": 1,
    }  # fmt: skip
    rendering = described["rendering"]
    assert (rendering["sequences"], rendering["max_length"]) == ("conversations", 100)
    assert (rendering["bos"], rendering["eos"], rendering["pad"]) == (None, None, "<pad>")
    assert len(rendering["chat_template"]) == 64
    assert described["quantization"] is None
    assert len(described["fingerprint"]["probes"]) == 12
    assert "verification" not in described


@pytest.mark.parametrize("streaming", [False, True])
def test_without_an_evaluation_the_scale_is_that_of_a_sample_of_the_training_data(make_trainer, text_rows, streaming):
    rows = Dataset.from_list(text_rows)
    trainer = make_trainer(train_dataset=rows.to_iterable_dataset() if streaming else rows, max_steps=2)
    trainer.train()
    kept = trainer.reports["train"].kept
    trainer.save_model()
    assert trainer.reports["train"].kept == kept  # a stream counts what it reads, and this is no training
    folder = Path(trainer.args.output_dir)
    rewards = trainer.predict(rows).predictions.astype(float)
    config = AutoConfig.from_pretrained(folder)
    assert (config.mean, config.std) == pytest.approx((rewards.mean(), rewards.std()), rel=1e-5)
    assert read_metadata(folder)["rewards"]["of"] == "20 training sequences"


def test_a_resumed_run_goes_on_with_the_scale_of_its_evaluation(make_trainer, text_rows):
    first = make_trainer(
        max_steps=2, save_strategy="steps", save_steps=2, eval_dataset=text_rows, eval_strategy="steps", eval_steps=2
    )
    first.train()
    again = make_trainer(max_steps=3)
    again.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-2")
    assert again.metadata.reward_scale == first.metadata.reward_scale is not None


def test_checkpoints_are_not_reloaded_and_carry_a_fingerprint(make_trainer, monkeypatch):
    monkeypatch.setattr(verification, "reload_and_score", None)
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1, verify_on_save=True)
    trainer.train()
    for step in (1, 2):
        described = read_metadata(Path(trainer.args.output_dir, f"checkpoint-{step}"))
        assert len(described["fingerprint"]["probes"]) == 12
        assert "verification" not in described


def test_it_can_be_turned_off(make_trainer, monkeypatch):
    monkeypatch.setattr(verification, "reload_and_score", None)
    trainer = make_trainer(max_steps=1, verify_on_save=False)
    saved(trainer)
    assert trainer.verification is None


def test_a_save_that_scores_otherwise_fails_loudly_keeps_its_files_and_is_not_pushed(make_trainer, monkeypatch):
    def ask(request):
        answer = reload.score(**json.loads(json.dumps(request)))
        return answer | {"alone": [reward + 1 for reward in answer["alone"]]}

    pushed = []
    monkeypatch.setattr(verification, "reload_and_score", ask)
    trainer = make_trainer(max_steps=1, verify_on_save=True)
    monkeypatch.setattr(trainer, "push_to_hub", lambda **options: pushed.append(options))
    trainer.args.push_to_hub = True
    trainer.train()
    with pytest.raises(CheckpointError, match="does not score there as it did in training") as error:
        trainer.save_model()
    assert trainer.args.output_dir in str(error.value)
    assert not pushed
    folder = Path(trainer.args.output_dir)
    assert load_file(folder / "model.safetensors")
    assert read_metadata(folder)["verification"]["status"] == "failed"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("FlashAttention only support fp16 and bf16 data type")]
)
def test_probes_that_cannot_be_scored_here_do_not_cost_the_save(make_trainer, monkeypatch, in_process, caplog, error):
    def fail(*_, **__):
        raise error

    trainer = make_trainer(max_steps=1, verify_on_save=True)
    trainer.train()
    monkeypatch.setattr("plaudit.training.reward_metadata.columns_as_saved", fail)
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        trainer.save_model()
    assert trainer.verification.status == "NOT VERIFIED"
    assert "NOT VERIFIED" in caplog.text
    described = read_metadata(Path(trainer.args.output_dir))
    assert described["fingerprint"] is None
    assert described["verification"]["status"] == "NOT VERIFIED"
    assert described["rewards"] == {"mean": 0.0, "std": 1.0, "of": "nothing"}


def test_taking_the_fingerprint_changes_nothing_of_the_run(make_trainer):
    """Saving at every step ends in the same weights as not saving."""
    runs = [
        make_trainer(max_steps=4, disable_dropout=False, learning_rate=1e-2, **options)
        for options in ({}, {"save_strategy": "steps", "save_steps": 1})
    ]
    for trainer in runs:
        trainer.train()
    first, second = (trainer.model.state_dict() for trainer in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def hub(monkeypatch):
    """What would have been uploaded: of each folder its description, at that moment."""
    uploads = []

    class Api:
        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": f"somebody/{repo_id}"})

        def upload_folder(self, folder_path, **_):
            uploads.append({"files": sorted(path.name for path in Path(folder_path).iterdir())})
            uploads[-1] |= read_metadata(Path(folder_path))
            return type("Job", (), {"done": lambda self: True, "result": lambda self: None})()

    monkeypatch.setattr("transformers.trainer.hf_api", lambda: Api())
    return uploads


def test_what_is_pushed_was_proven_and_says_so(make_trainer, in_process, hub):
    trainer = make_trainer(max_steps=1, verify_on_save=True, push_to_hub=True)
    trainer.train()
    trainer.save_model()
    assert hub[-1]["verification"]["status"] == "verified"
    trainer.push_to_hub()
    assert hub[-1]["verification"]["status"] == "verified"
    assert {"README.md", "config.json", "model.safetensors", "reward.json"} <= set(hub[-1]["files"])


def test_a_push_proves_what_no_save_has_proven(make_trainer, monkeypatch, hub, in_process):
    trainer = make_trainer(max_steps=1, verify_on_save=True, push_to_hub=True)
    trainer.train()
    trainer.push_to_hub()
    assert hub[-1]["verification"]["status"] == "verified"
    proofs, pushed = [], len(hub)
    monkeypatch.setattr(
        "plaudit.training.reward_metadata.verify_and_record", lambda *_, **__: proofs.append(1) or 1 / 0
    )
    trainer.push_to_hub()  # the same model again
    assert not proofs
    assert len(hub) == pushed + 1
    with torch.no_grad():
        trainer.model.score.weight.mul_(1.5)  # as more training does
    for attempt in (trainer.push_to_hub, trainer.save_model, trainer.push_to_hub):
        with pytest.raises(ZeroDivisionError):
            attempt()
    assert len(proofs) == 3
    assert len(hub) == pushed + 1


class CountsSaves(RewardTrainer):
    saves = 0

    def save_model(self, *args, **kwargs):
        self.saves += 1
        super().save_model(*args, **kwargs)


@pytest.mark.parametrize("verify", [True, False])
def test_all_processes_save_alike_before_a_push(make_trainer, monkeypatch, hub, in_process, verify):
    """They save together where a model is spread over them: one that saved once more would wait for ever."""
    calls = []
    for writes in (True, False):
        trainer = make_trainer(trainer_class=CountsSaves, max_steps=1, verify_on_save=verify, push_to_hub=True)
        trainer.train()
        if not writes:
            monkeypatch.setattr(type(trainer.args), "should_save", False)
        trainer.save_model()
        trainer.push_to_hub()
        calls.append(trainer.saves)
    assert calls == [3, 3]  # ours, and one by each of the Trainer's two pushes


def test_a_model_that_trained_on_is_proven_again_before_a_push(make_trainer, hub, in_process):
    trainer = make_trainer(max_steps=1, verify_on_save=True, push_to_hub=True)
    trainer.train()
    trainer.push_to_hub()
    trainer.train()
    trainer.push_to_hub()
    assert hub[-1]["fingerprint"] != hub[0]["fingerprint"]
    assert hub[-1]["verification"]["status"] == "verified"


def test_a_checkpoint_pushed_on_the_way_goes_with_its_description(make_trainer, hub):
    trainer = make_trainer(max_steps=2, push_to_hub=True, save_strategy="steps", save_steps=1)
    trainer.train()
    assert len(hub) == 2
    assert all({"README.md", "reward.json"} <= set(upload["files"]) for upload in hub)
    assert hub[0]["fingerprint"] != hub[1]["fingerprint"]


def test_the_card_of_an_adapter_says_how_its_base_is_loaded(make_trainer, base_folder):
    options = {"model": str(base_folder), "peft_config": LoraConfig(), "max_steps": 1}
    for quantized in (False, True):
        quantization = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)} if quantized else {}
        card = (saved(make_trainer(**options | quantization)) / "README.md").read_text()
        assert 'num_labels=1, dtype="float32"' in card
        assert ("quantization_config=...)" in card) == ("The base was quantised" in card) == quantized
