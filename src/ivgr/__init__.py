"""iVGR: train vision-language models to reason in plain text with the localization skill
of explicit boxes (arXiv 2605.31096)."""

__version__ = "0.1.0"
