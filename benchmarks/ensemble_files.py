"""Ensembles of small decoders trained on one real file of preferences and judged on another.

`ensembles.py` describes the design.
"""

import gzip
import json
import zlib

from ensemble_world import be_quiet, each_in_its_process, new_decoder, train
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from plaudit import RewardModel, evaluate
from plaudit.evaluation.laplace import fit_laplace
from plaudit.scoring.ensemble import save_ensemble

SHIFTS = {"hh_harmless": "hhh_alignment", "tara": "truthfulqa", "pandalm": "llmbar"}
CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
VOCABULARY, HIDDEN, MAX_LENGTH = 2048, 128, 512


def read_rows(data, name, sizes):
    """Return the rows of a file, without the columns that are not read."""
    with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{key: row[key] for key in ("prompt", "chosen", "rejected") if key in row} for row in rows][
        : sizes.file_rows
    ]


def is_held_out(row):
    """Return whether a row belongs to the tenth that is held out; rows of one prompt go together."""
    prompt = row.get("prompt") or row["chosen"][:1]
    return zlib.crc32(json.dumps(prompt).encode()) % 10 == 0


def new_tokenizer(rows):
    """Train a byte-level BPE tokenizer on the text of the rows."""
    bpe = ByteLevelBPETokenizer()
    special = ["<pad>", "<eos>", "<user>", "<assistant>", "<system>"]
    bpe.train_from_iterator((json.dumps(row, ensure_ascii=False) for row in rows), VOCABULARY, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )


def train_member(sizes, folder, data, name, member):
    """Train one model of a file: its heads, or one seed."""
    be_quiet()
    place = folder / name / member
    if (place / "config.json").exists():
        return
    rows = [row for row in read_rows(data, name, sizes) if not is_held_out(row)]
    tokenizer = AutoTokenizer.from_pretrained(folder / name / "tokenizer")
    heads, seed = (sizes.members, 0) if member == "heads" else (1, int(member.split("-")[1]))
    model = new_decoder(tokenizer, seed, hidden=HIDDEN)
    train(
        model, tokenizer, rows, place, seed, num_heads=heads, num_train_epochs=2, learning_rate=5e-4,
        max_length=MAX_LENGTH,
    )  # fmt: skip


def judge(sizes, folder, data, name):
    """Return the figures of the three kinds on the held-out rows and on the shifted file."""
    be_quiet()
    rows, place = read_rows(data, name, sizes), folder / name
    trained = [row for row in rows if not is_held_out(row)]
    seeds = [place / f"seed-{seed}" for seed in range(sizes.members)]
    if not (place / "seeds").exists():
        sequences = [
            row["prompt"] + row[side] if "prompt" in row else row[side]
            for row in trained[:500]
            for side in ("chosen", "rejected")
        ]
        save_ensemble(seeds, place / "seeds", sequences)
    models = {kind: RewardModel.from_pretrained(place / kind) for kind in ("heads", "seeds")}
    models["Laplace"] = RewardModel.from_pretrained(seeds[0])
    fit_laplace(models["Laplace"], trained)
    found = []
    sets = {"held out": [row for row in rows if is_held_out(row)], "shifted": read_rows(data, SHIFTS[name], sizes)}
    for of_set, judged in sets.items():
        for kind, model in models.items():
            evaluation = evaluate(model, judged)
            found.append(
                {"trained_on": name, "set": of_set, "judged_on": name if of_set == "held out" else SHIFTS[name]}
                | {"kind": kind, "rows": len(judged), "overall": evaluation.overall}
                | {"uncertainty": evaluation.uncertainty.to_dict()}
            )
    return found


def measure_files(sizes, folder, data, workers):
    """Train and judge on all pairs of files."""
    be_quiet()
    for name in SHIFTS:
        tokenizer = folder / name / "tokenizer"
        if not tokenizer.exists():
            new_tokenizer(read_rows(data, name, sizes)).save_pretrained(tokenizer)
    members = ["heads", *(f"seed-{seed}" for seed in range(sizes.members))]
    for _ in each_in_its_process(
        train_member, [(sizes, folder, data, name, member) for name in SHIFTS for member in members], workers
    ):
        pass
    judged = each_in_its_process(judge, [(sizes, folder, data, name) for name in SHIFTS], workers)
    found = [row for rows in judged for row in rows]
    for row in found:
        figures, accuracy = row["uncertainty"], row["overall"]["accuracy"]
        print(
            f"  {row['trained_on']:<12} on {row['judged_on']:<14} {row['kind']:<8} accuracy {accuracy:.3f}"
            f"  spread AUROC {figures['spread_auroc']:.3f}  margin {figures['margin_auroc']:.3f}"
            f"  at equal margins {figures['adjusted_auroc']:.3f} ({figures['adjusted_auroc_low']:.3f} to"
            f" {figures['adjusted_auroc_high']:.3f})  earns its place: {figures['earns_its_place']}"
        )
    return {"results": found}
