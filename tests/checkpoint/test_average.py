import json
import logging

import numpy as np
import pytest
import torch
from ensemble_members import save_adapter, save_whole
from transformers import AutoModelForSequenceClassification

from plaudit import RewardModel
from plaudit.checkpoint import reload
from plaudit.checkpoint.average import average_models
from plaudit.checkpoint.merge import merge_adapter
from plaudit.checkpoint.metadata import read_metadata
from plaudit.errors import ConfigError, ModelError

TEXTS = ["Is the sky blue? Yes, the sky", "Is the dog green? No, it is", "sorry"]


def in_process(request):
    """A fresh process takes seconds, and has tests of its own."""
    return reload.score(**json.loads(json.dumps(request)))


def average(members, output, **options):
    return average_models(members, output, reload=in_process, **options)


def weights(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).state_dict()


@pytest.fixture
def adapters(tmp_path, base_folder, tokenizer):
    """Two adapters on one base, of different ranks."""
    return [save_adapter(tmp_path / f"a{n}", base_folder, tokenizer, n, r=rank) for n, rank in enumerate((2, 8))]


def test_whole_models_become_one_of_their_mean_weights(tmp_path, make_model, tokenizer, caplog):
    paths = [save_whole(tmp_path / f"m{n}", make_model, tokenizer, n) for n in range(3)]
    with caplog.at_level(logging.WARNING, "plaudit"):
        verification = average(paths, tmp_path / "mean")
    assert verification.status == "verified", verification.findings
    assert "no longer shows where its 3 members disagree" in caplog.text
    members, mean = [weights(path) for path in paths], weights(tmp_path / "mean")
    for name, tensor in mean.items():
        assert torch.allclose(tensor, torch.stack([each[name] for each in members]).mean(0), atol=1e-6), name
    said = read_metadata(tmp_path / "mean")
    assert [each["path"] for each in said["averaged_from"]] == paths
    assert "rewards" not in said  # those of the members are not its own
    assert "averaged_from" in (tmp_path / "mean/README.md").read_text()


def test_the_mean_of_adapters_is_that_of_the_merged_models_and_not_of_the_factors(tmp_path, adapters):
    average(adapters, tmp_path / "mean")
    for number, adapter in enumerate(adapters):
        merge_adapter(adapter, tmp_path / f"merged{number}", reload=in_process)
    average([tmp_path / "merged0", tmp_path / "merged1"], tmp_path / "mean_of_merged")
    found, expected = weights(tmp_path / "mean"), weights(tmp_path / "mean_of_merged")
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert RewardModel.from_pretrained(tmp_path / "mean").score(TEXTS) == pytest.approx(
        RewardModel.from_pretrained(tmp_path / "mean_of_merged").score(TEXTS), abs=1e-5
    )


def test_the_mean_of_products_is_not_the_product_of_mean_factors(tmp_path, base_folder, tokenizer):
    paths = [save_adapter(tmp_path / f"a{n}", base_folder, tokenizer, n) for n in range(2)]
    average(paths, tmp_path / "mean")
    name = "model.layers.0.self_attn.q_proj.weight"
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1, dtype=torch.float32)
    factors = [RewardModel.from_pretrained(path).model.state_dict() for path in paths]
    a, b = (
        [each[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.default.weight"] for each in factors]
        for part in "AB"
    )
    scaling = 8 / 4  # PEFT's lora_alpha / r
    delta = weights(tmp_path / "mean")[name] - base.state_dict()[name]
    of_products = scaling * (b[0] @ a[0] + b[1] @ a[1]) / 2
    of_factors = scaling * ((b[0] + b[1]) / 2) @ ((a[0] + a[1]) / 2)
    assert torch.allclose(delta, of_products, atol=1e-5)
    assert not torch.allclose(delta, of_factors, atol=1e-2)


def test_an_adapter_and_a_whole_model_of_one_architecture_can_be_averaged(tmp_path, adapters, make_model, tokenizer):
    whole = save_whole(tmp_path / "whole", make_model, tokenizer, 3)
    assert average([adapters[0], whole], tmp_path / "mean").status == "verified"


def test_the_precision_is_that_of_the_first_unless_another_is_asked_for(tmp_path, make_model, tokenizer):
    wide = save_whole(tmp_path / "wide", make_model, tokenizer, 0)
    narrow = make_model(1).bfloat16()
    narrow.config.pad_token_id = tokenizer.pad_token_id
    narrow.save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    for name, order, dtype, expected in (
        ("first", [tmp_path / "narrow", wide], None, "bfloat16"),
        ("second", [wide, tmp_path / "narrow"], None, "float32"),
        ("asked", [wide, tmp_path / "narrow"], "bfloat16", "bfloat16"),
    ):
        assert average(order, tmp_path / name, dtype=dtype).status == "verified"
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == expected


def test_a_model_averaged_with_its_copy_is_itself(tmp_path, make_model, tokenizer):
    paths = [save_whole(tmp_path / f"m{n}", make_model, tokenizer, 0) for n in range(2)]
    average(paths, tmp_path / "mean")
    scores = [RewardModel.from_pretrained(path).score(TEXTS) for path in (paths[0], tmp_path / "mean")]
    assert np.array_equal(*scores)


def test_what_cannot_be_averaged_is_refused_before_anything_is_written(tmp_path, make_model, tokenizer, new_tokenizer):
    one = save_whole(tmp_path / "one", make_model, tokenizer, 0)
    large = save_whole(tmp_path / "large", make_model, tokenizer, 1, hidden_size=48)
    other = save_whole(tmp_path / "other", make_model, new_tokenizer(bos="<bos>"), 2)
    for members, error, message in (
        ([one], ConfigError, "two or more models, got 1"),
        ([one, large], ModelError, r"one architecture only: .* in .*one and .* in .*large.*plaudit ensemble"),
        ([one, other], ModelError, "cannot be members of one ensemble"),
    ):
        with pytest.raises(error, match=message):
            average(members, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    with pytest.raises(ConfigError, match="is not empty"):
        average([one, one], one)
