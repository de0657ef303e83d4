"""Probes of where a policy localizes: attention, linear read-outs and interventions, on any family.

annotated_response.py (responses, token by token) → trace.py (a forward pass that records states and
attention) → attention_probe.py, localization.py; causal.py; encoders.py (a baseline); heatmap.py
(pictures); measures.py (the cheap ones in one call).
"""

from ivgr.tools.probes.annotated_response import AnnotatedResponse, Mention, read_response, respond
from ivgr.tools.probes.attention_probe import Attention, probe_attention
from ivgr.tools.probes.causal import Causal, Drop, probe_causal
from ivgr.tools.probes.encoders import Encoder, encode_named
from ivgr.tools.probes.heatmap import draw_heat, draw_readings, heat_of
from ivgr.tools.probes.localization import Named, ReadOut, list_named, probe_localization, read_out
from ivgr.tools.probes.measures import Measures, measure
from ivgr.tools.probes.probe_interval import Interval
from ivgr.tools.probes.trace import Traced, trace_readings

__all__ = [
    "AnnotatedResponse",
    "Attention",
    "Causal",
    "Drop",
    "Encoder",
    "Interval",
    "Measures",
    "Mention",
    "Named",
    "ReadOut",
    "Traced",
    "draw_heat",
    "draw_readings",
    "encode_named",
    "heat_of",
    "list_named",
    "measure",
    "probe_attention",
    "probe_causal",
    "probe_localization",
    "read_out",
    "read_response",
    "respond",
    "trace_readings",
]
