// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Prompt lookup: drafts the tokens that followed the latest earlier occurrence of the newest n-gram
// in the request's own text. (Saxena 2023, "prompt lookup decoding"; names as in vLLM's ngram.)
#pragma once

#include <cstdint>
#include <memory>

#include "smartspec/export.hpp"
#include "smartspec/proposer.hpp"

namespace smartspec {

struct PromptLookupOptions {
  std::int32_t prompt_lookup_max = 4;  // longest n-gram tried first, >= prompt_lookup_min
  std::int32_t prompt_lookup_min = 2;  // shortest n-gram, >= 1
  std::int32_t tree_width = 1;         // distinct continuations merged into one tree, >= 1
};

/// Indexes each request's tokens as they grow: O(prompt_lookup_max) per new token, no rescans.
/// Not thread-safe.
class SMARTSPEC_API PromptLookupProposer final : public Proposer {
 public:
  explicit PromptLookupProposer(const PromptLookupOptions& options = {});
  ~PromptLookupProposer() override;

  [[nodiscard]] std::string_view name() const override;
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override;
  void finish(RequestId id) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
