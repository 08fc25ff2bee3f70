"""Kinds of findings, the most harmful first, each with its title, its reason and the advice."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Finding", "KINDS", "make_finding", "rank"]


class Kind(NamedTuple):
    """The texts of a kind of finding, and the share of the rows concerned from which it is grave."""

    title: str  # before the count
    grave_from: float
    why: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the data.

    Attributes:
        kind: A key of `KINDS`.
        count: Number of groups in `rows`; of `length_bias` and `format_bias`, which list no rows, the number of rows
            concerned; of `label_noise`, the estimated number of wrong labels.
        rows: Groups of row numbers that belong together, from 0; of a leak, [training row, test row].
        grave: Training on the data, or the figures of the test, would mislead.
        title: The words before the count.
        why: The harm that it does.
        advice: What to do.
        detail: A sentence with the figures of the finding; it may be empty.
        figures: Numbers of the kind, such as the odds ratios of `format_bias`.
        example: Shortened texts of rows of the first group.
    """

    kind: str
    count: int
    rows: list[list[int]]
    grave: bool
    title: str
    why: str
    advice: str
    detail: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    example: list[dict[str, Any]] = field(default_factory=list)


# The most harmful kinds first.
KINDS = {
    "leaked_exact": Kind(
        "Pairs of a training row and a test row with the same prompt", 0.0,
        "The model has seen these test prompts, so its test accuracy says little about new ones.",
        "Take these rows out of the training data; --fix does."),
    "leaked_near": Kind(
        "Pairs of a training row and a test row with nearly the same prompt", 0.0,
        "A test prompt that differs from a training prompt by a few words tests memory more than judgement.",
        "Read some of them; take the training rows out if they ask the same."),
    "broken_roles": Kind(
        "Conversations with roles out of order", 0.01,
        "A chat template refuses such a conversation or writes it in a form that the model never meets in use.",
        "Mend the order of the messages, or take the rows out."),
    "label_noise": Kind(
        "Labels that seem wrong, at least", 0.1,
        "Wrong labels cost accuracy, and a policy that is trained on the model more than that.",
        "Look at the rows in this order, the most suspicious first; relabel or drop those that are wrong."),
    "contradiction": Kind(
        "Pairs of responses of which each is preferred to the other", 0.01,
        "The rows cancel out in training, and no model can be right about all of them.",
        "Keep the majority's verdict, or give both rows as one with a label between 0 and 1."),
    "cycle": Kind(
        "Groups of responses that beat each other in a circle", 0.01,
        "No reward can order responses that beat each other in a circle.",
        "Look at the rows of each circle, and take out the preference that is wrong."),
    "identical": Kind(
        "Rows that prefer a response to itself", 0.01,
        "There is nothing to learn from two equal responses. Training drops such pairs.",
        "Take the rows out (--fix does), and look for the step that made them."),
    "empty": Kind(
        "Rows with an empty response", 0.01,
        "The model learns that any text is better than none, or that silence is better than a text.",
        "Take the rows out (--fix does), unless silence is a real answer in your use."),
    "template_tokens": Kind(
        "Rows with a chat template's tokens inside text", 0.01,
        "The tokenizer reads them as the start or end of a turn, so the conversation is not what it seems.",
        "Cut the responses there, or remove the tokens; give the turns of a conversation as messages."),
    "early_divergence": Kind(
        "Conversations that differ before the user's last turn", 0.05,
        "The reward judges the end of a conversation, but here the preference may be about an earlier turn.",
        "Cut both sides after the first response that differs, or take the rows out."),
    "truncated": Kind(
        "Rows with a sequence longer than the maximum length", 0.05,
        "Training cuts the prompt of these rows or drops them.",
        "Raise max_length, or accept that the model is not trained on them."),
    "length_bias": Kind(
        "Rows whose label goes with the length", 0.0,
        "The model can learn to count words. A policy that is trained on it then writes longer (or shorter) texts.",
        "Compare the model with this baseline, read the length-balanced accuracy of plaudit eval, balance the pairs."),
    "format_bias": Kind(
        "Rows that differ in a feature of form that goes with the label", 1.0,
        "Little biased data is enough for a model to learn the form instead of the content.",
        "Check the model with plaudit eval --probes, or balance the pairs that differ in the feature."),
    "low_agreement": Kind(
        "Rows on which the raters are split", 1.0,
        "Where raters do not agree, a single label is partly chance, and no model can predict it.",
        "Train with a soft label, give more raters a better guideline, or drop the rows that are split evenly."),
    "dominant_prompt": Kind(
        "Prompts that have a large share of the rows", 0.25,
        "The model learns this prompt more than any other, and its rows are no independent evidence.",
        "Keep a sample of the rows of the prompt, or give them a lower weight."),
    "duplicate_exact": Kind(
        "Groups of equal rows", 0.05,
        "A repeated row counts several times, and may stand in training and in held-out data.",
        "Keep one of each (--fix does); if the repetition is meant, give one row a weight."),
    "duplicate_near": Kind(
        "Groups of nearly equal rows", 0.5,
        "Rows that differ by a few words count several times, and may stand in training and in held-out data.",
        "Keep one of each group, and hold data out by prompt."),
}  # fmt: skip


def make_finding(
    kind: str,
    groups: list[list[int]],
    total: int,
    *,
    count: int | None = None,
    grave: bool | None = None,
    detail: str = "",
    **figures: Any,
) -> Finding:
    """Make a finding of a kind; it is grave where the rows concerned are a share of `total` that the kind names."""
    title, grave_from, why, advice = KINDS[kind]
    concerned = len({row for group in groups for row in group}) if count is None else count
    grave = concerned >= grave_from * total if grave is None else grave
    number = len(groups) if count is None else count
    return Finding(kind, number, groups, grave, title, why, advice, detail, figures)


def rank(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, grave ones first, then by the harm of their kind, and leave out those of nothing."""
    order = list(KINDS)
    return sorted(filter(lambda each: each.count, findings), key=lambda each: (not each.grave, order.index(each.kind)))
