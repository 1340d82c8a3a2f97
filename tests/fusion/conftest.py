from __future__ import annotations

import pytest
from fusion_cases import CASES, ESTIMATORS, array_of, members
from sklearn.base import clone

from vidfuse.stack.stack import LogitStack


@pytest.fixture(params=list(CASES))
def rule(request):
    return clone(CASES[request.param])


@pytest.fixture(params=list(ESTIMATORS))
def estimator(request):
    return clone(ESTIMATORS[request.param])


@pytest.fixture
def data():
    arrays, y = members()
    stack = LogitStack.from_arrays(arrays, labels=y)
    return stack, array_of(arrays), y
