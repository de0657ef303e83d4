"""What TensorBoard's CUSTOM SCALARS tab shows: the streams in one chart, figure by figure.

In: nothing. Out: the layout, as a summary for an event file.
"""

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME

from ivgr.core.prompts import GROUNDED, STREAMS, TEXTUAL

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
    "Consistency and archive": {
        "shares of the consistency scores": "consistency/share_.*",
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


def layout_summary() -> Summary:
    """The layout, for an event file."""
    categories = [
        layout_pb2.Category(title=title, chart=[_chart(name, tag) for name, tag in charts.items()])
        for title, charts in CHARTS.items()
    ]
    layout = layout_pb2.Layout(category=categories)
    tensor = TensorProto(
        dtype="DT_STRING", string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto()
    )
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME))
    return Summary(value=[Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=plugin)])


def _chart(title: str, tag: str) -> layout_pb2.Chart:
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"{tag}$"]))
