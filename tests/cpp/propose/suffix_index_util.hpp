// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Short ways to say things in tests of SuffixIndex.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "smartspec/suffix_index.hpp"
#include "smartspec/token_tree.hpp"

namespace smartspec::suffix_test {

using Tokens = std::vector<TokenId>;

/// Outputs of one draft call.
struct DraftBuffers {
  DraftBuffers(std::size_t num_requests, std::int32_t max_tokens)
      : width(static_cast<std::size_t>(max_tokens)),
        tokens(num_requests * width, -7),
        parents(num_requests * width, -7),
        survival(num_requests * width, -7),
        lengths(num_requests, -7),
        match_lengths(num_requests, -7) {}
  SuffixDrafts out() { return {tokens, parents, survival, lengths, match_lengths}; }
  [[nodiscard]] TokenTree tree(std::size_t row) const {
    TokenTree tree;
    for (std::size_t i = 0; i < static_cast<std::size_t>(lengths[row]); ++i) {
      const std::size_t cell = row * width + i;
      tree.add(tokens[cell], parents[cell], survival[cell]);
    }
    return tree;
  }
  [[nodiscard]] Tokens chain(std::size_t row) const {
    const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(row * width);
    return {begin, begin + lengths[row]};
  }
  friend bool operator==(const DraftBuffers&, const DraftBuffers&) = default;

  std::size_t width;
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> parents;
  std::vector<float> survival;
  std::vector<std::int32_t> lengths;
  std::vector<std::int32_t> match_lengths;
};

inline DraftBuffers draft(const SuffixIndex& index, const std::vector<RequestId>& ids,
                          const SuffixDraftOptions& options = {},
                          const std::vector<std::int32_t>& max_tokens = {}) {
  DraftBuffers buffers(ids.size(), options.max_tokens);
  index.draft(ids, max_tokens, options, buffers.out());
  return buffers;
}

/// New tokens of one request.
inline void feed(SuffixIndex& index, RequestId id, std::int64_t position,
                 std::span<const TokenId> tokens) {
  const std::array<std::int64_t, 2> offsets{0, static_cast<std::int64_t>(tokens.size())};
  index.update({std::span(&id, 1), std::span(&position, 1), offsets, tokens});
}
inline void feed(SuffixIndex& index, RequestId id, std::span<const TokenId> tokens) {
  feed(index, id, index.num_tokens(id), tokens);
}

inline void preload(SuffixIndex& index, std::span<const TokenId> tokens,
                    std::string_view name_space = {}) {
  const std::array<std::int64_t, 2> offsets{0, static_cast<std::int64_t>(tokens.size())};
  index.preload(offsets, tokens, name_space);
}

/// What a refused call must leave as it was.
inline bool operator==(const SuffixIndexStats& a, const SuffixIndexStats& b) {
  return a.num_tokens == b.num_tokens && a.num_bytes == b.num_bytes &&
         a.frozen_tokens == b.frozen_tokens && a.frozen_bytes == b.frozen_bytes &&
         a.num_generations == b.num_generations && a.num_namespaces == b.num_namespaces &&
         a.num_requests == b.num_requests && a.request_bytes == b.request_bytes &&
         a.evicted_tokens == b.evicted_tokens && a.drafted_tokens == b.drafted_tokens &&
         a.accepted_tokens == b.accepted_tokens && a.expected_tokens == b.expected_tokens;
}

inline constexpr SuffixDraftOptions kEverything{
    .max_tokens = 16, .min_survival = 0, .tree_width = 1};

inline SuffixIndexOptions plain_options() {
  SuffixIndexOptions options;
  options.background = false;
  return options;
}

// Small generations, frozen at once.
inline SuffixIndexOptions small_options() {
  SuffixIndexOptions options = plain_options();
  options.max_bytes = 4 << 20;
  options.generation_bytes = 32 << 10;
  return options;
}

inline Tokens range(TokenId first, std::size_t size) {
  Tokens tokens(size);
  for (std::size_t i = 0; i < size; ++i) tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

inline void start(SuffixIndex& index, RequestId id, const Tokens& prompt,
                  std::string_view space = {}, bool is_shared = true) {
  SuffixRequest request;
  request.id = id;
  request.num_prompt_tokens = static_cast<std::int64_t>(prompt.size());
  request.name_space = space;
  request.share_output = is_shared;
  index.start_request(request);
  feed(index, id, prompt);
}

// A request that put `output` out and is done.
inline void run_request(SuffixIndex& index, RequestId id, const Tokens& output,
                        std::string_view space = {}) {
  start(index, id, {}, space);
  feed(index, id, output);
  index.finish_request(id);
}

// Fills the live generation with text of no interest until it is sealed.
inline void seal(SuffixIndex& index, std::string_view space = {}) {
  const std::int32_t generations = index.stats().num_generations;
  for (TokenId token = 1'000'000; index.stats().num_generations == generations; token += 50) {
    preload(index, range(token, 50), space);
  }
}

inline Tokens draft_after(SuffixIndex& index, const Tokens& text, std::string_view space = {}) {
  constexpr RequestId kAsking = 999'999;
  start(index, kAsking, text, space, false);
  Tokens drafted = draft(index, {kAsking}, kEverything).chain(0);
  index.finish_request(kAsking);
  return drafted;
}

}  // namespace smartspec::suffix_test
