from transformers import HfArgumentParser

from plaudit.data.script_arguments import ScriptArguments


def test_script_arguments_parse_from_flags_and_mappings():
    parser = HfArgumentParser(ScriptArguments)
    (args,) = parser.parse_args_into_dataclasses(
        ["--dataset_name", "d", "--eval_fraction", "0.1", "--dataset_streaming"]
    )
    assert args == ScriptArguments(dataset_name="d", eval_fraction=0.1, dataset_streaming=True)
    (args,) = parser.parse_dict({"datasets": [{"path": "a", "weight": 1}], "dataset_format": "hh"})
    assert args == ScriptArguments(datasets=[{"path": "a", "weight": 1}], dataset_format="hh")
    assert "--dataset_test_split" in parser.format_help()


def test_script_arguments_keep_the_names_and_defaults_of_trl():
    args = vars(ScriptArguments())
    assert {name: args[name] for name in list(args)[:6]} == {
        "dataset_name": None,
        "dataset_config": None,
        "dataset_train_split": "train",
        "dataset_test_split": "test",
        "dataset_streaming": False,
        "ignore_bias_buffers": False,
    }
