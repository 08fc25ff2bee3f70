"""What each process runs in `test_zero.py` and `test_fsdp_gpu.py`: the same cases, whatever shares out the weights.

Usage: accelerate launch --config_file FILE sharded_processes.py FOLDER KIND, with KIND zero2, zero3 or fsdp
"""

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import build_trainer, make_tokenizer, pair_rows, reward_model
from plaudit.errors import ConfigError
from plaudit.training import layout_choice

ROOT = Path(__file__).parents[2]
TIMEOUT = 400  # seconds; it takes 20 on two idle cores
ROWS = pair_rows()
WEIGHTED = [row | {"margin": n / 7, "weight": 0.3 + n} for n, row in enumerate(ROWS[:8])]
FEW = {"train_dataset": ROWS[:8], "max_steps": 4, "learning_rate": 1e-4, "eval_dataset": ROWS}
SAVING = {"save_strategy": "steps", "save_steps": 2, "verify_on_save": True}
SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
LORA = {"peft_config": LoraConfig(r=4, init_lora_weights=False), "gradient_checkpointing": True}
DEVICE = {"use_cpu": True}
CASES = {
    "whole": SAVING,
    "accumulated": {"gradient_accumulation_steps": 2},
    "weighted": {"train_dataset": WEIGHTED},
    "adapter": LORA | SAVING,
    "members": SAVING | {"num_heads": 3},
    "adapter-members": LORA | SAVING | {"num_heads": 3},
    "tokens": SGD | {"max_tokens_per_batch": 65, "gradient_accumulation_steps": 100, "max_steps": 1},
}


def save_base(folder):
    """The reward model that all cases start from."""
    tokenizer = make_tokenizer()
    reward_model(head_dim=16, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def make(folder, name, processes, **options):
    """The trainer of a case: as many rows a step on any number of processes."""
    rows = 4 // processes
    options = FEW | DEVICE | CASES.get(name, {}) | {"per_device_train_batch_size": rows} | options
    return build_trainer(folder / name, model=str(folder / "base"), **options)


def launch(folder, config, kind, processes, *, extra_path=None, **environment):
    """Run this file by `accelerate launch` with one of Plaudit's own configuration files."""
    save_base(folder)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "examples/accelerate" / config,
        "--num_processes", str(processes), "--main_process_port", "0", __file__, folder, kind,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src"), extra_path]))
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path} | environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


def train_alone(folder):
    """Trainers that have run the cases in this process, without a wrapper, by name."""
    save_base(folder)
    # Of a budget there is nothing on one process but its batch.
    less = {"tokens": {"max_tokens_per_batch": None, "gradient_accumulation_steps": 2}}
    trainers = {}
    for name in CASES:
        trainers[name] = make(folder, name, 1, save_strategy="no", verify_on_save=False, **less.get(name, {}))
        trainers[name].train()
    return trainers


def losses_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class Watch(TrainerCallback):
    """Notes what wraps the model, and how its weights are held, after a step."""

    def on_step_end(self, args, state, control, **_):
        wrapped, model = self.trainer.model_wrapped, self.trainer.model
        parameters = list(model.parameters())
        self.seen = {
            "engine": type(wrapped).__name__,
            "kinds": sorted({type(parameter).__name__ for parameter in parameters}),
            "partitioned": sum(hasattr(p, "ds_id") and p.ds_tensor.numel() < p.ds_numel for p in parameters),
            "parameters": len(parameters),
            "backend": torch.distributed.get_backend(),
        }


def run(folder, name, processes, *, resume=None, **options):
    """Train a case and save it; what is of interest goes into a file of its own."""
    AcceleratorState._reset_state(reset_partial_state=False)  # each case reads the launcher's settings anew
    trainer = make(folder, name, processes, **options)
    trainer.add_callback(watch := Watch())
    watch.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    predicted = trainer.predict(trainer.eval_dataset)
    seen = watch.seen | {
        "layout": trainer.layout, "losses": losses_of(trainer), "rewards": predicted.predictions.tolist(),
        "metrics": predicted.metrics, "verified": getattr(trainer.verification, "status", None),
    }  # fmt: skip
    if trainer.is_world_process_zero():
        (folder / f"{name}.json").write_text(json.dumps(seen))
    return trainer


def doubted(folder, processes):
    """A run that finds the layouts to differ."""
    compare, layout_choice.layouts_differ = layout_choice.layouts_differ, lambda *_, **__: "of a doubt"
    run(folder, "doubted", processes)
    layout_choice.layouts_differ = compare


def evaluated_first(folder, processes):
    """The error of an evaluation before any training, or of a training after it."""
    AcceleratorState._reset_state(reset_partial_state=False)
    trainer = make(folder, "evaluated-first", processes)
    seen = {"error": ""}
    try:
        trainer.evaluate()
        trainer.train()
    except ConfigError as error:
        seen["error"] = str(error)
    seen["losses"] = losses_of(trainer)
    if trainer.is_world_process_zero():
        (folder / "evaluated-first.json").write_text(json.dumps(seen))


def kept_wide(folder, processes):
    """In bf16: the rewards, and what a batch holds beside ids, are not rounded."""
    AcceleratorState._reset_state(reset_partial_state=False)
    trainer = make(folder, "wide", processes, bf16=True, train_dataset=WEIGHTED)
    trainer.train()
    batch = trainer.data_collator(list(trainer.train_dataset)).to(trainer.args.device)
    with torch.no_grad():
        rewards = trainer.compute_loss(trainer.model_wrapped, batch, return_outputs=True)[1].logits
    rounded = [value.bfloat16().float().equal(value) for value in (rewards, batch["margin"], batch["weight"])]
    seen = {"dtypes": [str(value.dtype) for value in (rewards, batch["margin"], batch["weight"])], "rounded": rounded}
    if trainer.is_world_process_zero():
        (folder / "wide.json").write_text(json.dumps(seen))


def ungathered(folder, processes):
    """What is said of a configuration that leaves the weights in parts when it saves."""
    os.environ["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] = "false"
    AcceleratorState._reset_state(reset_partial_state=False)
    seen = {"error": ""}
    try:
        make(folder, "ungathered", processes)
    except ConfigError as error:
        seen["error"] = str(error)
    make(folder, "ungathered", processes, **LORA)  # of an adapter, all that trains is gathered
    if os.environ["RANK"] == "0":
        (folder / "ungathered.json").write_text(json.dumps(seen))


def main(folder, kind):
    faulthandler.dump_traceback_later(300, exit=True)  # a hang says where it hangs
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    if kind == "fsdp":
        DEVICE["use_cpu"] = False
    else:
        import deepspeed

        # DeepSpeed would compile a kernel of its own for two processes of one machine, for a minute. Gloo will do.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in CASES:
        run(folder, name, processes)
    for name in ("whole", "adapter", "members", "adapter-members"):
        options = CASES[name] | {"save_strategy": "no", "verify_on_save": False}
        run(folder, f"{name}-resumed", processes, resume=str(folder / name / "checkpoint-2"), **options)
    doubted(folder, processes)
    kept_wide(folder, processes)
    if kind == "fsdp":
        os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
        run(folder, "full", processes, **SAVING)
        run(folder, "full-resumed", processes, resume=str(folder / "full" / "checkpoint-2"))
    else:
        evaluated_first(folder, processes)
        ungathered(folder, processes)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
