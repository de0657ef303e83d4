"""What TensorBoard's CUSTOM SCALARS tab shows: the streams in one chart, figure by figure.

In: nothing, or an iteration's metrics. Out: the layout as an event-file summary, and the scalars
that the stack of consistency scores is drawn from.
"""

from itertools import accumulate

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME

from ivgr.data.prompts import GROUNDED, STREAMS, TEXTUAL
from ivgr.judge.protocol import CONSISTENCY_SCORES

ANY = f"({'|'.join(STREAMS)})"
BOTH = f"({GROUNDED}|{TEXTUAL})"
# Category → chart → the tags in it, as a regular expression.
CHARTS = {
    "Both streams": {
        "reward": f"{ANY}/reward/total/mean",
        "accuracy": f"{ANY}/reward/accuracy/mean",
        "format": f"{ANY}/reward/format/mean",
        "box reward, consistency": f"({GROUNDED}/reward/box|{TEXTUAL}/reward/consistency)/mean",
        "response length, tokens": f"{ANY}/rollout/length_mean",
        "entropy, nats": f"{ANY}/policy/entropy",
        "KL to the reference, nats": f"{ANY}/policy/kl",
    },
    "Held out": {
        "accuracy": f"val/{BOTH}/accuracy",
        "localization": f"val/({GROUNDED}/iou|{TEXTUAL}/place_accuracy)",
    },
    "Archive": {
        "queries with a reference": "archive/size",
        "hit rate, mean box reward": "archive/(hit_rate|box_mean)",
    },
    "Health": {
        "groups without variance": "reward/frac_zero_std",
        "truncated responses": "rollout/truncated_frac",
        "gradient norm": "optim/grad_norm",
        "clipped tokens": "policy/clip_(low|high)",
        "rollout against trainer, nats": "rollout/logp_mismatch",
        "seconds by phase": "time/.*",
    },
}
STACK = "shares of the consistency scores, stacked"
LEVELS = [f"consistency/below_{score:g}" for score in CONSISTENCY_SCORES] + ["consistency/below_any"]


def stack_shares(metrics: dict[str, float]) -> dict[str, float]:
    """The borders between the stacked shares: of the compared textual rollouts, how many score
    below 0 (none), 0.3, 0.7, 1 and at all (1, or 0 where nothing was compared). Nothing, of metrics
    without shares."""
    shares = [metrics.get(f"consistency/share_{score:g}") for score in CONSISTENCY_SCORES]
    if None in shares:
        return {}
    return dict(zip(LEVELS, accumulate(shares, initial=0.0), strict=True))


def layout_summary() -> Summary:
    """The layout, for an event file."""
    categories = [
        layout_pb2.Category(title=title, chart=[_lines(name, tag) for name, tag in charts.items()])
        for title, charts in CHARTS.items()
    ]
    categories.insert(2, layout_pb2.Category(title="Consistency", chart=[_stack()]))
    layout = layout_pb2.Layout(category=categories)
    tensor = TensorProto(
        dtype="DT_STRING", string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto()
    )
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME))
    return Summary(value=[Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=plugin)])


def _lines(title: str, tag: str) -> layout_pb2.Chart:
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"{tag}$"]))


def _stack() -> layout_pb2.Chart:
    """One band a score, between two borders."""
    bands = [
        layout_pb2.MarginChartContent.Series(value=upper, lower=lower, upper=upper)
        for lower, upper in zip(LEVELS, LEVELS[1:], strict=False)
    ]
    return layout_pb2.Chart(title=STACK, margin=layout_pb2.MarginChartContent(series=bands))
