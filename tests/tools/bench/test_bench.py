"""What `ivgr bench` reports: memory against a closed form, tokens and images counted by hand."""

import json
import sys
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.kernels import fused_linear_logprob_kl
from ivgr.models.registry import find_family
from ivgr.packing.prefix_tree import pack_queries, tree_length
from ivgr.rollout.room import token_bytes
from ivgr.tools.bench.bench_setting import Setting, build_model, build_queries, describe_shape
from ivgr.tools.bench.data_speed import BATCH, data_contenders, draw_jpegs
from ivgr.tools.bench.decode_speed import cache_bytes, decode_figures, weight_bytes
from ivgr.tools.bench.efficiency import plan_setting, planned_bytes
from ivgr.tools.bench.kernel_speed import Ceiling, KernelTiming
from ivgr.tools.bench.measure import Contender, LiveBytes, Measurement, measure
from ivgr.tools.bench.phases import Lengthy, rollout_contenders, update_contenders
from ivgr.tools.bench.roofline import plot_roofline
from ivgr.tools.plan.flops import estimate_work
from support.trees import prefilled

SMALL = Setting(image_tokens=12, question=5, instruction=4, group_size=2, response=3)
TREE = 14 + 5 + 2 * (4 + 2 * 3)  # image with its two marks, question, instructions, responses
ROWS = 4 * (14 + 5 + 4 + 3)


def test_live_bytes_counts_what_is_alive_at_once():
    weight = torch.ones(100, 100)
    with LiveBytes() as live:
        first = torch.zeros(1000, 100)
        second = first @ weight
        assert live.live == 2 * 400_000
        view = second[:10]
        del first
        assert live.live == 400_000
        del second
        assert live.live == 400_000  # the view holds it
        del view
        assert live.live == 0
    assert live.peak == 2 * 400_000


def test_live_bytes_sees_activations_kept_for_the_backward_pass():
    weight = torch.ones(64, 64, requires_grad=True)
    with LiveBytes() as live:
        hidden = torch.ones(256, 64)
        for _ in range(5):
            hidden = torch.tanh(hidden @ weight)
        assert live.live >= 6 * 256 * 64 * 4  # tanh keeps its output
        hidden.sum().backward()
        del hidden
    assert live.live == weight.grad.nbytes


@pytest.mark.parametrize("contenders", [update_contenders, rollout_contenders])
def test_tokens_and_images(contenders):
    figures = measure(contenders(SMALL), repeats=1)
    assert (figures["tree"].tokens, figures["rows"].tokens) == (TREE, ROWS)
    # The update looks with policy and reference; only the policy's tower is counted.
    assert (figures["tree"].vision_passes, figures["rows"].vision_passes) == (1, 4)
    assert 0 < figures["tree"].peak_bytes < figures["rows"].peak_bytes


@pytest.mark.slow
def test_smaller_micro_batches_and_checkpointing_take_less_memory():
    many = replace(SMALL, queries=4)
    whole, micro, checkpointed = (
        measure(update_contenders(setting), repeats=1)["tree"].peak_bytes
        for setting in (many, replace(many, micro_batch=1), replace(many, micro_batch=1, checkpointing=True))
    )
    assert checkpointed < micro < whole


def test_bytes_read_by_a_decoding_step():
    """Against the tensors that a rollout's cache really holds."""
    setting = replace(SMALL, queries=2)
    policy = build_model(setting)
    queries = build_queries(setting, policy, rollouts=False)
    (pack,) = pack_queries(policy, queries, budget=sys.maxsize, join=False)
    cache = prefilled(policy, pack)
    held = sum(part.nbytes for pair in cache.prefix_kv for part in pair)
    assert cache_bytes(setting, policy, branches=0) == held
    half_grown = 8 * setting.response // 2 * held // sum(map(tree_length, queries))
    assert cache_bytes(setting, policy, branches=8) == held + half_grown
    embedding_and_head_are_one = sum(weight.nbytes for weight in policy.model.language_model.parameters())
    assert weight_bytes(policy) < embedding_and_head_are_one  # the last norm


def test_decoding_rate_from_seconds():
    setting = replace(SMALL, queries=2, response=11)
    decode = decode_figures(setting, build_model(setting), seconds=0.5)
    assert decode.tokens_per_second == 8 * 10 / 0.5
    step_bytes = decode.weight_bytes + decode.cache_bytes
    assert decode.ceiling_tokens_per_second == pytest.approx(8 * decode.copy_bytes_per_second / step_bytes)


@pytest.mark.slow
def test_a_whole_iteration_beside_trl(capsys, tmp_path):
    pytest.importorskip("trl", reason='needs pip install "ivgr[bench]"')
    path = tmp_path / "figures.json"
    sizes = ["--setting.queries", "2", "--setting.group_size", "2", "--setting.response", "3"]
    main(["bench", "step", *sizes, "--setting.micro_batch", "1", "--repeats", "1", "--json", str(path)])
    report = json.loads(path.read_text())
    # Rollout and update look at each image once a query, or once a response; and the peer
    # scores nothing before the one update that the iteration makes.
    assert (report["tree"]["vision_passes"], report["trl"]["vision_passes"]) == (4, 16)
    assert report["tree"]["tokens"] < report["trl"]["tokens"]
    found, seconds = report["efficiency"], report["tree"]["seconds"]
    assert found["responses_per_second"] == pytest.approx(2 * 2 * 2 / seconds)
    assert found["tokens_per_second"] == pytest.approx(report["trl"]["tokens"] / seconds)
    assert all(0 < report[name]["rollout_seconds"] < report[name]["seconds"] for name in ("tree", "trl"))


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 1, "checkpointing": True}, {"adapter": 8}])
def test_the_plan_of_a_setting(changes):
    """Its tokens exactly; the memory of an update within a third (test_plan.py has each part to 15 %)."""
    setting = Setting(queries=2, image_tokens=256, **changes)
    contenders = update_contenders(setting)
    contender, rows = contenders["tree"], contenders["rows"].tokens
    run = plan_setting(setting, contender.tokens, rows)
    assert (run.lengths.prompt, run.lengths.instruction) == (setting.question + 2, setting.instruction)
    work = estimate_work(run, 1.0, 1.0)
    assert (work.tokens, work.rows) == (contender.tokens, rows)
    assert planned_bytes(run) == pytest.approx(measure({"tree": contender}, 1)["tree"].peak_bytes, rel=1 / 3)


def test_long_means_images_of_512_tokens(monkeypatch):
    settings, tokens = [], {"tree": 16 * (600 + 2 * (20 + 5 * 36)), "trl": 160 * (600 + 20 + 36)}
    figures = {name: Measurement(1.0, count, 1, 1, 0.5) for name, count in tokens.items()}
    pytest.importorskip("trl", reason='needs pip install "ivgr[bench]"')
    monkeypatch.setattr(
        "ivgr.tools.bench.step_speed.step_figures",
        lambda setting, repeats: settings.append(setting) or figures,
    )
    main(["bench", "step"])
    main(["bench", "step", "--long"])
    assert [setting.image_tokens for setting in settings] == [25, 512]


def test_contenders_take_turns():
    order, (contender, _) = [], update_contenders(SMALL).values()
    runs = {name: Contender(contender.model, lambda n=name: order.append(n), 1) for name in "ab"}
    assert measure(runs, repeats=2)["a"].vision_passes == 0
    assert "".join(order) == "ababab"


def test_the_command_writes_its_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    options = [f"--setting.{key}={getattr(SMALL, key)}" for key in ("image_tokens", "group_size", "response")]
    main(["bench", "update", "--repeats", "1", "--json", str(path), *options])
    report = json.loads(path.read_text())
    assert report["tree"].keys() >= {"seconds", "tokens", "vision_passes", "peak_bytes"}
    assert report["setting"]["response"] == 3
    assert "rows" in capsys.readouterr().out


def test_a_shape_is_cut_to_so_many_layers():
    whole, cut = (describe_shape(Setting(shape="7b", layers=layers)) for layers in (None, 2))
    assert (whole.text_config.num_hidden_layers, whole.vision_config.depth) == (28, 32)
    assert (cut.text_config.num_hidden_layers, cut.vision_config.depth) == (2, 2)
    with pytest.raises(UserError, match="layers is 2, which cuts no tiny model"):
        Setting(layers=2)


def test_an_unknown_shape_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "update", "--setting.shape", "70b"])
    assert "setting.shape is '70b'" in capsys.readouterr().err


@pytest.mark.parametrize("known", [False, True], ids=["recomputed", "known loss"])
def test_the_linear_form_needs_no_more_for_more_tokens(known):
    def peak(tokens):
        hidden, weight, ids = torch.ones(tokens, 500), torch.ones(1000, 500), torch.arange(tokens)
        with LiveBytes() as live:
            got = fused_linear_logprob_kl(
                hidden.requires_grad_(), weight.requires_grad_(), ids, ref_hidden=hidden, ref_weight=weight,
                token_loss=(lambda logp, ref_logp, kl, entropy, rows: kl - logp) if known else None,
                chunk_bytes=chunk,
            )  # fmt: skip
            (got.loss if known else (got.kl - got.logp).sum()).backward()
        return live.peak - weight.grad.nbytes - hidden.grad.nbytes

    chunk = 4 * 1000 * 50  # fifty tokens
    per_token = 4 * 8 * 6  # the rows of statistics, and a few numbers
    assert chunk < peak(100) < 4 * chunk
    assert peak(1000) - peak(100) < 900 * per_token


def test_kernels_are_measured_on_the_cpu(tmp_path, capsys):
    path = tmp_path / "figures.json"
    shape = ["--setting.tokens", "40", "--setting.vocabulary", "300", "--setting.hidden", "16"]
    main(["bench", "kernels", "--repeats", "1", "--setting.kl", "exact", "--json", str(path), *shape])
    report, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert "not measured without a GPU: torch.compile, liger-kernel" in printed
    assert report["ceiling"]["copy"] > 0 and report["ceiling"]["gemm"] > 0
    work = {(row["case"], row["road"]): (row["bytes"], row["flops"]) for row in report["figures"]}
    logits, gemm = 4 * 40 * 300, 2 * 40 * 300 * 16
    assert work["logits fwd", "ivgr"][0] == 2 * logits
    assert work["logits fwd+bwd", "ivgr"][0] == 5 * logits
    assert work["linear fwd+bwd", "ivgr"][1] == 6 * gemm
    assert work["linear fwd+bwd", "ivgr, token_loss"][1] == work["linear fwd+bwd", "eager"][1] == 4 * gemm
    assert all(row["seconds"] > 0 and row["floor"] > 0 for row in report["figures"])


def test_a_roofline_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    ceiling = Ceiling(copy=1e11, gemm=1e13)
    plot_roofline(ceiling, [KernelTiming("logits fwd", "ivgr", 1.0, 100, 10, 0.5, 0)], tmp_path / "roof.png")
    assert (tmp_path / "roof.png").stat().st_size > 1000


def test_kernels_on_a_missing_gpu_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--setting.device", "cuda"])
    assert "there is no GPU here" in capsys.readouterr().err


def test_data_beside_a_plain_loop(capsys, tmp_path):
    path = tmp_path / "figures.json"
    main(["bench", "data", "--images", "20", "--size", "80x60", "--repeats", "2", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["setting"] == {"images": 20, "size": "80x60", "workers": 0, "repeats": 2}
    assert report["plain"] > 0 and report["ours"] > 0 and report["overhead"] > -1
    assert f"{report['ours']:.1f} images/s" in capsys.readouterr().out


def test_both_datadata_contenders_process_the_same_images(tmp_path):
    """As many images, and bit for bit the same pixel values."""
    jpegs = list(draw_jpegs(2 * BATCH, (90, 60)))
    contenders = data_contenders(tmp_path, jpegs, workers=0)
    plain = [one["pixel_values"] for batch in islice(contenders["plain"], 2) for one in batch]
    ours = [query.pixel_values for batch in islice(contenders["ours"], 2) for query in batch.queries]
    assert len(plain) == len(ours) == len({tensor.numpy().tobytes() for tensor in plain})
    assert {t.numpy().tobytes() for t in plain} == {t.numpy().tobytes() for t in ours}


@pytest.mark.parametrize("size", ["", "80", "x", "0x60", "80x-1", "axb"])
def test_a_size_that_is_none_is_named(capsys, size):
    with pytest.raises(SystemExit):
        main(["bench", "data", "--size", size])
    assert "WIDTHxHEIGHT" in capsys.readouterr().err


def test_rows_answered_beside_stock_generate(capsys, tmp_path):
    """All three ways say the same, word for word."""
    path = tmp_path / "figures.json"
    sizes = ["--rows", "10", "--batch", "5", "--max_new_tokens", "80", "--repeats", "1"]
    main(["bench", "evaluate", *sizes, "--json", str(path)])
    report = json.loads(path.read_text())
    assert set(report["same"].values()) == {1} and len(report["same"]) == 3
    assert report["ratios"]["ivgr evaluate"] == 1 and all(ratio > 0 for ratio in report["ratios"].values())
    assert report["setting"]["rows"] == 10 and "generate, row by row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "size", "layers", "heads", "head_size"),  # as published
    [("qwen2_5_vl", "7b", 28, 4, 128), ("qwen3_vl", "4b", 36, 8, 128), ("qwen3_vl", "32b", 64, 8, 128)],
)
def test_a_tokens_keys_and_values_have_their_own_head_size(family, size, layers, heads, head_size):
    config = find_family(family).config(size)
    assert token_bytes(config, torch.bfloat16) == 2 * layers * heads * head_size * 2


def test_a_refilled_batch_takes_fewer_steps(capsys, tmp_path):
    """By the lengths that were drawn: sixteen queries of four responses each, two at a time."""
    path, sizes = tmp_path / "figures.json", ["--setting.room", "2", "--setting.longest", "12"]
    small = ["--setting.image_tokens", "12", "--setting.group_size", "2", *sizes, "--repeats", "1"]
    main(["bench", "rollout", "--setting.lengths", "geometric", *small, "--json", str(path)])
    report = json.loads(path.read_text())
    setting = Setting(group_size=2, lengths="geometric", response=12)
    longest = [max(part) for part in zip(*[iter(Lengthy(setting).limits(64))] * 8, strict=True)]
    assert report["static"]["steps"] == sum(longest) - 8 > report["tree"]["steps"]
    assert "steps" in capsys.readouterr().out


@given(longest=st.integers(1, 200), equal=st.booleans())
def test_lengths_lie_between_one_and_the_longest(longest, equal):
    setting = Setting(lengths="equal" if equal else "geometric", response=longest)
    found = Lengthy(setting).limits(400)
    assert set(found) == {longest} if equal else 1 <= min(found) <= max(found) <= longest
