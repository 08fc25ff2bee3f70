import pytest
from huggingface_hub import ModelCard

from plaudit.checkpoint.card import TAGS, write_model_card


@pytest.fixture
def card(tmp_path):
    """The card of a whole model trained on conversations, with other facts as asked for."""

    def card(**facts):
        defaults = {
            "model_name": "my-reward-model", "location": "somebody/my-reward-model", "options": {},
            "training_metrics": {}, "evaluation_metrics": {}, "conversational": True,
        }  # fmt: skip
        write_model_card(tmp_path, **defaults | facts)
        return ModelCard.load(tmp_path / "README.md")

    return card


def test_the_hub_finds_the_model_by_its_tags_base_and_data(card):
    data = card(base_model="somebody/base", dataset_name="somebody/pairs", rows=1234, tags=("mine",)).data
    assert set(data.tags) == {*TAGS, "mine"}
    assert (data.base_model, data.datasets) == ("somebody/base", ["somebody/pairs"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")


def test_a_local_base_and_local_data_are_named_in_the_text_alone(card, tmp_path):
    found = card(base_model=str(tmp_path), dataset_name="data/pairs of mine.jsonl", rows=1234)
    assert (found.data.base_model, found.data.datasets) == (None, None)
    assert f"trained on data/pairs of mine.jsonl (1,234 pairs), starting from {tmp_path}." in found.text


@pytest.mark.parametrize("conversational", [True, False])
def test_the_example_is_of_the_kind_that_was_trained_on(card, conversational):
    text = card(conversational=conversational).text
    example = text.split("reward_model.score(")[1].split(")\n```")[0]
    assert ('"role"' in example) == conversational
    assert len(eval(example)) == 2
    assert ("chat template" in text) == conversational


def test_an_adapters_card_says_how_its_base_is_loaded(card):
    text = card(adapter=True, dtype="bfloat16").text
    assert 'AutoPeftModelForSequenceClassification.from_pretrained("somebody/my-reward-model"' in text
    assert 'dtype="bfloat16")' in text
    assert "quantised" not in text
    text = card(adapter=True, quantized=True).text
    assert ", quantization_config=...)" in text
    assert "The base was quantised" in text


def test_options_and_metrics_are_shown_without_times(card):
    text = card(
        options={"loss_type": "hinge", "bf16": False},
        training_metrics={"loss": 0.12345, "grad_norm": 3.0, "num_tokens": 12345.0},
        evaluation_metrics={"eval_accuracy": 0.75, "eval_runtime": 2.0},
    ).text
    for line in ('| `loss_type` | `"hinge"` |', "| `bf16` | `false` |", "| `loss` | 0.1235 |",
                 "| `num_tokens` | 12,345 |", "| `eval_accuracy` | 0.75 |"):  # fmt: skip
        assert line in text
    assert "grad_norm" not in text
    assert "runtime" not in text


def test_without_metrics_the_card_says_that_none_was_measured(card):
    assert card().text.count("None was measured.") == 2
