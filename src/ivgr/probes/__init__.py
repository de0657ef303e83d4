"""Where does a policy localize? Attention, linear read-outs and interventions, on any family.

reading.py (responses, token by token) → trace.py (a forward pass that is looked into) →
attention.py, localization.py; causal.py; encoders.py (a baseline); heat.py (pictures);
measure.py (the light ones in one call).
"""

from ivgr.probes.attention import Attention, attention
from ivgr.probes.causal import Causal, Drop, causal
from ivgr.probes.encoders import Encoder, encode_named
from ivgr.probes.heat import draw_heat
from ivgr.probes.interval import Interval
from ivgr.probes.localization import Named, ReadOut, list_named, localization, read_out
from ivgr.probes.measure import Measures, measure
from ivgr.probes.reading import Mention, Reading, read_response, respond
from ivgr.probes.trace import Traced, trace

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
    "attention",
    "causal",
    "draw_heat",
    "encode_named",
    "list_named",
    "localization",
    "measure",
    "read_out",
    "read_response",
    "respond",
    "trace",
]
