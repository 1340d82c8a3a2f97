"""Nothing is left to luck: the same examples, the same random numbers for each test, and no limit on time.

``HYPOTHESIS_PROFILE=explore`` draws other examples each time, and ten times as many where a test does not say how many;
``unshrunk`` the same ones, and does not look for smaller ones that fail, too.
"""

import os
import random
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

# How long it takes to draw an example, and to try it, tells how busy the machine is.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", patient, derandomize=True)
settings.register_profile("unshrunk", settings.get_profile("same"), phases=[Phase.explicit, Phase.generate])
settings.register_profile("explore", patient, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed what draws from the process, so that a test draws the same whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
