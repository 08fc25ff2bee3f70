"""Every option of an adapter and of quantisation, from the command line to the saved folder."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def train(*options):
    command = [sys.executable, "-m", "plaudit.cli", "train", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET, timeout=300)


@pytest.fixture
def options(base_folder, tmp_path, text_rows):
    """A file of options for two steps on the CPU."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in text_rows))
    path = tmp_path / "run.yaml"
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 2}
    run = {"model_name_or_path": str(base_folder), "dataset_name": str(data), "output_dir": str(tmp_path / "run")}
    path.write_text(yaml.safe_dump(run | quiet))
    return path


LORA = {
    "lora_r": [4], "lora_alpha": [8], "lora_dropout": [0.25], "lora_target_modules": ["q_proj", "up_proj"],
    "lora_target_parameters": ["self_attn.k_proj.weight"], "lora_modules_to_save": ["norm"],
    "lora_task_type": ["SEQ_CLS"], "use_rslora": [],
}  # fmt: skip
FOUR_BIT = {
    "use_dora": [], "load_in_4bit": [], "bnb_4bit_quant_type": ["nf4"], "use_bnb_nested_quant": [],
    "bnb_4bit_quant_storage": ["uint8"], "learning_rate": [1e-3],
}  # fmt: skip


def flags(options):
    return [part for name, values in options.items() for part in (f"--{name}", *values)]


def test_the_options_of_lora_reach_the_saved_adapter(options, tmp_path):
    result = train(options, "--use_peft", *flags(LORA))
    assert result.returncode == 0, result.stderr
    assert "an adapter usually wants about 1e-3" in " ".join((result.stdout + result.stderr).split())
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 8, True)
    assert config["lora_dropout"] == 0  # `disable_dropout` holds; PEFT would refuse one on a bare parameter
    assert sorted(config["target_modules"]) == ["q_proj", "up_proj"]
    assert config["target_parameters"] == ["self_attn.k_proj.weight"]
    assert config["task_type"] == "SEQ_CLS"
    names = load_file(tmp_path / "run" / "adapter_model.safetensors").keys()
    assert {"base_model.model.score.weight", "base_model.model.model.norm.weight"} <= names
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name in names if "lora_A" in name}
    assert adapted == {"q_proj", "up_proj", "k_proj"}


def test_the_options_of_qlora_train_and_save_an_adapter(options, tmp_path):
    pytest.importorskip("bitsandbytes")
    result = train(options, "--use_peft", *flags(FOUR_BIT))
    assert result.returncode == 0, result.stderr
    assert "about 1e-3" not in result.stdout + result.stderr
    names = load_file(tmp_path / "run" / "adapter_model.safetensors").keys()
    assert "base_model.model.score.weight" in names
    assert any("lora_magnitude_vector" in name for name in names)


def test_quantised_weights_alone_are_an_error_that_names_the_option(options):
    pytest.importorskip("bitsandbytes")
    result = train(options, "--load_in_8bit")
    assert result.returncode != 0
    assert "--use_peft" in result.stderr
    assert "Traceback" not in result.stderr


def test_options_of_an_adapter_that_is_not_asked_for_are_warned_of(caplog):
    from plaudit.cli.train import _warn_of_idle_options
    from plaudit.models.model_config import ModelConfig

    with caplog.at_level("WARNING", logger="plaudit"):
        _warn_of_idle_options(ModelConfig())
        _warn_of_idle_options(ModelConfig(use_peft=True, lora_r=8))
        assert not caplog.text
        _warn_of_idle_options(ModelConfig(lora_r=8, use_dora=True))
    assert "--lora_r --use_dora without --use_peft: ALL weights train" in caplog.text
