"""Reward models for language models: training on human preferences, evaluation and scoring.

The public names load when they are first used, so `import plaudit` alone imports no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit.auditing.audit import audit
    from plaudit.data.script_arguments import ScriptArguments
    from plaudit.evaluation.comparison import compare
    from plaudit.evaluation.evaluate import evaluate
    from plaudit.models.adapters import get_peft_config
    from plaudit.models.model_config import ModelConfig
    from plaudit.models.quantization import get_quantization_config
    from plaudit.scoring.reward_function import RewardFunction, combine
    from plaudit.scoring.reward_model import RewardModel
    from plaudit.training.collator import DataCollatorForPreference
    from plaudit.training.config import RewardConfig
    from plaudit.training.trainer import RewardTrainer

__version__ = version("plaudit")

_HOMES = {
    "audit": "plaudit.auditing.audit",
    "combine": "plaudit.scoring.reward_function",
    "compare": "plaudit.evaluation.comparison",
    "DataCollatorForPreference": "plaudit.training.collator",
    "evaluate": "plaudit.evaluation.evaluate",
    "get_peft_config": "plaudit.models.adapters",
    "get_quantization_config": "plaudit.models.quantization",
    "ModelConfig": "plaudit.models.model_config",
    "RewardConfig": "plaudit.training.config",
    "RewardFunction": "plaudit.scoring.reward_function",
    "RewardModel": "plaudit.scoring.reward_model",
    "RewardTrainer": "plaudit.training.trainer",
    "ScriptArguments": "plaudit.data.script_arguments",
}

__all__ = [
    "DataCollatorForPreference",
    "ModelConfig",
    "RewardConfig",
    "RewardFunction",
    "RewardModel",
    "RewardTrainer",
    "ScriptArguments",
    "audit",
    "combine",
    "compare",
    "evaluate",
    "get_peft_config",
    "get_quantization_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plaudit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
