"""What each stage gets of the cluster, so that no stage waits for a slot that another one holds.

The logical CPUs of all stages together stay below what the cluster has: an actor pool that holds them all leaves no
slot for the tasks that feed it, and the job hangs without a message.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.config.base import PrecisionChoice
from jobs.platform.bundles import ScorerPlan
from model.processor import Precision, Processor, check_int8, read_processor
from schemas.bundle import BundleInfo
from schemas.errors import GateError, InputError

Answer = TypeVar("Answer")

GPU_BATCH, CPU_BATCH = 256, 32
"""Photos per padded batch, a GPU's at most (`fit_batch`): by the hardware, so that results don't depend on what is free."""

UNKNOWN_MEMORY = 8 * 2**30
"""Of a card that doesn't say, in bytes: the least that is common."""
MIG_SLICES = 8
"""Parts of a card's memory, of which the smallest MIG instance has one (docs.nvidia.com/datacenter/tesla/mig-user-guide)."""

BYTES_PER_PIXEL = {"bf16": 150, "fp16": 150, "fp32": 250}
"""Of a photo in a ResNet50, where it needs most: the largest of the three, with the mirror image. A test traces it."""

BF16_CAPABILITY = 8.0
"""Compute capability from which a card has bf16 units (docs.nvidia.com/cuda/cuda-c-programming-guide, arithmetic
instructions)."""


@dataclass(frozen=True)
class Resources:
    """The plan for one run."""

    device: Literal["cuda", "cpu"]
    num_scorers: int
    scorer_cpus: float
    scorer_gpus: float
    scorer_threads: int
    """Of one scoring actor; see `ScorerPlan.threads`."""
    num_fetchers: int
    """Fetch-and-decode tasks at once."""
    fetcher_cpus: float
    small_task_cpus: float
    """For staging and the tasks of the second pass."""
    batch_size: int
    num_nodes: int

    def least(self) -> dict[str, float]:
        """What must be free for the work to go on: the scorers, and one task of each kind to feed them."""
        cpus = self.num_scorers * self.scorer_cpus + self.fetcher_cpus + self.small_task_cpus
        return {"CPU": cpus, **({"GPU": self.num_scorers * self.scorer_gpus} if self.scorer_gpus else {})}

    def plan_scorer(self, bundle_uri: str, info: BundleInfo, precision: Precision) -> ScorerPlan:
        """What each scoring actor is to load."""
        return ScorerPlan(
            bundle_uri, info.bundle_id, self.device, precision, batch_size=self.batch_size, threads=self.scorer_threads
        )


def settle_resources(asked: PrecisionChoice, info: BundleInfo) -> tuple[Resources, Precision]:
    """What scoring with this bundle gets of the connected cluster, and the precision that it scores in. Raises as
    `plan_resources` and `resolve_precision`."""
    resources = plan_resources()
    cards: list[Card] = []
    processors: list[Processor] = []
    if resources.device == "cuda":
        answers = _ask_nodes(read_cards, "GPU")
        cards = [card for found in answers for card in found] if all(answers) else []
    else:
        processors = _ask_nodes(read_processor, "CPU")
    precision = resolve_precision(asked, resources.device, cards, processors)
    return fit_batch(resources, precision, info.preprocessing.image_size, cards), precision


def plan_resources() -> Resources:
    """Divides what the connected cluster has. Raises GateError for a cluster that no scorer fits into."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [(float(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    if not any(cpus for cpus, _ in sizes):
        raise GateError("the cluster has no CPUs: start workers, or leave RAY_ADDRESS unset to run on this machine")
    if any(gpus for _, gpus in sizes):
        return _plan_gpus(sizes)
    return _plan_cpus([cpus for cpus, _ in sizes if cpus])


def _plan_gpus(sizes: list[tuple[float, int]]) -> Resources:
    """`sizes`: CPUs and GPUs of each node. One scorer per GPU. Decoding is the scarce part beside one: it gets every
    core of the cluster that the scorers leave."""
    if any(gpus and not cpus for cpus, gpus in sizes):
        raise GateError(
            "a node of the cluster has GPUs and no CPUs, so that no scorer starts there: start it with some"
        )
    num_gpus = sum(gpus for _, gpus in sizes)
    scorer_cpus = min([1.0, *(cpus / (4 * gpus) for cpus, gpus in sizes if gpus)])
    # never more than a node has left: a task that fits nowhere waits for ever
    left = [cpus - gpus * scorer_cpus for cpus, gpus in sizes if cpus]
    num_fetchers = max(2, int(sum(left) - 1))
    return Resources(
        device="cuda",
        num_scorers=num_gpus,
        scorer_cpus=scorer_cpus,
        scorer_gpus=1.0,
        scorer_threads=1,
        num_fetchers=num_fetchers,
        fetcher_cpus=0.9 * min(sum(left) / num_fetchers, *left),
        small_task_cpus=0.1 * min(sum(left) / 4, min(left) / 2),
        batch_size=GPU_BATCH,
        num_nodes=len(left),
    )


def _plan_cpus(sizes: list[float]) -> Resources:
    """`sizes`: CPUs of each node. On CPUs a ResNet50 in float32 needs thirty times what decoding needs, a small network or int8
    far less: a fetch task, which decodes on one core, for every four cores. Scorers are of one size,
    that of the smallest node, which has one; larger nodes have as many as fit. They use all cores; the logical CPUs that
    they don't hold only say how many fetch and staging tasks may run beside them."""
    unit = min(sizes)
    fetchers_each = max(2, int(unit) // 4)
    num_scorers = sum(int(cpus / unit) for cpus in sizes)
    return Resources(
        device="cpu",
        num_scorers=num_scorers,
        # more than half: two of them, of one job or of two, must not take a small node and leave nothing to feed them
        scorer_cpus=unit * 0.6,
        scorer_gpus=0,
        scorer_threads=max(1, int(unit)),
        num_fetchers=fetchers_each * num_scorers,
        fetcher_cpus=unit / (4 * fetchers_each),
        small_task_cpus=unit / 16,
        batch_size=CPU_BATCH,
        num_nodes=len(sizes),
    )


@dataclass(frozen=True)
class Card:
    """A GPU: its compute capability, and its memory in bytes (None where it doesn't say; where MIG divides it, that of
    the smallest part it can have)."""

    capability: float
    memory: int | None


def fit_batch(resources: Resources, precision: Precision, image_size: int, cards: Sequence[Card]) -> Resources:
    """`resources` with the batch of a GPU halved until its photos take a quarter of the smallest card; the rest is for a
    second batch under way, weights, workspaces and whoever else is there. By what a card has and not by what is free:
    another batch gives other last bits. One that doesn't say, or none that can be asked, counts as UNKNOWN_MEMORY."""
    if resources.device == "cpu":
        return resources
    least = min((card.memory or UNKNOWN_MEMORY for card in cards), default=UNKNOWN_MEMORY)
    size = resources.batch_size
    while size > 1 and 4 * size * image_size**2 * BYTES_PER_PIXEL[precision] > least:
        size //= 2
    return replace(resources, batch_size=size)


def resolve_precision(
    asked: PrecisionChoice,
    device: str,
    cards: Sequence[Card],
    processors: Sequence[Processor],
) -> Precision:
    """`auto` is bf16 where the hardware gains by it, else fp32 (see `gains_by_bfloat16`; emulated bf16 is slower still).
    `cards` or `processors`: those that score.

    Raises InputError for fp16 on a CPU, which no network is scored in, for int8 where a processor isn't made for it,
    and for `auto` where no GPU could be asked.
    """
    if asked == "int8":
        check_int8(device, all(processor.multiplies_int8 for processor in processors))
    if asked == "fp16" and device == "cpu":
        raise InputError("--precision fp16: expected a GPU in the cluster, found none; use auto, bf16 or fp32")
    if asked != "auto":
        return asked
    if device == "cuda":
        if not cards:
            raise InputError(
                "--precision auto: expected nvidia-smi to name the cards' compute capability, found no answer on the "
                "nodes with GPUs; pass --precision bf16 (cards since Ampere) or fp32"
            )
        return "bf16" if min(card.capability for card in cards) >= BF16_CAPABILITY else "fp32"
    return "bf16" if all(processor.gains_by_bfloat16 for processor in processors) else "fp32"


def _ask_nodes(read: Callable[[], Answer], resource: str) -> list[Answer]:
    """What `read` says on every node that has some of `resource`, as the driver's own may not. Raises GateError where one of
    them dies meanwhile."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]
    if nodes == [here]:
        return [read()]
    ask = ray.remote(num_cpus=0)(read)
    return ray.get(
        [ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes]
    )


def read_cards() -> list[Card]:
    """Those of this machine, none where they can't be asked. By nvidia-smi, which comes with the driver and sees
    them whatever Ray hides from a task that holds no GPU."""
    command = ["nvidia-smi", "--query-gpu=compute_cap,memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        facts = [line.split(",") for line in answer.splitlines() if line.strip()]
        # "[N/A]" where a card doesn't tell, in MiB where it does
        return [Card(float(capability), _read_memory(memory, mig)) for capability, memory, mig in facts]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _read_memory(text: str, mig: str) -> int | None:
    if not text.strip().isdigit():
        return None
    return int(text) * 2**20 // (MIG_SLICES if mig.strip() == "Enabled" else 1)
