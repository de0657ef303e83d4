"""A rehearsal's figures against what is known without it, and its verdict."""

import math

import pytest
import torch
import yaml

from ivgr.cli.main import main
from ivgr.models.lora import AdapterConfig
from ivgr.models.skeleton import build_skeleton
from ivgr.tools.plan.model_shape import find_config
from ivgr.tools.rehearse.recipe import stated_memory
from ivgr.tools.rehearse.rehearsal import Rehearsal
from ivgr.tools.rehearse.report import mend
from ivgr.tools.rehearse.unread_models import cut_layers
from support.command_line import CONFIGS, SHIPPED, fails
from support.rehearsing import needs_compiler, rehearse, write_small

RL = [
    "load",
    "rollout_prefill",
    "rollout_decode",
    "reference",
    "old_logp",
    "update",
    "optimizer",
    "checkpoint",
]
HOARDING = """
import torch
from ivgr.trainer.reference import FrozenReference

class Hoarding(FrozenReference):
    def load(self, policy, weights=None):
        self.kept = [torch.empty(weight.shape, device="cuda") for weight in policy.parameters()]
        return super().load(policy, weights)
"""

LEAKING = """
from ivgr.rollout.branches import Branches
from ivgr.trainer.reference import FrozenReference

kept, init = [], Branches.__init__

def leak(self, *arguments, **options):
    init(self, *arguments, **options)
    kept.append(self.cache)

Branches.__init__ = leak

class Leaking(FrozenReference):
    pass
"""

THOROUGH = """
from ivgr.tools.rehearse import rollout_phase
from ivgr.trainer.reference import FrozenReference

rollout_phase.STEPS = 10**9

class Thorough(FrozenReference):
    pass
"""


def skeleton() -> torch.nn.Module:
    config = find_config("Qwen/Qwen2-VL-7B-Instruct")
    cut_layers(config, 2)
    return build_skeleton(config, torch.bfloat16)


def rounded(numels, itemsize: int) -> int:
    """Bytes of tensors as PyTorch's allocator rounds them."""
    return sum(math.ceil(numel * itemsize / 512) * 512 for numel in numels)


@needs_compiler
def test_one_iteration_of_adapters_on_one_gpu(tmp_path):
    figures, said, code = rehearse(write_small(tmp_path, "qwen2vl_7b_lora"))
    assert code == 0 and figures["fits"] and "fits: " in said, said
    assert list(figures["phases"]) == RL
    assert all(
        phase.keys() == {"held", "peak", "reserved", "kernels", "waits", "copies"}
        and phase["held"] <= phase["peak"] <= phase["reserved"]
        for phase in figures["phases"].values()
    )
    model = skeleton()
    base = [weight.numel() for weight in model.parameters()]
    AdapterConfig(rank=64, alpha=128).inject(model)
    adapters = [weight.numel() for name, weight in model.named_parameters() if "lora_" in name]
    load = figures["phases"]["load"]["held"]
    # Beside the parameters: rotary buffers, metrics, and what the allocator does not split off a block.
    assert 0 <= load - rounded(base, 2) - rounded(adapters, 4) < 0.005 * load
    moments = figures["phases"]["optimizer"]["held"] - load
    assert moments >= 2 * rounded(adapters, 4)
    assert figures["host_peak_bytes"] < 16e9


@needs_compiler
@pytest.mark.slow
def test_all_gradients_and_moments_shrink_with_ranks(tmp_path):
    config = write_small(tmp_path, "qwen2vl_7b")
    few, many = (rehearse(config, "--ranks", ranks)[0]["phases"] for ranks in ("2", "8"))
    assert 3.9 < few["load"]["held"] / many["load"]["held"] < 4.1
    assert few["optimizer"]["peak"] > 3 * many["optimizer"]["peak"]


@needs_compiler
@pytest.mark.slow
def test_a_copy_that_ranks_share_is_held_in_parts(tmp_path):
    """Until the update, when the copy goes. Each rank prefills the queries of all ranks."""
    found = {}
    for ranks in (1, 4):
        strategy = {"init_args": {"rollout_tensor_parallel": ranks}}
        (folder := tmp_path / str(ranks)).mkdir()
        small = write_small(folder, "qwen2vl_7b")
        config = {"base": str(small), "trainer": {"strategy": strategy}}
        (path := folder / "shared.yaml").write_text(yaml.safe_dump(config))
        found[ranks], said, code = rehearse(path)
        assert code == 0, said
    layers = skeleton().model.language_model.layers
    parts = sum(weight.numel() * 2 for name, weight in layers.named_parameters() if "_proj" in name)
    for phase, saved in (("old_logp", 3 / 4 * parts), ("optimizer", 0)):
        whole, shared = (found[ranks]["phases"][phase]["held"] for ranks in (1, 4))
        assert whole - shared == pytest.approx(saved, rel=0.01, abs=1e6), phase
    prefills = [one["phases"]["rollout_prefill"]["kernels"] for one in found.values()]
    assert prefills[1] > 2 * prefills[0]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["qwen2vl_7b_lora_sft", "qwen3vl_8b_sft"])
def test_a_cold_start_has_the_phases_that_apply(tmp_path, recipe):
    figures, said, code = rehearse(write_small(tmp_path, recipe))
    assert code == 0, said
    split = [] if "lora" in recipe else ["split"]
    assert list(figures["phases"]) == ["load", *split, "update", "optimizer", "checkpoint"]
    assert all(figures["phases"][name]["kernels"] for name in ("update", "optimizer"))


@needs_compiler
@pytest.mark.slow
def test_a_copy_that_is_kept_is_found_where_it_is_made(tmp_path):
    fits = rehearse(write_small(tmp_path, "qwen2vl_7b_lora"), "--memory", "8GB")
    assert fits[2] == 0, fits[1]
    (tmp_path / "hoarding.py").write_text(HOARDING)
    config = write_small(tmp_path, "qwen2vl_7b_lora", reference={"class_path": "hoarding.Hoarding"})
    figures, said, code = rehearse(config, "--memory", "8GB")
    assert code == 1 and not figures["fits"]
    assert "does not fit: load takes" in said and "trainer.devices" in said.splitlines()[-1]
    assert "hoarding.py:" in said


@needs_compiler
@pytest.mark.slow
def test_a_cache_that_is_not_freed_is_found(tmp_path):
    """At the limits of the recipe, so that the cache is large beside the update."""
    config = {"base": str(CONFIGS / "qwen2vl_7b_lora.yaml"), "data": {"init_args": {"prompts": 64}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    fits = rehearse(tmp_path / "own.yaml", "--memory", "25GB")
    assert fits[2] == 0, fits[1]
    (tmp_path / "leaking.py").write_text(LEAKING)
    config["model"] = {"init_args": {"reference": {"class_path": "leaking.Leaking"}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    figures, said, code = rehearse(tmp_path / "own.yaml", "--memory", "25GB")
    assert code == 1 and "does not fit: update" in said
    assert "prefix_kv_cache.py:" in said[said.index("update: at the peak") :]
    kept = figures["phases"]["reference"]["held"] - fits[0]["phases"]["reference"]["held"]
    assert kept > 5e9


@needs_compiler
@pytest.mark.slow
def test_what_does_not_fit_in_the_rollout_is_mended_there(tmp_path):
    _, said, code = rehearse(write_small(tmp_path, "qwen2vl_7b_lora"), "--memory", "4GB")
    assert code == 1
    assert "does not fit: rollout_prefill" in said and "model.policy.max_pixels" in said


@needs_compiler
@pytest.mark.slow
def test_decoding_multiplied_out_is_decoding_in_full(tmp_path):
    some = rehearse(write_small(tmp_path, "qwen2vl_7b_lora"))[0]["phases"]["rollout_decode"]
    (tmp_path / "thorough.py").write_text(THOROUGH)
    config = write_small(tmp_path, "qwen2vl_7b_lora", reference={"class_path": "thorough.Thorough"})
    whole = rehearse(config)[0]["phases"]["rollout_decode"]
    assert some["peak"] == pytest.approx(whole["peak"], rel=0.005)  # draws overlap with other steps
    for name in ("kernels", "waits", "copies"):
        assert some[name] == pytest.approx(whole[name], rel=0.01)


@pytest.mark.parametrize(("budget", "setting"), [(300, "token_budget"), (100, "max_new_tokens")])
def test_a_lower_budget_is_advised_down_to_one_response(budget, setting):
    """A tree beyond the budget is split, so that it says nothing."""
    advice = mend("update", Rehearsal({}, longest_tree=900, longest_row=120), budget)
    assert advice.partition("lower ")[2].split()[0].endswith(setting)


def test_the_memory_that_a_config_states():
    stated = {name: stated_memory(CONFIGS / f"{name}.yaml") for name in (*SHIPPED, "tiny")}
    assert stated["qwen2vl_7b"] == stated["qwen3vl_8b_sft"] == "80GB"
    assert stated["qwen2vl_2b_lora"] == stated["qwen2vl_2b_lora_sft"] == "24GB"
    assert stated["qwen3vl_32b"] == stated["qwen3vl_32b_sft"] == "80GB"
    assert stated["tiny"] == "80GB"


def test_a_folder_that_is_not_there_is_one_line(capsys, tmp_path):
    config = str(CONFIGS / "qwen2vl_7b.yaml")
    error = fails(capsys, "rehearse", "--config", config, "--json", str(tmp_path / "none" / "a.json"))
    assert "--json" in error and "make it first" in error


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (CONFIGS / "none.yaml", (), "--config: no file at"),
        (CONFIGS / "tiny_sft.yaml", (), "model.policy is TinyScratch"),
        (CONFIGS / "qwen2vl_7b.yaml", ("--memory", "much"), "rehearse --memory is 'much'"),
        (CONFIGS / "qwen2vl_7b.yaml", ("--ranks", "7"), "must be a multiple of the 7 GPUs"),
    ],
)
def test_bad_input_is_one_line(capfd, config, options, said):
    with pytest.raises(SystemExit) as stop:
        main(["rehearse", "--config", str(config), *options])
    error = capfd.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
