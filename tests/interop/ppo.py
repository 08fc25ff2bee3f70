"""Two updates of TRL's last PPO trainer with a Plaudit reward model; `test_trl_ppo.py` runs it beside that TRL.

Usage: ppo.py FOLDER_OF_THE_REWARD_MODEL FOLDER_OF_THE_POLICY OUTPUT. Prints its figures as one line of JSON.
"""

import copy
import json
import sys

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.utils import get_reward

from plaudit import RewardModel

TEXTS = ["Is the sky blue? Yes, the sky is blue", "Is the dog lazy? No", "Is two four? No, it is not. Sorry!"]


def changed(module, before):
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def main(reward_folder, policy_folder, output):
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(policy_folder)
    reward, value = (AutoModelForSequenceClassification.from_pretrained(reward_folder, num_labels=1) for _ in range(2))

    # What PPO reads off policy ids: a left-padded prompt, its response, EOS, pads on the right.
    whole = [text + tokenizer.eos_token for text in TEXTS]
    ids = tokenizer(whole, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    ids = torch.cat([torch.full((len(ids), 2), tokenizer.pad_token_id), ids], dim=1)
    with torch.no_grad():
        (_, theirs, last), (values, _, _) = (get_reward(m, ids, tokenizer.pad_token_id, 3) for m in (reward, value))
    ours = RewardModel.from_pretrained(reward_folder, device="cpu").score(TEXTS)
    values = values[torch.arange(len(ids)), last].squeeze(-1)

    config = PPOConfig(
        output, total_episodes=16, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=1,
        response_length=6, stop_token="eos", learning_rate=1e-3, report_to="none", save_strategy="no", use_cpu=True,
        bf16=False, gradient_checkpointing=False, num_sample_generations=0, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    prompts = [{"input_ids": tokenizer(text.split("?")[0] + "?")["input_ids"]} for text in TEXTS * 6]
    trainer = PPOTrainer(
        config,
        tokenizer,
        policy,
        None,
        reward,
        Dataset.from_list(prompts),
        value,
        eval_dataset=Dataset.from_list(prompts),
    )
    before = [copy.deepcopy(model.state_dict()) for model in (policy, value, reward)]
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    return {
        "version": trl.__version__, "theirs": theirs.tolist(), "ours": ours.tolist(), "values": values.tolist(),
        "changed": [changed(*each) for each in zip((policy, value, reward), before, strict=True)],
        "scores": [entry["objective/scores"] for entry in logs],
        "value_loss": [entry["loss/value_avg"] for entry in logs],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
