"""Schedules: the rate of every update is the closed form's, warm-up included, and the end is the run's."""

import math

import pytest
import torch
from torch import nn

from ivgr.core.errors import UserError
from ivgr.trainer import optimizer as optim
from ivgr.trainer.optimizer import ScheduleConfig

UPDATES, PEAK = 200, 3e-4


def rates(schedule: ScheduleConfig, updates: int = UPDATES) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler, found = schedule.create(optimizer, updates), []
    for update in range(updates):
        scheduler.step(update)
        found.append(optimizer.param_groups[0]["lr"] / PEAK)
    return found


def cosine(part: float, final: float) -> float:
    return final + (1 - final) * (1 + math.cos(math.pi * part)) / 2


def linear(part: float, final: float) -> float:
    return final + (1 - final) * (1 - part)


def constant(part: float, final: float) -> float:
    return 1.0


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.2, 0.5])
@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "options", "form"),
    [("constant", {}, constant), ("cosine", {}, cosine), ("poly", {"decay_rate": 1.0}, linear),
     ("wsd", {"decay_epochs": 0.999999, "decay_fn": "linear"}, linear)],
)  # fmt: skip
def test_rates_are_the_closed_form_and_end_with_the_run(name, options, form, warmup, final):
    rising = round(warmup * UPDATES)
    expected = [n / rising for n in range(rising)]
    expected += [form(n / (UPDATES - rising), final) for n in range(UPDATES - rising)]
    schedule = ScheduleConfig(name=name, warmup=warmup, final=final, options=options)
    assert rates(schedule) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "tanh", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.2, 0.9])
def test_the_last_update_is_near_the_final_rate(name, warmup):
    found = rates(ScheduleConfig(name=name, warmup=warmup, final=0.05), 1000)
    assert max(found) == pytest.approx(1.0, abs=1e-3)
    assert 0.05 <= found[-1] < 0.06 + (name == "wsd") * 0.05


@pytest.mark.parametrize("name", ["constant", "cosine", "tanh", "poly", "step", "multistep"])
def test_a_run_that_only_warms_up(name):
    assert rates(ScheduleConfig(name=name, warmup=1.0), 4) == pytest.approx([0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("name", ["cosin", "none", "plateau"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match=rf"model.update.schedule.name is {name}, must be constant or cosine"):
        ScheduleConfig(name=name)


def test_what_timm_refuses_is_one_line():
    with pytest.raises(UserError, match=r"model\.update\.schedule: .*decay_epochs"):
        ScheduleConfig(name="wsd", options={"decay_epochs": 10_000}).create(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 10
        )


def test_an_older_timm_has_the_default_and_says_what_it_lacks(monkeypatch):
    def older(optimizer, sched, **options):  # before 1.0.31
        return (
            (None, 0) if sched in ("constant", "wsd", "rsqrt") else newest(optimizer, sched=sched, **options)
        )

    newest = optim.create_scheduler_v2
    monkeypatch.setattr(optim, "create_scheduler_v2", older)
    assert rates(ScheduleConfig(warmup=0.5), 4) == pytest.approx([0, 0.5, 1, 1])
    with pytest.raises(
        UserError, match=r"model\.update\.schedule\.name is 'wsd', which timm .* does not have"
    ):
        rates(ScheduleConfig(name="wsd"))
