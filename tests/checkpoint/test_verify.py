"""Each layer of the contract is broken in turn, and the verification must name that one."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from plaudit import RewardModel
from plaudit.checkpoint import reload
from plaudit.checkpoint import verify as verification
from plaudit.checkpoint.inspection import Finding, SavedModel, inspect_files
from plaudit.checkpoint.metadata import read_metadata
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
    assert found.keys() == {"weights"}
    assert "this is a language model (Qwen3ForCausalLM)" in found["weights"]


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


def test_a_pad_token_that_is_another_or_gone_is_found(full, monkeypatch):
    monkeypatch.setattr(verification, "_ask", lambda _: Finding("rewards", None, ""))
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.pad_token = "<|im_start|>"
    tokenizer.save_pretrained(full)
    assert "pad was '<pad>' and is '<|im_start|>'" in broken(full)["tokenizer"]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(full)
    assert "has no pad token" in broken(full)["padding"]


def test_what_an_adapter_says_of_its_task_its_head_and_its_base_is_looked_at(adapter, base_folder, monkeypatch):
    monkeypatch.setattr(verification, "_ask", None)
    change_json(adapter, "adapter_config.json", base_model_name_or_path=None)
    result = verify(adapter)
    assert result.status == "NOT VERIFIED"
    assert "names no base model" in result.findings[-1].message
    change_json(adapter, "adapter_config.json", base_model_name_or_path=str(base_folder))
    heads = {}
    change_weights(
        adapter, lambda w: heads.update(head=w.pop("base_model.model.score.weight")), "adapter_model.safetensors"
    )
    change_weights(base_folder, lambda weights: weights.update({"score.weight": heads["head"]}))
    (found,) = (each for each in inspect_files(SavedModel(Path(adapter))) if each.layer == "head")
    assert found.holds  # it lies in the base, of which this adapter is
    change_json(adapter, "adapter_config.json", task_type="CAUSAL_LM")
    assert "CAUSAL_LM, expected SEQ_CLS" in broken(adapter)["labels"]


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
    assert "chat template" in read_metadata(Path(adapter))["verification"]["remarks"][0]


def test_weights_that_trls_loader_leaves_out_are_found_and_a_save_does_not_fail_for_them(
    make_trainer, base_folder, in_process
):
    """transformers' own loader of adapters leaves out the magnitudes that DoRA has trained."""
    trainer = make_trainer(
        model=str(base_folder), max_steps=4, learning_rate=5e-2, verify_on_save=True,
        peft_config=LoraConfig(use_dora=True, init_lora_weights=False),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    assert trainer.verification.status == "verified"
    found = broken(trainer.args.output_dir)
    assert found.keys() == {"TRL's loader"}
    assert "plaudit merge" in found["TRL's loader"]


def test_a_base_that_trl_would_not_quantise_is_found_and_a_save_does_not_fail_for_it(
    make_trainer, base_folder, in_process
):
    trainer = make_trainer(
        model=str(base_folder), max_steps=2, learning_rate=2e-2, verify_on_save=True, peft_config=LoraConfig(),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    assert trainer.verification.status == "verified"
    assert broken(trainer.args.output_dir).keys() == {"TRL's loader"}


def test_a_file_that_is_cut_off_is_named(full):
    path = f"{full}/model.safetensors"
    with open(path, "rb") as file:
        content = file.read()
    for length in (len(content) - 10, 20, 3):
        with open(path, "wb") as file:
            file.write(content[:length])
        assert "model.safetensors is not whole" in broken(full)["weights"]


def folder_of(path, shapes, **files):
    path.mkdir()
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path / files.pop("weights"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return SavedModel(path)


def test_the_head_is_found_among_all_that_is_kept_whole(tmp_path):
    own = "base_model.model."
    shapes = {f"{own}model.embed_tokens.weight": [9, 4], f"{own}score.weight": [1, 4], f"{own}model.norm.weight": [4]}
    config = {"modules_to_save": ["embed_tokens", "norm"]}
    weights = "adapter_model.safetensors"
    assert folder_of(tmp_path / "a", shapes, weights=weights, adapter_config=config).head == f"{own}score.weight"
    del shapes[f"{own}score.weight"]
    assert folder_of(tmp_path / "b", shapes, weights=weights, adapter_config=config).head is None
    # Funnel's, of which the first layer has the longer name; and XLNet's, which is called otherwise
    shapes = {"classifier.linear_hidden.weight": [4, 4], "classifier.linear_out.weight": [1, 4]}
    weights = "model.safetensors"
    found = folder_of(tmp_path / "c", shapes, weights=weights, config={"value_head_prefix": "classifier"}).head
    assert found == "classifier.linear_out.weight"
    shapes = {"sequence_summary.weight": [1, 4], "logits_proj.weight": [1, 4]}
    found = folder_of(tmp_path / "d", shapes, weights=weights, config={"value_head_prefix": "logits_proj"}).head
    assert found == "logits_proj.weight"


def test_shards_are_read_as_the_index_names_them(full, in_process):
    model = AutoModelForSequenceClassification.from_pretrained(full)
    Path(full, "model.safetensors").unlink()
    model.save_pretrained(full, max_shard_size="20KB")
    shards = sorted(Path(full).glob("model-*.safetensors"))
    assert len(shards) > 2
    save_file({"stale.weight": torch.zeros(2)}, f"{full}/model-of-an-earlier-run.safetensors")
    assert verify(full).status == "verified"
    assert SavedModel(Path(full)).shapes.keys() == model.state_dict().keys()
    shards[1].unlink()
    assert f"{shards[1].name}: there are no such weights" in broken(full)["weights"]


@pytest.mark.parametrize("content", ['{"versions": {"plau', "[]", ""])
def test_a_description_that_is_damaged_is_named(full, adapter, content):
    for folder in (full, adapter):
        Path(folder, "reward.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"reward\.json is not whole"):
            verify(folder)
    with pytest.raises(CheckpointError, match=r"reward\.json is not whole"):
        RewardModel.from_pretrained(adapter)


def answer_with(monkeypatch, change):
    def ask(request):
        answer = reload.score(**json.loads(json.dumps(request)))
        change(answer)
        return answer

    monkeypatch.setattr(verification, "_ask", ask)


@pytest.mark.parametrize("place", [0, 5, 11])
def test_one_reward_that_is_no_number_breaks_its_layer(full, adapter, monkeypatch, place):
    for kind, layer in (("alone", "rewards"), ("batched", "batches"), ("integrated", "TRL's loader")):

        def spoil(answer, kind=kind):
            rewards = answer[kind]["rewards"] if kind == "integrated" else answer[kind]
            rewards[place] = float("nan")

        answer_with(monkeypatch, spoil)
        assert layer in broken(adapter if kind == "integrated" else full)


def test_one_unlucky_rounding_is_no_failure_and_a_shift_of_all_is(full, monkeypatch):
    answer_with(monkeypatch, lambda answer: None)
    tolerance = verify(full).tolerance
    for kind, layer in (("alone", "rewards"), ("batched", "batches")):

        def one(answer, kind=kind):
            answer[kind] = [reward + 2 * tolerance * (n == 3) for n, reward in enumerate(answer[kind])]

        def all_of_them(answer, kind=kind):
            answer[kind] = [reward + 2 * tolerance for reward in answer[kind]]

        answer_with(monkeypatch, one)
        assert verify(full).status == "verified"
        answer_with(monkeypatch, all_of_them)
        assert layer in broken(full)


def test_a_base_in_an_older_format_does_not_cost_the_verification(adapter, base_folder, in_process):
    torch.save(load_file(base_folder / "model.safetensors"), base_folder / "pytorch_model.bin")
    (base_folder / "model.safetensors").unlink()
    assert verify(adapter).status == "verified"


def test_a_base_of_the_hub_counts_for_the_memory_once_it_was_downloaded(adapter, base_folder, monkeypatch):
    before = SavedModel(Path(adapter)).parameters()
    asked = []

    def cached(*name, revision):
        asked.append((*name, revision))
        return str(base_folder / "config.json")

    monkeypatch.setattr("plaudit.checkpoint.inspection.try_to_load_from_cache", cached)
    change_json(adapter, "adapter_config.json", base_model_name_or_path="somebody/model", revision="abc")
    assert SavedModel(Path(adapter)).parameters() == before
    assert asked == [("somebody/model", "config.json", "abc")]


def test_a_base_without_a_tokenizer_leaves_that_open(adapter, base_folder, in_process):
    for path in (*base_folder.glob("token*"), *base_folder.glob("chat*")):
        path.unlink()
    result = verify(adapter)
    assert result.status == "verified"
    (finding,) = (each for each in result.findings if each.layer == "base tokenizer")
    assert finding.holds is None
    assert "no tokenizer files" in finding.message


def test_without_a_tokenizer_it_says_so(full):
    Path(full).joinpath("tokenizer_config.json").unlink()
    for _ in ("with a fingerprint", "without one"):
        assert "there is no tokenizer" in broken(full)["tokenizer"]
        Path(full).joinpath("reward.json").unlink(missing_ok=True)


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
    recorded = read_metadata(Path(full))["verification"]
    assert recorded["status"] == "NOT VERIFIED"
    assert "GB are free" in recorded["remarks"][0]


@pytest.mark.parametrize(
    ("program", "layer", "status"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "rewards", "NOT VERIFIED"),
        ("raise MemoryError", "rewards", "NOT VERIFIED"),
        ("raise ValueError('the head is gone')", "reload", "failed"),
        ("raise ValueError('the head is gone\\nfor many\\nlines')", "reload", "failed"),
        ("raise RuntimeError('GPU is required to quantize or run quantize model.')", "reload", "NOT VERIFIED"),
        ("raise OSError('the head is gone')", "reload", "failed"),
    ],
)
def test_a_fresh_process_that_dies_is_told_from_one_that_fails(full, tmp_path, monkeypatch, program, layer, status):
    script = tmp_path / "program.py"
    script.write_text(program)
    monkeypatch.setattr(verification.reload, "__file__", str(script))
    result = verify(full)
    assert (result.status, result.findings[-1].layer) == (status, layer)
    assert status != "failed" or "the head is gone" in result.findings[-1].message


def test_a_base_that_cannot_be_loaded_here_proves_nothing(adapter, tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    script.write_text('raise OSError("We couldn\'t connect.\\nCheck your connection.")')
    monkeypatch.setattr(verification.reload, "__file__", str(script))
    result = verify(adapter)
    assert result.status == "NOT VERIFIED"
    assert "base could not be loaded: OSError: We couldn't connect" in result.findings[-1].message


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
    assert read_metadata(Path(full))["verification"]["status"] == "failed"


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
