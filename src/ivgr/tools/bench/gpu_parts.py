"""What `ivgr bench gpu` runs: the figures that the READMEs promise of one GPU, the most important first.

Each is a command of its own, which can be typed alone. Those that do not say otherwise are cut for a GPU of
80 GB.
"""

from dataclasses import dataclass, replace
from itertools import chain

BENCH, KERNELS = "src/ivgr/tools/bench/README.md", "kernels/README.md"
ROLLOUT, REHEARSE = "src/ivgr/rollout/README.md", "src/ivgr/tools/rehearse/README.md"
REAL = "--setting.device cuda --setting.dtype bfloat16"
LARGE = f"{REAL} --setting.shape 7b --setting.response 300"
IMAGES = "--setting.image_tokens 2500"
UPDATE = "--setting.queries 4 --setting.micro_batch 1 --setting.checkpointing true"
VOCABULARY = "--setting.tokens 8192 --setting.hidden 3584 --setting.vocabulary 152064"
SGD = "--setting.optimizer sgd"
GRAPHS, ONCE = "--setting.cuda_graphs true", "--repeats 1"
TESTS = (
    *(f"tests/kernels/test_{name}.py" for name in ("decoding", "paged_attention", "nucleus")),
    *(f"tests/kernels/test_kernels{name}.py" for name in ("", "_linear", "_precision")),
    "tests/end_to_end/test_gpu.py",
)


@dataclass(frozen=True)
class Part:
    """page, heading: of the README that promises the figure. module, words: what `python -m` runs. seconds:
    after which it is stopped. gigabytes: of GPU memory that it needs."""

    name: str
    page: str
    heading: str
    module: str
    words: tuple[str, ...]
    seconds: int
    gigabytes: int = 75

    @property
    def command(self) -> str:
        return " ".join((self.module, *self.words))

    @property
    def has_model(self) -> bool:
        """Whether its model has a shape that can be cut."""
        return "--setting.shape" in self.words

    def cut(self, layers: int | None) -> "Part":
        """The part with its model, if it has one, cut to so many layers."""
        if layers is None or not self.has_model:
            return self
        return replace(self, words=(*self.words, "--setting.layers", str(layers)))


def _bench(name: str, page: str, heading: str, *words: str, seconds: int = 180, gigabytes: int = 75) -> Part:
    given = chain.from_iterable(map(str.split, words))
    return Part(name, page, heading, "ivgr", ("bench", *given), seconds, gigabytes)


LIST = (
    Part(
        "tests", KERNELS, "On a GPU", "pytest",
        ("-n", "0", "-q", "-p", "no:cacheprovider", "-k", "not compile", *TESTS), 360, 16,
    ),
    _bench("decoding", KERNELS, "On a GPU", "decoding", seconds=120),
    _bench(
        "kernels_exact", KERNELS, "On a GPU", "kernels", REAL, VOCABULARY, "--setting.kl exact", seconds=150
    ),
    _bench("rollout", BENCH, "Rollout of 7B", "rollout", LARGE, IMAGES, "--setting.queries 8", GRAPHS, ONCE),
    _bench(
        "refill", ROLLOUT, "Transformers", "rollout", REAL, "--setting.shape 7b --setting.image_tokens 1000",
        "--setting.lengths geometric --setting.longest 256", GRAPHS, ONCE, seconds=240,
    ),
    _bench(
        "step_adapters", BENCH, "Not measured yet", "step", LARGE, UPDATE, "--setting.adapter 64",
        "--setting.image_tokens 1500", GRAPHS, ONCE, seconds=420,
    ),
    _bench(
        "rehearsed", REHEARSE, "How it judges", "rehearsed", "--setting.shape 2b", seconds=120, gigabytes=40
    ),
    _bench("kernels", KERNELS, "On a GPU", "kernels", REAL, VOCABULARY, seconds=150),
    _bench("update", BENCH, "Measured here: one GPU", "update", LARGE, IMAGES, UPDATE, SGD, ONCE),
    _bench(
        "step", BENCH, "An iteration of 7B against TRL's", "step", LARGE, IMAGES, UPDATE, SGD, GRAPHS, ONCE,
        seconds=420, gigabytes=120,
    ),
)  # fmt: skip
PARTS = {part.name: part for part in LIST}
