"""The examples in the docstrings of the losses give the results that they show."""

import doctest
import importlib
import pkgutil

import pytest

import plaudit.losses


@pytest.mark.parametrize("name", [each.name for each in pkgutil.iter_modules(plaudit.losses.__path__)])
def test_the_examples_of_a_module_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(f"plaudit.losses.{name}")).failed == 0
