"""What a launched process runs in `test_gpu.py`: the Trainer's own FSDP2, its weights sharded while it trains.

Usage: torchrun fsdp_on_gpu.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import build_trainer, make_tokenizer, reward_model

OPTIONS = {
    "use_cpu": False,
    "max_steps": 3,
    "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}),
    "max_grad_norm": 0.0,
}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"]}}


class Kinds(TrainerCallback):
    """Notes the kinds of the parameters after a step."""

    def on_step_end(self, args, state, control, model=None, **_):
        self.kinds = {type(parameter) for parameter in model.parameters()}


def run(folder, **options):
    """The log of a run in one layout, which has saved its model."""
    watch = Kinds()
    trainer = build_trainer(
        folder, model=reward_model(head_dim=16), processing_class=make_tokenizer(), **OPTIONS | options
    )
    trainer.add_callback(watch)
    trainer.train()
    trainer.save_model()
    return trainer, watch.kinds, [entry for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for layout in ("forest", "padded"):
        trainer, kinds, log = run(folder / layout, batch_layout=layout, **FSDP)
        assert kinds == {DTensor}, kinds
        assert trainer.layout == layout
        (folder / f"{layout}.json").write_text(json.dumps(log))
    torch.distributed.destroy_process_group()
