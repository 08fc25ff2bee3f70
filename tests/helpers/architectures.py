"""Small models of many architectures, sequences that share prefixes, and batches of them in both layouts."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from plaudit.forest.attention import enable
from plaudit.forest.trie import TokenForest
from plaudit.models.reward_head import bind_reward_forward

PLAIN = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

GROUPED = PLAIN | {"num_key_value_heads": 2}

WIDE = GROUPED | {"head_dim": 12}  # heads wider than hidden_size / heads

EXPERTS = {"num_experts_per_tok": 2}

BOTH = {"layer_types": ["sliding_attention", "full_attention"]}

MODELS = {
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", WIDE),
    "qwen3 with a window": (
        "qwen3",
        WIDE | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "llama": ("llama", WIDE),
    "mistral with a window": ("mistral", WIDE | {"sliding_window": 5}),
    "gemma2 with softcap and window": (
        "gemma2",
        WIDE | {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "gemma3 with a window": ("gemma3_text", WIDE | BOTH | {"sliding_window": 5, "query_pre_attn_scalar": 8}),
    "gpt_neox": ("gpt_neox", PLAIN),
    "phi": ("phi", GROUPED),
    "phi3": ("phi3", GROUPED),
    "phi3 with a window": ("phi3", GROUPED | {"sliding_window": 5}),
    "gpt_oss with sinks and window": (
        "gpt_oss",
        WIDE | BOTH | EXPERTS | {"sliding_window": 6, "num_local_experts": 4, "rope_parameters": {"rope_theta": 1e4}},
    ),
    "olmo2": ("olmo2", GROUPED),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | PLAIN),
    "gpt2 scaled by layer": (
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "scale_attn_by_inverse_layer_idx": True} | PLAIN,
    ),
    "opt": ("opt", PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "qwen3_moe": ("qwen3_moe", WIDE | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16}),
    "mixtral with a window": ("mixtral", WIDE | EXPERTS | {"num_local_experts": 4, "sliding_window": 5}),
    "starcoder2 with a window": ("starcoder2", GROUPED | {"sliding_window": 5}),
    "deepseek_v3, values narrower than keys": (
        "deepseek_v3",
        PLAIN
        | EXPERTS
        | {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
        | {"v_head_dim": 6, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
        | {"moe_intermediate_size": 16},
    ),
}

for _, options in MODELS.values():  # the names that the configuration of GPT-2 does not know
    if "n_embd" in options:
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            options.pop(name, None)
        options.pop("max_position_embeddings", None)


def sequences_and_rows():
    """Pairs and groups of 6 to 44 tokens (windows are 5 and 6), without the pad, which the stock forward looks for."""
    draw = torch.Generator().manual_seed(7)

    def tokens(count):
        return torch.randint(3, 99, (count,), generator=draw).tolist()

    sequences, rows = [], []
    for row, (prompt, lengths) in enumerate([(2, (4, 7)), (20, (3, 1, 14)), (30, (14, 5)), (8, (6, 6))]):
        stem = tokens(prompt)
        sequences += [stem + tokens(length) for length in lengths]
        rows += [row] * len(lengths)
    stem = sequences[2]
    more = [stem + tokens(6), stem + tokens(9), stem, list(sequences[0])]  # a second turn, a prefix, a duplicate
    return sequences + more, [*rows, 1, 1, 1, 0]


SEQUENCES, ROWS = sequences_and_rows()
WEIGHTS = torch.linspace(-1.0, 1.0, len(SEQUENCES))  # of each reward in the loss: no two gradients cancel


def make(kind, dtype=torch.float32, **changes):
    """A model whose attention, positions and experts all show in the reward: weights far from their small start."""
    model_type, options = MODELS[kind]
    set_seed(0)
    config = AutoConfig.for_model(model_type, **options | changes)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "sink" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def forest_model(kind, backend=None, dtype=torch.float32, **changes):
    model = make(kind, dtype, **changes)
    bind_reward_forward(model)
    enable(model, backend)
    return model


def forest_batch(sequences=SEQUENCES, rows=ROWS, device="cpu"):
    forest = TokenForest.from_sequences(sequences, rows)
    row = {"input_ids": forest.input_ids, "position_ids": forest.position_ids, "subtree_end": forest.subtree_end}
    return {name: torch.tensor(values, device=device)[None] for name, values in row.items()} | {
        "leaf": torch.tensor(forest.leaf, device=device)
    }


def padded_batch(sequences=SEQUENCES, side="right"):
    width = max(map(len, sequences))
    ids, mask = torch.zeros(len(sequences), width, dtype=torch.long), torch.zeros(len(sequences), width).long()
    for number, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[number, place], mask[number, place] = torch.tensor(sequence), 1
    return {"input_ids": ids, "attention_mask": mask}


def rewards(model, batch=None):
    with torch.no_grad():
        return model(**(batch or forest_batch())).logits.float().squeeze(-1)


def alone(model, sequences=SEQUENCES):
    return torch.cat([model(torch.tensor([sequence])).logits.float().squeeze(-1) for sequence in sequences])


def gradients_of(model, score):
    """Rewards [N], and the gradient of their weighted sum for every parameter that has one."""
    model.zero_grad()
    result = score()
    (result * WEIGHTS[: len(result)].to(result.device)).sum().backward()
    return result.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def forest_gradients(model, batch=None):
    return gradients_of(model, lambda: model(**(batch or forest_batch())).logits.float().squeeze(-1))


def assert_gradients_close(given, expected, tolerance=1e-4):
    assert given.keys() == expected.keys()
    # A bias of the keys moves all scores of a query alike: its gradient is zero in theory, and rounding in practice.
    # Against that stands a floor of 1e-6 of the largest gradient, ten roundings.
    floor = 1e-6 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (given[name] - gradient).norm()
        assert difference <= tolerance * gradient.norm() + floor, (name, difference / gradient.norm())


def long_sequences():
    """Rows of several of FlexAttention's blocks of 128 tokens, with shared, partial and no prefixes."""
    draw = torch.Generator().manual_seed(5)
    parts = [torch.randint(3, 99, (n,), generator=draw).tolist() for n in (200, 150, 90, 30, 140, 300)]
    first, second, *tails = parts
    return [first + second + tails[0], first + second + tails[1], first + tails[2], tails[3]], [0, 0, 0, 1]


def relative(given, expected):
    return ((given - expected).norm() / expected.norm()).item()


def gradients_error(given, expected):
    names = expected.keys()
    return relative(*(torch.cat([each[name].float().flatten() for name in names]) for each in (given, expected)))
