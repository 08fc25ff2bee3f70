import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline, set_seed

from plaudit import RewardModel


def steps_saved(trainer):
    return sorted(int(path.name.split("-")[1]) for path in Path(trainer.args.output_dir).glob("checkpoint-*"))


def checkpoint(trainer, step):
    return f"{trainer.args.output_dir}/checkpoint-{step}"


def texts(rows, side):
    return [row["prompt"] + row[side] for row in rows]


@torch.no_grad()
def plain_scores(folder, sequences, **options):
    """What a user of plain transformers gets: right padding, a batch, `logits[:, 0]`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    batch = tokenizer([text + tokenizer.eos_token for text in sequences], padding=True, return_tensors="pt")
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].numpy()


@pytest.fixture
def saved(make_trainer, text_rows):
    """A trainer that has trained a little, was evaluated, and was saved to its output folder."""
    trainer = make_trainer(
        max_steps=4, learning_rate=2e-3, eval_dataset=text_rows, save_strategy="steps", save_steps=2,
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer.dataset_name = "somebody/pairs"
    trainer.train()
    trainer.save_model()
    return trainer


def test_the_output_folder_and_every_checkpoint_hold_the_same_kinds_of_files(saved):
    model = {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "README.md", "reward.json", "trainer_state.json", "training_args.bin",
    }  # fmt: skip
    resuming = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    output = Path(saved.args.output_dir)
    assert {path.name for path in output.iterdir()} == model | {"checkpoint-2", "checkpoint-4"}
    assert {path.name for path in (output / "checkpoint-2").iterdir()} == model | resuming
    assert not list(output.parent.rglob(".*"))


def test_the_config_is_the_contract_that_other_engines_read(saved):
    config = json.loads(Path(saved.args.output_dir, "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert (config["id2label"], config["label2id"]) == ({"0": "LABEL_0"}, {"LABEL_0": 0})
    assert config["problem_type"] == "regression"
    assert config["value_head_prefix"] == "score"
    tokenizer = AutoTokenizer.from_pretrained(saved.args.output_dir)
    assert config["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert config["eos_token_id"] == tokenizer.eos_token_id
    rewards = saved.predict(saved.eval_dataset).predictions.astype(np.float64)
    assert (config["mean"], config["std"]) == pytest.approx((rewards.mean(), rewards.std()), rel=1e-6)
    assert AutoConfig.from_pretrained(saved.args.output_dir).num_labels == 1


def test_the_weights_are_the_backbones_and_a_head_of_one_row(saved):
    weights = load_file(f"{saved.args.output_dir}/model.safetensors")
    assert weights["score.weight"].shape == (1, 32)
    assert all(name.startswith("model.") for name in weights if name != "score.weight")
    assert torch.equal(weights["score.weight"], saved.model.score.weight)


def test_the_tokenizer_is_saved_with_its_chat_template(saved, tokenizer, chat_rows):
    loaded = AutoTokenizer.from_pretrained(saved.args.output_dir)
    messages = chat_rows[0]["prompt"] + chat_rows[0]["chosen"]
    assert loaded.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )


def test_the_card_says_what_was_trained_on_what_and_how_it_did(saved):
    card = Path(saved.args.output_dir, "README.md").read_text()
    head, body = card.split("---\n", 2)[1:]
    for line in ("- reward-trainer", "- trl", "- plaudit", "- generated_from_trainer", "- somebody/pairs",
                 "pipeline_tag: text-classification"):  # fmt: skip
        assert line in head
    assert "trained on somebody/pairs (10 pairs)" in body
    evaluated = [entry for entry in saved.state.log_history if "eval_accuracy" in entry][-1]
    assert f"| `eval_accuracy` | {evaluated['eval_accuracy']:.4g} |" in body
    assert f"| `eval_loss` | {evaluated['eval_loss']:.4g} |" in body
    assert "| `learning_rate` | `0.002` |" in body
    assert "RewardModel.from_pretrained(" in body


def test_trainer_state_beside_the_model_knows_the_last_step(saved):
    state = json.loads(Path(saved.args.output_dir, "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]


def test_plain_transformers_gives_the_same_scores(saved, text_rows):
    expected = saved.predict(saved.eval_dataset).predictions
    for column, side in enumerate(("chosen", "rejected")):
        scores = plain_scores(saved.args.output_dir, texts(text_rows, side))
        assert scores.std() > 0.05
        np.testing.assert_allclose(scores, expected[:, column], atol=1e-5, rtol=1e-6)  # float32, rewards of order 5


KINDS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8,
                  "num_key_value_heads": 2},
    "gemma2": {"sliding_window": 4, "head_dim": 8, "num_key_value_heads": 2},
    "gpt_neox": {},
    "bert": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_kinds_train_save_and_score_alike_in_plain_transformers(
    make_trainer, tokenizer, text_rows, kind
):
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(
            kind, vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_labels=1, pad_token_id=None if kind != "modernbert" else 0, bos_token_id=None, eos_token_id=None,
            **KINDS[kind],
        )
    )  # fmt: skip
    trainer = make_trainer(
        model=model, processing_class=tokenizer, max_steps=5, learning_rate=3e-3, gradient_checkpointing=True
    )
    trainer.train()
    trainer.save_model()
    expected = trainer.predict(trainer.train_dataset).predictions
    assert expected.std() > 0.02
    for column, side in enumerate(("chosen", "rejected")):
        scores = plain_scores(trainer.args.output_dir, texts(text_rows, side))
        np.testing.assert_allclose(scores, expected[:, column], atol=2e-6, rtol=2e-6)


def test_a_text_classification_pipeline_gives_the_raw_reward(saved, text_rows):
    classify = pipeline("text-classification", model=saved.args.output_dir, device="cpu")
    expected = saved.predict(saved.eval_dataset).predictions[0, 0]
    result = classify(text_rows[0]["prompt"] + text_rows[0]["chosen"] + classify.tokenizer.eos_token)
    assert result[0]["label"] == "LABEL_0"
    assert result[0]["score"] == pytest.approx(expected, rel=1e-5)
    assert not 0 < expected < 1  # else a probability would pass for it


def test_a_bf16_model_keeps_its_float32_head_in_the_file(make_trainer, tokenizer, make_model, text_rows):
    model = make_model().to(torch.bfloat16)
    trainer = make_trainer(model=model, processing_class=tokenizer, eval_dataset=text_rows)
    trainer.save_model()
    weights = load_file(f"{trainer.args.output_dir}/model.safetensors")
    assert weights["model.norm.weight"].dtype == torch.bfloat16
    assert torch.equal(weights["score.weight"].float(), trainer.model.score.weight)
    reloaded = RewardModel.from_pretrained(trainer.args.output_dir, device="cpu")
    expected = trainer.predict(trainer.eval_dataset).predictions
    np.testing.assert_allclose(reloaded.score(texts(text_rows, "chosen")), expected[:, 0], atol=0.05)  # bf16


def test_the_adapters_folder_holds_adapter_and_head_and_its_card_says_how_to_load_it(make_trainer, base_folder):
    trainer = make_trainer(
        model=str(base_folder), peft_config=LoraConfig(), max_steps=2, save_strategy="steps", save_steps=2
    )
    trainer.train()
    trainer.save_model()
    for folder in (trainer.args.output_dir, checkpoint(trainer, 2)):
        weights = load_file(f"{folder}/adapter_model.safetensors")
        assert any("lora_A" in name for name in weights)
        assert any("score" in name for name in weights)
        assert "AutoPeftModelForSequenceClassification" in Path(folder, "README.md").read_text()
        assert Path(folder, "tokenizer.json").is_file()


# Which checkpoints stay


@pytest.mark.parametrize("adapter", [None, LoraConfig(modules_to_save=["norm"])], ids=["full", "LoRA"])
def test_the_best_model_is_loaded_at_the_end_from_a_folder_that_exists(make_trainer, text_rows, adapter):
    wrong = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in text_rows]
    trainer = make_trainer(
        # Learning the rows makes the evaluation on swapped rows ever worse: the first checkpoint is the best.
        eval_dataset=wrong, max_steps=6, learning_rate=1e-2, save_strategy="steps", save_steps=2,
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="accuracy",
        save_total_limit=2, peft_config=adapter,
    )  # fmt: skip
    trainer.train()
    accuracies = {
        entry["step"]: entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry
    }
    best = max(accuracies, key=lambda step: (accuracies[step], -step))
    assert trainer.state.best_model_checkpoint == checkpoint(trainer, best)
    file, name = ("model", "score") if adapter is None else ("adapter_model", "base_model.model.score")
    weights = load_file(f"{checkpoint(trainer, best)}/{file}.safetensors")
    head = trainer.model.score if adapter is None else trainer.model.base_model.model.score.modules_to_save.default
    assert torch.equal(head.weight, weights[f"{name}.weight"])
    assert trainer.evaluate()["eval_accuracy"] == accuracies[best]
    assert steps_saved(trainer) == sorted({best, 6})
    state = json.loads(Path(checkpoint(trainer, 6), "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).is_dir()


def test_only_the_last_checkpoints_stay_when_their_number_is_limited(make_trainer):
    trainer = make_trainer(max_steps=5, save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    assert steps_saved(trainer) == [4, 5]


def test_the_best_checkpoint_only_is_saved_when_so_asked(make_trainer, text_rows):
    trainer = make_trainer(
        eval_dataset=text_rows, max_steps=4, learning_rate=1e-2, save_strategy="best", eval_strategy="steps",
        eval_steps=1, metric_for_best_model="loss", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.best_model_checkpoint == checkpoint(trainer, min(losses, key=losses.get))


def test_a_save_leaves_what_else_is_in_the_folder(make_trainer, tmp_path):
    trainer = make_trainer()
    Path(trainer.args.output_dir).mkdir(exist_ok=True)
    Path(trainer.args.output_dir, "notes.txt").write_text("mine")
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert Path(trainer.args.output_dir, "notes.txt").read_text() == "mine"
    assert Path(tmp_path, "elsewhere", "model.safetensors").is_file()


def test_a_save_that_fails_leaves_the_last_good_one(saved, monkeypatch):
    def files():
        return {path: path.read_bytes() for path in Path(saved.args.output_dir).rglob("*") if path.is_file()}

    before = files()
    monkeypatch.setattr(saved.metadata, "write_card", lambda *_: 1 / 0)  # after the weights have been written
    with torch.no_grad():
        saved.model.score.weight.zero_()
    with pytest.raises(ZeroDivisionError):
        saved.save_model()
    assert files() == before


def test_a_saved_reward_model_trains_on_with_its_head(saved, make_trainer, text_rows):
    again = make_trainer(model=saved.args.output_dir, eval_dataset=text_rows)
    assert torch.equal(again.model.score.weight, saved.model.score.weight)
    assert again.predict(Dataset.from_list(text_rows)).predictions == pytest.approx(
        saved.predict(Dataset.from_list(text_rows)).predictions, rel=1e-6
    )


def test_mean_and_std_belong_to_the_weights_that_are_saved(make_trainer, text_rows):
    """To the best checkpoint's, which is not the last one's; and a prediction on other data changes nothing."""
    trainer = make_trainer(
        eval_dataset=text_rows, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        learning_rate=1e-2, load_best_model_at_end=True, metric_for_best_model="eval_margin", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    best = json.loads((Path(trainer.state.best_model_checkpoint) / "config.json").read_text())
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    trainer.predict(Dataset.from_list([{"chosen": "Yes", "rejected": "No"}]))
    trainer.save_model()
    saved = json.loads((Path(trainer.args.output_dir) / "config.json").read_text())
    assert (saved["mean"], saved["std"]) == (best["mean"], best["std"]) != (0.0, 1.0)


def test_a_full_model_saved_over_an_adapter_is_what_loads(make_trainer, make_model, tokenizer, base_folder, text_rows):
    first = make_trainer(model=str(base_folder), peft_config=LoraConfig(), max_steps=1)
    first.train()
    first.save_model()
    second = make_trainer(model=make_model(), processing_class=tokenizer)
    second.save_model()
    assert second.args.output_dir == first.args.output_dir
    texts = [row["prompt"] + row["chosen"] for row in text_rows]
    np.testing.assert_allclose(
        RewardModel.from_pretrained(first.args.output_dir).score(texts),
        second.predict(Dataset.from_list(text_rows)).predictions[:, 0],
        atol=2e-6,
    )


def test_every_checkpoint_comes_with_a_log_so_that_resumed_figures_agree(make_trainer):
    whole = make_trainer(max_steps=6, save_strategy="steps", save_steps=3, logging_steps=4)
    whole.train()
    resumed = make_trainer(max_steps=6, save_strategy="steps", save_steps=3, logging_steps=4)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-3"))
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)]
    assert [entry["step"] for entry in logs[0]] == [3, 4, 6]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"num_train_epochs": 2}])
def test_a_finished_run_that_is_resumed_trains_nothing_and_ends_as_it_did(make_trainer, text_rows, length):
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 1e-2,
        "train_dataset": text_rows[:8],
    } | length
    whole = make_trainer(**options)
    expected = whole.train().training_loss
    resumed = make_trainer(**options)
    assert resumed.train(resume_from_checkpoint=True).training_loss == pytest.approx(expected, rel=1e-6)
    assert resumed.state.global_step == whole.state.global_step == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_run_resumed_in_the_middle_of_an_epoch_past_its_last_step_trains_nothing(make_trainer, caplog):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}  # of 3 in an epoch
    whole = make_trainer(**options)
    whole.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    assert "nothing left to train" in caplog.text
    assert torch.equal(whole.model.score.weight, resumed.model.score.weight)


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_the_cards_example_is_of_the_kind_that_was_trained_on(make_trainer, text_rows, chat_rows, kind):
    trainer = make_trainer(train_dataset=text_rows if kind == "text" else chat_rows)
    trainer.save_model()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    example = card.split("reward_model.score(")[1].split(")\n```")[0]
    assert len(RewardModel.from_pretrained(trainer.args.output_dir).score(eval(example))) == 2
    assert ('"role"' in example) == (kind == "chat")
