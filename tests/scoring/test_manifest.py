"""When an input or a model is still the same."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from stub_server import StubServer

from plaudit import RewardModel
from plaudit.checkpoint.ensemble_file import SavedEnsemble
from plaudit.checkpoint.metadata import write_metadata
from plaudit.data.reader import Source
from plaudit.scoring.manifest import differences, input_manifest, job_manifest, model_manifest
from plaudit.scoring.reward_columns import RewardColumns
from plaudit.scoring.worker import ScoringConfig
from plaudit.uncertainty import MemberUncertainty


@pytest.fixture
def hub(monkeypatch):
    """The commits of repositories; one that is not in it cannot be asked for."""
    commits = {}
    ask = SimpleNamespace(repo_info=lambda name, repo_type: SimpleNamespace(sha=commits[repo_type, name]))
    monkeypatch.setattr("plaudit.scoring.manifest.HfApi", lambda: ask)
    return commits


def test_a_repository_of_the_hub_is_known_by_its_commit_and_offline_by_its_name(hub):
    source = Source("someone/one", "main", "test")
    assert input_manifest(source) == {"path": "someone/one", "commit": None, "config": "main", "split": "test"}
    assert model_manifest("someone/one") == {"path": "someone/one", "commit": None}
    hub["dataset", "someone/one"], hub["model", "someone/one"] = "a", "b"
    assert input_manifest(source)["commit"] == "a"
    assert model_manifest("someone/one")["commit"] == "b"


def test_a_commit_that_is_unknown_is_no_difference():
    known, unknown, other = ({"input": {"path": "one", "commit": commit}} for commit in ("a", None, "b"))
    assert differences(known, unknown) == differences(unknown, known) == differences(known, known) == []
    assert differences(known, other) == ["input: commit was a, is b"]


def test_each_difference_is_named_with_its_part():
    before = {"input": {"bytes": 1}, "options": {"threads": 1, "dtype": "auto"}}
    now = {"input": {"bytes": 2}, "options": {"threads": 2, "dtype": "auto", "kind": "text"}}
    assert differences(before, now) == [
        "input: bytes was 1, is 2", "options: kind was None, is text", "options: threads was 1, is 2",
    ]  # fmt: skip


def test_the_manifest_holds_all_options_that_decide_rewards_and_no_other(hub):
    options = {"max_length": 9, "trust_remote_code": True}
    config = ScoringConfig("someone/model", "cpu", 1, False, RewardColumns("text"), True, model_options=options)
    source = Source("someone/one")
    assert job_manifest(source, config) == {
        "input": input_manifest(source),
        "model": model_manifest("someone/model"),
        "options": {
            "device": "cpu", "threads": 1, "normalize": False, "kind": "text", "reward_column": "reward",
            "best_of": False, "max_length": 9, "batch_rows": 512,
        },
    }  # fmt: skip


def test_an_input_is_the_same_as_long_as_all_of_its_files_are(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.jsonl", "deep/b.jsonl"):
        (tmp_path / "in" / name).write_text('{"text": "Yes."}\n')
    before = input_manifest(Source(str(tmp_path / "in")))
    assert before == input_manifest(Source(str(tmp_path / "in")))
    assert before != input_manifest(Source(str(tmp_path / "in"), split="test"))
    os.utime(tmp_path / "in" / "deep" / "b.jsonl", (1, 1))
    assert input_manifest(Source(str(tmp_path / "in"))) != before


def test_a_model_that_is_verified_once_more_is_still_the_same(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    described = {"fingerprint": {"scores": [1.0, 2.0], "of": "a"}, "verified": "once"}
    write_metadata(tmp_path, described)
    before = model_manifest(str(tmp_path))
    write_metadata(tmp_path, described | {"verified": "twice, and later"})
    os.utime(tmp_path / "reward.json", (1, 1))
    assert model_manifest(str(tmp_path)) == before
    write_metadata(tmp_path, described | {"fingerprint": {"scores": [1.0, 2.5], "of": "a"}})
    assert model_manifest(str(tmp_path)) != before


def test_the_base_of_an_adapter_is_a_part_of_the_model(model_folder, tmp_path):
    base, adapter = shutil.copytree(model_folder, tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_manifest(str(adapter))
    assert model_manifest(str(adapter)) == before
    os.utime(base / "config.json", (1, 1))
    assert model_manifest(str(adapter)) != before


def test_a_model_behind_a_server_is_known_by_its_weights_and_not_by_its_address(make_model, tokenizer, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    scorer = RewardModel(make_model(), tokenizer)
    with StubServer(scorer) as one, StubServer(scorer) as two:
        before = model_manifest(one.url)
        assert model_manifest(two.url) == before
        two.info["weight_version"] = "v2"
        assert model_manifest(two.url) != before
        config = ScoringConfig(one.url, model_options={"overlong": "error"})
        options = job_manifest(Source("someone/one"), config)["options"]
    assert (options["device"], options["threads"], options["overlong"]) == (None, None, "error")


def test_a_place_may_be_named_by_way_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "in.jsonl").write_text('{"text": "Yes."}\n')
    assert input_manifest(Source("~/in.jsonl")) == input_manifest(Source(str(tmp_path / "in.jsonl")))
    assert model_manifest("~/model") == model_manifest(str(tmp_path / "model"))
    assert [each.rows for each in Source("~/in.jsonl").chunks(2)] == [[{"text": "Yes."}]]


def test_an_ensemble_is_the_same_as_long_as_all_of_its_members_are(tmp_path):
    for name in ("one", "two", "both"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    constants = MemberUncertainty((0.0, 0.0), (1.0, 1.0), 1.0)
    members = (str(tmp_path / "one"), str(tmp_path / "two"))
    SavedEnsemble(tmp_path / "both/ensemble.json", members, (None, None), constants, "").write(tmp_path / "both")
    before = model_manifest(str(tmp_path / "both"))
    assert before == model_manifest(str(tmp_path / "both"))
    os.utime(tmp_path / "two" / "model.safetensors", (1, 1))
    assert model_manifest(str(tmp_path / "both")) != before


def test_a_conservative_reward_is_an_option_of_the_job_and_the_mean_is_as_before(hub):
    source = Source("someone/one")
    mean, less, least = (
        job_manifest(source, ScoringConfig("someone/one", **options))
        for options in ({}, {"aggregate": "mean-std"}, {"aggregate": "mean-std", "k": 2.0})
    )
    assert "aggregate" not in mean["options"]
    assert differences(mean, less) == ["options: aggregate was None, is mean-std", "options: k was None, is 1.0"]
    assert differences(less, least) == ["options: k was 1.0, is 2.0"]
