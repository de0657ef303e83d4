"""What TensorBoard's CUSTOM SCALARS tab shows: what is looked at first, the streams in one chart.

In: nothing. Out: the layout, as a summary for an event file.
"""

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME

from ivgr.plotting.tags import HELD_OUT, SUBSET, WHOLE

# Category → chart → the tags in it, as a regular expression. TensorBoard gives a run one colour in a
# chart, so no chart holds two tags of the same run; each stream is a run of its own.
CHARTS = {
    "Both streams": {
        "reward": "reward/total",
        "accuracy": "reward/accuracy",
        "format": "reward/format",
        "box reward, consistency": "reward/(box|consistency)",
        "response length, tokens": "rollout/length",
        "entropy, nats": "rollout/entropy",
        "KL to the reference, nats": "rollout/kl",
    },
    "Held out": {
        "accuracy, first queries": f"{HELD_OUT}/accuracy_{SUBSET}",
        "localization, first queries": f"{HELD_OUT}/(iou|place_accuracy)_{SUBSET}",
        "accuracy, all queries": f"{HELD_OUT}/accuracy_{WHOLE}",
        "localization, all queries": f"{HELD_OUT}/(iou|place_accuracy)_{WHOLE}",
    },
    "Consistency and archive": {
        "share of consistency score 0": "reward_consistency/share_0",
        "share of consistency score 1": "reward_consistency/share_1",
        "queries with a reference": "reward_archive/size",
        "hit rate": "reward_archive/hit_rate",
        "box reward in the archive": "reward_archive/box_mean",
    },
    "Health": {
        "groups without variance": "reward/frac_zero_std",
        "truncated responses": "rollout/truncated_frac",
        "gradient norm": "update/grad_norm",
        "clipped tokens, lower bound": "update/clip_low",
        "clipped tokens, upper bound": "update/clip_high",
        "rollout against trainer, nats": "rollout/logp_mismatch",
        "seconds of rollout": "time/rollout",
        "seconds of update": "time/update",
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
