"""The examples in the docstrings of the losses."""

import doctest
import importlib
import pkgutil

import pytest

import plaudit.losses

MODULES = sorted(module.name for module in pkgutil.iter_modules(plaudit.losses.__path__, "plaudit.losses."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_show(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", plaudit.losses.__all__)
def test_every_loss_has_an_example(name):
    assert ">>> " in getattr(plaudit.losses, name).__doc__
