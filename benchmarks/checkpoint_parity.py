"""Compare the scores of a saved reward model across loaders.

Trains one model each way (full, LoRA, DoRA, QLoRA, sharded by FSDP2 over two processes), saves it, merges the adapters,
and scores the same rows four times: in the training process, with Plaudit's loader, with plain transformers (and PEFT),
and as TRL loads a reward model. The last two run in fresh processes. Prints the largest differences of rewards from
those in the training process.

Usage: python benchmarks/checkpoint_parity.py hh_harmless.jsonl.gz [--rows 200] [--steps 20]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from results import add_output, as_tables, write_results
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig, PrinterCallback
from workload import read_rows, write_base_model

from plaudit import RewardConfig, RewardModel, RewardTrainer
from plaudit.checkpoint import reload
from plaudit.checkpoint.merge import merge_adapter
from plaudit.checkpoint.metadata import read_metadata

WAYS = {
    "full": {},
    "LoRA": {"peft_config": LoraConfig(target_modules="all-linear")},
    "DoRA": {"peft_config": LoraConfig(target_modules="all-linear", use_dora=True)},
    "QLoRA": {
        "peft_config": LoraConfig(target_modules="all-linear"),
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    },
}


def conversations(rows):
    return [row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")]


def train(base, rows, steps, output, bf16, **options):
    """Train, save, and return the rewards [2 R] of the rows in the training process, as predict gives them."""
    held_out, training = rows
    config = RewardConfig(
        str(output), max_steps=steps, learning_rate=1e-3, per_device_train_batch_size=8, bf16=bf16, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = RewardTrainer(model=str(base), args=config, train_dataset=Dataset.from_list(training), **options)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    config.bf16 = False  # the rewards of the weights, without autocast
    trainer.accelerator.state._mixed_precision = "no"
    return trainer.predict(Dataset.from_list(held_out)).predictions.reshape(-1)


def save_sharded(base, rows, output):
    """Shard the model in `base` by FSDP2 on two processes, score it and save it from its shards. Run by torchrun."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from plaudit.checkpoint.fingerprint import rewards_as_saved
    from plaudit.data.render import render
    from plaudit.models.reward_head import bind_reward_forward

    dist.init_process_group("gloo")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    bind_reward_forward(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    rewards = rewards_as_saved(model, render(tokenizer, conversations(rows)))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        model.save_pretrained(output, state_dict=state)
        tokenizer.save_pretrained(output)
        np.save(Path(output) / "rewards.npy", np.array(rewards, dtype=np.float32))
    dist.barrier()
    dist.destroy_process_group()


@torch.no_grad()
def as_trl(path, sequences, batch_size=8):
    """Load and score as TRL does: its call, its defaults, right padding, `logits[:, 0]`."""
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    texts = [tokenizer.apply_chat_template(sequence, tokenize=False) for sequence in sequences]
    rewards = []
    for start in range(0, len(texts), batch_size):
        inputs = tokenizer(
            text=texts[start : start + batch_size], return_tensors="pt", padding=True, padding_side="right",
            add_special_tokens=False,
        )  # fmt: skip
        inputs.pop("token_type_ids", None)
        rewards += model(**inputs).logits[:, 0].tolist()
    return rewards


def in_fresh_process(how, folder, sequences):
    """Return the rewards from `as_trl` or from the plain reload, run in a process of its own."""
    request = {"how": how, "path": str(folder), "sequences": sequences}
    if how == "plain" and (folder / "adapter_config.json").is_file():
        metadata = read_metadata(folder)
        request |= {"dtype": metadata["training"]["weights"], "quantization": metadata["quantization"]}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer.json")
        command = [sys.executable, __file__, "--answer", str(answer)]
        subprocess.run(command, input=json.dumps(request), text=True, check=True, capture_output=True)
        return np.array(json.loads(answer.read_text()), dtype=np.float32)


def answer_request(path):
    request = json.load(sys.stdin)
    how = request.pop("how")
    rewards = as_trl(**request) if how == "trl" else reload.score(**request)["alone"]
    Path(path).write_text(json.dumps(rewards))


def compare(name, folder, training, sequences):
    """Return one row of the table: the largest differences from the rewards in the training process."""
    own = RewardModel.from_pretrained(folder).score(sequences)
    others = [in_fresh_process(how, folder, sequences) for how in ("plain", "trl")]
    worst = (float(np.abs(rewards - training).max()) for rewards in (own, *others))
    about = {"way": name, "spread of rewards": training.std()}
    return about | dict(zip(("Plaudit's loader", "plain transformers", "TRL's way"), worst, strict=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bf16", action="store_true", help="train under bf16 autocast; weights stay float32")
    add_output(parser)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    parser.add_argument("--sharded", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        return answer_request(options.answer)
    rows = read_rows(options.data)
    rows = rows[: options.rows], rows[options.rows :]
    if options.sharded:
        return save_sharded(options.sharded[0], rows[0], options.sharded[1])
    sequences = conversations(rows[0])
    print(f"{len(sequences)} conversations of {options.data.name}, {options.steps} steps, torch {torch.__version__}\n")
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        base, _ = write_base_model(Path(scratch, "base"), rows[0] + rows[1], hidden=256, layers=4)
        for name, way in WAYS.items():
            folder = Path(scratch, name)
            training = train(base, rows, options.steps, folder, options.bf16, **way)
            measured.append(compare(name, folder, training, sequences))
            if "LoRA" in name:
                merged = Path(scratch, f"{name}-merged")
                merge_adapter(folder, merged)
                measured.append(compare(f"{name}, merged", merged, training, sequences))
        sharded = Path(scratch, "sharded")
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__,
            str(options.data), "--rows", str(options.rows), "--sharded", str(Path(scratch, "full")), str(sharded),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        measured.append(compare("saved from FSDP2 shards", sharded, np.load(sharded / "rewards.npy"), sequences))
    print(as_tables(measured))
    write_results(options.output, measured)
    return None


if __name__ == "__main__":
    main()
