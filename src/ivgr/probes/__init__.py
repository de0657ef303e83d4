"""Where does a policy localize? Attention, linear read-outs and interventions, on any family.

reading.py (responses, token by token) → trace.py (a forward pass that is looked into) →
attention.py, localization.py; causal.py; encoders.py (a baseline); heat.py (pictures);
measures.py (the light ones in one call).
"""

from ivgr.probes.attention import Attention, probe_attention
from ivgr.probes.causal import Causal, Drop, probe_causal
from ivgr.probes.encoders import Encoder, encode_named
from ivgr.probes.heat import draw_heat, draw_readings, heat_of
from ivgr.probes.interval import Interval
from ivgr.probes.localization import Named, ReadOut, list_named, probe_localization, read_out
from ivgr.probes.measures import Measures, measure
from ivgr.probes.reading import Mention, Reading, read_response, respond
from ivgr.probes.trace import Traced, trace_readings

__all__ = [
    "Attention",
    "Causal",
    "Drop",
    "Encoder",
    "Interval",
    "Measures",
    "Mention",
    "Named",
    "ReadOut",
    "Reading",
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
