import io
import json
import sys
from pathlib import Path

import pytest

from plaudit import RewardModel
from plaudit.checkpoint import reload
from plaudit.checkpoint.metadata import read_metadata
from plaudit.data.render import render

CONVERSATIONS = [
    [{"role": "user", "content": "Is the sky blue?"}, {"role": "assistant", "content": answer}]
    for answer in ("Yes, the sky", "No")
]
TEXTS = ["Is the sky blue? Yes, the sky", "Is the dog green? No, it is<eos>", "sorry"]


def test_the_program_imports_nothing_of_plaudit():
    text = Path(reload.__file__).read_text()
    assert "import plaudit" not in text
    assert "from plaudit" not in text


@pytest.mark.parametrize("sequences", [CONVERSATIONS, TEXTS], ids=["conversations", "texts"])
def test_a_whole_model_scores_as_with_plaudit_alone_and_in_a_batch(full, tokenizer, sequences):
    answer = reload.score(str(full), sequences)
    expected = RewardModel.from_pretrained(full).score(sequences)
    assert answer["rendered"] == render(tokenizer, sequences)
    assert answer["alone"] == pytest.approx(expected, abs=1e-5)
    assert answer["batched"] == pytest.approx(expected, abs=1e-5)
    assert (answer["dtype"], answer["as_trl"]) == ("float32", None)
    assert answer["engine"].startswith("transformers ")


def test_an_adapter_scores_with_its_base_in_the_precision_of_training_and_as_trl_loads_it(adapter):
    answer = reload.score(str(adapter), TEXTS, dtype="float32")
    assert answer["alone"] == pytest.approx(RewardModel.from_pretrained(adapter).score(TEXTS), abs=1e-5)
    assert answer["dtype"] == "float32"
    assert len(answer["as_trl"]["rewards"]) == 3
    assert ", peft " in answer["engine"]
    assert read_metadata(adapter)["training"]["weights"] == "float32"
    assert reload.score(str(adapter), TEXTS)["dtype"] == "bfloat16"  # as the base is stored


def test_an_adapter_that_transformers_cannot_load_by_itself_gives_the_reason(adapter, base_folder):
    (base_folder / "config.json").unlink()
    assert reload.score_as_trl(str(adapter), [[5, 6]]).startswith("ValueError: Unrecognized model")


def test_given_token_ids_are_scored_in_place_of_the_rendered_ones(full):
    other = reload.score(str(full), TEXTS[:1])
    answer = reload.score(str(full), TEXTS[1:2], ids=other["rendered"])
    assert answer["alone"] == other["alone"]
    assert answer["rendered"] != other["rendered"]


def test_without_a_pad_token_nothing_is_scored_in_a_batch(full, change_json):
    change_json(full / "config.json", pad_token_id=None)
    answer = reload.score(str(full), TEXTS)
    assert answer["batched"] is None
    assert len(answer["alone"]) == 3


def test_the_program_reads_its_request_and_writes_its_answer(full, tmp_path, monkeypatch):
    request = {"path": str(full), "sequences": TEXTS, "ids": None, "trust_remote_code": False}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    monkeypatch.setattr(sys, "argv", ["reload.py", str(tmp_path / "answer.json")])
    monkeypatch.setattr(Path, "write_text", write_nothing_to_proc(Path.write_text))
    reload.main()
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer == reload.score(**request)


def write_nothing_to_proc(write):
    """Path.write_text that leaves this process as dear to the kernel as it is."""
    return lambda path, *args, **options: None if str(path).startswith("/proc") else write(path, *args, **options)
