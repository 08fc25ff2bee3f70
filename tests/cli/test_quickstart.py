"""`plaudit quickstart`: its options, and what it shows of a result."""

from click.testing import CliRunner

from plaudit import cli
from plaudit.quickstart.demonstration import QuickstartResult

RESULT = QuickstartResult(
    pairs=5_000,
    accuracy=0.86,
    interval=(0.84, 0.88),
    ceiling=0.9,
    bag_of_words=0.53,
    longer_wins=0.51,
    correlation=0.7,
    prompt="What is the capital of Japan?",
    rewards={"It is Tokyo.": 2.5, "It is Lima.": -1.25},
    seconds=74.4,
)


def test_the_figures_are_shown_beside_those_of_the_baselines(monkeypatch):
    calls = []

    def run(seed, output_dir, *, callbacks):
        calls.append((seed, output_dir, len(callbacks)))
        return RESULT

    monkeypatch.setattr("plaudit.quickstart.demonstration.run_quickstart", run)
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    arguments = ["quickstart", "--seed", "3", "--output_dir", "my-model"]
    result = CliRunner().invoke(cli.cli, arguments, catch_exceptions=False)
    assert (result.exit_code, calls) == (0, [(3, "my-model", 1)])
    words = " ".join(result.output.replace("│", " ").split())
    for shown in ("On 5,000 held-out pairs, after 74 seconds", "accuracy 86.0% (95% interval 84.0% to 88.0%)",
                  "ceiling 90.0%", "of the ceiling 90%", "a bag of words 53.0%", "the longer one wins 51.0%",
                  "rank correlation 0.70", "loaded again from my-model, and asked: What is the capital of Japan?",
                  "It is Tokyo. +2.50", "It is Lima. -1.25", "plaudit train --model_name_or_path",
                  'RewardModel.from_pretrained("my-model")'):  # fmt: skip
        assert shown in words
