// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The trampoline to proposers written in Python. Whatever they do ends as a C++ exception or a tree
// that the engine checks: it takes the GIL, shows copies, and lets no Python object escape.
#pragma once

#include <pybind11/trampoline_self_life_support.h>

#include <optional>
#include <string>

#include "smartspec/proposer.hpp"
#include "smartspec/sampling_params.hpp"
#include "views.hpp"

namespace smartspec::python {

/// A ProposeRequest that owns its tokens: a proposer may keep it beyond the call.
struct OwnedRequest {
  RequestId id = 0;
  py::array_t<TokenId> tokens;
  std::int32_t num_prompt_tokens = 0;
  std::int32_t max_depth = 0;
  std::int32_t max_nodes = 0;
  std::uint64_t seed = 0;
  SamplingParams sampling;
  std::uint64_t cache_salt = 0;
  py::array_t<TokenId> prediction;
  float min_survival = 0;
  ClaimReading claims;
};

struct OwnedOutcome {
  RequestId id = 0;
  TokenTree tree;
  std::vector<std::int32_t> accepted_path;
  std::vector<TokenId> emitted;
};

class PythonProposer final : public Proposer, public py::trampoline_self_life_support {
 public:
  [[nodiscard]] std::string_view name() const override;
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override;
  void observe(std::span<const Outcome> outcomes) override;
  void finish(RequestId id) override;
  /// The attribute of this name, read once.
  [[nodiscard]] bool pays_per_depth() const override;

 private:
  [[nodiscard]] py::function method_named(const char* name) const;
  mutable std::string name_;
  mutable std::optional<bool> pays_per_depth_;
};

}  // namespace smartspec::python
