"""The checkpoint contract: what `config.json` says so that every engine reads the same score.

`architectures` and the weights come from transformers. The rest: one label, named; a pad that is not EOS, or plain
transformers would read the token before the last; `problem_type="regression"`, without which vLLM applies a sigmoid;
`value_head_prefix`, `mean` and `std`, which OpenRLHF reads.
"""

from transformers import PretrainedConfig

__all__ = ["LABEL", "write_contract"]

LABEL = "LABEL_0"  # transformers' own name for a single label; pipelines print it


def write_contract(config: PretrainedConfig, head: str, mean: float = 0.0, std: float = 1.0) -> None:
    """Write the contract into a model's config, in place.

    Args:
        config: The sequence classifier's config.
        head: The attribute that holds the head, such as "score".
        mean: Mean reward on the evaluation data, for `(reward - mean) / std`; 0 and 1 change nothing.
        std: Standard deviation of the reward there.
    """
    config.id2label = {0: LABEL}
    config.label2id = {LABEL: 0}
    config.problem_type = "regression"
    config.value_head_prefix = head
    config.mean, config.std = float(mean), float(std)
