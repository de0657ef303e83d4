"""What `ivgr bench` reports: memory against a closed form, tokens and images counted by hand."""

import json

import pytest
import torch

from ivgr.bench.measure import Contender, LiveBytes, measure
from ivgr.bench.phases import rollout_contenders, update_contenders
from ivgr.bench.setting import Setting
from ivgr.cli import main

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
    assert report["tree"].keys() == {"seconds", "tokens", "vision_passes", "peak_bytes"}
    assert report["setting"]["response"] == 3
    assert "rows" in capsys.readouterr().out


def test_an_unknown_shape_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "update", "--setting.shape", "70b"])
    assert "setting.shape is '70b'" in capsys.readouterr().err
