"""Every recipe at the limits it allows: that it fits its GPUs, and what `ivgr plan` says against it."""

import pytest

from ivgr.tools.plan.plan import as_decoded, parse_memory
from ivgr.tools.plan.plan_memory import batch_bytes, resident, rollout, update
from ivgr.tools.plan.run_spec import AssumedLengths, RunSpec, read_run
from ivgr.tools.rehearse.recipe import stated_memory
from support.command_line import CONFIGS, SHIPPED
from support.rehearsing import needs_compiler, rehearse

pytestmark = [needs_compiler, pytest.mark.slow]
RECIPES = [name for name in SHIPPED if not name.endswith("_sft")]


def plan_at_limits(name: str) -> RunSpec:
    run = read_run(CONFIGS / f"{name}.yaml", None, AssumedLengths()).at_limits()
    return as_decoded(run, parse_memory(stated_memory(CONFIGS / f"{name}.yaml")))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_as_the_plan_says(tmp_path, name):
    figures, said, code = rehearse(CONFIGS / f"{name}.yaml", file=tmp_path / "figures.json", layers=None)
    assert code == 0 and figures["fits"] and figures["host_peak_bytes"] < 16e9, said
    run, phases = plan_at_limits(name), figures["phases"]
    throughout, rolled, updated = (
        sum(one.bytes for one in part(run)) for part in (resident, rollout, update)
    )
    assert phases["rollout_prefill"]["peak"] == pytest.approx(throughout + rolled, rel=0.1)
    assert phases["update"]["peak"] == pytest.approx(throughout + updated, rel=0.1)
    assert figures["host"]["batch"] == pytest.approx(batch_bytes(run), rel=0.1)
    assert figures["host"]["weights"] == 0
    weights = sum(one.bytes for one in resident(run) if one.name in ("weights", "reference"))
    assert phases["load"]["held"] == pytest.approx(weights, rel=0.05)
    assert phases["load"]["peak"] < 1.1 * weights  # never whole on a GPU


@pytest.mark.parametrize("name", [f"{name}_sft" for name in RECIPES])
def test_a_cold_start_fits(tmp_path, name):
    figures, said, code = rehearse(CONFIGS / f"{name}.yaml", file=tmp_path / "figures.json")
    assert code == 0 and figures["fits"], said
