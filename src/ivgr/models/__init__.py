"""Families of models, and the calls into a model. A module of your own adds a `Family` by `register`."""

from ivgr.core.face import lazy_face

NAMES = {"Family": "family", "register": "registry"}
__all__ = list(NAMES)
__getattr__ = lazy_face(__name__, NAMES)
