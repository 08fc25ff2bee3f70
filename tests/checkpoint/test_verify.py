"""Each layer of the contract is broken in turn, and the verification must name that one."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from plaudit.checkpoint import reload
from plaudit.checkpoint import verify as verification
from plaudit.checkpoint.description import read_description
from plaudit.checkpoint.verify import verify, verify_and_record
from plaudit.errors import CheckpointError


@pytest.fixture
def in_process(monkeypatch):
    """The reload in this process: a fresh one takes seconds, and is tested for itself below."""
    monkeypatch.setattr(verification, "_ask", lambda request: reload.score(**json.loads(json.dumps(request))))


@pytest.fixture
def full(make_trainer, base_folder, chat_rows):
    """A saved reward model."""
    trainer = make_trainer(model=str(base_folder), train_dataset=chat_rows, max_steps=2, learning_rate=2e-2)
    trainer.train()
    trainer.save_model()
    return trainer.args.output_dir


@pytest.fixture
def adapter(make_trainer, base_folder, text_rows, tmp_path):
    """A saved reward adapter."""
    trainer = make_trainer.func(
        tmp_path / "adapter",
        model=str(base_folder),
        train_dataset=text_rows,
        max_steps=2,
        learning_rate=2e-2,
        peft_config=LoraConfig(),
    )
    trainer.train()
    trainer.save_model()
    return trainer.args.output_dir


def change_json(folder, name, **changes):
    path = f"{folder}/{name}"
    with open(path) as file:
        content = json.load(file)
    with open(path, "w") as file:
        json.dump({key: value for key, value in (content | changes).items() if value is not None}, file)


def change_weights(folder, change, file="model.safetensors"):
    weights = load_file(f"{folder}/{file}")
    change(weights)
    save_file(weights, f"{folder}/{file}", metadata={"format": "pt"})


def broken(folder):
    result = verify(folder)
    assert result.status == "failed"
    return {finding.layer: finding.message for finding in result.broken}


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_what_was_saved_is_verified_layer_by_layer(request, kind, in_process):
    result = verify(request.getfixturevalue(kind))
    assert result.status == "verified", result.findings
    assert all(finding.holds for finding in result.findings)
    assert result.difference <= result.tolerance < 1e-3
    layers = {finding.layer for finding in result.findings}
    assert layers >= {"weights", "labels", "head", "tokenizer", "padding", "batches", "rendering", "rewards"}
    assert ("base tokenizer" in layers) == (kind == "adapter")


def test_a_lost_head_is_found_before_anything_is_loaded(full, adapter, monkeypatch):
    monkeypatch.setattr(verification, "_ask", None)
    change_weights(full, lambda weights: weights.pop("score.weight"))
    assert "random" in broken(full)["head"]
    change_weights(adapter, lambda w: w.pop("base_model.model.score.weight"), "adapter_model.safetensors")
    assert "without its head" in broken(adapter)["head"]


def test_a_changed_head_is_found_by_its_rewards_alone(full, adapter, in_process):
    change_weights(full, lambda weights: weights["score.weight"].mul_(1.01))
    assert broken(full).keys() == {"rewards"}
    change_weights(adapter, lambda w: w["base_model.model.score.weight"].mul_(1.01), "adapter_model.safetensors")
    assert broken(adapter).keys() == {"rewards"}


def test_an_adapter_on_another_base_is_found(adapter, base_folder, in_process):
    change_weights(base_folder, lambda weights: weights["model.norm.weight"].mul_(1.05))
    assert broken(adapter).keys() == {"rewards"}


def test_two_labels_are_found(full):
    change_json(full, "config.json", id2label={"0": "a", "1": "b"})
    assert "2 labels" in broken(full)["labels"]
    change_json(full, "config.json", id2label=None)  # transformers' own default
    assert "2 labels" in broken(full)["labels"]


def test_a_head_of_two_rows_is_found(full):
    def widen(weights):
        weights["score.weight"] = weights["score.weight"].repeat(2, 1)

    change_weights(full, widen)
    assert "[2, 32]" in broken(full)["head"]


def test_a_language_model_is_no_reward_model(base_folder):
    found = broken(base_folder)
    assert "Qwen3ForCausalLM" in found["weights"]
    assert "head" in found


def test_pad_that_is_eos_is_found_in_the_files_and_in_the_rewards(full, in_process):
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(full)
    change_json(full, "config.json", pad_token_id=tokenizer.eos_token_id)
    assert "pad is EOS" in broken(full)["padding"]


def test_a_pad_token_that_the_config_does_not_know_is_found(full, in_process):
    change_json(full, "config.json", pad_token_id=7)
    assert "pad_token_id=7" in broken(full)["padding"]
    change_json(full, "config.json", pad_token_id=None)
    assert {"padding", "batches"} <= broken(full).keys()


def test_a_changed_template_is_told_apart_from_changed_weights(full, in_process):
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")
    tokenizer.save_pretrained(full)
    assert broken(full).keys() == {"tokenizer", "rendering"}


def test_a_template_that_writes_the_date_leaves_the_rendering_open(full, in_process):
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(full)
    change_json(full, "reward.json", rendering=None)
    result = verify(full)
    assert result.status == "verified"
    (finding,) = (each for each in result.findings if each.layer == "rendering")
    assert finding.holds is None
    assert "from day to day" in finding.message


def test_what_vllm_and_openrlhf_read_is_asked_for_and_the_rewards_still_compared(full, in_process):
    change_json(full, "config.json", problem_type=None, mean=None)
    found = verify(full)
    assert {each.layer for each in found.broken} == {"configuration"}
    assert found.difference <= found.tolerance


def test_a_base_with_another_template_fails_and_names_the_ways_out(adapter, base_folder, in_process):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(base_folder)
    message = broken(adapter)["base tokenizer"]
    assert "plaudit merge" in message
    assert "reward_processing_classes" in message
    assert verify_and_record(Path(adapter)).status == "verified"  # a save must not fail for it
    assert "chat template" in read_description(Path(adapter))["verification"]["remarks"][0]


def test_a_file_that_is_cut_off_is_named(full):
    path = f"{full}/model.safetensors"
    with open(path, "rb") as file:
        content = file.read()
    for length in (len(content) - 10, 20, 3):
        with open(path, "wb") as file:
            file.write(content[:length])
        assert "model.safetensors is not whole" in broken(full)["weights"]


def test_without_a_tokenizer_it_says_so(full):
    Path(full).joinpath("tokenizer_config.json").unlink()
    assert "there is no tokenizer" in broken(full)["tokenizer"]


def test_without_a_fingerprint_nothing_is_proven(full, in_process):
    Path(full).joinpath("reward.json").unlink()
    result = verify(full)
    assert result.status == "NOT VERIFIED"
    assert result.difference is None


def test_too_little_memory_is_not_verified_and_recorded(full, monkeypatch):
    monkeypatch.setattr(verification.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 20}))
    monkeypatch.setattr(verification, "_ask", None)
    result = verify_and_record(Path(full))
    assert result.status == "NOT VERIFIED"
    recorded = read_description(Path(full))["verification"]
    assert recorded["status"] == "NOT VERIFIED"
    assert "GB are free" in recorded["remarks"][0]


@pytest.mark.parametrize(
    ("program", "layer", "status"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "rewards", "NOT VERIFIED"),
        ("raise MemoryError", "rewards", "NOT VERIFIED"),
        ("raise ValueError('the head is gone')", "reload", "failed"),
    ],
)
def test_a_fresh_process_that_dies_is_told_from_one_that_fails(full, tmp_path, monkeypatch, program, layer, status):
    script = tmp_path / "program.py"
    script.write_text(program)
    monkeypatch.setattr(verification.reload, "__file__", str(script))
    result = verify(full)
    assert (result.status, result.findings[-1].layer) == (status, layer)
    assert status != "failed" or "the head is gone" in result.findings[-1].message


def test_the_fresh_process_knows_nothing_of_launchers_devices_or_plaudit(full, tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    script.write_text(
        "import json, os, sys\n"
        "given = json.load(sys.stdin)\n"
        "assert 'plaudit' not in sys.modules and sys.path[0] != os.path.dirname(__file__)\n"
        "names = ('RANK', 'ACCELERATE_USE_FSDP', 'CUDA_VISIBLE_DEVICES')\n"
        "raise SystemExit(json.dumps([os.environ.get(name) for name in names]))"
    )
    monkeypatch.setattr(verification.reload, "__file__", str(script))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert '[null, null, ""]' in verify(full).findings[-1].message


def test_a_failed_verification_keeps_and_names_the_files(full, in_process):
    change_weights(full, lambda weights: weights["score.weight"].mul_(-1))
    with pytest.raises(CheckpointError, match="does not score there as it did") as error:
        verify_and_record(Path(full))
    assert full in str(error.value)
    assert Path(full).joinpath("model.safetensors").is_file()
    assert read_description(Path(full))["verification"]["status"] == "failed"


def test_there_must_be_something():
    with pytest.raises(CheckpointError, match="there is no such folder"):
        verify("/nowhere/at/all")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_fresh_process_gives_the_same_rewards(request, kind):
    result = verify(request.getfixturevalue(kind))
    assert result.status == "verified", result.findings
    assert result.engine.startswith("transformers ")
    assert result.difference < 1e-5


def test_the_reload_imports_nothing_of_plaudit():
    text = Path(reload.__file__).read_text()
    assert "import plaudit" not in text
    assert "from plaudit" not in text
