"""Kinds of findings, the most harmful first, each with its title, its reason and the advice."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Finding", "KINDS", "make_finding", "rank"]


@dataclass(frozen=True)
class Kind:
    """The texts of a kind of finding, and when it is grave.

    Attributes:
        title: The words before the count.
        why: The harm that it does.
        advice: What to do.
        grave_from: The share of the rows concerned from which it is grave.
    """

    title: str
    why: str
    advice: str
    grave_from: float


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the data.

    Attributes:
        kind: A key of `KINDS`.
        count: Number of groups in `rows`; where `rows` is empty, the number of rows concerned.
        rows: Groups of row numbers that belong together, from 0; of a leak, [training row, test row].
        grave: Training on the data, or the figures of the test, would mislead.
        title: The words before the count.
        why: The harm that it does.
        advice: What to do.
        figures: Numbers of the kind, such as the odds ratios of `format_bias`.
        detail: A sentence that says the figures; empty where the count says it all.
        example: Shortened texts of rows of the first group.
    """

    kind: str
    count: int
    rows: list[list[int]]
    grave: bool
    title: str
    why: str
    advice: str
    figures: dict[str, Any] = field(default_factory=dict)
    detail: str = ""
    example: list[dict[str, Any]] = field(default_factory=list)


# The most harmful kinds first.
KINDS = {
    "leaked_exact": Kind(
        "Pairs of a training and a test row with the same prompt",
        "The model has seen these test prompts, so its test accuracy says little about new ones.",
        "Take these rows out of the training data; --fix does.",
        0.0,
    ),
    "leaked_near": Kind(
        "Pairs of a training and a test row with nearly the same prompt",
        "A test prompt that differs from a training prompt by a few words tests memory more than judgement.",
        "Read some of them; take the training rows out if they ask the same.",
        0.0,
    ),
    "broken_roles": Kind(
        "Conversations with roles out of order",
        "A chat template refuses such a conversation or writes it in a form that the model never meets in use.",
        "Mend the order of the messages, or take the rows out.",
        0.01,
    ),
    "label_noise": Kind(
        "Labels that seem to be wrong, at least",
        "Wrong labels cost accuracy, and a policy that is trained on the model more than that.",
        "Look at the rows in this order, the most suspicious first; relabel or drop those that are wrong.",
        0.1,
    ),
    "contradiction": Kind(
        "Pairs of responses of which each is preferred to the other",
        "The rows cancel out in training, and no model can be right about all of them.",
        "Keep the majority's verdict, or give both rows as one with a label between 0 and 1.",
        0.01,
    ),
    "cycle": Kind(
        "Groups of responses that beat each other in a circle",
        "No reward can order responses that beat each other in a circle.",
        "Look at the rows of each circle, and take out the preference that is wrong.",
        0.01,
    ),
    "identical": Kind(
        "Rows that prefer a response to itself",
        "There is nothing to learn from two equal responses. Training drops such pairs.",
        "Take the rows out (--fix does), and look for the step that made them.",
        0.01,
    ),
    "empty": Kind(
        "Rows with an empty response",
        "The model learns that any text beats none, which helps nobody, or that silence is good.",
        "Take the rows out (--fix does), unless silence is a real answer in your use.",
        0.01,
    ),
    "template_tokens": Kind(
        "Rows with a chat template's tokens inside text",
        "The tokenizer reads them as the start or end of a turn, so the conversation is not what it seems.",
        "Cut the responses there, or remove the tokens; text that a template wrote belongs into messages.",
        0.01,
    ),
    "early_divergence": Kind(
        "Conversations that differ before the user's last turn",
        "The reward judges the end of a conversation, but here the preference may be about an earlier turn.",
        "Cut both sides after the first response that differs, or take the rows out.",
        0.05,
    ),
    "truncated": Kind(
        "Rows with a sequence longer than the maximum length",
        "Training cuts the prompt of these rows or drops them.",
        "Raise max_length, or accept that the model is not trained on them.",
        0.05,
    ),
    "length_bias": Kind(
        "Rows whose label goes with the length",
        "The model can learn to count words. A policy that is trained on it then writes longer (or shorter) texts.",
        "Compare the model with this baseline, use the length-balanced accuracy of plaudit eval, or balance the pairs.",
        0.0,
    ),
    "format_bias": Kind(
        "Rows that differ in a feature of form that goes with the label",
        "Little biased data is enough for a model to learn the form instead of the content.",
        "Check the model with plaudit eval --probes, or balance the pairs that differ in the feature.",
        1.0,
    ),
    "low_agreement": Kind(
        "Rows on which the raters are split",
        "Where raters do not agree, a single label is partly chance, and no model can predict it.",
        "Train with a soft label, give more raters a better guideline, or drop the rows that are split evenly.",
        1.0,
    ),
    "dominant_prompt": Kind(
        "Prompts that have a large share of the rows",
        "The model learns this prompt more than any other, and its rows are no independent evidence.",
        "Keep a sample of the rows of the prompt, or give them a lower weight.",
        0.25,
    ),
    "duplicate_exact": Kind(
        "Groups of equal rows",
        "A repeated row counts several times, and may stand in training and in held-out data.",
        "Keep one of each (--fix does); if the repetition is meant, give one row a weight.",
        0.05,
    ),
    "duplicate_near": Kind(
        "Groups of nearly equal rows",
        "Rows that differ by a few words count several times, and may stand in training and in held-out data.",
        "Keep one of each group, and hold data out by prompt.",
        0.5,
    ),
}


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
    texts = KINDS[kind]
    concerned = len({row for group in groups for row in group}) if count is None else count
    grave = concerned >= texts.grave_from * total if grave is None else grave
    number = len(groups) if count is None else count
    return Finding(kind, number, groups, grave, texts.title, texts.why, texts.advice, figures, detail)


def rank(findings: list[Finding]) -> list[Finding]:
    """Sort findings: grave ones first, then by the harm of their kind."""
    order = list(KINDS)
    return sorted(findings, key=lambda finding: (not finding.grave, order.index(finding.kind)))
