// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The suffix index as a proposer of the engine, and a proposer that chooses between two others.
#pragma once

#include <memory>
#include <string>

#include "smartspec/export.hpp"
#include "smartspec/proposer.hpp"
#include "smartspec/suffix_index.hpp"

namespace smartspec {

struct SuffixProposerOptions {
  float min_survival = 0.1F;    // as in SuffixDraftOptions
  std::int32_t tree_width = 1;  // as in SuffixDraftOptions
};

/// Ids of SuffixRequests from here on belong to proposers, which number their requests across all
/// engines of the process; who feeds the same index by hand stays below.
inline constexpr RequestId kFirstSuffixProposerId = RequestId{1} << 62;

/// One shared index for all requests of an engine, or of several. Feeds the index what propose()
/// and observe() show of each request. Its namespace is the request's cache_salt in decimal, "" for
/// 0. Not thread-safe itself; the index may be shared.
class SMARTSPEC_API SuffixProposer final : public Proposer {
 public:
  /// Throws std::invalid_argument on null or options out of range.
  explicit SuffixProposer(std::shared_ptr<SuffixIndex> index,
                          const SuffixProposerOptions& options = {});
  ~SuffixProposer() override;

  [[nodiscard]] std::string_view name() const override;
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override;
  void observe(std::span<const Outcome> outcomes) override;
  void finish(RequestId id) override;

  [[nodiscard]] const std::shared_ptr<SuffixIndex>& index() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// `free` (one that costs next to nothing, such as the suffix index) where it expects more
/// accepted tokens than `paid` (a draft model) does for this request, `paid` elsewhere; where one
/// has nothing, the other. What `paid` yields is learnt from its outcomes, per depth, and per
/// request shrunk towards all requests.
/// An exception of one half does not cost the other's drafts: propose() throws only when both
/// failed, else the next observe() throws it. To each half, a draft of the other is a step at which
/// it drafted nothing. Not thread-safe.
class SMARTSPEC_API StackedProposer final : public Proposer {
 public:
  /// `margin`: `free` is taken from margin times the other's expectation on; below 1 since it costs
  /// no model pass. `paid_max_depth`: longest draft asked of `paid`, each token of which costs a
  /// pass. Throws std::invalid_argument on null, margin <= 0 or paid_max_depth < 1.
  StackedProposer(std::shared_ptr<Proposer> free, std::shared_ptr<Proposer> paid,
                  double margin = 0.8, std::int32_t paid_max_depth = kMaxTreeNodes);
  ~StackedProposer() override;

  [[nodiscard]] std::string_view name() const override;
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override;
  void observe(std::span<const Outcome> outcomes) override;
  void finish(RequestId id) override;
  /// As `paid` does. An engine asks a proposer that pays only where the policy wants its drafts.
  [[nodiscard]] bool pays_per_depth() const override;
  [[nodiscard]] std::int32_t backlog(RequestId id, std::span<const TokenId> tokens) const override;
  [[nodiscard]] ProposeWork last_work() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
