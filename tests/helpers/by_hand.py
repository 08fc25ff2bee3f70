"""What tests of the trainer compare with: rewards, losses and weights, without Plaudit's own code."""

import numpy as np
import torch

__all__ = ["SGD", "STILL", "greatest_difference", "negative_log_sigmoid", "rewards_by_hand", "weights_of"]

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1}), "max_grad_norm": 0.0}
STILL = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.0}), "max_grad_norm": 0.0}


@torch.no_grad()
def rewards_by_hand(trainer, rows):
    """Rewards [rows, 2] of tokenised rows, each sequence alone, unpadded, by the stock forward of the class."""
    model = trainer.model.eval()

    def reward(ids):
        return type(model).forward(model, torch.tensor([ids])).logits.item()

    return np.array([[reward(row["chosen_ids"]), reward(row["rejected_ids"])] for row in rows])


def negative_log_sigmoid(difference):
    return np.log1p(np.exp(-difference))


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def greatest_difference(first, second):
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)
