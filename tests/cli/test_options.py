import pytest

from plaudit.cli.options import OptionParser
from plaudit.data.script_arguments import ScriptArguments
from plaudit.errors import ConfigError
from plaudit.models.model_config import ModelConfig
from plaudit.training.config import RewardConfig


@pytest.fixture(scope="module")
def parse():
    def parse(*arguments):
        parser = OptionParser((ScriptArguments, ModelConfig, RewardConfig), usage="test")
        return parser.parse([str(argument) for argument in arguments], output_dir=lambda given: "out")

    return parse


def test_options_keep_the_spelling_and_the_types_of_trl_and_transformers(parse):
    script, model, config = parse(
        "--dataset_name", "data.jsonl", "--model_name_or_path", "base", "--use_peft", "--lora_target_modules", "q_proj",
        "v_proj", "--learning_rate", "1e-5", "--center_rewards_coefficient", "0.01", "--max_length", "64",
        "--per_device_train_batch_size", "3", "--eval_strategy", "steps", "--eval_steps", "7",
    )  # fmt: skip
    assert (script.dataset_name, model.model_name_or_path, model.use_peft) == ("data.jsonl", "base", True)
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert (config.learning_rate, config.center_rewards_coefficient, config.max_length) == (1e-5, 0.01, 64)
    assert (config.per_device_train_batch_size, config.eval_strategy, config.eval_steps) == (3, "steps", 7)


def test_flags_win_over_the_file_and_the_file_over_defaults(parse, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "learning_rate: 1e-5\nmax_length: null\nmodel_init_kwargs: {dtype: bfloat16}\ngradient_checkpointing: false\n"
    )
    config = parse(file, "--learning_rate", "2e-5")[2]
    assert (config.learning_rate, config.max_length, config.load_options) == (2e-5, None, {"dtype": "bfloat16"})
    assert config.activation_checkpointing is False
    assert parse("--config", file)[2].learning_rate == 1e-5


def test_a_mixture_comes_from_the_file(parse, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "datasets:\n  - path: a.jsonl\n    weight: 0.7\n  - path: b.jsonl\n    format: arena\n    weight: 0.3\n"
    )
    assert [entry["path"] for entry in parse(file)[0].datasets] == ["a.jsonl", "b.jsonl"]


def test_none_is_a_value_for_an_option_that_may_be_none(parse):
    assert parse("--max_length", "none")[2].max_length is None
    assert parse("--pad_to_multiple_of", "8")[2].pad_to_multiple_of == 8


def test_booleans_are_flags_or_take_a_value(parse):
    assert parse("--disable_dropout", "false")[2].disable_dropout is False
    assert parse("--bf16", "false")[2].bf16 is False
    assert parse("--activation_offloading")[2].activation_offloading is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "unknown option --learning_rat: did you mean --learning_rate?"),
        (["--model_name", "x"], "did you mean --model_name_or_path?"),
        (["--max_length", "many"], "--max_length.*'many'"),
        (["--overlong", "shrink"], "--overlong.*'shrink'.*drop"),
        (["--dtype", "int4"], "--dtype.*'int4'"),
        (["--zzz", "1"], "`plaudit train --help_all` lists them all"),
        (["nowhere.yaml"], "expected a YAML file of options at 'nowhere.yaml'"),
        (["--config"], "--config: expected the path"),
        (["--learning_rate", "1", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_option_is_named_with_what_to_do(parse, arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "unknown option learning_rat: did you mean learning_rate?"),
        ("- a\n", "expected a YAML file with one option a line"),
        ("a: [1\n", "is not YAML"),
    ],
)
def test_a_wrong_file_is_named(parse, tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        parse(file)
    assert "run.yaml" in str(caught.value)
