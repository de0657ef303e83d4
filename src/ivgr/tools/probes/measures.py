"""The light probes in one call: a stream's greedy responses to fixed samples, looked into once.

In: a policy and samples. Out: `Measures`, and their numbers by name (see `ivgr.plotting.tags`).
"""

import math
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.models.registry import find_family
from ivgr.rollout.transformers_engine import RolloutEngine
from ivgr.tools.probes.annotated_response import AnnotatedResponse, Point, respond
from ivgr.tools.probes.attention_probe import Attention, AttentionStats
from ivgr.tools.probes.causal import Causal, probe_causal
from ivgr.tools.probes.localization import FEWEST, ReadOut, gather_states, list_named, read_out
from ivgr.tools.probes.probe_interval import Interval
from ivgr.tools.probes.trace import BUDGET, Traced, trace_readings


@dataclass(frozen=True)
class Measures:
    """What the probes find in one stream. think, place: attention of the reasoning, and of the tokens
    before it says where an object is. noun_readout, place_readout: from behind decoder layer
    `layer`, None where fewer than FEWEST images have such a point."""

    stream: str
    layer: int
    think: Attention
    place: Attention
    noun_readout: ReadOut | None
    place_readout: ReadOut | None
    causal: Causal

    def intervals(self) -> dict[str, Interval]:
        """Every figure by its short name. attention_* is `think`, place_attention_* `place`, readout_*
        the read-out before the place, noun_readout_* that at the noun; causal_drop is the gold
        answer's after the reasoning, causal_direct without, causal_reasoning the reasoning's own,
        each inside less outside."""
        figures = {
            **_attention_figures("attention", self.think),
            **_attention_figures("place_attention", self.place),
            "causal_drop": self.causal.reasoned.difference,
            "causal_inside": self.causal.reasoned.inside,
            "causal_outside": self.causal.reasoned.outside,
            "causal_direct": self.causal.direct.difference,
            "causal_reasoning": self.causal.reasoning.difference,
        }
        for name, found in (("readout", self.place_readout), ("noun_readout", self.noun_readout)):
            if found is not None:
                figures |= {
                    f"{name}_r2": found.centre,
                    f"{name}_size_r2": found.size,
                    f"{name}_iou": found.iou,
                    f"{name}_place": found.place,
                    f"{name}_control": found.control,
                }
        return figures

    def metrics(self) -> dict[str, float]:
        """probe/STREAM/NAME → mean; what could not be measured is left out."""
        return {
            f"probe/{self.stream}/{name}": found.mean
            for name, found in self.intervals().items()
            if not math.isnan(found.mean)
        }


def measure(
    policy: PreTrainedModel,
    encoder: QueryEncoder,
    engine: RolloutEngine,
    samples: list[Sample],
    stream: str,
    layer: int | None = None,
    budget: int = BUDGET,
) -> Measures:
    """All probes on the policy's greedy responses to `samples` in one stream. The read-outs look
    behind decoder layer `layer`, by default one three quarters of the way up; budget: padded tokens
    a pass. No random stream is touched. RejectedSample if a sample cannot be encoded; UserError for
    a layer that is not there."""
    readings = respond(policy, encoder, engine, samples, stream)
    return measure_readings(policy, encoder, readings, stream, layer, budget)


def measure_readings(
    policy: PreTrainedModel,
    encoder: QueryEncoder,
    readings: list[AnnotatedResponse],
    stream: str,
    layer: int | None = None,
    budget: int = BUDGET,
) -> Measures:
    """Measures the same on existing responses."""
    count = len(find_family(policy.config.model_type).decoder_layers(policy))
    layer = count * 3 // 4 if layer is None else layer % count
    think, place = (AttentionStats(policy, readings, look) for look in ("think", "place"))
    seen: list[Traced] = []
    for index, traced in enumerate(trace_readings(policy, readings, budget=budget)):
        think.add(index, traced)
        place.add(index, traced)
        seen.append(Traced(traced.reading, traced.states[:, layer : layer + 1].clone()))
    outs = {point: _read_out(readings, seen, point) for point in ("noun", "place")}
    drops = probe_causal(policy, encoder.processor.tokenizer, readings, budget)
    return Measures(stream, layer, think.compute(), place.compute(), outs["noun"], outs["place"], drops)


def _read_out(readings: list[AnnotatedResponse], seen: list[Traced], point: Point) -> ReadOut | None:
    named = list_named(readings, point)
    if len(np.unique(named.images)) < FEWEST:
        return None
    return read_out(gather_states(seen, point)[:, 0], named)


def _attention_figures(name: str, found: Attention) -> dict[str, Interval]:
    kept = ("image", "inside", "area", "chance", "pointing", "pointing_chance", "best")
    return {f"{name}_{figure}": getattr(found, figure) for figure in kept}
