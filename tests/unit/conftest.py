"""Hypothesis: no deadlines, because the machine may be busy; MM4_EXAMPLES=5000 looks longer than a normal run does."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "mm4",
    max_examples=int(os.environ.get("MM4_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mm4")
