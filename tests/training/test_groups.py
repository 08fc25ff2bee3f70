"""A ranked group trains and evaluates as all of its pairs run apart, with each response run once."""

from itertools import combinations

import numpy as np
import pytest
import torch

WHOLE_STEP = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1}), "max_grad_norm": 0.0, "max_steps": 1}
REPLIES = [" Yes", " No, it is", " Yes, the sky is blue", " Thank you", " sorry"]
RANKS = [[1, 0, 2, 1], [1, 0], [0, 2, 1], [3, 0, 0, 1, 2]]
GROUPS = [
    {"prompt": f"Is the {noun}?", "completions": REPLIES[: len(ranks)], "ranks": ranks}
    for noun, ranks in zip(["sky", "dog", "fox", "tool"], RANKS, strict=True)
]


def pairs_of(group, scores=None):
    """All comparisons of a group as pair rows; with scores, their differences as margins."""
    order = sorted(range(len(group["completions"])), key=group["ranks"].__getitem__)
    return [
        {"prompt": group["prompt"], "chosen": group["completions"][a], "rejected": group["completions"][b]}
        | ({"margin": float(scores[a] - scores[b])} if scores else {})
        for a, b in combinations(order, 2)
        if group["ranks"][a] < group["ranks"][b]
    ]


def weighted_pairs():
    """The comparisons of all groups as pairs; those of a group weigh one together."""
    return [pair | {"weight": 1 / len(pairs_of(group))} for group in GROUPS for pair in pairs_of(group)]


def step(make_trainer, rows, **options):
    """What one step of plain descent takes off each weight, and its log."""
    options = WHOLE_STEP | {"per_device_train_batch_size": len(rows)} | options
    trainer = make_trainer(train_dataset=rows, **options)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name: before[name] - parameter.detach() for name, parameter in trainer.model.named_parameters()}
    return moved, trainer.state.log_history[0]


def assert_same_step(first, second, scale=1.0):
    assert max(delta.abs().max().item() for delta in second.values()) > 0.01
    for name, delta in first.items():
        torch.testing.assert_close(delta, scale * second[name], rtol=1e-4, atol=2e-6, msg=name)


@torch.no_grad()
def rewards_by_hand(trainer, row):
    model = trainer.model.eval()
    return np.array([type(model).forward(model, torch.tensor([ids])).logits.item() for ids in row["sequence_ids"]])


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_by_comparison_a_group_pulls_as_its_pairs_in_rows_of_their_own(make_trainer, layout):
    pairs = [pair for group in GROUPS for pair in pairs_of(group)]
    grouped, log = step(make_trainer, GROUPS, group_weighting="comparison", batch_layout=layout)
    apart, expected = step(make_trainer, pairs, batch_layout="padded")
    assert_same_step(grouped, apart)
    assert log["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_by_group_each_comparison_counts_one_over_their_number(make_trainer, layout):
    pairs = weighted_pairs()
    grouped, log = step(make_trainer, GROUPS, batch_layout=layout)
    apart, expected = step(make_trainer, pairs, batch_layout="padded")
    scale = len(pairs) / len(GROUPS)  # the mean is over groups
    assert_same_step(grouped, apart, scale)
    assert log["loss"] == pytest.approx(scale * expected["loss"], rel=1e-5)
    for figure in ("accuracy", "margin", "chosen_reward"):
        assert log[figure] == pytest.approx(expected[figure], rel=1e-5)


def test_a_groups_weight_multiplies_all_of_its_comparisons(make_trainer):
    weighted = [group | {"weight": weight} for group, weight in zip(GROUPS, (2.0, 0.0, 1.0, 1.0), strict=True)]
    grouped, _ = step(make_trainer, weighted)
    rows = [GROUPS[0], *GROUPS[:1], *GROUPS[2:]]
    apart, _ = step(make_trainer, rows)
    assert_same_step(grouped, apart)


def test_a_group_counts_its_responses_once(make_trainer):
    trainer = make_trainer(train_dataset=GROUPS, per_device_train_batch_size=4, max_steps=1)
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    sequences = [ids for row in trainer.train_dataset for ids in row["sequence_ids"]]
    assert len(batch["leaf"]) == len(sequences) == 14
    distinct = sum(
        len({tuple(ids[: n + 1]) for ids in row["sequence_ids"] for n in range(len(ids))})
        for row in trainer.train_dataset
    )
    assert batch["input_ids"].numel() == distinct < sum(map(len, sequences))
    trainer.train()
    assert trainer.state.log_history[0]["num_tokens"] == sum(map(len, sequences))


def test_scores_are_ranks_and_their_differences_may_be_margins(make_trainer):
    scores = [[0.5, 2.0, -1.0, 0.5], [0.25, 0.75], [3.0, 1.0, 2.0], [0.0, 4.0, 4.0, 3.0, 1.0]]
    scored = [
        {"prompt": group["prompt"], "completions": group["completions"], "scores": values}
        for group, values in zip(GROUPS, scores, strict=True)
    ]
    assert_same_step(step(make_trainer, scored)[0], step(make_trainer, GROUPS)[0])
    pairs = [pair for group, values in zip(GROUPS, scores, strict=True) for pair in pairs_of(group, values)]
    options = {"margin_from_scores": True, "group_weighting": "comparison"}
    with_margins, _ = step(make_trainer, scored, **options)
    assert_same_step(with_margins, step(make_trainer, pairs, batch_layout="padded")[0])


def test_groups_by_ranks_groups_by_scores_and_pairs_mix(make_trainer):
    prompt = GROUPS[2]["prompt"]
    no_pair = {"chosen": None, "rejected": None}  # a table has its first row's columns
    mixed = [
        {"prompt": prompt, "completions": REPLIES[:3], "scores": [2.0, 0.0, 1.0], "ranks": None} | no_pair,
        {"prompt": prompt, "completions": REPLIES[:3], "ranks": [0, 2, 1]},
        {"prompt": prompt, "chosen": REPLIES[0], "rejected": REPLIES[1]},
    ]
    plain = [GROUPS[2], GROUPS[2], {"prompt": prompt, "completions": REPLIES[:2], "ranks": [0, 1]}]
    assert_same_step(step(make_trainer, mixed)[0], step(make_trainer, plain)[0])
    with_margins, _ = step(make_trainer, mixed, margin_from_scores=True, group_weighting="comparison")
    pairs = [*pairs_of(plain[0], [2.0, 0.0, 1.0]), *pairs_of(plain[1], [0, 0, 0]), *pairs_of(plain[2], [0, 0])]
    assert_same_step(with_margins, step(make_trainer, pairs)[0])


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
@pytest.mark.parametrize("weighting", ["group", "comparison"])
def test_uneven_micro_batches_of_groups_make_the_step_of_one_batch(make_trainer, weighting, loss):
    options = {"group_weighting": weighting, "loss_type": loss}
    whole, log = step(make_trainer, GROUPS, **options)
    parts, other = step(make_trainer, GROUPS, per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    assert_same_step(parts, whole)
    assert other["loss"] == pytest.approx(log["loss"], rel=1e-5)


# Whole rankings


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"center_rewards_coefficient": 0.1}])
def test_a_ranking_of_two_is_a_comparison(make_trainer, text_rows, options):
    rows = [row | {"margin": n / 4, "label": 1 - n / 16} for n, row in enumerate(text_rows)]
    (pairs, log), (other, expected) = (
        step(make_trainer, rows, loss_type=loss, **options) for loss in ("plackett_luce", "bradley_terry")
    )
    assert all(torch.equal(pairs[name], other[name]) for name in pairs)
    assert log["loss"] == expected["loss"]
    groups = [
        {"prompt": row["prompt"], "completions": [row["rejected"], row["chosen"]], "ranks": [1, 0]} for row in text_rows
    ]
    grouped, _ = step(make_trainer, groups, loss_type="plackett_luce", **options)
    assert_same_step(grouped, step(make_trainer, text_rows, **options)[0])


@pytest.mark.parametrize("weighting", ["group", "comparison"])
def test_the_loss_of_rankings_is_the_one_worked_by_hand(make_trainer, weighting):
    trainer = make_trainer(
        train_dataset=GROUPS, eval_dataset=GROUPS, loss_type="plackett_luce", group_weighting=weighting
    )
    groups = []
    for row in trainer.train_dataset:
        rewards, ranks = rewards_by_hand(trainer, row), np.array(row["ranks"])
        groups.append(
            [
                np.log(np.exp(rewards[ranks >= rank]).sum()) - reward
                for reward, rank in zip(rewards, ranks, strict=True)
                if (ranks > rank).any()
            ]
        )
    assert [len(places) for places in groups] == [3, 1, 2, 4]
    by_hand = np.mean([np.mean(places) for places in groups] if weighting == "group" else np.concatenate(groups))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand, rel=1e-5)
    _, log = step(make_trainer, GROUPS, loss_type="plackett_luce", group_weighting=weighting)
    assert log["loss"] == pytest.approx(by_hand, rel=1e-5)


# Evaluation


@pytest.mark.parametrize("weighting", ["group", "comparison"])
def test_an_evaluation_counts_each_comparison_of_a_group_once_and_in_order(make_trainer, weighting):
    seen = []

    def compute(prediction):
        seen.append(prediction)
        return {"comparisons": len(prediction.predictions)}

    pairs = weighted_pairs()
    options = {"group_weighting": weighting, "per_device_eval_batch_size": 3}
    trainer = make_trainer(eval_dataset=GROUPS, compute_metrics=compute, **options)
    metrics = trainer.evaluate()
    expected = make_trainer(batch_layout="padded").predict(make_trainer(eval_dataset=pairs).eval_dataset)
    assert metrics["eval_comparisons"] == len(pairs) == 18
    assert seen[0].label_ids.tolist() == [0] * 18
    np.testing.assert_allclose(seen[0].predictions, expected.predictions, atol=2e-6)
    for figure in ("accuracy", "margin", "chosen_reward", "min_rejected_reward"):
        assert metrics[f"eval_{figure}"] == pytest.approx(expected.metrics[f"test_{figure}"], abs=2e-6)
    assert metrics["eval_num_tokens"] == sum(len(ids) for row in trainer.eval_dataset for ids in row["sequence_ids"])
    losses = np.log1p(np.exp(np.diff(expected.predictions)))[:, 0]
    sizes = [len(pairs_of(group)) for group in GROUPS]
    each = [part.mean() for part in np.split(losses, np.cumsum(sizes)[:-1])]
    assert metrics["eval_loss"] == pytest.approx(np.mean(each) if weighting == "group" else losses.mean(), rel=1e-5)
