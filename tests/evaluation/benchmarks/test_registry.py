"""The registry of benchmarks."""

import doctest
import subprocess
import sys

from benchmark_rows import WRITERS

from plaudit.evaluation import benchmarks
from plaudit.evaluation.benchmarks import BENCHMARKS, benchmark


def test_it_holds_the_thirteen_by_their_names():
    assert set(BENCHMARKS) == set(WRITERS)
    assert all(each.name == name for name, each in BENCHMARKS.items())


def test_importing_it_pulls_in_no_torch_and_no_datasets():
    code = (
        "import sys, plaudit.evaluation.benchmarks; "
        "print([each for each in ('torch', 'datasets', 'transformers') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_examples_of_its_docstrings_are_right():
    assert doctest.testmod(benchmarks).failed == doctest.testmod(benchmark).failed == 0
