"""The check whether a run can continue from a checkpoint.

In: the run's module and the checkpoint's content, before any of it is used. Out: one line if it cannot;
else the checkpoint, with the run's own learning rate, weight decay and other numbers of the optimizer.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from ivgr.core.checkpoint_file import MEND, PLAIN, WEIGHTS, refuse_misshapen, refuse_not_finite
from ivgr.core.errors import UserError
from ivgr.core.lightning_private import saved_iterations
from ivgr.core.state_dict import refuse_other_policy, shapes_of
from ivgr.trainer.master_weights import KEY
from ivgr.trainer.optimizer import OptimizerConfig

KINDS = {
    "rl": "reinforcement learning (ivgr.IVGR)",
    "sft": "a cold start (ivgr.SFT)",
}
LAYOUT = "optimizer_layout"
Groups = list[dict[str, Any]]


def admit(module: Any, checkpoint: dict[str, Any], path: Path | str, sharded: bool) -> None:
    """Raises UserError unless `module`, an `ivgr.trainer.base_module.PolicyModule` with a trainer, can use
    the checkpoint: all of it to train, the policy to validate."""
    _refuse_other_kind(module.kind, checkpoint["ivgr"], path)
    refuse_misshapen(checkpoint, {"ivgr": module.state_shape}, path)
    refuse_misshapen(checkpoint, {"callbacks": _shape_of_callbacks(module.trainer)}, path)
    data = _shape_of_data(module.trainer)
    refuse_misshapen(checkpoint, {f"{name}?": shape for name, shape in data.items()}, path)
    saved, made = checkpoint["ivgr"], module.made()
    _refuse_other("model.trainable.adapter", saved["policy"]["adapter"], made["adapter"], path)
    if not sharded:
        refuse_misshapen(checkpoint, {"state_dict": WEIGHTS}, path)
        refuse_other_policy(shapes_of(module.state_dict()), shapes_of(checkpoint["state_dict"]), path)
        refuse_not_finite(checkpoint["state_dict"], path)
    if module.trainer.state.fn == TrainerFn.FITTING:
        freeze = saved["policy"].get("freeze", made["freeze"])
        _refuse_other("model.trainable.freeze", sorted(freeze), sorted(made["freeze"]), path)
        _admit_progress(module.trainer, checkpoint, path)
        refuse_other_optimizer(module.update.optimizer, saved.get("optimizer"), path)
        _admit_optimizer(module, checkpoint, path, sharded)


def _refuse_other_kind(own: str, saved: object, path: Path | str) -> None:
    """Raises UserError if the checkpoint is of the other kind of training. Old checkpoints do not name
    theirs; only reinforcement learning has an archive."""
    if not isinstance(saved, dict):
        raise UserError(f"checkpoint {path}: it was not made by `ivgr fit`; {MEND}")
    kind = saved.get("kind", "rl" if "archive" in saved else "sft")
    if kind != own:
        other = KINDS.get(kind, "something else") if isinstance(kind, str) else "something else"
        raise UserError(
            f"checkpoint {path}: it was made by {other}, this run is {KINDS[own]}; to begin from its policy, "
            f"`ivgr export {path} FOLDER`, then --model.policy FOLDER without --ckpt_path"
        )


def _refuse_other(setting: str, saved: object, own: object, path: Path | str) -> None:
    if saved != own:
        raise UserError(
            f"checkpoint {path}: it was made with {setting} {saved!r}, this run has {own!r}; resume with the "
            "same or start a new run"
        )


def _shape_of_callbacks(trainer: L.Trainer) -> dict[str, object]:
    """Returns the state shape of our callbacks; one that may join a run later may be missing."""
    ours = [callback for callback in trainer.callbacks if hasattr(callback, "state_shape")]
    return {one.state_key + "?" * getattr(one, "joins_late", False): one.state_shape for one in ours}


def _shape_of_data(trainer: L.Trainer) -> dict[str, object]:
    """Returns the state shape of our data module, under the name by which Lightning saves it."""
    data = trainer.datamodule
    return {type(data).__qualname__: data.state_shape} if hasattr(data, "state_shape") else {}


def _admit_progress(trainer: L.Trainer, checkpoint: dict[str, Any], path: Path | str) -> None:
    """Raises UserError unless Lightning's count of iterations, the data's and the run's own exist and
    agree."""
    fit_loop = shape_of(trainer.fit_loop.state_dict())
    refuse_misshapen(checkpoint, {"loops": {"fit_loop": fit_loop}, "lr_schedulers": ()}, path)
    counts = {"loops": saved_iterations(checkpoint["loops"]["fit_loop"])}
    for name in _shape_of_data(trainer):
        if name not in checkpoint:
            raise UserError(
                f"checkpoint {path}: it does not say where {name} stands; resume with the class of data it "
                f"was made with, or {MEND}"
            )
        counts[name] = checkpoint[name]["iterations"]
    if "iteration" in checkpoint["ivgr"]:
        counts["ivgr"] = checkpoint["ivgr"]["iteration"]
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"checkpoint {path}: its counts of iterations differ ({said}); {MEND}")


def refuse_other_optimizer(own: OptimizerConfig, saved: Any, path: Path | str) -> None:
    """Raises UserError if the checkpoint's state does not fit the optimizer of this run. Its numbers may
    differ: the run's own are used. `saved` is None in old checkpoints."""
    if saved is None:
        return
    shape = {"name": str, "master": bool, "options": {str: PLAIN}}
    refuse_misshapen({"optimizer": saved}, {"optimizer": shape}, path)
    wanted = asdict(own)
    for name in ("name", "master"):
        _refuse_other(f"model.update.optimizer.{name}", saved[name], wanted[name], path)
    before, now = saved["options"], wanted["options"]
    for name in sorted(before | now):
        if not (_is_number(before.get(name, 0)) and _is_number(now.get(name, 0))):
            option = f"model.update.optimizer.options.{name}"
            _refuse_other(option, before.get(name), now.get(name), path)


def _is_number(value: object) -> bool:
    """Whether a value is a number, or several, such as betas."""
    if isinstance(value, list | tuple):
        return all(map(_is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _admit_optimizer(module: Any, checkpoint: dict[str, Any], path: Path | str, sharded: bool) -> None:
    """Raises UserError unless the optimizer's state belongs to the parameters that this run trains. For a
    sharded checkpoint, reading its tensors checks that."""
    own = module.update.optimizer.create(module.policy).state_dict()["param_groups"]
    known = checkpoint["ivgr"].get("optimizer")
    if sharded:
        refuse_misshapen(checkpoint, {"optimizer": {"groups": (dict,) * len(own)}}, path)
        take_settings(checkpoint["optimizer"]["groups"], own, module.update.optimizer, known, path)
        return
    states = ({"state": dict, "param_groups": [{"params": [int]}]},)
    refuse_misshapen(checkpoint, {"optimizer_states": states, f"{LAYOUT}?": str}, path)
    (state,) = checkpoint["optimizer_states"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in own]:
        raise UserError(
            f"checkpoint {path}: its optimizer trains other parameters than this run's; resume with the "
            "model.trainable.freeze, model.trainable.adapter and model.update.optimizer.name it was made with"
        )
    take_settings(state["param_groups"], own, module.update.optimizer, known, path)
    _admit_moments(state["state"], own, checkpoint.get(LAYOUT), path)
    if known is None:
        master = any(KEY in fields for fields in state["state"].values())
        _refuse_other(
            "model.update.optimizer.master", master, module.update.optimizer.master and master, path
        )


def _admit_moments(state: dict, own: Groups, layout: object, path: Path | str) -> None:
    places = {index for group in own for index in group["params"]}
    for index, fields in state.items():
        if not isinstance(index, int) or index not in places or not isinstance(fields, dict):
            raise UserError(f"checkpoint {path}: its optimizer keeps {index!r} of no parameter; {MEND}")
    moments = moments_of(state)
    refuse_other_layout(moments.items(), layout, path)
    tensors = {name: value for name, value in moments.items() if isinstance(value, torch.Tensor)}
    refuse_not_finite(tensors, path, "optimizer")


def take_settings(
    groups: Groups, own: Groups, settings: OptimizerConfig, saved: dict[str, Any] | None, path: Path | str
) -> None:
    """Puts the run's own settings into the checkpoint's parameter groups: learning rate, weight decay,
    options, switches, and what they lack. Other numbers may be the optimizer's own counts and stay."""
    named = {"lr", "weight_decay", *settings.options, *(saved or {}).get("options", {})}
    for number, (group, fresh) in enumerate(zip(groups, own, strict=True)):
        own_values = {name: value for name, value in fresh.items() if name != "params"}
        group |= {
            name: value
            for name, value in own_values.items()
            if name in named or name not in group or isinstance(value, bool | str | None)
        }
        if "initial_lr" in group:
            group["initial_lr"] = fresh["lr"]
        if other := sorted(map(str, group.keys() - fresh.keys() - {"initial_lr"})):
            raise UserError(
                f"checkpoint {path}: it was made with another optimizer than {settings.name} (one with "
                f"{other[0]}); resume with that model.update.optimizer.name or start a new run"
            )
        place = f"optimizer group {number}"
        refuse_misshapen({place: group}, {place: shape_of(own_values, float)}, path)


def moments_of(state: dict[int, dict[str, object]]) -> dict[str, object]:
    """Returns the fields that an optimizer keeps, by NUMBER/FIELD."""
    return {f"{index}/{name}": value for index, fields in state.items() for name, value in fields.items()}


def layout_of(moments: Iterable[tuple[str, object]]) -> str:
    """Returns a digest of the fields that an optimizer keeps per parameter, and of their shapes."""
    lines = sorted(
        f"{name} {type(value).__name__} {getattr(value, 'dtype', '')} {list(getattr(value, 'shape', ()))}"
        for name, value in moments
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def refuse_other_layout(moments: Iterable[tuple[str, object]], saved: object, path: Path | str) -> None:
    """Raises UserError if fields that were saved are missing or have another shape; None in old
    checkpoints."""
    if saved is not None and layout_of(moments) != saved:
        raise UserError(f"checkpoint {path}: its optimizer's state is not what was saved; {MEND}")


def shape_of(value: object, number: type = int) -> object:
    """The shape, as `ivgr.core.checkpoint_file.misfit` has it, of what is like `value`; numbers of a mapping
    are counts unless `number` is float."""
    if isinstance(value, dict):
        return {name: shape_of(part, number) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(shape_of(part, number) for part in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return object if value is None else type(value)
    return number if isinstance(value, int) else float
