"""Which iterations' rollouts a run writes."""

from types import SimpleNamespace

import pytest

from ivgr.callbacks.rollout_log import RolloutRecord
from support.samples import make_query, make_rollout, make_sample


@pytest.mark.parametrize(
    ("every", "written"),
    [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (100, [7])],
)
def test_every_kth_and_the_last_are_written(tmp_path, every, written):
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    rollout = make_rollout("said", format=1.0)
    queries = [make_query(make_sample(), grounded=[rollout])]
    module = SimpleNamespace(iterations=7, everyone=queries)
    for module.iteration in range(1, 8):
        RolloutRecord(every).on_train_batch_end(trainer, module, None, None, 0)
    found = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert found == [f"{iteration:06d}.jsonl.gz" for iteration in written]
