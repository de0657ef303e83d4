"""Beside training: data, questions to a policy, benchmarks, probes, plans and measurements."""

from ivgr.core.face import lazy_face

NAMES = {"Benchmarks": "benchmarks.benchmark_callback", "Probing": "probes.probe_callback"}
__all__ = list(NAMES)
__getattr__ = lazy_face(__name__, NAMES)
