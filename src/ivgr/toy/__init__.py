"""The tiny world: pictures of coloured shapes, questions on them, a model and a judge for them."""

from ivgr.core.face import lazy_face

NAMES = {
    "Curriculum": "curriculum",
    "PlaceAccuracy": "place_accuracy",
    "RuleJudge": "rule_judge",
    "RuleRewriter": "rule_rewriter",
    "TinyScratch": "tiny_model",
    "TinyWorld": "tiny_world",
    "World": "world",
}
__all__ = list(NAMES)
__getattr__ = lazy_face(__name__, NAMES)
