"""Every example in a docstring runs and gives what it shows."""

import doctest
import importlib

import pytest
from sources import SOURCES, module_of

MODULES = [module_of(path) for path in SOURCES if ">>>" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert attempted
    assert not failed
