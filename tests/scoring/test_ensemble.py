import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ensemble_members import measured, save_adapter, save_whole
from peft import PrefixTuningConfig
from transformers import AutoModelForSequenceClassification, BertConfig, BitsAndBytesConfig, ConvBertConfig, set_seed

from plaudit import RewardModel, evaluate
from plaudit.checkpoint.heads_file import SavedHeads
from plaudit.checkpoint.metadata import write_metadata
from plaudit.errors import CheckpointError, ConfigError, ModelError
from plaudit.models.adapters import add_adapter
from plaudit.models.load import load_model
from plaudit.scoring.ensemble import save_ensemble
from plaudit.scoring.saved_uncertainty import features_as_columns
from plaudit.uncertainty import MemberUncertainty

TEXTS = ["Is the sky blue? Yes, the sky", "Is the dog green? No, it is", "sorry", "Is it two? Thank you " * 9]


@pytest.fixture
def wholes(tmp_path, make_model, tokenizer):
    """Three whole models, the last with a larger backbone."""
    changes = ({}, {}, {"hidden_size": 48, "num_hidden_layers": 3})
    return [save_whole(tmp_path / f"whole{n}", make_model, tokenizer, n, **each) for n, each in enumerate(changes)]


@pytest.fixture
def adapters(tmp_path, base_folder, tokenizer):
    """Three adapters on one base, of different ranks and target modules."""
    options = ({"r": 2}, {"r": 8}, {"target_modules": "all-linear", "use_rslora": True})
    return [save_adapter(tmp_path / f"adapter{n}", base_folder, tokenizer, n, **each) for n, each in enumerate(options)]


def score_alone(paths, texts=TEXTS):
    return np.stack([RewardModel.from_pretrained(path).score(texts) for path in paths], axis=1)


@pytest.fixture
def loads(monkeypatch):
    """The bases that were loaded."""
    names = []
    original = AutoModelForSequenceClassification.from_pretrained

    def load(name, *args, **kwargs):
        names.append(str(name))
        return original(name, *args, **kwargs)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", load)
    return names


def test_a_list_scores_as_each_member_alone_and_the_reward_is_their_mean(wholes):
    ensemble = RewardModel.from_pretrained(wholes)
    members = ensemble.score(TEXTS, return_members=True)
    assert members == pytest.approx(score_alone(wholes), abs=1e-5)
    assert np.ptp(members, axis=1).min() > 0.01  # they do differ
    assert ensemble.score(TEXTS) == pytest.approx(members.mean(1), abs=1e-6)


@pytest.mark.parametrize("kind", ["wholes", "adapters"])
def test_members_may_lie_in_a_subfolder_of_each_place(request, tmp_path, kind):
    paths = request.getfixturevalue(kind)
    places = [tmp_path / "places" / str(number) for number in range(len(paths))]
    for path, place in zip(paths, places, strict=True):
        shutil.copytree(path, place / "best")
    members = RewardModel.from_pretrained(places, model_init_kwargs={"subfolder": "best"})
    assert members.score(TEXTS, return_members=True) == pytest.approx(score_alone(paths), abs=1e-5)


def test_adapters_share_one_loaded_base_and_score_as_alone(adapters, loads):
    ensemble = RewardModel.from_pretrained(adapters)
    assert len(loads) == 1
    members = ensemble.score(TEXTS, return_members=True)
    assert members == pytest.approx(score_alone(adapters), abs=1e-5)
    assert np.ptp(members, axis=1).min() > 0.01


def test_members_keep_the_order_of_the_list_whoever_shares_a_base(wholes, adapters, loads):
    mixed = [adapters[0], wholes[0], adapters[2], wholes[2], adapters[1]]
    members = RewardModel.from_pretrained(mixed).score(TEXTS, return_members=True)
    assert len(loads) == 3
    assert members == pytest.approx(score_alone(mixed), abs=1e-5)


def test_adapters_that_change_their_base_have_one_each(tmp_path, base_folder, tokenizer, loads):
    """PiSSA takes the principal components out of the base, when it is trained and whenever it is loaded."""
    paths = [save_adapter(tmp_path / f"{n}", base_folder, tokenizer, n, init_lora_weights="pissa") for n in range(2)]
    loads.clear()
    members = RewardModel.from_pretrained(paths).score(TEXTS, return_members=True)
    assert len(loads) == 2
    assert members == pytest.approx(score_alone(paths), abs=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "head"])
def test_few_short_sequences_score_as_many_long_ones_whether_or_not_adapters_can_be_mixed(
    tmp_path, base_folder, tokenizer, kind
):
    """Plain LoRA runs all adapters in one batch then; DoRA cannot, nor can a layer that is saved and not linear."""
    options = {"lora": {}, "dora": {"use_dora": True}, "head": {"modules_to_save": ["norm"]}}[kind]
    paths = [save_adapter(tmp_path / f"{n}", base_folder, tokenizer, n, **options) for n in range(3)]
    ensemble = RewardModel.from_pretrained(paths)
    many = ensemble.score(TEXTS * 4, return_members=True)
    for _ in range(3):  # the first tries, the others know
        few = np.concatenate([ensemble.score([text], return_members=True) for text in TEXTS])
        assert few == pytest.approx(many[: len(TEXTS)], abs=1e-5)


def test_plain_lora_runs_few_short_sequences_in_one_forward(adapters):
    ensemble = RewardModel.from_pretrained(adapters)
    ensemble.score(["sorry"])
    calls = []
    ensemble.model.register_forward_pre_hook(lambda *_: calls.append(1))
    ensemble.score(["sorry"])
    assert len(calls) == 1
    ensemble.score(TEXTS * 9)
    assert len(calls) > 3


def test_adapters_whose_rewards_change_with_padding_are_mixed_without_it_only(tmp_path, tokenizer):
    """ConvBERT convolves over padding; the first sequence, which has none, must not decide for later ones."""
    config = ConvBertConfig(
        vocab_size=320, hidden_size=32, embedding_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, num_labels=1, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )  # fmt: skip
    set_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "base")
    targets = {"target_modules": ["query", "value"]}
    paths = [save_adapter(tmp_path / f"{n}", tmp_path / "base", tokenizer, n, **targets) for n in range(2)]
    texts = ["Is the sky blue?", "two", "sorry, thank you very much"]
    expected = score_alone(paths, texts)
    ensemble = RewardModel.from_pretrained(paths)
    for _ in range(2):
        ensemble.score(texts[:1])
        assert ensemble.score(texts, return_members=True) == pytest.approx(expected, abs=1e-5)


def test_adapters_on_a_quantised_base_share_it(tmp_path, base_folder, tokenizer, loads):
    pytest.importorskip("bitsandbytes")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").to_dict()
    said = {"quantization": {name: value for name, value in quantization.items() if not name.startswith("_")}}
    paths = [save_adapter(tmp_path / f"{n}", base_folder, tokenizer, n, said) for n in range(2)]
    loads.clear()
    members = RewardModel.from_pretrained(paths).score(TEXTS, return_members=True)
    assert len(loads) == 1
    expected = score_alone(paths)
    assert members == pytest.approx(expected, abs=float(0.02 * np.abs(expected).max()))


def test_adapters_on_an_encoder_share_it_and_each_has_its_own_layers_before_the_head(tmp_path, tokenizer, loads):
    config = BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, num_labels=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "encoder")
    options = {"target_modules": ["query"], "modules_to_save": ["pooler"]}
    paths = [save_adapter(tmp_path / f"{n}", tmp_path / "encoder", tokenizer, n, **options) for n in range(2)]
    loads.clear()
    ensemble = RewardModel.from_pretrained(paths)
    assert len(loads) == 1
    for texts in (TEXTS[2:3], TEXTS[:3]):
        members = ensemble.score(texts, return_members=True)
        assert members == pytest.approx(score_alone(paths, texts), abs=1e-5)


def test_prefix_tuning_has_a_base_of_its_own(tmp_path, base_folder, tokenizer, adapters, loads):
    base = load_model(str(base_folder), model_init_kwargs={"dtype": "float32"})
    torch.nn.init.normal_(base.score.weight, std=0.5)
    base.save_pretrained(tmp_path / "with_head")
    tokenizer.save_pretrained(tmp_path / "with_head")
    prefix = add_adapter(load_model(str(tmp_path / "with_head")), PrefixTuningConfig(num_virtual_tokens=3))
    prefix.save_pretrained(tmp_path / "prefix")
    tokenizer.save_pretrained(tmp_path / "prefix")
    paths = [adapters[0], str(tmp_path / "prefix"), adapters[1]]
    loads.clear()
    members = RewardModel.from_pretrained(paths).score(TEXTS[:3], return_members=True)
    assert len(loads) == 2
    assert members == pytest.approx(score_alone(paths, TEXTS[:3]), abs=1e-5)


def test_an_ensemble_works_in_another_process_and_for_several_threads(adapters):
    ensemble = RewardModel.from_pretrained(adapters)
    expected = ensemble.score(TEXTS, return_members=True)
    engine = pickle.loads(pickle.dumps(ensemble.engine))
    ids = ensemble.token_ids(TEXTS)
    assert engine.score_columns(ids)[:, 1:] == pytest.approx(expected, abs=1e-5)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: engine.score_columns(ids)[:, 1:], range(8)):
            assert found == pytest.approx(expected, abs=1e-5)


def test_progress_counts_each_sequence_once(wholes):
    ensemble = RewardModel.from_pretrained(wholes, max_tokens_per_batch=32)
    seen = []
    ensemble.engine.score_columns(ensemble.token_ids(TEXTS), seen.append)
    assert sum(seen) == len(TEXTS)


def test_a_member_with_several_heads_counts_as_its_mean(wholes):
    head = torch.randn(3, 32)
    mean = SavedHeads(head, None, MemberUncertainty((0.0,) * 3, (1.0,) * 3, 1.0), "nothing")
    mean.write(Path(wholes[0]))  # of another head, which would be an error if it were read
    assert RewardModel.from_pretrained(wholes).score(TEXTS, return_members=True).shape == (4, 3)


# Constants


def test_members_are_compared_by_the_scales_of_their_own_training_runs(tmp_path, make_model, tokenizer):
    said = [measured(1.0, 2.0), measured(-3.0, 0.5)]
    paths = [save_whole(tmp_path / f"{n}", make_model, tokenizer, n, each) for n, each in enumerate(said)]
    ensemble = RewardModel.from_pretrained(paths)
    assert ensemble.uncertainty == MemberUncertainty((1.0, -3.0), (2.0, 0.5), reward_std=1.25)
    members = ensemble.score(TEXTS, return_members=True)
    standard = (members - [1.0, -3.0]) / [2.0, 0.5]
    assert ensemble.score(TEXTS, aggregate="min") == pytest.approx(standard.min(1), abs=1e-5)
    _, std = ensemble.score(TEXTS, return_std=True)
    assert std == pytest.approx(1.25 * standard.std(1, ddof=1), abs=1e-5)


def test_without_the_scale_of_one_member_the_mean_works_and_the_rest_says_who_lacks_it(tmp_path, make_model, tokenizer):
    unmeasured = {"rewards": {"mean": 0.0, "std": 1.0, "of": "nothing"}}
    one = save_whole(tmp_path / "one", make_model, tokenizer, 0, measured(0.0, 1.0))
    two = save_whole(tmp_path / "two", make_model, tokenizer, 1, unmeasured)
    ensemble = RewardModel.from_pretrained([one, two])
    assert ensemble.score(TEXTS, return_members=True).shape == (4, 2)
    ranked = ensemble.rank("Is it?", [" Yes", " No"])
    assert [each.reward_std for each in ranked] == [None, None]
    for option in ({"aggregate": "min"}, {"aggregate": "mean-std"}, {"return_std": True}):
        with pytest.raises(ConfigError, match=r"two was saved without them.*plaudit ensemble"):
            ensemble.score(iter(()), **option)


def test_an_evaluation_of_members_without_a_scale_is_that_of_their_mean(wholes, text_rows):
    evaluation = evaluate(RewardModel.from_pretrained(wholes), text_rows)
    assert evaluation.overall["comparisons"] == len(text_rows)
    assert evaluation.uncertainty is None


# What cannot be an ensemble


def test_an_ensemble_of_models_has_no_head_to_fit_a_posterior_of(wholes):
    with (
        pytest.raises(ConfigError, match="expected a model with one head, got an ensemble"),
        features_as_columns(RewardModel.from_pretrained(wholes)),
    ):
        pass


def test_fewer_than_two_members_or_one_named_twice_is_an_error(wholes):
    with pytest.raises(ConfigError, match="two or more members of an ensemble, got 1"):
        RewardModel.from_pretrained(wholes[:1])
    with pytest.raises(ConfigError, match="whole0/ is named twice"):
        RewardModel.from_pretrained([f"{wholes[0]}/", wholes[0]])


def test_a_member_that_reads_text_in_another_way_is_refused_before_weights_are_loaded(
    wholes, tmp_path, make_model, new_tokenizer, loads
):
    other = save_whole(tmp_path / "other", make_model, new_tokenizer(bos="<bos>"), 5)
    loads.clear()
    with pytest.raises(ModelError, match=r"whole0 and .*other cannot be members.*bos_token is None"):
        RewardModel.from_pretrained([*wholes, other])
    assert loads == []


# Folders


def test_a_folder_scores_as_the_list_and_has_constants_of_the_reference_set(adapters, tmp_path):
    saved = save_ensemble(adapters, tmp_path / "ensemble", TEXTS)
    loaded = RewardModel.from_pretrained(tmp_path / "ensemble")
    members = score_alone(adapters)
    assert loaded.score(TEXTS, return_members=True) == pytest.approx(members, abs=1e-5)
    assert saved.constants.centers == pytest.approx(members.mean(0), abs=1e-5)
    assert saved.constants.scales == pytest.approx(members.std(0), abs=1e-5)
    assert loaded.uncertainty == saved.constants
    assert loaded.score(TEXTS, normalize=True).mean() == pytest.approx(0, abs=1e-5)
    assert loaded.name == str(tmp_path / "ensemble")


def test_a_folder_keeps_the_temperature_that_an_evaluation_saved_in_it(wholes, tmp_path):
    save_ensemble(wholes, tmp_path / "ensemble", TEXTS)
    write_metadata(tmp_path / "ensemble", {"calibration": {"temperature": 2.0}})
    ensemble = RewardModel.from_pretrained(tmp_path / "ensemble")
    raw, calibrated = (ensemble.rank("Is it?", [" Yes", " No"], calibrated=each)[0] for each in (False, True))
    odds, softer = (each.win_probability / (1 - each.win_probability) for each in (raw, calibrated))
    assert softer == pytest.approx(odds**0.5, rel=1e-4)


def test_a_folder_moves_with_its_members_or_alone_with_copies_inside(wholes, tmp_path):
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    members = [str(shutil.copytree(each, place / Path(each).name)) for each in wholes]
    save_ensemble(members, place / "linked", TEXTS)
    save_ensemble(members, place / "copied", TEXTS, copy=True)
    expected = RewardModel.from_pretrained(place / "linked").score(TEXTS)
    place.rename(elsewhere)
    assert RewardModel.from_pretrained(elsewhere / "linked").score(TEXTS) == pytest.approx(expected)
    (elsewhere / "copied").rename(tmp_path / "alone")
    shutil.rmtree(elsewhere)
    shutil.rmtree(wholes[0])
    assert RewardModel.from_pretrained(tmp_path / "alone").score(TEXTS) == pytest.approx(expected)


def test_a_folder_whose_member_is_gone_or_was_trained_on_is_an_error_that_names_it(tmp_path, make_model, tokenizer):
    said = [{"fingerprint": {"dtype": "float32", "probes": [seed]}} for seed in range(2)]
    paths = [save_whole(tmp_path / f"m{n}", make_model, tokenizer, n, said[n]) for n in range(2)]
    save_ensemble(paths, tmp_path / "ensemble", TEXTS)
    assert RewardModel.from_pretrained(tmp_path / "ensemble").fingerprint is not None
    write_metadata(Path(paths[1]), {"fingerprint": {"dtype": "float32", "probes": ["other"]}})
    with pytest.raises(CheckpointError, match=r"ensemble.json: the member .*m1 has other weights"):
        RewardModel.from_pretrained(tmp_path / "ensemble")
    shutil.rmtree(paths[1])
    with pytest.raises(CheckpointError, match=r"ensemble.json names the member .*m1, and there is no such folder"):
        RewardModel.from_pretrained(tmp_path / "ensemble")


def test_an_ensemble_is_written_into_a_new_folder_from_enough_sequences(wholes, tmp_path):
    with pytest.raises(ConfigError, match="is not empty"):
        save_ensemble(wholes, wholes[0], TEXTS)
    with pytest.raises(ConfigError, match="two or more reference sequences"):
        save_ensemble(wholes, tmp_path / "new", TEXTS[:1])
    assert not (tmp_path / "new").exists()


def test_an_ensemble_is_no_member_and_no_single_model(wholes, tmp_path):
    save_ensemble(wholes, tmp_path / "ensemble", TEXTS)
    with pytest.raises(ConfigError, match="is an ensemble of several models itself"):
        RewardModel.from_pretrained([tmp_path / "ensemble", wholes[0]])
    with pytest.raises(ModelError, match=r"is an ensemble of several models.*--average"):
        load_model(str(tmp_path / "ensemble"))


def test_an_ensemble_on_the_hub_is_no_single_model(wholes, tmp_path):
    snapshot = tmp_path / "hub/models--someone--ensemble/snapshots/0"
    save_ensemble(wholes, snapshot, TEXTS)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0")
    with pytest.raises(ModelError, match=r"someone/ensemble is an ensemble of several models"):
        load_model("someone/ensemble", model_init_kwargs={"cache_dir": str(tmp_path / "hub")})
