"""Shapes are checked in the tests."""

import jaxtyping
import pytest
import torch

from lensbench.errors import unknown_name
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel
from tests import tiny


def test_arrays_of_another_shape_are_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        Residuals((0,), torch.zeros(3))
    with pytest.raises(jaxtyping.TypeCheckError):
        Residuals((0,), torch.zeros(1, 2, 3, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError):
        tiny.model().unembed(torch.zeros(2, 3, 4))


def test_nothing_else_is_wrapped() -> None:
    assert not hasattr(unknown_name, "__wrapped__")
    assert hasattr(LanguageModel.unembed, "__wrapped__")
