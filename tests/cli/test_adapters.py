"""Every option of `plaudit train` for adapters and quantisation, from the command line to the saved folder."""

import json

import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from plaudit.cli import cli
from plaudit.errors import PlauditError


@pytest.fixture
def train(base_folder, tmp_path, text_rows, monkeypatch, caplog):
    """Train for two steps on the CPU with further options; return what was logged."""
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in text_rows))
    path = tmp_path / "run.yaml"
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 2}
    run = {"model_name_or_path": str(base_folder), "dataset_name": str(data), "output_dir": str(tmp_path / "run")}
    path.write_text(yaml.safe_dump(run | quiet | {"verify_on_save": False}))

    def train(*options):
        with caplog.at_level("INFO", logger="plaudit"):
            CliRunner().invoke(cli, ["train", str(path), *map(str, options)], catch_exceptions=False)
        return " ".join(caplog.text.split())

    return train


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


def test_the_options_of_lora_reach_the_saved_adapter(train, tmp_path):
    assert "an adapter usually wants about 1e-3" in train("--use_peft", *flags(LORA))
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


def test_the_options_of_qlora_train_and_save_an_adapter(train, tmp_path):
    pytest.importorskip("bitsandbytes")
    assert "about 1e-3" not in train("--use_peft", *flags(FOUR_BIT))
    names = load_file(tmp_path / "run" / "adapter_model.safetensors").keys()
    assert "base_model.model.score.weight" in names
    assert any("lora_magnitude_vector" in name for name in names)


def test_quantised_weights_alone_are_an_error_that_names_the_option(train):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(PlauditError, match="--use_peft"):
        train("--load_in_8bit")


@pytest.mark.parametrize(
    ("options", "warns"), [([], False), (["--use_peft", "--lora_r", 8], False), (["--lora_r", 8, "--use_dora"], True)]
)
def test_options_of_an_adapter_without_use_peft_are_warned_of(train, options, warns):
    assert ("--lora_r --use_dora without --use_peft: ALL weights train" in train(*options)) == warns
