// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Length policies from papers and other servers, for comparison and for who wants them.
#pragma once

#include <memory>
#include <vector>

#include "smartspec/cost_model.hpp"
#include "smartspec/export.hpp"
#include "smartspec/length_policy.hpp"

namespace smartspec {

/// One row of a table: batches of first..last requests draft num_tokens each.
struct BatchLength {
  std::int32_t first = 1;
  std::int32_t last = 1;  // inclusive
  std::int32_t num_tokens = 0;
};
/// A length per batch size; 0 beyond the table (vLLM's num_speculative_tokens_per_batch_size,
/// TensorRT-LLM's draft_len_schedule). Throws std::invalid_argument on rows that are empty, overlap
/// or do not ascend.
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_table_policy(std::vector<BatchLength> table);

struct TurboSpecOptions {
  std::int32_t max_tokens = 7;
  std::int32_t period = 200;  // steps between decisions; the deciding one drafts max_tokens
  std::int32_t window = 100;  // steps of acceptance that are averaged
  double first_acceptance = 0.7;
  double overhead = 0.05;  // of the target's time, when anything is drafted
  CostCoefficients target{};
  CostCoefficients draft{};
};
/// TurboSpec as its authors' vLLM branch has it (arXiv 2406.14066v3), faults included: one length
/// for the batch, from a windowed ratio of accepted to drafted tokens (which counts tokens behind
/// a rejection as failures), the geometric formula, and a search that stops at the first decrease.
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_turbospec_policy(const TurboSpecOptions& options);

/// Drafts on while P(some token of the draft is rejected) <= threshold, by the proposer's claims
/// (SpecDec++, arXiv 2405.19715).
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_threshold_policy(std::int32_t max_tokens,
                                                                  double threshold = 0.7);
/// Drafts on while the claimed acceptance of the next token is at least `confidence` (DISCO,
/// arXiv 2405.04304, with the claim in place of its classifier; Hugging Face's
/// assistant_confidence_threshold).
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_disco_policy(std::int32_t max_tokens,
                                                              double confidence = 0.4);
/// Full drafts; verifies the `capacity` most likely nodes of the batch by the claims (TETRIS,
/// arXiv 2502.15197).
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_tetris_policy(std::int32_t max_tokens,
                                                               std::int32_t capacity);
/// Full drafts; verifies the best nodes of the batch by the claims for a cost table that knows only
/// the number of tokens, measured once (vLLM's enable_adaptive_verification, DSpark's planner).
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_full_draft_policy(std::int32_t max_tokens,
                                                                   CostCoefficients target);
/// One tree for every request: the shape of `num_nodes` nodes and at most `max_depth` levels with
/// the highest expected length when the j-th child of a node is accepted with
/// rank_acceptance[j] (Sequoia's dynamic program, arXiv 2402.12374, section 4.1). Keeps the nodes
/// of a proposed tree that lie within the shape.
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_sequoia_policy(
    std::int32_t num_nodes, std::int32_t max_depth, std::vector<double> rank_acceptance);
/// Drafts on while the sum of the claimed survivals of a level is at least `threshold` (dynamic
/// depth decoding, arXiv 2409.00142).
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_dynamic_depth_policy(std::int32_t max_tokens,
                                                                      double threshold = 0.3);

}  // namespace smartspec
