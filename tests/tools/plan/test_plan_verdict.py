"""What `ivgr plan` says: every shipped config fits its hardware, the first thing that does not fit is
named, and following its advice leads to a run that fits."""

import re
from dataclasses import replace

import pytest
import yaml

from ivgr.cli.main import main
from ivgr.tools.plan.plan import as_decoded, find_misfit, parse_memory, peak_bytes
from ivgr.tools.plan.plan_memory import resident, rollout, update
from ivgr.tools.plan.run_spec import AssumedLengths, read_run
from support.command_line import CONFIGS, SHIPPED, TINY, fails


def stated_memory(name: str) -> str:
    """Of the GPUs that the recipe's first lines name."""
    recipe = CONFIGS / f"{name.removesuffix('_sft')}.yaml"
    return re.search(r"GPUs? of (\d+ GB)", recipe.read_text())[1]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_fits_its_hardware_at_its_limits(capsys, name):
    main(["plan", "--config", str(CONFIGS / f"{name}.yaml"), "--memory", stated_memory(name)])
    out = capsys.readouterr().out
    assert "at its limits: prompts of 8,192 tokens, responses of 4,096" in out and "fits: " in out
    assert 1 <= int(re.search(r"decoded together: (\d+)", out)[1]) <= 64
    assert re.search(r"main memory of a node .* /dev/shm \d", out)


@pytest.mark.parametrize("name", ["tiny", "tiny_sft"])
def test_the_tiny_configs_need_no_options(capsys, name):
    main(["plan", "--config", str(CONFIGS / f"{name}.yaml"), "--memory", "4GiB", "--image_tokens", "25",
          "--response", "36", "--prompt", "20"])  # fmt: skip
    assert "fits: " in capsys.readouterr().out


def plan_fails(capsys, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--config", *args])
    assert stop.value.code == 1
    return capsys.readouterr().out.splitlines()[-1]


def test_the_first_thing_that_does_not_fit_and_its_mend(capsys):
    config = str(CONFIGS / "qwen2vl_7b.yaml")
    assert "model.trainable.adapter" in plan_fails(capsys, config, "--gpus", "1")
    shared = str(CONFIGS / "qwen3vl_32b.yaml")
    assert "copy of the policy" in (large := plan_fails(capsys, shared, "--memory", "25GB"))
    assert "more memory, or a smaller model.policy" in large


def with_shared_copies(folder, ranks: int) -> str:
    """The recipe of 32B with copies of the policy on so many GPUs each."""
    strategy = {"init_args": {"rollout_tensor_parallel": ranks}}
    config = {"base": str(CONFIGS / "qwen3vl_32b.yaml"), "trainer": {"strategy": strategy}}
    (path := folder / "shared.yaml").write_text(yaml.safe_dump(config))
    return str(path)


def test_a_copy_that_is_too_large_is_shared(capsys, tmp_path):
    whole = plan_fails(capsys, with_shared_copies(tmp_path, 1), "--memory", "80GB")
    assert "copy of the policy (66.7 GB a GPU); raise trainer.strategy.rollout_tensor_parallel" in whole
    main(["plan", "--config", with_shared_copies(tmp_path, 8), "--memory", "80GB"])
    assert "fits: " in capsys.readouterr().out


def test_copies_that_no_run_could_share_are_refused(capsys, tmp_path):
    for ranks, options, said in (
        (3, (), "does not divide the 8 GPUs of a node"),
        (8, ("--gpus", "4"), "does not divide the 4 GPUs of a node"),
    ):
        error = fails(capsys, "plan", "--config", with_shared_copies(tmp_path, ranks), *options)
        assert f"trainer.strategy.rollout_tensor_parallel is {ranks}, which {said}" in error


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"sharded": False}, "trainer.strategy fsdp2"),
        ({"checkpointing": False}, "model.trainable.gradient_checkpointing to true"),
    ],
)
def test_what_the_recipes_need_is_what_is_advised_without_it(changes, mend):
    run = replace(read_run(CONFIGS / "qwen2vl_7b.yaml", None, AssumedLengths()), **changes)
    assert mend in find_misfit(run, 80e9)


@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"token_budget": 60_000}])
def test_following_the_advice_leads_to_a_run_that_fits(changes):
    """From any limit above the bare weights: each mend removes its complaint or the next comes."""
    run = replace(
        read_run(CONFIGS / "qwen2vl_2b_lora.yaml", 1, AssumedLengths()), **{"checkpointing": False} | changes
    )
    limit, seen = 20e9, []
    while complaint := find_misfit(run, limit):
        assert complaint not in seen
        seen.append(complaint)
        if "gradient_checkpointing" in complaint:
            run = replace(run, checkpointing=True)
            continue
        key, number = re.search(r"model\.update\.(\w+) to (\d+)$", complaint).groups()
        run = replace(run, **{key: int(number)})
    run = as_decoded(run, limit)
    assert peak_bytes(resident(run) + rollout(run) + update(run)) <= limit


@pytest.mark.parametrize(
    ("text", "expected"), [("80GB", 80e9), ("24 GiB", 24 * 2**30), ("16", 16e9), ("1.5gb", 1.5e9)]
)
def test_memory_is_read(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--config", TINY, "--memory", "much"], "--memory"),
        (["--config", TINY, "--memory", "0"], "--memory"),
        (["--config", "/no/such.yaml"], "/no/such.yaml"),
        (["--config", TINY, "--gpus", "7"], "data.prompts"),
        ([], "config"),
    ],
)
def test_misuse_is_one_line(capsys, args, named):
    assert named in fails(capsys, "plan", *args)


def test_an_unknown_policy_lists_the_shipped_sizes(capsys, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"base: {TINY}\nmodel: {{init_args: {{policy: Some/Model}}}}\n")
    assert "Qwen/Qwen3-VL-8B-Instruct" in fails(capsys, "plan", "--config", str(path))


def test_no_response_is_longer_than_the_engine_lets_it_be():
    run = read_run(CONFIGS / "tiny.yaml", 1, AssumedLengths(response=300))
    assert run.lengths.response == run.max_new_tokens == 72
