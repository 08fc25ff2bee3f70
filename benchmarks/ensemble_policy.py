"""Policies trained by GRPO against single models and ensembles, and the true reward that they reach.

`ensembles.py` describes the design. The policy and its training are those of `examples/grpo_true_reward.py`.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from ensemble_choice import SINGLE, interval
from ensemble_world import be_quiet, each_in_its_process, flipped_rows, group_folder, group_world, reference_sequences
from transformers import AutoTokenizer

from plaudit import RewardModel
from plaudit.evaluation.laplace import fit_laplace
from plaudit.scoring.ensemble import save_ensemble

sys.path.append(str(Path(__file__).parents[1] / "examples"))

GUARDS = {  # the folder of a group, and the aggregate
    SINGLE: ("seed-0", "mean"),
    "heads, mean": ("heads", "mean"),
    "heads, mean-std": ("heads", "mean-std"),
    "seeds, mean": ("seeds", "mean"),
    "seeds, mean-std": ("seeds", "mean-std"),
    "Laplace, mean-std": ("seed-0", "mean-std"),
}
LAST = 3  # evaluations that count as the end


def prepare_policy(sizes, folder, group):
    """Train the policy of a group on the world's responses and join its seeds, once."""
    from grpo_true_reward import imitate

    be_quiet()
    place, world = group_folder(folder, group), group_world(group)
    if not (place / "seeds").exists():
        seeds = [place / f"seed-{seed}" for seed in range(sizes.members)]
        save_ensemble(seeds, place / "seeds", reference_sequences(flipped_rows(world, sizes.pairs)))
    if not (place / "policy" / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        tokenizer.chat_template += "{% if add_generation_prompt %}<assistant> {% endif %}"
        imitate(tokenizer, group_world(group), SimpleNamespace(imitated=sizes.imitated, output_dir=place, seed=group))


def reinforced(sizes, folder, group, guard):
    """Train the policy against one reward, and return steps, learnt and true reward on held-out prompts."""
    from grpo_true_reward import reinforce

    be_quiet()
    place, world = group_folder(folder, group), group_world(group)
    name, aggregate = GUARDS[guard]
    kept = place / f"policy against {guard}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    reward_model = RewardModel.from_pretrained(place / name)
    if guard.startswith("Laplace"):
        fit_laplace(reward_model, flipped_rows(world, sizes.pairs))
    options = SimpleNamespace(
        reward_model=reward_model, aggregate=aggregate, steps=sizes.policy_steps, judged=sizes.judged, seed=group,
        output_dir=place / "grpo",
    )  # fmt: skip
    curves = reinforce(str(place / "policy"), 0.0, world, options)
    kept.write_text(json.dumps(curves))
    return curves


def measure_policy(sizes, folder, workers):
    """Train all policies, and compare their true rewards by group."""
    groups = range(sizes.policy_groups)
    for _ in each_in_its_process(prepare_policy, [(sizes, folder, group) for group in groups], workers):
        pass
    jobs = [(sizes, folder, group, guard) for group in groups for guard in GUARDS]
    found = list(each_in_its_process(reinforced, jobs, workers))
    curves = {guard: found[start :: len(GUARDS)] for start, guard in enumerate(GUARDS)}
    ends = {guard: [float(np.mean(each["true"][-LAST:])) for each in runs] for guard, runs in curves.items()}
    result = {
        "curves": curves,
        "end": {guard: interval(each) for guard, each in ends.items()},
        "best": {guard: interval([max(each["true"]) for each in runs]) for guard, runs in curves.items()},
        "end_minus_best": {
            guard: interval([end - max(run["true"]) for end, run in zip(ends[guard], runs, strict=True)])
            for guard, runs in curves.items()
        },
        "end_minus_single": {guard: interval(np.subtract(each, ends[SINGLE])) for guard, each in ends.items()},
    }
    for guard, each in ends.items():
        difference = result["end_minus_single"][guard]
        print(
            f"  {guard:<20} true reward in the end {np.mean(each):+.3f}, at best {result['best'][guard]['mean']:+.3f}; "
            f"minus a single model {difference['mean']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
        )
    return result
