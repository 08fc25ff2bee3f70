"""The cells of the tables of `plaudit eval` that tests of the command do not spell out."""

from plaudit.cli.evaluation_tables import probe_cells
from plaudit.evaluation.probes import run_probes

ROWS = [
    {"prompt": f"Question {n}: {n}+1?", "chosen": f" It is {n + 1}.", "rejected": f" It is surely {n}."}
    for n in range(40)
]


def length(texts):
    return [float(len(text)) for text in texts]


def test_a_probe_has_a_cell_for_each_figure_and_dashes_where_it_does_not_apply():
    results = run_probes(length, ROWS, ["swap", "prompt_blank", "padding_repeat", "lists"])
    assert [probe_cells(result) for result in results] == [
        ("swap", "40", "0.0%", "-", "-", "passed"),
        ("prompt_blank", "40", "0.0%", "+0.00", "dependence 0.00", "FAILED"),
        ("padding_repeat", "40", "0.0%", f"{results[2].shift.value:+.2f}", "100% (91%-100%)", "FAILED"),
        ("lists", "0", "-", "-", "-", "-"),
    ]
