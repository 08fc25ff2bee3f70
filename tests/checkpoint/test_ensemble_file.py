import json
import os

import pytest

from plaudit.checkpoint.ensemble_file import SavedEnsemble
from plaudit.errors import CheckpointError
from plaudit.uncertainty import MemberUncertainty

CONSTANTS = MemberUncertainty((1.0, -0.5), (2.0, 0.25), reward_std=1.5)


@pytest.fixture
def saved(tmp_path):
    """A written ensemble of the folder `a` beside it and of a hub id."""
    folder = tmp_path / "ensemble"
    for each in (folder, tmp_path / "a"):
        each.mkdir()
    members = (str(tmp_path / "a"), "someone/b")
    ensemble = SavedEnsemble(folder / "ensemble.json", members, ("12", None), CONSTANTS, "10 responses")
    ensemble.write(folder)
    return ensemble


def test_what_is_written_is_read_again(saved):
    assert SavedEnsemble.read(saved.file.parent) == saved


def test_folders_are_named_from_the_file_and_hub_ids_as_they_are(saved):
    members = json.loads(saved.file.read_text())["members"]
    assert members == [{"folder": "../a", "fingerprint": "12"}, {"hub_id": "someone/b", "fingerprint": None}]


def test_a_folder_is_named_from_the_file_when_it_is_given_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("models/a")
    os.makedirs("out")
    SavedEnsemble(tmp_path / "out/ensemble.json", ("models/a", "models/a"), (None,) * 2, CONSTANTS, "").write(
        tmp_path / "out"
    )
    assert SavedEnsemble.read("out").members == (str(tmp_path / "models/a"),) * 2


def test_a_folder_that_is_written_or_read_through_a_link_names_its_members(tmp_path):
    (tmp_path / "data/models/a").mkdir(parents=True)
    (tmp_path / "data/models/ensemble").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/models").symlink_to(tmp_path / "data/models")
    (tmp_path / "home/mine").symlink_to(tmp_path / "data/models/ensemble")
    linked, mine = tmp_path / "home/models", tmp_path / "home/mine"
    SavedEnsemble(mine / "ensemble.json", (str(linked / "a"),) * 2, (None,) * 2, CONSTANTS, "").write(mine)
    assert [each["folder"] for each in json.loads((mine / "ensemble.json").read_text())["members"]] == ["../a"] * 2
    for folder in (mine, linked / "ensemble", tmp_path / "data/models/ensemble"):
        assert SavedEnsemble.read(folder).members == (str(tmp_path / "data/models/a"),) * 2


def test_a_folder_without_the_file_is_no_ensemble(tmp_path):
    assert SavedEnsemble.read(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:40], "expected `members`"),
        (lambda _: "[]", "expected `members`"),
        (lambda text: text.replace('"uncertainty"', '"other"'), "KeyError: 'uncertainty'"),
        (lambda text: text.replace('"scales"', '"other"'), "ConfigError: .*argument 'other'"),
        (lambda text: text.replace("0.25", "0.0"), "expected standard deviations above 0"),
        (lambda text: text.replace("1.5", "NaN"), "expected standard deviations above 0"),
        (lambda text: text.replace("-0.5", '"x"'), "could not convert string to float"),
        (lambda text: text.replace('"hub_id": "someone/b"', '"folder": "../gone"'), "names the member .*gone, and"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it_and_the_remedy(saved, change, problem):
    saved.file.write_text(change(saved.file.read_text()))
    with pytest.raises(CheckpointError, match=f"(?s)ensemble.json.*{problem}.*plaudit ensemble"):
        SavedEnsemble.read(saved.file.parent)


def test_as_many_constants_as_members_are_expected(saved, tmp_path):
    content = json.loads(saved.file.read_text())
    content["members"].pop()
    saved.file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"1 members and the constants .*centers=\(1.0, -0.5\)"):
        SavedEnsemble.read(saved.file.parent)
