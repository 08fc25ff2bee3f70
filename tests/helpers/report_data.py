"""Results of every kind that a report shows: score files, and the JSON of the other commands."""

import math

import numpy as np

from plaudit import evaluate

__all__ = [
    "AUDIT", "BEST_OF_N", "COMPARISON", "LEARNING_CURVE", "LOG", "PROBES", "hostile_rows", "plain_rows", "scores_of",
]  # fmt: skip

SCRIPT = "<script>document.title = 'broken in'</script><img src=x onerror=\"document.title = 'broken in'\">"


def plain_rows(count=120, length=60):
    """Rows in two subsets, of which the model below is wrong about every fourth."""
    words = "the red cat sat on a mat and saw the blue dog run to the far end of a field".split()  # noqa: SIM905
    rows = []
    for n in range(count):
        text = " ".join(words[(n * 7 + k) % len(words)] for k in range(length // 4))
        better, worse = f"{text} {n} truly.", f"{text} {n} falsely, as it were."
        rows.append({
            "prompt": f"Question {n // 2}?", "chosen": f" {better}", "rejected": f" {worse}",
            "subset": "even" if n % 2 == 0 else "odd", "id": f"row-{n}",
        })  # fmt: skip
    return rows


def hostile_rows():
    """Rows with markup and right-to-left text in the prompt, the responses, the id and the subset."""
    rows = plain_rows(40)
    for row in rows:
        row["prompt"] += f" {SCRIPT}"
        row["chosen"] += f" {SCRIPT} \u0634\u0643\u0631\u0627"
        row["rejected"] = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd " + row["rejected"] + SCRIPT
        row["subset"] += f" {SCRIPT} $x_$ \u05e2\u05d1\u05e8\u05d9\u05ea"
    return rows


def scores_of(rows, seed=0, scale=1.0):
    """Scores of a made-up model, wrong about a quarter of the rows; the same for the same seed."""
    draws = np.random.default_rng(seed)
    noise = iter(draws.normal(size=4 * len(rows)))

    def model(sequences):
        return [scale * (("truly" in each) - 0.4 + 0.7 * next(noise)) for each in sequences]

    model.__name__ = f"model-{seed}"
    return evaluate(model, rows).scores


def figure(value, spread=0.1):
    return {"value": value, "low": value - spread, "high": value + spread}


def probe(name, passed, shift, verdict):
    return {
        "name": name, "description": "A change of the text.", "comparisons": 100, "not_applicable": 0,
        "flip_rate": figure(0.2), "turned_wrong": figure(0.1), "shift": figure(shift) if shift else NO_FIGURE,
        "prefers_changed": figure(0.5), "accuracy": figure(0.8), "accuracy_changed": figure(0.7),
        "prompt_dependence": None, "passed": passed, "verdict": verdict,
    }  # fmt: skip


NO_FIGURE = {"value": None, "low": None, "high": None}
PROBES = [
    probe("padding_repeat", False, 0.8, "Failed: the change flips 20% of the verdicts."),
    probe("refusal", True, -0.4, "Passed: nothing to see."),
    probe("cut_half", None, 0.1, "Cannot tell: few rows."),
    probe("swap", True, None, "Passed: all verdicts turn."),
]
AUDIT = {
    "rows": 120,
    "findings": [
        {"kind": "leaked_exact", "count": 2, "rows": [[3, 5], [8, 1]], "grave": True, "title": "pairs of equal prompts",
         "why": "The test is known.", "advice": "Take them out.", "detail": "Two rows.",
         "example": [{"row": 3, "prompt": "Who goes <b>there</b>?"}, {"test_row": 5, "prompt": "Who goes there?"}]},
        {"kind": "empty", "count": 1, "rows": [[7]], "grave": False, "title": "rows with an empty response",
         "why": "Silence.", "advice": "Drop it.", "detail": "", "example": []},
    ],
    "baselines": {"longer": 0.55, "style": 0.6},
    "baseline_intervals": {"longer": [0.5, 0.6], "style": [0.55, 0.65]},
    "label_noise": {"verdict": "cannot tell"},
}  # fmt: skip
LEARNING_CURVE = {
    "sizes": [100, 200, 400, 800], "losses": [0.6, 0.55, 0.52, 0.5], "loss_low": [0.58, 0.53, 0.5, 0.48],
    "loss_high": [0.62, 0.57, 0.54, 0.52], "accuracies": [0.6, 0.65, 0.7, 0.72], "accuracy_low": [0.5, 0.6, 0.6, 0.7],
    "accuracy_high": [0.7, 0.7, 0.8, 0.8], "comparisons": 500, "prompts": 400, "fit": {"a": 0.45, "b": 2.0, "c": 0.55},
    "predicted": {"size": 1600, "loss": 0.485, "low": 0.47, "high": 0.5, "gain": 0.015, "gain_low": 0.0,
                  "gain_high": 0.03},
    "verdict": "Twice the data is predicted to lower the log loss.",
}  # fmt: skip
BEST_OF_N = {
    "n": [1, 2, 4], "sqrt_kl": [0.0, 0.44, 0.8], "gold": [0.0, 0.4, 0.7], "gold_low": [-0.1, 0.3, 0.6],
    "gold_high": [0.1, 0.5, 0.8], "proxy": [0.0, 0.8, 1.2], "proxy_low": [0.0, 0.7, 1.1], "proxy_high": [0.0, 0.9, 1.3],
    "oracle": [0.0, 0.6, 1.0], "groups": 50, "left_out": 0, "gain": 0.7, "gain_low": 0.5, "gain_high": 0.9,
    "verdict": "The best of 4 gains.",
}  # fmt: skip
DIFFERENCE = {
    "difference": 0.01, "low": -0.02, "high": 0.04, "p_value": 0.5, "smallest_detectable": 0.05, "accuracy_a": 0.71,
    "accuracy_b": 0.7, "comparisons": 120, "prompts": 60, "separable": False,
}  # fmt: skip
COMPARISON = DIFFERENCE | {
    "a": "mine", "b": "theirs", "subsets": {"even": DIFFERENCE, "odd": DIFFERENCE}, "composites": {}, "rows_apart": [],
    "notes": [],
}  # fmt: skip
LOG = [
    {"step": 10 * n, "loss": 0.69 * math.exp(-n / 20), "accuracy": 0.5 + n / 100}
    | ({"eval_loss": 0.6, "eval_accuracy": 0.6} if n % 5 == 0 else {})
    for n in range(1, 21)
]
