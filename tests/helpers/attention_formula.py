"""Forests, and the formula of attention on the whole matrix of scores, for the tests of each way to compute it."""

import math

import torch

LONG = list(range(140))
SEQUENCES = {
    "a pair": [[1, 2, 3, 4, 5], [1, 2, 3, 6, 7, 8, 9]],
    "a group": [[*range(9), n, *range(n)] for n in range(20, 25)],
    "duplicates": [[1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 2, 4]],
    "a prefix of another": [[1, 2, 3, 4, 5, 6], [1, 2, 3], [1]],
    "nothing shared": [[1, 2, 3], [4, 5, 6, 7], [8]],
    "length one": [[1]],
    "turns": [[1, 2, 3, 4], [1, 2, 3, 5, 6, 7, 8], [1, 2, 3, 5, 6, 9, 10, 11, 12], [1, 2, 3, 5, 6, 9, 10, 13]],
    "long": [[*LONG, 900, *LONG[:70]], [*LONG, 901], [*LONG[:30], 902, *LONG[:20]]],
}
HEADS = {"one key head each": (3, 3), "grouped": (6, 2), "one key head": (3, 1)}


def sees(forest, window):
    end, position = torch.tensor(forest.subtree_end), torch.tensor(forest.position_ids)
    query, key = torch.arange(len(forest))[:, None], torch.arange(len(forest))[None, :]
    seen = (key <= query) & (query < end[None, :])
    return seen if window is None else seen & (position[:, None] - position[None, :] < window)


def by_formula(forest, rules, query, key, value, sinks=None, stays=None):
    """softmax(q k / scale) v on T x T scores; `stays` [H, T, T] is what dropout leaves, already scaled up."""
    key, value = (tensor.repeat_interleave(len(query) // len(key), 0) for tensor in (key, value))
    scores = query @ key.transpose(1, 2) * rules.scaling
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    scores = scores.masked_fill(~sees(forest, rules.window), -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, len(forest), 1)], -1)
    weights = scores.softmax(-1)[..., : len(forest)]
    return ((weights if stays is None else weights * stays) @ value).transpose(0, 1)


def with_gradients(attend, inputs, seed=1):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = attend(*inputs)
    above = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, above)]
