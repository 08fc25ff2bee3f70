"""`ModelConfig`: the options of a script that name a model, its precision, its adapter and its quantisation."""

from dataclasses import dataclass, field

from plaudit.errors import ConfigError

__all__ = ["ModelConfig"]


def _help(text: str, choices: list[str] | None = None) -> dict[str, object]:
    return {"help": text} | ({"choices": choices} if choices else {})


@dataclass
class ModelConfig:
    """The model options of `plaudit train`, under the names of TRL's `ModelConfig`.

    One default differs: `lora_task_type` is "SEQ_CLS", since a reward model is a sequence classifier.
    """

    model_name_or_path: str | None = field(
        default=None, metadata=_help("Model to start from: a hub id, a folder, or an adapter's folder.")
    )
    model_revision: str = field(default="main", metadata=_help("Branch, tag or commit of the model on the hub."))
    dtype: str | None = field(
        default="float32",
        metadata=_help("Precision in which the weights are loaded.", ["auto", "bfloat16", "float16", "float32"]),
    )
    attn_implementation: str | None = field(
        default=None, metadata=_help("Attention kernel, such as sdpa or flash_attention_2.")
    )
    use_peft: bool = field(default=False, metadata=_help("Train a LoRA adapter and the head instead of all weights."))
    lora_r: int = field(default=16, metadata=_help("Rank of the LoRA update."))
    lora_alpha: int = field(default=32, metadata=_help("Scale of the LoRA update."))
    lora_dropout: float = field(
        default=0.05, metadata=_help("Dropout before the LoRA update; off while `disable_dropout` holds.")
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata=_help("Modules to adapt, or all-linear; PEFT's choice if unset.")
    )
    lora_target_parameters: list[str] | None = field(
        default=None, metadata=_help("Parameters to adapt, for layers that are no modules.")
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Further modules to train in full; the head always is.")
    )
    lora_task_type: str = field(
        default="SEQ_CLS", metadata=_help("PEFT task type; a reward model is a sequence classifier.")
    )
    use_rslora: bool = field(default=False, metadata=_help("Scale the update by alpha / sqrt(r) instead of alpha / r."))
    use_dora: bool = field(
        default=False, metadata=_help("Use DoRA: a weight's magnitude and direction are updated apart.")
    )
    load_in_8bit: bool = field(default=False, metadata=_help("Quantise the base model to 8 bits."))
    load_in_4bit: bool = field(default=False, metadata=_help("Quantise the base model to 4 bits."))
    bnb_4bit_quant_type: str = field(default="nf4", metadata=_help("4-bit data type.", ["fp4", "nf4"]))
    use_bnb_nested_quant: bool = field(default=False, metadata=_help("Quantise the quantisation constants too."))
    bnb_4bit_quant_storage: str | None = field(
        default=None, metadata=_help("Data type in which 4-bit weights are stored.")
    )

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise ConfigError("load_in_8bit and load_in_4bit are both set. Choose one.")
        if isinstance(self.lora_target_modules, list) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]  # a name, or a pattern
