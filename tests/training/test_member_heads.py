"""Several reward heads on one backbone: how they train, what is saved of them, and what goes on from there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BitsAndBytesConfig

from plaudit import RewardModel
from plaudit.checkpoint.heads_file import SavedHeads
from plaudit.checkpoint.merge import merge_adapter
from plaudit.checkpoint.verify import verify
from plaudit.errors import CheckpointError, ConfigError
from plaudit.models.adapters import base_model
from plaudit.models.member_heads import member_heads

KINDS = {
    "full": dict,
    "LoRA": lambda: {"peft_config": LoraConfig(target_modules="all-linear")},
    "QLoRA": lambda: {
        "peft_config": LoraConfig(),
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    },
}
TEXTS = ["Is the sky blue? Yes, the sky is blue.", "What is two plus two? five", "sorry, thank you"]


def members_of(trainer):
    return member_heads(base_model(trainer.model)).weight.detach().clone()


def weights_of(trainer):
    return {name: each.detach().clone() for name, each in trainer.model.named_parameters()}


@pytest.fixture
def train(make_trainer, base_folder, text_rows):
    def trained(kind="full", *, save=True, **options):
        options = {"num_heads": 3, "max_steps": 3, "learning_rate": 1e-2, "eval_dataset": text_rows} | options
        trainer = make_trainer(model=str(base_folder), **KINDS[kind]() | options)
        trainer.train()
        trainer.evaluate()
        if save:
            trainer.save_model()
        return trainer

    return trained


# Training


def test_the_heads_differ_from_the_start_and_train_on_other_weights_of_the_rows(train):
    started = members_of(train(save=False, max_steps=1, learning_rate=0.0))
    assert len({tuple(row.tolist()) for row in started}) == 3
    ended = members_of(train(save=False))
    assert not torch.equal(ended - started, (ended - started)[:1].expand(3, -1))


@pytest.mark.parametrize("loss", ["bradley_terry", "hinge", "plackett_luce"])
def test_the_loss_is_the_mean_of_the_members_losses_with_their_weights(train, loss):
    trainer = train(save=False, loss_type=loss, num_train_epochs=1, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch.member_weight.shape == (4, 3)
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs.logits.shape == (8, 4)
    torch.testing.assert_close(outputs.logits[:, 0], outputs.logits[:, 1:].mean(1))
    alone = [trainer.objective(rewards, batch) for rewards in outputs.logits[:, 1:].unbind(1)]
    expected = sum((each * weight).mean() for each, weight in zip(alone, batch.member_weight.T, strict=True)) / 3
    torch.testing.assert_close(loss, expected)


def test_forest_and_padded_batches_train_the_same_members(train):
    one, other = (members_of(train(save=False, batch_layout=layout)) for layout in ("forest", "padded"))
    torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_an_evaluation_is_of_the_mean(train):
    trainer = train(save=False)
    scored = trainer.predict(trainer.eval_dataset).predictions
    alone = trainer.evaluated.members
    np.testing.assert_allclose(scored, alone.mean(-1), atol=1e-6)


def test_a_single_head_trains_as_it_did_before_there_were_several(train):
    default, one = (weights_of(train(save=False, num_heads=count)) for count in (None, 1))
    assert default.keys() == one.keys()
    assert all(torch.equal(default[name], one[name]) for name in one)
    assert "uncertainty.weight" not in one


def test_a_model_with_one_trained_head_starts_around_it(make_trainer, model_folder, text_rows, caplog):
    caplog.set_level("INFO", "plaudit")
    alone = make_trainer(model=str(model_folder), eval_dataset=text_rows).evaluate()["eval_loss"]
    trainer = make_trainer(model=str(model_folder), eval_dataset=text_rows, num_heads=4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(alone, rel=1e-5)
    assert "start around the model's one head" in caplog.text
    assert len({tuple(row.tolist()) for row in members_of(trainer)}) == 4


# What is saved


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_head_is_the_mean_and_the_members_lie_beside_it(train, kind):
    trainer = train(kind)
    folder = Path(trainer.args.output_dir)
    heads = load_file(folder / "heads.safetensors")
    torch.testing.assert_close(heads["weight"], members_of(trainer))
    file = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    saved = load_file(folder / file)
    assert not [name for name in saved if "uncertainty" in name]
    (head,) = [each for name, each in saved.items() if name.endswith("score.weight")]
    torch.testing.assert_close(head[0], heads["weight"].mean(0))
    scorer = RewardModel.from_pretrained(folder)
    members, rewards = scorer.score(TEXTS, return_members=True), scorer.score(TEXTS)
    assert (members.dtype, members.shape) == (np.float32, (3, 3))
    np.testing.assert_allclose(members.mean(1), rewards, atol=1e-5)
    assert scorer.uncertainty == trainer.evaluated.member_constants()


def test_plain_transformers_score_the_mean_and_warn_of_nothing(train, caplog):
    trainer = train()
    folder = trainer.args.output_dir
    scorer = RewardModel.from_pretrained(folder)
    plain, info = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = scorer.token_ids(TEXTS)
    with torch.no_grad():
        rewards = [plain(input_ids=torch.tensor([each])).logits.item() for each in ids]
    np.testing.assert_allclose(rewards, scorer.score(TEXTS, return_members=True).mean(1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_model_is_verified_with_its_members(train, kind):
    trainer = train(kind, verify_on_save=True)
    assert trainer.verification.status == "verified"
    (finding,) = [each for each in trainer.verification.findings if each.layer == "members"]
    assert finding.holds
    assert "3 members" in finding.message


def test_verification_tells_members_of_another_model_and_missing_ones(train, tmp_path):
    folder = Path(train().args.output_dir)
    heads = shutil.copy(folder / "heads.safetensors", tmp_path / "others")
    train(seed=1)
    shutil.copy(heads, folder / "heads.safetensors")
    (broken,) = verify(folder).broken
    assert (broken.layer, "two models" in broken.message) == ("members", True)
    with pytest.raises(CheckpointError, match=r"not the mean of the members in heads\.safetensors"):
        RewardModel.from_pretrained(folder)
    (folder / "heads.safetensors").unlink()
    (broken,) = verify(folder).broken
    assert "heads.safetensors is missing" in broken.message
    with pytest.raises(CheckpointError, match=r"names 3 members, and heads\.safetensors"):
        RewardModel.from_pretrained(folder)


def test_a_later_save_of_one_head_leaves_no_members_behind(train):
    folder = Path(train().args.output_dir)
    train(num_heads=1)
    assert not (folder / "heads.safetensors").exists()
    assert RewardModel.from_pretrained(folder).uncertainty is None


def test_without_an_evaluation_the_constants_are_of_training_sequences(make_trainer, base_folder):
    trainer = make_trainer(model=str(base_folder), num_heads=2, max_steps=1)
    trainer.train()
    trainer.save_model()
    scorer = RewardModel.from_pretrained(trainer.args.output_dir)
    assert len(scorer.uncertainty.centers) == 2
    assert all(scale > 0 for scale in scorer.uncertainty.scales)


def test_constants_of_an_evaluation_hold_until_the_weights_change(make_trainer, base_folder, text_rows):
    trainer = make_trainer(model=str(base_folder), num_heads=3, max_steps=4, learning_rate=1e-2, eval_dataset=text_rows)
    trainer.evaluate()
    trainer.train()
    trainer.save_model()
    stale = SavedHeads.read(trainer.args.output_dir)
    assert stale.measured_on == "20 training sequences"
    trainer.evaluate()
    trainer.save_model()
    fresh = SavedHeads.read(trainer.args.output_dir)
    assert fresh.measured_on == "evaluation"
    np.testing.assert_allclose(stale.constants.scales, fresh.constants.scales, rtol=1e-4)  # of the same ten rows


def test_members_that_cannot_be_scored_here_do_not_cost_the_save(train, monkeypatch, caplog):
    trainer = train(save=False)
    trainer.metadata.reward_scale = trainer.metadata.member_constants = None

    def fail(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("plaudit.training.reward_metadata.columns_as_saved", fail)
    trainer.save_model()
    assert "the scale of the rewards could not be measured" in caplog.text
    assert torch.equal(SavedHeads.read(trainer.args.output_dir).weight, members_of(trainer))


def test_a_model_saved_by_itself_has_the_mean_as_its_head(train, tmp_path):
    trainer = train(save=False)
    trainer.model.save_pretrained(tmp_path / "alone")
    saved = load_file(tmp_path / "alone" / "model.safetensors")
    torch.testing.assert_close(saved["score.weight"][0], members_of(trainer).mean(0))
    assert "uncertainty.weight" not in saved


def test_an_encoder_has_members_too(make_trainer, text_rows, tokenizer):
    config = BertConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    trainer = make_trainer(
        model=model, processing_class=tokenizer, num_heads=3, eval_dataset=text_rows, max_steps=2, verify_on_save=True
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    assert trainer.verification.status == "verified"
    scorer = RewardModel.from_pretrained(trainer.args.output_dir)
    np.testing.assert_allclose(scorer.score(TEXTS, return_members=True).mean(1), scorer.score(TEXTS), atol=1e-5)


# What goes on from there


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(make_trainer, base_folder, text_rows, tmp_path, kind):
    options = {
        "model": str(base_folder), "num_heads": 3, "max_steps": 4, "learning_rate": 1e-2, "eval_dataset": text_rows,
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1,
    }  # fmt: skip
    whole = make_trainer(**options, **KINDS[kind]())
    whole.train()
    shutil.copytree(Path(whole.args.output_dir, "checkpoint-2"), tmp_path / "checkpoint-2")
    resumed = make_trainer(**options, **KINDS[kind]())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = weights_of(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(resumed).items())
    files = []
    for trainer in (whole, resumed):
        trainer.save_model(str(tmp_path / "saved"))
        files.append((tmp_path / "saved" / "heads.safetensors").read_bytes())
    assert files[0] == files[1]


def test_the_best_model_brings_its_members_back(make_trainer, base_folder, text_rows):
    trainer = make_trainer(
        model=str(base_folder), num_heads=2, max_steps=4, learning_rate=3e-2, eval_dataset=text_rows,
        save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_max_reward", greater_is_better=False, verify_on_save=True,
    )  # fmt: skip
    trainer.train()
    best = load_file(Path(trainer.state.best_model_checkpoint, "heads.safetensors"))["weight"]
    assert torch.equal(members_of(trainer), best)
    trainer.save_model()
    assert trainer.verification.status == "verified"


@pytest.mark.parametrize("kind", KINDS)
def test_training_continues_on_the_saved_members(train, make_trainer, text_rows, kind):
    first = train(kind)
    again = make_trainer(model=first.args.output_dir, eval_dataset=text_rows)
    assert torch.equal(members_of(again), members_of(first))
    assert again.evaluate()["eval_loss"] == pytest.approx(first.evaluate()["eval_loss"], rel=1e-5)
    with pytest.raises(ConfigError, match="num_heads=2: the model has 3 heads"):
        make_trainer(model=first.args.output_dir, num_heads=2)
    mean = make_trainer(model=first.args.output_dir, num_heads=1, eval_dataset=text_rows)
    assert member_heads(base_model(mean.model)) is None
    assert mean.evaluate()["eval_loss"] == pytest.approx(first.evaluate()["eval_loss"], rel=1e-5)
    new = make_trainer(model=first.args.output_dir, num_heads=2, reinit_head=True)
    assert members_of(new).shape[0] == 2


def test_a_model_in_memory_goes_on_with_its_members_or_with_their_mean(train, make_trainer, text_rows):
    first = train()
    expected = first.evaluate()["eval_loss"]
    given = {"processing_class": first.processing_class, "eval_dataset": text_rows, "max_steps": 1}
    again = make_trainer(model=first.model, **given)
    assert torch.equal(members_of(again), members_of(first))
    mean = make_trainer(model=first.model, num_heads=1, **given)
    assert mean.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    before = mean.model.score.weight.detach().clone()
    mean.train()
    assert not torch.equal(mean.model.score.weight, before)


def test_options_that_are_used_again_are_as_they_were_given(make_trainer, base_folder, model_folder):
    args = make_trainer(model=str(base_folder), num_heads=3).args
    assert args.num_heads == 3
    args = make_trainer(model=str(model_folder)).args
    assert args.num_heads is None


def test_a_checkpoint_of_another_number_of_heads_is_refused(make_trainer, base_folder):
    options = {"model": str(base_folder), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    first = make_trainer(**options, num_heads=3)
    first.train()
    with pytest.raises(CheckpointError, match="has 3 heads, and the run has 2"):
        make_trainer(**options, num_heads=2).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", ["LoRA", "QLoRA"])
def test_a_merged_adapter_keeps_its_members(train, tmp_path, kind):
    folder = train(kind).args.output_dir
    verification = merge_adapter(folder, tmp_path / "merged")
    assert verification.status == "verified"
    assert any(each.layer == "members" for each in verification.findings)
    rewards = [
        RewardModel.from_pretrained(each).score(TEXTS, return_members=True) for each in (folder, tmp_path / "merged")
    ]
    np.testing.assert_allclose(*rewards, atol=1e-4)


def test_reward_json_and_the_card_name_the_number_of_members(train):
    folder = Path(train().args.output_dir)
    described = json.loads((folder / "reward.json").read_text())
    assert described["members"] == 3
    assert "The model has 3 heads" in (folder / "README.md").read_text()
    assert all(len(row["members"]) == 3 for row in described["fingerprint"]["probes"])


# Bad use


def test_a_loss_of_the_users_own_is_refused(make_trainer):
    from plaudit import RewardTrainer

    class Own(RewardTrainer):
        def compute_loss(self, *args, **options):
            return super().compute_loss(*args, **options)

    with pytest.raises(ConfigError, match="num_heads=2: `compute_loss` is your own"):
        make_trainer(trainer_class=Own, num_heads=2)


@pytest.mark.parametrize("count", [0, -1, 2.5, "three"])
def test_a_number_of_heads_is_a_whole_number(make_trainer, count):
    with pytest.raises(ConfigError, match="num_heads: expected a whole number above 0"):
        make_trainer(num_heads=count)
