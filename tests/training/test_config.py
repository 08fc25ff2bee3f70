import argparse
import dataclasses
import json
import warnings

import pytest
import torch
from transformers import HfArgumentParser

from plaudit import ModelConfig, RewardConfig, ScriptArguments
from plaudit.errors import ConfigError
from plaudit.models.quantization import get_quantization_config

ABLE, UNABLE = {"avx512_bf16": True, "avx2": True}, {"avx512_bf16": False, "avx2": True, "avx512_f": True}


@pytest.fixture
def cpu(monkeypatch):
    """A function that makes this a machine without an accelerator, whose CPU has the capabilities given."""

    def make(capabilities):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    return make


def test_the_defaults_are_those_that_the_documentation_names():
    config = RewardConfig("out")
    assert config.learning_rate == 1e-4
    assert config.logging_steps == 10
    assert config.max_length == 1024
    assert config.disable_dropout is True
    assert config.overlong == "drop"
    assert config.batch_layout == "auto"
    assert config.activation_checkpointing is True
    for name in ("eos_token", "pad_token", "center_rewards_coefficient", "model_init_kwargs", "chat_template_path",
                 "dataset_num_proc", "pad_to_multiple_of", "overlong_max_fraction"):  # fmt: skip
        assert getattr(config, name) is None
    assert config.activation_offloading is config.trust_remote_code is config.logging_nan_inf_filter is False


@pytest.mark.parametrize(("capabilities", "expected"), [(ABLE, True), (UNABLE, False), ({}, False)])
def test_bf16_is_on_where_the_cpu_computes_it_well_and_the_config_never_raises(cpu, capabilities, expected):
    cpu(capabilities)
    config = RewardConfig("out")
    assert (config.bf16, config.use_cpu, config.device.type) == (expected, True, "cpu")


def test_bf16_that_was_asked_for_is_kept(cpu):
    cpu(UNABLE)
    assert RewardConfig("out", bf16=True).bf16 is True
    cpu(ABLE)
    assert RewardConfig("out", bf16=False).bf16 is False
    assert RewardConfig("out", fp16=True).bf16 is False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"gradient_checkpointing": False}, False),
        ({"activation_checkpointing": False}, False),
        ({"gradient_checkpointing": True}, True),
        ({"activation_checkpointing": False, "gradient_checkpointing": True}, False),
    ],
)
def test_both_names_of_checkpointing_are_taken_without_a_warning(given, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = RewardConfig("out", **given)
        assert config.activation_checkpointing is expected


def test_both_names_of_the_checkpointing_options_are_taken():
    options = {"use_reentrant": False}
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        assert RewardConfig("out", **{name: options}).activation_checkpointing_kwargs == options


def test_a_config_can_be_replaced_and_keeps_what_was_settled(cpu):
    cpu(UNABLE)
    config = RewardConfig("out", gradient_checkpointing=False, pad_to_multiple_of="8", model_init_kwargs={"a": 1})
    other = dataclasses.replace(config, learning_rate=3e-5, max_length=None)
    assert (other.learning_rate, other.max_length) == (3e-5, None)
    assert (other.activation_checkpointing, other.pad_to_multiple_of, other.bf16) == (False, 8, False)
    assert other.model_init_kwargs == {"a": 1}


def test_a_config_survives_json():
    config = RewardConfig("out", bf16=False, model_init_kwargs={"dtype": "bfloat16"}, center_rewards_coefficient=0.01)
    stored = json.loads(config.to_json_string())
    assert stored["center_rewards_coefficient"] == 0.01
    assert stored["model_init_kwargs"] == {"dtype": "bfloat16"}


@pytest.mark.parametrize(("given", "expected"), [("auto", None), ("none", None), ("8", 8), (8, 8), (None, None)])
def test_pad_to_multiple_of_takes_a_number_auto_or_none(given, expected):
    assert RewardConfig("out", pad_to_multiple_of=given).pad_to_multiple_of == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pad_to_multiple_of": "8.5"}, "pad_to_multiple_of: expected a whole number, 'auto' or 'none', got '8.5'"),
        ({"pad_to_multiple_of": "lots"}, "pad_to_multiple_of: expected a whole number"),
        ({"overlong": "cut"}, "overlong: expected one of drop, truncate, error, got 'cut'"),
        ({"batch_layout": "flat"}, "batch_layout: expected one of auto, forest, padded, got 'flat'"),
        ({"max_length": 0}, "max_length: expected a whole number above 0, or None, got 0"),
        ({"overlong_max_fraction": 1.5}, "overlong_max_fraction: expected a number from 0 to 1, got 1.5"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is for classification losses"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_those_that_can(option, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig("out", **option)


def parse(*flags):
    return HfArgumentParser(RewardConfig).parse_args_into_dataclasses(["--output_dir", "out", *flags])[0]


def test_flags_say_what_arguments_say():
    config = parse(
        "--max_length", "64", "--overlong", "truncate", "--disable_dropout", "false", "--bf16", "false",
        "--gradient_checkpointing", "false", "--pad_to_multiple_of", "8", "--activation_offloading",
        "--center_rewards_coefficient", "0.01", "--model_init_kwargs", '{"dtype": "bfloat16"}',
    )  # fmt: skip
    same = RewardConfig(
        "out", max_length=64, overlong="truncate", disable_dropout=False, bf16=False, gradient_checkpointing=False,
        pad_to_multiple_of=8, activation_offloading=True, center_rewards_coefficient=0.01,
        model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    for name in ("max_length", "overlong", "disable_dropout", "bf16", "activation_checkpointing", "pad_to_multiple_of",
                 "activation_offloading", "center_rewards_coefficient", "model_init_kwargs"):  # fmt: skip
        assert getattr(config, name) == getattr(same, name), name


def test_a_flag_without_a_value_turns_checkpointing_on():
    assert parse("--gradient_checkpointing").activation_checkpointing is True


def test_an_unknown_choice_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        parse("--overlong", "cut")
    assert "--overlong" in capsys.readouterr().err


def test_help_can_be_written_for_all_the_options_of_a_script():
    parser = HfArgumentParser((ScriptArguments, RewardConfig, ModelConfig))
    text = parser.format_help()  # a bare % in a help string would raise here
    for flag in ("--center_rewards_coefficient", "--use_peft", "--dataset_name", "--overlong_max_fraction"):
        assert flag in text
    assert isinstance(parser, argparse.ArgumentParser)


# ModelConfig


def test_a_quantisation_config_follows_the_options():
    assert get_quantization_config(ModelConfig()) is None
    eight = get_quantization_config(ModelConfig(load_in_8bit=True))
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
    four = get_quantization_config(
        ModelConfig(load_in_4bit=True, dtype="bfloat16", use_bnb_nested_quant=True, bnb_4bit_quant_type="fp4")
    )
    assert four.load_in_4bit is four.bnb_4bit_use_double_quant is True
    assert (four.bnb_4bit_compute_dtype, four.bnb_4bit_quant_type) == (torch.bfloat16, "fp4")


def test_two_quantisations_at_once_are_refused():
    with pytest.raises(ConfigError, match="load_in_8bit and load_in_4bit are both set"):
        ModelConfig(load_in_8bit=True, load_in_4bit=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate: expected a number of at least 0, got -1.0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected a whole number above 0, got 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected a whole number above 0, got 0"),
        ({"num_train_epochs": -1}, "num_train_epochs: expected a number above 0, got -1"),
        ({"max_steps": -3}, "max_steps: expected a whole number above 0, or -1 for all epochs, got -3"),
        ({"train_sampling_strategy": "group_by_length"}, "is not offered, since a row is two sequences"),
    ],
)
def test_numbers_that_would_train_nothing_or_fail_late_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig(str(tmp_path), **options)


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="taken' is a file"):
        RewardConfig(str(tmp_path / "taken"))
