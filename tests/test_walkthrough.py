"""The commands and the program of docs/walkthrough.md, run one after the other on a tiny model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

PAGE = Path(__file__).parents[1] / "docs" / "walkthrough.md"
WORDS = ["sky", "dog", "fox", "user", "system", "tool", "assistant", "you"]
COLOURS = ["blue", "green", "quick", "lazy", "brown"]


def say(role, text):
    return [{"role": role, "content": text}]


@pytest.fixture
def place(tmp_path, tokenizer, tiny_config):
    """A folder with the files of the page, and its model under the hub id, where transformers looks first."""
    set_seed(0)
    config = tiny_config(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    for part in (AutoModelForCausalLM.from_config(config), tokenizer):
        part.save_pretrained(tmp_path / "Qwen" / "Qwen3-0.6B")
    asked = [say("user", f"Is the {word} {colour} {n}?") for n in range(8) for word in WORDS for colour in COLOURS]
    yes, no = say("assistant", "Yes, thank you."), say("assistant", "No, sorry.")
    pairs = [{"prompt": each, "chosen": yes, "rejected": no} for each in asked]
    groups = [{"prompt": each, "completions": [no, yes, no]} for each in asked[:5]]
    for name, rows in (("pairs", pairs[:-40]), ("test-pairs", pairs[-40:]), ("candidates", groups)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(command, place):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=place, env=os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_page_leads_from_pairs_to_a_policy(place):
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash"] * 6 + ["python"]
    outputs = (run(["bash", "-e", "-c", block], place) for _, block in blocks[:6])
    audited, trained, verified, judged, reported, scored = outputs

    assert "Accuracy of baselines that need no model" in audited
    assert "my-reward-model" in trained
    assert "gives the same scores" in verified
    assert "100.0%" in judged
    overall = json.loads((place / "result.json").read_text())["datasets"][0]["overall"]
    assert (overall["comparisons"], overall["accuracy"]) == (40, 1.0)
    assert "report.html" in reported
    assert (place / "report.html").read_text().count("<svg") >= 4
    assert "Scored 5 rows" in scored
    best = [json.loads(line) for line in (place / "best.jsonl").read_text().splitlines()]
    assert [row["completion"][0]["content"] for row in best] == ["Yes, thank you."] * 5

    pytest.importorskip("trl", reason="TRL is not beside this environment; `make test` puts it there")
    logged = run([sys.executable, "-c", blocks[6][1]], place)
    assert logged.count("rewards/my-reward-model/mean") >= 2
    AutoModelForCausalLM.from_pretrained(place / "my-policy")
    assert AutoTokenizer.from_pretrained(place / "my-policy").chat_template
