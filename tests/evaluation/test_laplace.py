"""The Laplace approximation of a head: its mathematics on made features, and with models of each kind."""

import math
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig
from scipy.optimize import minimize_scalar
from transformers import AutoModelForSequenceClassification, BertConfig, BitsAndBytesConfig, set_seed

from plaudit import RewardModel
from plaudit.checkpoint.inspection import SavedModel, inspect_files
from plaudit.errors import CheckpointError, ConfigError, DataError, ModelError
from plaudit.evaluation.laplace import bradley_terry_hessian, fit_laplace, head_posterior
from plaudit.models.member_heads import add_member_heads

NOUNS = ["sky", "dog", "fox", "tool", "two", "four", "green", "blue"]
ROWS = [
    {"prompt": f"Is the {noun}?", "chosen": " Yes, the " + noun * (1 + n % 3), "rejected": " No, it is" + "!" * n}
    for n, noun in enumerate(NOUNS)
]
TEXTS = [row["prompt"] + row[side] for row in ROWS for side in ("chosen", "rejected")]


# The mathematics


def test_a_posterior_by_hand():
    """One comparison of equal rewards: p(1 - p) is 1/4, the eigenvalues are 1 and 0."""
    hessian = bradley_terry_hessian(np.array([[2.0, 0.0]]), np.array([0.0]), np.array([1.0]))
    assert hessian.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    found = head_posterior(hessian, np.array([1.0, 0.0]))
    # 1 / (1 + lambda) = lambda |w|^2 with |w| = 1
    golden = (math.sqrt(5) - 1) / 2
    assert found.prior_precision == pytest.approx(golden)
    assert found.well_determined == pytest.approx(1 / (1 + golden))
    np.testing.assert_allclose(found.factor @ found.factor, np.diag([1 / (1 + golden), 1 / golden]), rtol=1e-12)


@pytest.fixture
def made():
    """More features than comparisons."""
    draw = np.random.default_rng(0)
    features, head, weights = draw.normal(size=(2, 6, 10)), draw.normal(size=10), draw.uniform(0.5, 2, 6)
    return features[0] - features[1], head, weights


def test_the_hessian_is_that_of_the_loss(made):
    differences, head, weights = (torch.tensor(each) for each in made)

    def loss(w):
        return (weights * torch.nn.functional.softplus(-differences @ w)).sum()

    expected = torch.autograd.functional.hessian(loss, head)
    found = bradley_terry_hessian(*(each.numpy() for each in (differences, differences @ head, weights)))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_prior_precision_has_the_greatest_marginal_likelihood(made):
    differences, head, weights = made
    hessian = bradley_terry_hessian(differences, differences @ head, weights)

    def loss(log_precision):
        precision = math.exp(log_precision)
        determinant = np.linalg.slogdet(hessian + precision * np.eye(10))[1]
        return -0.5 * (10 * log_precision - precision * head @ head - determinant)

    best = minimize_scalar(loss, bounds=(-12, 6), method="bounded", options={"xatol": 1e-9})
    found = head_posterior(hessian, head)
    assert math.log(found.prior_precision) == pytest.approx(best.x, abs=1e-5)
    inverse = np.linalg.inv(hessian + found.prior_precision * np.eye(10))
    np.testing.assert_allclose(found.factor @ found.factor, inverse, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_the_unit_of_the_features_changes_no_standard_deviation(made, unit):
    differences, head, weights = made
    one = head_posterior(bradley_terry_hessian(differences, differences @ head, weights), head)
    other = head_posterior(bradley_terry_hessian(differences * unit, differences @ head, weights), head / unit)
    np.testing.assert_allclose(other.factor * unit, one.factor, rtol=1e-6, atol=1e-9)


def test_nothing_to_fit_is_an_error():
    with pytest.raises(DataError, match="the comparisons determine nothing"):
        head_posterior(np.zeros((2, 2)), np.ones(2))
    with pytest.raises(ModelError, match="the head is zero"):
        head_posterior(np.eye(2), np.zeros(2))


# Models


@pytest.fixture
def scorer(make_model, tokenizer):
    return RewardModel(make_model(), tokenizer, max_tokens_per_batch=200)


def stds(scorer, texts=TEXTS):
    return scorer.score(texts, return_std=True)[1]


def test_a_fit_leaves_the_rewards_and_gives_each_a_standard_deviation(scorer):
    before = scorer.score(TEXTS)
    fit = fit_laplace(scorer, ROWS)
    rewards, std = scorer.score(TEXTS, return_std=True)
    np.testing.assert_allclose(rewards, before, atol=2e-6)
    assert (std > 0).all()
    assert fit.comparisons == len(ROWS)
    assert 0 < fit.well_determined < len(ROWS)
    assert fit.posterior.constants.reward_mean == pytest.approx(rewards.mean(), abs=1e-6)
    assert fit.posterior.constants.reward_std == pytest.approx(rewards.std(), rel=1e-5)
    members = scorer.score(TEXTS, return_members=True)
    assert members.shape == (len(TEXTS), 64)
    np.testing.assert_allclose(members.mean(1), rewards, atol=1e-5)
    assert np.median(members.std(1) / std) == pytest.approx(1, abs=0.25)


def test_the_posterior_is_that_of_the_features_of_plain_transformers(scorer, make_model, tokenizer):
    fit = fit_laplace(scorer, ROWS)
    model, features = make_model().eval(), []
    for ids in scorer.token_ids(TEXTS):
        with torch.no_grad():
            features.append(model.model(torch.tensor([ids])).last_hidden_state[0, -1].double().numpy())
    features = np.array(features)
    head = model.score.weight[0].detach().double().numpy()
    differences = features[::2] - features[1::2]
    expected = head_posterior(bradley_terry_hessian(differences, differences @ head, np.ones(len(ROWS))), head)
    assert fit.posterior.prior_precision == pytest.approx(expected.prior_precision, rel=1e-4)
    centred = features - features.mean(0)
    np.testing.assert_allclose(stds(scorer), np.linalg.norm(centred @ expected.factor, axis=1), rtol=1e-4)


@pytest.fixture
def same_std(scorer):
    """Check that the posterior of other rows or another scorer gives the standard deviations of `ROWS`."""
    fit_laplace(scorer, ROWS)
    expected = stds(scorer)

    def check(other, rows=ROWS):
        fit_laplace(other, rows)
        np.testing.assert_allclose(stds(other), expected, rtol=2e-4)

    return check


def test_neither_order_nor_layout_nor_chunks_of_rows_matter(same_std, make_model, tokenizer):
    other = RewardModel(make_model(), tokenizer)
    same_std(other, ROWS[::-1])
    padded = RewardModel(make_model(attn_implementation="eager"), tokenizer)
    padded.engine.layout = "padded"
    same_std(padded)
    assert padded.engine.layout == "padded"
    other.chunk_size = 3
    same_std(other)


def test_a_row_of_weight_two_counts_as_two_rows(make_model, tokenizer, same_std):
    twice = RewardModel(make_model(), tokenizer)
    fit_laplace(twice, [*ROWS, ROWS[0]])
    weighted = RewardModel(make_model(), tokenizer)
    fit = fit_laplace(weighted, [ROWS[0] | {"weight": 2.0}, *ROWS[1:], ROWS[2] | {"weight": 0.0}])
    assert fit.comparisons == len(ROWS)
    np.testing.assert_allclose(stds(weighted), stds(twice), rtol=2e-4)


def test_a_shift_of_all_features_changes_no_standard_deviation(make_model, tokenizer, same_std):
    """The shift adds a constant to all rewards, and no comparison can tell."""
    model = make_model()
    shift = torch.linspace(-3, 3, 32)
    model.model.norm.register_forward_hook(lambda *call: call[-1] + shift)
    same_std(RewardModel(model, tokenizer))


def test_ranked_groups_make_a_posterior_as_well(scorer):
    groups = [{"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"], " Sorry"], "ranks": [0, 1, 2]}
              for row in ROWS]  # fmt: skip
    assert fit_laplace(scorer, groups).comparisons == 3 * len(ROWS)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_saved_posterior_is_read_with_the_model(model_folder, tmp_path, dtype):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    scorer = RewardModel.from_pretrained(folder, dtype=dtype, device="cpu")
    fit_laplace(scorer, ROWS).posterior.write(folder)
    expected = scorer.score(TEXTS, return_std=True)
    loaded = RewardModel.from_pretrained(folder, dtype=dtype, device="cpu")
    assert loaded.uncertainty == scorer.uncertainty
    np.testing.assert_array_equal(loaded.score(TEXTS, return_std=True), expected)
    assert loaded.rank("Is the sky?", [" Yes", " No"])[0].reward_std > 0
    wider = RewardModel.from_pretrained(folder, dtype="bfloat16", device="cpu")  # for the same head, rounded
    np.testing.assert_allclose(stds(wider), expected[1], rtol=0.3)
    with pytest.raises(ConfigError, match="no least member"):
        loaded.score(TEXTS, aggregate="min")
    assert RewardModel.from_pretrained(folder, device="cpu", uncertainty=None).uncertainty is None


def test_a_head_that_was_trained_on_since_is_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    scorer = RewardModel.from_pretrained(folder, device="cpu")
    fit_laplace(scorer, ROWS).posterior.write(folder)
    assert [each.holds for each in inspect_files(SavedModel(folder)) if each.layer == "posterior"] == [True]
    with torch.no_grad():
        scorer.model.score.weight[0, 3] += 0.01
    scorer.model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"laplace.safetensors was fitted for another head.*`plaudit laplace"):
        RewardModel.from_pretrained(folder, device="cpu")
    (broken,) = [each for each in inspect_files(SavedModel(folder)) if each.layer == "posterior"]
    assert broken.holds is False
    assert "fitted for another head" in broken.message


@pytest.mark.parametrize("quantized", [False, True])
def test_the_posterior_of_an_adapter_is_saved_beside_it(make_trainer, base_folder, quantized):
    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)} if quantized else {}
    if quantized:
        pytest.importorskip("bitsandbytes")
    trainer = make_trainer(
        model=str(base_folder), peft_config=LoraConfig(init_lora_weights=False), model_init_kwargs=options, max_steps=1
    )
    trainer.save_model()
    folder = trainer.args.output_dir
    scorer = RewardModel.from_pretrained(folder, device="cpu")
    fit_laplace(scorer, ROWS).posterior.write(folder)
    loaded = RewardModel.from_pretrained(folder, device="cpu")
    assert (stds(loaded) > 0).all()
    np.testing.assert_allclose(stds(loaded), stds(scorer), rtol=1e-4)


def test_an_encoder_has_a_posterior_as_well(tokenizer):
    set_seed(0)
    config = BertConfig(
        vocab_size=330, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
        initializer_range=0.3, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    scorer = RewardModel(AutoModelForSequenceClassification.from_config(config), tokenizer)
    fit_laplace(scorer, ROWS)
    assert scorer.engine.layout == "padded"
    assert (stds(scorer) > 0).all()


def test_an_ensemble_is_refused_before_any_sequence_runs(scorer):
    add_member_heads(scorer.model, 3, seed=0, around_head=False)
    with pytest.raises(ConfigError, match="expected a model with one head, got an ensemble"):
        fit_laplace(scorer, ROWS)


def test_a_fit_that_fails_leaves_the_model_as_it_was(scorer):
    before = scorer.score(TEXTS)
    with pytest.raises(DataError, match="row 0"):
        fit_laplace(scorer, [{"prompt": "a", "chosen": "b"}])
    with torch.no_grad():
        scorer.model.score.weight.zero_()
    with pytest.raises(ModelError, match="the head is zero"):
        fit_laplace(scorer, ROWS)
    assert scorer.uncertainty is None
    assert scorer.score(TEXTS).shape == before.shape
