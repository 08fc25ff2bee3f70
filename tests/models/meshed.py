"""What each of two processes runs in `test_forest_meshed.py`: FSDP2 over both, each with a row of its own.

Usage: torchrun meshed.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import reward_model
from plaudit.forest.attention import enable
from plaudit.losses import bradley_terry
from plaudit.models.inputs import forest_inputs, padded_inputs
from plaudit.models.reward_head import bind_reward_forward

ROWS = [[[5, 6, 7, 8, 9, 10], [5, 6, 7, 3]], [[1, 2, 3], [1, 2, 4, 5, 6]]]  # each a winner and a loser


def ready(policy=None, mesh=None):
    """A reward model for the forest, sharded where there is a mesh."""
    model = reward_model().train()
    bind_reward_forward(model)
    enable(model)
    if mesh is not None:
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())
    return model


def rewards_of(model, rows, *, layout="forest"):
    sequences = [sequence for row in rows for sequence in row]
    owners = [number for number, row in enumerate(rows) for _ in row]
    inputs = forest_inputs(sequences, owners) if layout == "forest" else padded_inputs(sequences, 0)
    return model(**inputs).logits.squeeze(-1)


def backward(model, rows, *, layout="forest"):
    """Rewards of rows, after a backward pass through the wrapped model."""
    rewards = rewards_of(model, rows, layout=layout)
    bradley_terry(rewards[0::2], rewards[1::2]).mean().backward()
    return rewards.detach()


def main(folder):
    distributed.init_process_group("gloo")
    rank, mesh = distributed.get_rank(), init_device_mesh("cpu", (2,))
    found = {}
    for layout in ("forest", "padded"):
        plain, sharded = ready(), ready(mesh=mesh)
        assert isinstance(sharded, FSDPModule)
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        found["held"] = sum(parameter.to_local().numel() for parameter in sharded.parameters())
        found["whole"] = sum(parameter.numel() for parameter in plain.parameters())
        expected = torch.stack([backward(plain, [row], layout=layout) for row in ROWS])  # both rows' gradients add up
        found[f"{layout} rewards"] = torch.equal(backward(sharded, [ROWS[rank]], layout=layout), expected[rank])
        found[f"{layout} gradients"] = max(
            (ours.grad.full_tensor() - theirs.grad / 2).abs().max().item() / theirs.grad.abs().max().item()
            for ours, theirs in zip(sharded.parameters(), plain.parameters(), strict=True)
        )
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        sharded.save_pretrained(folder / "sharded", state_dict=state)
        plain.save_pretrained(folder / "plain")
    for name, output in (("kept", None), ("rounded", torch.bfloat16)):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=output)
        with torch.no_grad():
            found[name] = str(rewards_of(ready(policy, mesh), ROWS).dtype)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
