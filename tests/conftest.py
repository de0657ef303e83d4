"""What must be set before anything that the tests import."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers fill the cores; read as torch is loaded

# isort: split
from support import interpreter  # noqa: F401  before all that imports Triton

# isort: split
import pytest
from hypothesis import HealthCheck, settings

from ivgr.models.pretrained import Pretrained

# A busy machine is no reason to fail.
calm = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("calm", max_examples=50, **calm)
settings.register_profile("thorough", max_examples=500, **calm)
settings.load_profile("calm")


@pytest.fixture(scope="module")
def tiny():
    """The shipped policy and its processor."""
    model, processor = Pretrained("tiny").load()
    return model.eval(), processor
