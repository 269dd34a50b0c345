# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The engine's proposers and policy, made from a Speculation."""

from __future__ import annotations

from dataclasses import dataclass, field

import smartspec_core as core

from .profile import load_cached
from .speculation import Speculation


@dataclass
class Drafting:
    """What an engine is built with. `names` are the proposers', for per-request choices."""

    policy: core.LengthPolicy
    proposers: list[core.Proposer] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    suffix_index: core.SuffixIndex | None = None


@dataclass(frozen=True)
class DraftingModels:
    target: core.Model
    draft: core.Model | None
    options: core.EngineOptions
    tokenizer_hash: str


def make_drafting(spec: Speculation, models: DraftingModels) -> Drafting:
    if spec.is_off:
        return Drafting(core.make_off_policy())
    drafting = Drafting(_make_policy(spec, models))
    if isinstance(spec.proposer, core.Proposer):
        drafting.proposers, drafting.names = [spec.proposer], [spec.proposer.name]
        return drafting
    if spec.uses("lookup"):
        drafting.proposers.append(
            core.PromptLookupProposer(
                spec.prompt_lookup_max, spec.prompt_lookup_min, spec.tree_width
            )
        )
        drafting.names.append("lookup")
    elif spec.uses("suffix"):
        index = spec.suffix_index
        if index is None:
            index = core.SuffixIndex(
                vocab_size=models.target.config.vocab_size,
                max_bytes=spec.max_bytes,
                tokenizer_hash=models.tokenizer_hash,
            )
        drafting.suffix_index = index
        drafting.proposers.append(core.SuffixProposer(index, spec.min_survival, spec.tree_width))
        drafting.names.append("suffix")
    if spec.uses("draft"):
        drafting.proposers.append(_draft_proposer(spec, models))
        drafting.names.append("draft")
    if len(drafting.proposers) == 2 and spec.policy != "auto":
        free, paid = drafting.proposers
        stacked = core.StackedProposer(free, paid, paid_max_depth=spec.longest_paid_draft)
        drafting.proposers, drafting.names = [stacked], [str(spec.proposer)]
    return drafting


def _draft_proposer(spec: Speculation, models: DraftingModels) -> core.Proposer:
    assert models.draft is not None
    options = core.DraftModelOptions()
    options.tree_width = spec.tree_width
    options.block_size = models.options.block_size
    options.max_num_seqs = models.options.max_num_seqs
    options.max_num_batched_tokens = models.options.max_num_batched_tokens
    options.max_model_len = min(
        models.draft.config.max_position_embeddings,
        models.options.max_model_len or models.target.config.max_position_embeddings,
    )
    return core.DraftModelProposer(models.draft, models.target.config.vocab_size, options)


@dataclass(frozen=True)
class _Costs:
    """Where the cost models of the target's steps and of a draft model's passes start."""

    target: core.CostCoefficients
    draft: core.CostCoefficients


def _costs(models: DraftingModels) -> _Costs:
    """From this machine's cached profile of the models (`smartspec profile`), else what the sizes
    of the models let expect; both are corrected from the first step on."""
    if (cached := _cached(models)) is not None:
        return cached
    target = core.make_roofline(core.roofline_of(models.target))
    draft = target
    if models.draft is not None:
        draft = core.make_roofline(core.roofline_of(models.draft))
    return _Costs(target, draft)


def _cached(models: DraftingModels) -> _Costs | None:
    cached = load_cached(models.target, models.draft)
    return None if cached is None else _Costs(cached.target, cached.draft or cached.target)


def _make_policy(spec: Speculation, models: DraftingModels) -> core.LengthPolicy:
    policy, longest = spec.policy, spec.longest_draft
    if policy == "fixed":
        return core.make_fixed_policy(longest)
    if policy == "table":
        rows = spec.num_speculative_tokens_per_batch_size or ()
        return core.make_table_policy([(first, last, tokens) for first, last, tokens in rows])
    if policy == "threshold":
        return core.make_threshold_policy(longest, spec.threshold_or_default)
    if policy == "disco":
        return core.make_disco_policy(longest, spec.threshold_or_default)
    if policy == "ddd":
        return core.make_dynamic_depth_policy(longest, spec.threshold_or_default)
    if policy == "tetris":
        return core.make_tetris_policy(longest, spec.capacity)
    if policy == "sequoia":
        return core.make_sequoia_policy(longest, longest, list(spec.rank_acceptance))
    return _make_costed_policy(spec, _costs(models))


def _make_costed_policy(spec: Speculation, costs: _Costs) -> core.LengthPolicy:
    if spec.policy == "full":
        return core.make_full_draft_policy(spec.longest_draft, costs.target)
    if spec.policy == "turbospec":
        turbo = core.TurboSpecOptions()
        turbo.max_tokens = spec.longest_draft
        turbo.target, turbo.draft = costs.target, costs.draft
        return core.make_turbospec_policy(turbo)
    options = core.GoodputOptions()
    options.max_depth = spec.longest_draft
    options.max_paid_depth = spec.longest_paid_draft
    options.target, options.draft = costs.target, costs.draft
    return core.make_goodput_policy(options)
