"""Preparation of a run: the arguments checked, the model with its one forward, the tokenizer with settled tokens."""

import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from plaudit.checkpoint.heads_file import SavedHeads
from plaudit.checkpoint.metadata import HUB_OPTIONS
from plaudit.data.special_tokens import choose_pad_token, set_chat_template, set_eos_token
from plaudit.data.tokenize import TokenizationReport, TokenizationRules, tokenize_dataset
from plaudit.errors import ConfigError, DataError, ModelError
from plaudit.hub import reads_hub
from plaudit.models.adapters import add_adapter, base_model, check_head_is_trained
from plaudit.models.load import embedding_rows, grow_embedding, load_model, load_tokenizer
from plaudit.models.member_heads import (
    MemberHeads,
    add_member_heads,
    attach_member_heads,
    member_heads,
    write_mean_head,
)
from plaudit.models.reward_head import (
    attach_uncertainty,
    bind_reward_forward,
    check_one_label,
    head_names,
    reset_head,
    trained_head,
)
from plaudit.training.config import RewardConfig
from plaudit.training.dataloaders import read_stream

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "check_arguments",
    "check_split",
    "check_ties",
    "is_conversational",
    "name_of",
    "prepare_member_heads",
    "prepare_model",
    "quiet_all_but_the_first",
    "tokenization_rules",
    "tokenize_split",
]

logger = logging.getLogger(__name__)

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@reads_hub("model")
def prepare_model(
    model: "str | PreTrainedModel | PeftModel",
    args: RewardConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    peft_config: "PeftConfig | None" = None,
    quantization_config: Any = None,
) -> "tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]":
    """Load or check the model, settle EOS, template and pad, add the adapter, bind the one forward.

    Raises:
        ConfigError: Options that exclude each other.
        ModelError: The model cannot be a reward model.
    """
    source = model if isinstance(model, str) else None
    model = _load_or_check(model, args, peft_config, quantization_config)
    base = base_model(model)
    tokenizer = tokenizer if tokenizer is not None else _load_tokenizer(source, base, args)
    adapted = peft_config is not None or isinstance(model, PeftModel)
    heads = {name.split(".")[0] for name in head_names(base)}
    has_new_head = not isinstance(model, PeftModel) and bool(heads & {*getattr(base, "new_modules", ())})
    settle_tokens(base, tokenizer, args, frozen_base=adapted)
    if peft_config is not None:
        revision = args.load_options.get("revision") if source else None
        model = add_adapter(base, peft_config, revision=revision, dropout=not args.disable_dropout)
    if isinstance(model, PeftModel):
        check_head_is_trained(model)
        _hint_at_learning_rate(args)
        if args.activation_checkpointing:
            model.enable_input_require_grads()  # else nothing below the first frozen layer would get a gradient
    bind_reward_forward(base)
    if args.reinit_head:
        reset_head(base, args.seed)
    prepare_member_heads(base, source, args, has_new_head=has_new_head)
    if args.disable_dropout:
        disable_dropout(model)
    return model, tokenizer


def prepare_member_heads(model: PreTrainedModel, source: str | None, args: RewardConfig, *, has_new_head: bool) -> None:
    """Give a model the heads that the options ask for, those that are saved with it where there are any.

    Args:
        model: The model with its one forward, not wrapped in PEFT. Changed in place.
        source: The folder or hub id that the model was loaded from; `None` for a model that was passed as an object.
        args: The options of the run.
        has_new_head: Whether the model had no head before this run.

    Raises:
        ConfigError: `num_heads` is another number than the model has.
        CheckpointError: The saved members are not whole.
    """
    hub = {name: value for name, value in args.load_options.items() if name in HUB_OPTIONS}
    saved = SavedHeads.read(os.path.expanduser(source), **hub) if source else None
    members = member_heads(model) or (None if saved is None else MemberHeads(saved.weight, saved.bias))
    if member_heads(model) is not None:  # of a model that was passed as an object
        write_mean_head(model)
        trained_head(model).requires_grad_(True)
    attach_uncertainty(model, None)  # such as a posterior of the head, which training makes untrue
    found = 1 if members is None else len(members.weight)
    count = args.num_heads or found
    if members is not None and not args.reinit_head:
        if count not in (1, found):
            raise ConfigError(
                f"num_heads={count}: the model has {found} heads. Leave `num_heads` out to train them on, say 1 to "
                "train their mean on as one head, or set `reinit_head=True` for new ones."
            )
        if count == 1:
            logger.info("num_heads=1: the mean of the model's %d heads trains on as one head", found)
        else:
            attach_member_heads(model, members, is_trainable=True)
    elif count > 1:
        is_new = has_new_head or args.reinit_head
        add_member_heads(model, count, args.seed, around_head=not is_new)
        logger.info(
            "%d reward heads, each on a bootstrap sample of the prompts; %s", count,
            "all are new" if is_new else "they start around the model's one head, and their mean gives its rewards",
        )  # fmt: skip


def _load_or_check(
    model: "str | PreTrainedModel | PeftModel",
    args: RewardConfig,
    peft_config: "PeftConfig | None",
    quantization_config: Any,
) -> "PreTrainedModel | PeftModel":
    """Return a sequence classifier with one label that can train with that `peft_config`, or without one."""
    set_seed(args.seed)  # for the draw of a new head
    if isinstance(model, str):
        model = load_model(
            model,
            # a model spread over devices cannot be replicated over processes
            model_init_kwargs=args.load_options | ({"device_map": None} if args.world_size > 1 else {}),
            trust_remote_code=args.trust_remote_code,
            quantization_config=quantization_config,
        )
        new = [] if isinstance(model, PeftModel) else model.new_modules  # an adapter brings its own
        if new:
            logger.info("%s: new reward head (%s)", base_model(model).name_or_path, ", ".join(new))
    else:
        _warn_of_ignored(args, quantization_config)
    if peft_config is not None and isinstance(model, PeftModel):
        raise ConfigError(
            "`peft_config` is given, but the model already has an adapter. Leave `peft_config` (`--use_peft`) out to "
            "train that one on, or merge it first (`plaudit merge`)."
        )
    if isinstance(model, PeftModel) and model.get_base_model().get_output_embeddings() is not None:
        raise ModelError(
            "the model is a language model with an adapter and without a reward head, which PEFT leaves out there. "
            "Pass the adapter's folder itself, as a string: RewardTrainer(model='the/adapter/folder', ...), or load it "
            "with AutoPeftModelForSequenceClassification.from_pretrained('the/adapter/folder', num_labels=1, "
            "is_trainable=True)."
        )
    check_one_label(base_model(model))
    if peft_config is None and not isinstance(model, PeftModel) and getattr(model, "is_quantized", False):
        raise ConfigError(
            "the model's weights are quantised, and quantised weights cannot train. Train an adapter on them: pass "
            "`peft_config=LoraConfig()` (on the command line, --use_peft), or leave the quantisation out."
        )
    return model


def _warn_of_ignored(args: RewardConfig, quantization_config: Any) -> None:
    for name, value in (("model_init_kwargs", args.model_init_kwargs), ("quantization_config", quantization_config)):
        if value is not None:
            logger.warning("`%s` is ignored: the model is already loaded. Pass its name instead.", name)


def _hint_at_learning_rate(args: RewardConfig) -> None:
    default = RewardConfig.learning_rate
    if args.learning_rate == default:
        logger.warning(
            "learning_rate=%g is the default for training all weights; an adapter usually wants about 1e-3", default
        )


def _load_tokenizer(source: str | None, base: PreTrainedModel, args: RewardConfig) -> PreTrainedTokenizerBase:
    # An adapter's folder may hold no tokenizer: then its base's is the one.
    candidates = [name for name in (source, base.config.name_or_path) if name]
    if not candidates:
        raise ConfigError("the model object does not say where it came from: pass its tokenizer as `processing_class`.")
    for candidate in candidates:
        try:
            return load_tokenizer(
                candidate, model_init_kwargs=args.load_options, trust_remote_code=args.trust_remote_code
            )
        except ModelError as error:
            reason = error
    raise ConfigError(f"{reason} Pass the model's tokenizer as `processing_class`.")


def settle_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: RewardConfig, *, frozen_base: bool
) -> None:
    """Settle EOS, chat template and pad on the tokenizer, and make the model's config agree.

    Raises:
        ConfigError: A token asked for is not in the vocabulary, or a template cannot be loaded.
        ModelError: A token needs a new embedding row, and the base weights are frozen.
    """
    if args.eos_token is not None:
        set_eos_token(tokenizer, args.eos_token)
    if args.chat_template_path is not None:
        set_chat_template(tokenizer, args.chat_template_path, trust_remote_code=args.trust_remote_code)
        new_rows = max(tokenizer.get_vocab().values()) + 1
        grow_embedding(
            model, new_rows, frozen_base=frozen_base, reason=f"chat_template_path={args.chat_template_path!r}"
        )
    choose_pad_token(tokenizer, embedding_rows(model), args.pad_token)
    try:
        grow_embedding(model, tokenizer.pad_token_id + 1, frozen_base=frozen_base, reason="a pad token that is not EOS")
    except ModelError as error:
        raise ModelError(
            f"{error} Set `pad_token` to a token of the vocabulary that your texts never contain."
        ) from error
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id
        changed = args.eos_token is not None or args.chat_template_path is not None
        if changed or getattr(config, "eos_token_id", None) is None:
            config.eos_token_id = tokenizer.eos_token_id


def disable_dropout(model: nn.Module) -> None:
    """Turn off dropout layers, and the rates that attention layers keep as plain numbers."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, _DROPOUTS):
            module.p = 0.0


def name_of(model: Any) -> str:
    """Return the hub id or the folder that a model was loaded from, "" if it is unknown.

    Raises:
        ConfigError: The argument is no model.
    """
    if isinstance(model, str):
        return model
    if not isinstance(model, nn.Module):
        raise ConfigError(f"`model`: expected a hub id, a path or a sequence classifier, got {type(model).__name__}.")
    return getattr(model.config, "name_or_path", None) or ""


def check_arguments(args: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Check the arguments of the trainer before anything is loaded.

    Raises:
        ConfigError: An argument is missing, or two cannot work together.
        TypeError: A split is no dataset.
    """
    if not isinstance(args, RewardConfig):
        raise ConfigError(f"`args`: expected a RewardConfig, got {type(args).__name__}.")
    if train_dataset is None:
        raise ConfigError("`train_dataset` is required")
    splits = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    for name, split in (("train_dataset", train_dataset), *(("eval_dataset", split) for split in splits)):
        check_split(name, split)
    if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0:
        raise ConfigError("`max_steps`: a stream has no length, so say how many steps to train.")
    if isinstance(train_dataset, IterableDataset) and (args.max_tokens_per_batch is not None or args.group_by_prompt):
        raise ConfigError(
            "max_tokens_per_batch and group_by_prompt need rows that can be looked up, and the training data is a "
            "stream. Load it whole, or use `per_device_train_batch_size` alone."
        )
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ConfigError(
            f"`eval_strategy` is '{args.eval_strategy.value}', but there is no `eval_dataset` (on the command "
            f"line, a test split or `--eval_fraction`)."
        )
    if "inputs" in args.include_for_metrics:
        raise ConfigError("include_for_metrics: 'inputs' is not offered, since a row is two sequences. Use 'loss'.")
    # On a stream (which may come as late as `predict`) accelerate would have the first process read it and send out
    # slices of its batches, which fits no pair of sequences. For other datasets this changes nothing.
    args.accelerator_config.dispatch_batches = False


def check_split(name: str, split: Any) -> None:
    """Raise a TypeError unless the split is a dataset, or `None`."""
    if split is not None and not isinstance(split, (Dataset, IterableDataset)):
        raise TypeError(
            f"`{name}` must be a `Dataset` or `IterableDataset`, got `{type(split).__name__}`. Of a `DatasetDict`, "
            f"train on one split, such as dataset['train']; of a list of rows, make `Dataset.from_list(rows)`."
        )


def tokenize_split(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    args: RewardConfig,
    rules: TokenizationRules,
    name: str,
) -> tuple[Dataset | IterableDataset, TokenizationReport]:
    """Tokenise a split; of streams, the one named "train" stays a stream, and others are read to their end.

    Raises:
        DataError: A row is malformed, no row is left, or a pair is a tie and the loss needs a winner.
    """
    with args.main_process_first(desc=f"tokenising {name}"):
        dataset, report = tokenize_dataset(dataset, tokenizer, rules, split=name, num_proc=args.dataset_num_proc)
    if report.streaming and name != "train":
        with report.one_pass():
            dataset = read_stream(dataset)
        report.check()
    check_ties(dataset, args.loss_type, name)
    return dataset, report


def check_ties(dataset: Dataset | IterableDataset, loss_type: str, split: str) -> None:
    """Refuse pairs without a winner for a loss that needs one; of a stream, the collator does so.

    Raises:
        DataError: A pair is a tie.
    """
    if loss_type == "ties" or isinstance(dataset, IterableDataset) or "tie" not in dataset.column_names:
        return
    ties = np.flatnonzero(dataset.with_format("numpy")["tie"][:])
    if len(ties):
        raise DataError(
            f"{split}: {len(ties):,} of {len(dataset):,} pairs are ties (their `tie` is true; the first is number "
            f"{ties[0]} of those kept), and loss_type='{loss_type}' needs a winner. Set `loss_type` to 'ties', or "
            "leave such rows out."
        )


def quiet_all_but_the_first() -> None:
    """Let the first of several processes log, and the others log errors only."""
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("plaudit").setLevel(logging.ERROR)


def is_conversational(dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether rows hold conversations; of tokenised rows, whether the tokenizer has a chat template."""
    row: dict[str, Any] = next(iter(dataset), {})
    part = row.get("chosen") or next(iter(row.get("completions") or ()), None)
    return isinstance(part, list) if part is not None else bool(tokenizer.chat_template)


def tokenization_rules(args: RewardConfig, model: "PreTrainedModel | PeftModel") -> TokenizationRules:
    """Return the rules by which the rows of all splits become token ids."""
    return TokenizationRules(
        args.max_length,
        args.overlong,
        args.overlong_max_fraction,
        embedding_rows(model),
        ties=args.loss_type == "ties",
    )
