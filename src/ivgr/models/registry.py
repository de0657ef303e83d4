"""The known families, found by model type or hub id."""

from transformers import CONFIG_MAPPING

from ivgr.core.errors import UserError
from ivgr.models.family import Family
from ivgr.models.qwen2_5_vl import QWEN2_5_VL
from ivgr.models.qwen2_vl import QWEN2_VL
from ivgr.models.qwen3_vl import QWEN3_VL

SHIPPED = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)
FAMILIES = {family.name: family for family in SHIPPED}


def register(family: Family) -> None:
    """Adds a family of your own to `FAMILIES`, for this process: call it where the module that defines
    the family is imported. UserError if the family ships already, or if transformers has no such model."""
    if any(family.name == shipped.name for shipped in SHIPPED):
        raise UserError(f"register: family {family.name!r} ships with ivgr already; leave yours out")
    if family.name not in CONFIG_MAPPING:
        raise UserError(
            f"register: transformers has no model type {family.name!r}; name one of its own, or give it "
            "yours by AutoConfig.register first"
        )
    FAMILIES[family.name] = family


def find_family(model_type: str) -> Family:
    """The family of `config.model_type`; UserError lists the known ones."""
    if model_type not in FAMILIES:
        raise UserError(
            f"unknown model family {model_type!r}; known are {', '.join(FAMILIES)}; "
            "add another by ivgr.models.register"
        )
    return FAMILIES[model_type]


def find_shipped(hub_id: str) -> tuple[Family, str] | None:
    """Family and size of a hub id whose architecture is in the family files, else None."""
    for family in FAMILIES.values():
        for size in family.sizes:
            if size != "tiny" and family.hub_id(size) == str(hub_id):
                return family, size
    return None
