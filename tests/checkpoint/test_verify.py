"""A saved model is damaged, and the verification must name the layer that breaks."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer, BitsAndBytesConfig

from plaudit.checkpoint import reload
from plaudit.checkpoint.inspection import Finding
from plaudit.checkpoint.metadata import read_metadata
from plaudit.checkpoint.verify import verify, verify_and_record
from plaudit.errors import CheckpointError


def reload_here(request):
    """The reload in this process: a fresh one takes seconds, and has tests of its own."""
    return reload.score(**json.loads(json.dumps(request)))


def never(request):
    raise AssertionError("nothing may be loaded")


class Reloads:
    """Reloads of which the first answers, a given number, are changed."""

    def __init__(self, change, changed=1000):
        self.change, self.changed, self.calls = change, changed, 0

    def __call__(self, request):
        answer = reload_here(request)
        self.calls += 1
        if self.calls <= self.changed:
            self.change(answer)
        return answer


def broken(folder, reload=reload_here):
    result = verify(folder, reload=reload)
    assert result.status == "failed"
    return {finding.layer: finding.message for finding in result.broken}


def finding_of(result, layer):
    (finding,) = (each for each in result.findings if each.layer == layer)
    return finding


LAYERS = {"weights", "labels", "head", "tokenizer", "padding", "batches", "rendering", "rewards"}


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_saved_model_is_verified_layer_by_layer(request, kind):
    result = verify(request.getfixturevalue(kind), reload=reload_here)
    assert result.status == "verified", result.findings
    assert all(finding.holds for finding in result.findings)
    assert result.difference <= result.tolerance < 1e-3
    own = {"full": {"configuration"}, "adapter": {"base tokenizer", "TRL's loader"}}[kind]
    assert {finding.layer for finding in result.findings} == LAYERS | own


def test_a_lost_head_is_found_before_anything_is_loaded(full, adapter, change_weights):
    change_weights(full / "model.safetensors", lambda weights: weights.pop("score.weight"))
    assert "random" in broken(full, never)["head"]
    change_weights(adapter / "adapter_model.safetensors", lambda w: w.pop("base_model.model.score.weight"))
    assert "without its head" in broken(adapter, never)["head"]


def test_an_adapter_that_names_no_base_is_not_loaded(adapter, change_json):
    change_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert verify(adapter, reload=never).status == "NOT VERIFIED"


def test_a_changed_head_is_found_by_its_rewards_alone(full, adapter, change_weights):
    change_weights(full / "model.safetensors", lambda weights: weights["score.weight"].mul_(1.01))
    assert broken(full).keys() == {"rewards"}
    change_weights(adapter / "adapter_model.safetensors", lambda w: w["base_model.model.score.weight"].mul_(1.01))
    assert broken(adapter).keys() == {"rewards"}


def test_an_adapter_on_another_base_is_found(adapter, base_folder, change_weights):
    change_weights(base_folder / "model.safetensors", lambda weights: weights["model.norm.weight"].mul_(1.05))
    message = broken(adapter)["rewards"]
    assert "the adapter is on another base" in message


def test_a_model_without_a_pad_token_cannot_score_batches(full, change_json):
    change_json(full / "config.json", pad_token_id=None)
    assert {"padding", "batches"} <= broken(full).keys()


def test_a_changed_template_is_told_apart_from_changed_weights(full):
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")
    tokenizer.save_pretrained(full)
    assert broken(full).keys() == {"tokenizer", "rendering"}


def test_a_template_that_writes_the_date_leaves_the_rendering_open(full, change_json):
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(full)
    change_json(full / "reward.json", rendering=None)
    result = verify(full, reload=reload_here)
    assert result.status == "verified"
    finding = finding_of(result, "rendering")
    assert finding.holds is None
    assert "from day to day" in finding.message


def test_rewards_are_compared_where_the_configuration_breaks(full, change_json):
    change_json(full / "config.json", problem_type=None, mean=None)
    found = verify(full, reload=reload_here)
    assert {each.layer for each in found.broken} == {"configuration"}
    assert found.difference <= found.tolerance


def test_a_base_in_an_older_format_does_not_cost_the_verification(adapter, base_folder):
    torch.save(load_file(base_folder / "model.safetensors"), base_folder / "pytorch_model.bin")
    (base_folder / "model.safetensors").unlink()
    assert verify(adapter, reload=reload_here).status == "verified"


def test_a_base_without_a_tokenizer_does_not_cost_the_verification(adapter, base_folder):
    for path in (*base_folder.glob("token*"), *base_folder.glob("chat*")):
        path.unlink()
    assert verify(adapter, reload=reload_here).status == "verified"


# What concerns other loaders of an adapter


def test_a_base_with_another_template_fails_a_verification_and_not_a_save(adapter, base_folder):
    (base_folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert broken(adapter).keys() == {"base tokenizer"}
    assert verify_and_record(adapter, reload=reload_here).status == "verified"
    assert "chat template" in read_metadata(adapter)["verification"]["remarks"][0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # transformers' own loader of adapters leaves out the magnitudes that DoRA has trained
        ("dora", {"peft_config": LoraConfig(use_dora=True, init_lora_weights=False)}),
        # and does not quantise the base
        ("qlora", {"peft_config": LoraConfig(), "quantization_config": BitsAndBytesConfig(load_in_4bit=True)}),
    ],
)
def test_an_adapter_that_trl_loads_otherwise_fails_a_verification_and_not_a_save(
    train_once, base_folder, change_json, name, options
):
    folder = train_once(name, **options)
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(base_folder))
    assert verify_and_record(folder, reload=reload_here).status == "verified"
    found = broken(folder)
    assert found.keys() == {"TRL's loader"}
    assert "plaudit merge" in found["TRL's loader"]


def test_an_adapter_that_transformers_cannot_load_by_itself_fails_with_its_reason(adapter):
    reload = Reloads(lambda answer: answer.update(as_trl="OSError: no config.json"))
    assert "(OSError: no config.json)" in broken(adapter, reload)["TRL's loader"]


# What counts as a difference


@pytest.mark.parametrize("place", [0, 5, 11])
def test_one_reward_that_is_not_a_number_breaks_its_layer(full, adapter, place):
    for kind, layer in (("alone", "rewards"), ("batched", "batches"), ("as_trl", "TRL's loader")):

        def spoil(answer, kind=kind):
            rewards = answer[kind]["rewards"] if kind == "as_trl" else answer[kind]
            rewards[place] = float("nan")

        assert layer in broken(adapter if kind == "as_trl" else full, Reloads(spoil))


@pytest.mark.parametrize(("kind", "layer"), [("alone", "rewards"), ("batched", "batches")])
def test_one_unlucky_rounding_is_no_failure_and_a_shift_of_all_is(full, kind, layer):
    tolerance = verify(full, reload=reload_here).tolerance

    def one(answer):
        answer[kind] = [reward + 2 * tolerance * (n == 3) for n, reward in enumerate(answer[kind])]

    def all_of_them(answer):
        answer[kind] = [reward + 2 * tolerance for reward in answer[kind]]

    assert verify(full, reload=Reloads(one)).status == "verified"
    assert layer in broken(full, Reloads(all_of_them))


@pytest.mark.parametrize("kind", ["alone", "batched"])
def test_a_difference_is_measured_once_more_before_it_decides(full, kind):
    def shift(answer):
        answer[kind] = [reward + 1 for reward in answer[kind]]

    unchanged, once, always = Reloads(shift, 0), Reloads(shift, 1), Reloads(shift)
    assert verify(full, reload=unchanged).status == verify(full, reload=once).status == "verified"
    assert verify(full, reload=always).status == "failed"
    assert (unchanged.calls, once.calls, always.calls) == (1, 2, 2)


def test_padding_of_prompt_tuning_is_left_open(adapter, change_json):
    change_json(adapter / "adapter_config.json", num_virtual_tokens=2)

    def reload(request):
        answer = {"rendered": request["ids"], "alone": [1.0, 2.0], "batched": [2.0, 1.0], "as_trl": None}
        return answer | {"dtype": "float32", "engine": "none"}

    finding = finding_of(verify_without_fingerprint(adapter, change_json, reload), "batches")
    assert finding.holds is None
    assert "one sequence at a time" in finding.message


def verify_without_fingerprint(folder, change_json, reload):
    change_json(folder / "reward.json", fingerprint=None)
    return verify(folder, reload=reload)


# When nothing can be compared


def test_without_a_fingerprint_nothing_is_proven(full, adapter, change_json):
    (full / "reward.json").unlink()
    for result in (verify(full, reload=reload_here), verify_without_fingerprint(adapter, change_json, reload_here)):
        assert result.status == "NOT VERIFIED"
        assert result.difference is None
        assert "no reward.json with a fingerprint" in finding_of(result, "rewards").message
        assert finding_of(result, "batches").holds


def test_without_a_tokenizer_nothing_is_loaded(full):
    (full / "tokenizer_config.json").unlink()
    assert "there is no tokenizer" in broken(full, never)["tokenizer"]


def test_a_reload_that_fails_ends_the_findings(full):
    result = verify(full, reload=lambda _: Finding("reload", None, "the model runs on a GPU alone"))
    assert result.status == "NOT VERIFIED"
    assert result.findings[-1].message == "the model runs on a GPU alone"


def test_too_little_memory_is_not_verified_and_recorded(full, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1 << 20}))
    assert verify_and_record(full, reload=never).status == "NOT VERIFIED"
    recorded = read_metadata(full)["verification"]
    assert recorded["status"] == "NOT VERIFIED"
    assert "GB are free" in recorded["remarks"][0]


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        verify("/nowhere/at/all")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a file: name the folder"):
        verify(tmp_path / "config.json")


# After a save


def test_the_outcome_is_recorded(full):
    result = verify_and_record(full, reload=reload_here)
    recorded = read_metadata(full)["verification"]
    assert recorded == {
        "status": "verified", "largest_difference": result.difference, "tolerance": result.tolerance,
        "engine": result.engine, "remarks": [],
    }  # fmt: skip


def test_a_failed_verification_keeps_and_names_the_files(full, change_weights):
    change_weights(full / "model.safetensors", lambda weights: weights["score.weight"].mul_(-1))
    with pytest.raises(CheckpointError, match="does not score there as it did") as error:
        verify_and_record(full, reload=reload_here)
    assert str(full) in str(error.value)
    assert (full / "model.safetensors").is_file()
    assert read_metadata(full)["verification"]["status"] == "failed"
