# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""What `smartspec simulate` simulates, as data: costs, acceptance, cells of the grid, jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import smartspec_core as core

from .acceptance import RecordedAcceptance
from .profile import load as load_profiles

MAX_DEPTH = 8  # longest draft of the simulated proposer


@dataclass(frozen=True)
class Cost:
    """Seconds of a pass, true in the simulation and known to the policies at the start."""

    name: str
    target: core.CostCoefficients
    draft: core.CostCoefficients  # one pass
    overhead: float = 0.0  # share of the target's time whenever anything is drafted


def linear(
    constant_ms: float, token_ms: float, kv_token_ms: float, sequence_ms: float = 0.0
) -> core.CostCoefficients:
    cost = core.CostCoefficients()
    cost.tokens = [1, 1001]
    cost.seconds = [1e-3 * (constant_ms + n * token_ms) for n in cost.tokens]
    cost.per_kv_token = 1e-3 * kv_token_ms
    cost.per_sequence = 1e-3 * sequence_ms
    return cost


def _dense_8b() -> Cost:
    """TurboSpec's coefficients for Llama-3.1-8B on an H100 with an EAGLE head, base tokens counted
    once. Its draft time is constant + slope * k; a pass here takes what fits that best over
    k = 1..7."""
    target = linear(6.9387, 1.84383603e-2, 4.85907942e-5)
    return Cost("8b", target, linear(0.5416, 4.3869e-5, 5.8e-7, 1.1e-3), 0.05)


def _dense_70b() -> Cost:
    """TurboSpec's coefficients for Llama-70B on four H100. It gives none for a draft head: one of
    80 layers and the output layer are assumed to take 0.9 ms."""
    target = linear(18.34535 - 0.1123, 6.40216301e-2, 6.24369264e-5)
    return Cost("70b", target, linear(0.9, 1.5e-4, 7.5e-7, 1.1e-3), 0.05)


def _stairs() -> Cost:
    """The 8B coefficients with vLLM's graph sizes up to 512 rows, eager passes in tiles of 32
    behind, and a step of the matrix products at 256 rows."""
    base = _dense_8b()
    at = [1e-3 * (6.9387 + 1.84383603e-2 * n) for n in (1, 256, 257, 512, 513, 1513)]
    target = base.target
    target.tokens = [1, 256, 257, 512, 513, 1513]
    target.seconds = [second + extra for second, extra in
                      zip(at, (0, 0, 6e-4, 6e-4, 2e-3, 2e-3), strict=True)]  # fmt: skip
    target.tiers = [1, 2, 4, *range(8, 513, 8), *range(544, 8193, 32)]
    return Cost("stairs", target, base.draft)


def _moe() -> Cost:
    """64 experts, 6 per token, assumed: 28 GB of expert weights read at 3 TB/s when all are."""
    target = linear(2.0, 6e-3, 2e-5)
    target.num_experts = 64
    target.experts_per_token = 6
    target.per_expert = 0.145e-3
    return Cost("moe", target, linear(0.35, 4e-5, 5e-7, 1e-3))


def costs() -> dict[str, Cost]:
    return {cost.name: cost for cost in (_dense_8b(), _dense_70b(), _stairs(), _moe())}


def cost_of_file(path: Path) -> Cost:
    """A file of `smartspec profile` with two models: the target, then the draft."""
    profiles = load_profiles(path)
    if len(profiles) != 2:
        raise ValueError(
            f"{path}: needs the profiles of a target and a draft model, has {len(profiles)}; write "
            "it with smartspec profile --model --draft-model --output"
        )
    return Cost(path.stem, profiles[0].coefficients, profiles[1].coefficients)


@dataclass(frozen=True)
class Shape:
    """How drafts are accepted; see AcceptanceModel."""

    name: str
    rates: tuple[float, ...]
    spread: float = 0.0
    decay: float = 0.0
    claim_noise: float = 0.5  # below 0: claims to be sure
    coverage: float = 1.0
    pays_per_depth: bool = True
    recorded: Sequence[Sequence[float]] = ()  # rates along outputs, in place of rates and spread

    def acceptance(self) -> core.AcceptanceModel:
        model = core.AcceptanceModel()
        model.rates = list(self.rates)
        model.spread = self.spread
        model.decay = self.decay
        model.recorded = [list(recording) for recording in self.recorded]
        return model

    def proposer(self, cost: Cost) -> core.SimulatedProposer:
        proposer = core.SimulatedProposer()
        proposer.acceptance = self.acceptance()
        proposer.claim_noise = self.claim_noise
        proposer.coverage = self.coverage
        proposer.pays_per_depth = self.pays_per_depth
        proposer.max_depth = MAX_DEPTH
        proposer.pass_cost = cost.draft
        return proposer


SHAPES = (
    Shape("same .7", (0.7,)),
    Shape("same .35", (0.35,)),
    Shape("same .9", (0.9,)),
    Shape("mix .92/.45", (0.92, 0.45), spread=0.5, decay=0.05),
    Shape("wide .95-.3", (0.95, 0.8, 0.6, 0.3), spread=0.8, decay=0.1),
    Shape("block", (0.8,), spread=0.5, decay=0.35),
    Shape("wrong", (0.0,), claim_noise=-1.0),
)
RECORDED = "recorded"


def recorded_shape(path: Path) -> Shape:
    """A file of `smartspec bench serve --save-acceptance`."""
    recorded = RecordedAcceptance.load(path)
    return Shape(
        RECORDED,
        rates=(0.5,),  # not used
        coverage=recorded.coverage,
        pays_per_depth=recorded.proposer == "draft",
        recorded=tuple(tuple(rates) for rates in recorded.rates()),
    )


HOMOGENEOUS = ("same .7", "same .35", "same .9")


@dataclass(frozen=True)
class Cell:
    cost: Cost
    shape: Shape
    batch: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.cost.name} | {self.shape.name} | batch {self.batch} | context {self.context}"

    def options(self, steps: int, seed: int) -> core.SimulationOptions:
        options = core.SimulationOptions()
        options.batch = self.batch
        options.context = self.context
        # A small batch sees few requests in a step, so it takes more of them.
        options.max_steps = steps * max(1, 16 // self.batch)
        options.warmup_steps = options.max_steps // 5
        options.proposers = [self.shape.proposer(self.cost)]
        options.target = self.cost.target
        options.overhead = self.cost.overhead
        options.seed = seed
        return options


_GRID = {  # cost: (batch, context)
    "8b": ((1, 256), (1, 65536), (4, 4096), (16, 256), (16, 65536), (64, 256), (64, 4096),
           (256, 256), (256, 4096), (512, 256), (512, 4096)),
    "70b": ((1, 4096), (16, 65536), (64, 4096), (256, 1024)),
    "stairs": ((4, 4096), (16, 256), (64, 4096), (256, 256), (512, 256)),
    "moe": ((1, 256), (4, 4096), (16, 256), (64, 4096), (256, 256), (512, 4096)),
}  # fmt: skip
_QUICK = {"8b": ((1, 256), (64, 4096)), "stairs": ((16, 256),), "moe": ((64, 4096),)}
_OF_FILE = ((1, 64), (1, 2048), (4, 512), (16, 512), (32, 2048))


def grid(
    quick: bool = False, cost: Cost | None = None, shapes: Sequence[Shape] = SHAPES
) -> list[Cell]:
    if cost is not None:
        return [Cell(cost, shape, *place) for shape in shapes for place in _OF_FILE]
    known = costs()
    places = _QUICK if quick else _GRID
    return [
        Cell(known[name], shape, *place)
        for shape in shapes
        for name, all_places in places.items()
        for place in all_places
    ]


@dataclass(frozen=True)
class Jump:
    """A cell whose acceptance or batch jumps away and back."""

    name: str
    cell: Cell
    away: Shape | None = None  # another acceptance
    away_batch: int = -1
    first: int = 600
    back: int = 1100
    steps: int = 1600

    def options(self, seed: int) -> core.SimulationOptions:
        options = self.cell.options(self.steps, seed)
        options.max_steps = self.steps
        options.record_steps = True
        shifts = []
        for step, shape, batch in (
            (self.first, self.away, self.away_batch),
            (self.back, self.cell.shape, self.cell.batch),
        ):
            shift = core.SimulatedShift()
            shift.step = step
            if self.away is not None and shape is not None:
                shift.proposer = 0
                shift.acceptance = shape.acceptance()
            if self.away_batch > 0:
                shift.batch = batch
            shifts.append(shift)
        options.shifts = shifts
        return options


def jumps(quick: bool = False, cost: Cost | None = None) -> list[Jump]:
    high = Shape(".9", (0.9,), spread=0.3, decay=0.05)
    low = Shape(".35", (0.35,), spread=0.3, decay=0.05)
    known = [cost] if cost is not None else [costs()[name] for name in ("8b", "moe")]
    result = []
    for each in known[:1] if quick else known:
        for batch in (64,) if quick else (8, 64, 256):
            result.append(
                Jump(f"{each.name}, batch {batch}: acceptance .9, .35, .9",
                     Cell(each, high, batch, 1024), away=low)
            )  # fmt: skip
        for shape in (SHAPES[0],) if quick else (SHAPES[0], SHAPES[3]):
            result.append(
                Jump(f"{each.name}, {shape.name}: batch 8, 256, 8",
                     Cell(each, shape, 8, 1024), away_batch=256)
            )  # fmt: skip
    return result


@dataclass(frozen=True)
class Service:
    """A server that requests arrive at: TurboSpec's settings, as far as its paper gives them."""

    cost: Cost
    shape: Shape
    rates: Sequence[float]  # requests a second
    max_num_seqs: int = 256
    num_kv_blocks: int = 25000
    seconds: float = 60.0  # arrivals last
    burstiness: float = 1.0  # 1: Poisson
    name: str = field(default="")

    @property
    def title(self) -> str:
        return self.name or f"{self.cost.name}, {self.shape.name}"

    def options(self, seed: int) -> core.SimulationOptions:
        options = core.SimulationOptions()
        options.max_steps = 0
        options.proposers = [self.shape.proposer(self.cost)]
        options.target = self.cost.target
        options.overhead = self.cost.overhead
        options.num_kv_blocks = self.num_kv_blocks
        scheduler = core.SchedulerOptions()
        scheduler.max_num_seqs = self.max_num_seqs
        scheduler.max_num_batched_tokens = 8192
        options.scheduler = scheduler
        options.seed = seed
        return options


SERVICE_SHAPES = (
    Shape("acceptance .7", (0.7,)),
    Shape("acceptance .8", (0.8,)),
    Shape("acceptance .9", (0.9,)),
    Shape("lookup .9", (0.9,), coverage=0.8, pays_per_depth=False),
)


def services(
    quick: bool = False, cost: Cost | None = None, rates: Sequence[float] = (),
    burstiness: float = 1.0, shapes: Sequence[Shape] = (),
) -> list[Service]:  # fmt: skip
    known = costs()
    places = [(known["8b"], rates or (1, 4, 16, 32, 48, 64, 80, 96)),
              (known["70b"], rates or (1, 2, 4, 8, 12, 16, 20, 24))]  # fmt: skip
    if cost is not None:
        places = [(cost, rates or (1, 2, 4, 8))]
    if quick:
        places = [(each, rates or (1, 16)) for each, _ in places[:1]]
    shapes = shapes or (SERVICE_SHAPES[1:2] if quick else SERVICE_SHAPES)
    seconds = 10.0 if quick else 60.0
    return [
        Service(each, shape, all_rates, seconds=seconds, burstiness=burstiness)
        for each, all_rates in places
        for shape in shapes
    ]
