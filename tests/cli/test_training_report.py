"""What `plaudit train` says about its data, and the report that it writes."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from plaudit.cli.training_report import show_grave_findings, write_training_report
from plaudit.evaluation.evaluate import evaluate, evaluate_scores
from plaudit.evaluation.score_files import read_scores
from plaudit.scoring.reward_model import RewardModel


def pairs(first, last):
    return [
        {"prompt": f"Is the sky {n} ?", "chosen": " Yes, the sky", "rejected": " No, it is"} for n in range(first, last)
    ]


def test_a_grave_finding_is_said_in_one_line(capsys):
    train, test = Dataset.from_list(pairs(0, 40)), Dataset.from_list(pairs(39, 45))
    show_grave_findings(train, test)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Look at the training data: ")
    assert line.endswith(": 1. `plaudit audit` shows the rows.")


@pytest.mark.parametrize("rows", [pairs(0, 40), [{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}]])
def test_sound_data_and_token_ids_have_no_line(rows, capsys):
    show_grave_findings(Dataset.from_list(rows), Dataset.from_list(pairs(50, 60)))
    assert capsys.readouterr().out == ""


def test_the_report_has_its_files_beside_the_model(make_trainer, text_rows, capsys):
    trainer = make_trainer(max_steps=1)
    trainer.save_model()
    splits = Dataset.from_list(text_rows), Dataset.from_list(pairs(0, 20))
    write_training_report(trainer.args.output_dir, trainer.state.log_history, splits)
    assert "The report is in" in capsys.readouterr().out
    folder = Path(trainer.args.output_dir)
    assert json.loads((folder / "audit.json").read_text())["rows"] == len(text_rows)
    again = evaluate(RewardModel.from_pretrained(folder), folder / "held-out.jsonl")
    saved = evaluate_scores(read_scores(folder / "scores.jsonl"))
    assert saved.overall == pytest.approx(again.overall, nan_ok=True)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Is the sky" in page  # the texts of the wrong pairs
    assert "hub" not in page
