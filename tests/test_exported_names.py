import importlib
import pkgutil

import pytest

import plaudit

MODULES = [
    module.name for module in pkgutil.walk_packages(plaudit.__path__, "plaudit.") if "__main__" not in module.name
]


def test_the_names_that_a_user_types_are_there():
    expected = {
        "DataCollatorForPreference", "ModelConfig", "RewardConfig", "RewardFunction", "RewardModel", "RewardTrainer",
        "ScriptArguments", "audit", "combine", "compare", "evaluate", "get_peft_config", "get_quantization_config",
    }  # fmt: skip
    assert set(plaudit.__all__) == expected
    assert all(getattr(plaudit, name).__name__ == name for name in expected)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="RewardTrainr"):
        plaudit.RewardTrainr  # noqa: B018


@pytest.mark.parametrize("name", ["plaudit", *MODULES])
def test_what_a_module_exports_is_sorted_and_exists(name):
    if name in ("plaudit.scoring.ray_executor", "plaudit.serving.ray_replicas"):
        pytest.importorskip("ray", reason="Ray is not in this environment")
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert list(exported) == sorted(exported)
    assert all(hasattr(module, each) for each in exported)
