"""The examples in the docstrings of the losses and the metrics, which are documentation and run as it says."""

import doctest
import importlib
import pkgutil

import pytest

import plaudit.losses

MODULES = ["plaudit.metrics", *(each.name for each in pkgutil.iter_modules(plaudit.losses.__path__, "plaudit.losses."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
