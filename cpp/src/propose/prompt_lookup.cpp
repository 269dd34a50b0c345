// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/prompt_lookup.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace smartspec {
namespace {

constexpr std::int32_t kMaxNgram = 32;
// How many earlier occurrences of one n-gram are looked at for distinct continuations.
constexpr std::int32_t kMaxOccurrences = 64;
constexpr std::int32_t kMaxMatch = 64;  // tokens that a match is followed backwards, >= kMaxNgram

std::uint64_t mix(std::uint64_t hash, TokenId token) {
  hash = (hash ^ static_cast<std::uint64_t>(static_cast<std::uint32_t>(token))) *
         0x9E3779B97F4A7C15ULL;
  return hash ^ (hash >> 29);
}

/// Every n-gram of one length in one request's text: the newest occurrence by hash, older ones
/// linked behind it. Occurrences are named by the index of their last token.
struct NgramIndex {
  std::unordered_map<std::uint64_t, std::int32_t> newest;
  std::vector<std::int32_t> older;  // [num_tokens], -1 at the end of the list

  void insert(std::uint64_t hash, std::int32_t end) {
    const auto [entry, is_new] = newest.try_emplace(hash, end);
    older[static_cast<std::size_t>(end)] = is_new ? -1 : entry->second;
    entry->second = end;
  }
};

struct RequestIndex {
  std::int32_t num_indexed = 0;
  std::vector<NgramIndex> by_length;  // [max - min + 1]
};

std::uint64_t hash_ngram(std::span<const TokenId> tokens, std::int32_t end, std::int32_t length) {
  std::uint64_t hash = static_cast<std::uint64_t>(length);
  for (std::int32_t i = end - length + 1; i <= end; ++i) {
    hash = mix(hash, tokens[static_cast<std::size_t>(i)]);
  }
  return hash;
}

/// How many tokens up to `a` and up to `b` are the same. Looked up are short n-grams, but a copy
/// that has gone on for long is likelier to go on than one just begun.
std::int32_t match_length(std::span<const TokenId> tokens, std::int32_t a, std::int32_t b) {
  const std::int32_t most = std::min({a + 1, b + 1, kMaxMatch});
  std::int32_t length = 0;
  while (length < most && tokens[static_cast<std::size_t>(a - length)] ==
                              tokens[static_cast<std::size_t>(b - length)]) {
    ++length;
  }
  return length;
}

/// Adds the continuation of the occurrence ending at `end` to the tree, sharing what is there.
/// Past the end of the text it goes on with its own tokens: a period repeats as long as it is
/// asked.
void add_continuation(std::span<const TokenId> tokens, std::int32_t end, std::int32_t length,
                      const ProposeRequest& request, TokenTree& tree) {
  const auto num_tokens = static_cast<std::int32_t>(tokens.size());
  // A prior, not a calibration: longer matches continue more often.
  const float keep = static_cast<float>(length) / static_cast<float>(length + 1);
  TokenId drafted[kMaxTreeNodes];
  std::int32_t parent = -1;
  float survival = 1.0F;
  for (std::int32_t depth = 0; depth < std::min(request.max_depth, kMaxTreeNodes); ++depth) {
    const std::int32_t source = end + 1 + depth;
    const TokenId token = source < num_tokens ? tokens[static_cast<std::size_t>(source)]
                                              : drafted[source - num_tokens];
    drafted[depth] = token;
    survival *= keep;
    std::int32_t node = tree.find_child(parent, token);
    if (node < 0) {
      if (tree.size() >= request.max_nodes) return;
      const float bound = parent < 0 ? 1.0F : tree.survival[static_cast<std::size_t>(parent)];
      node = tree.add(token, parent, std::min(survival, bound));
    }
    parent = node;
  }
}

}  // namespace

struct PromptLookupProposer::Impl {
  PromptLookupOptions options;
  std::unordered_map<RequestId, RequestIndex> requests;

  void update(RequestIndex& index, std::span<const TokenId> tokens) const {
    const auto num_tokens = static_cast<std::int32_t>(tokens.size());
    index.by_length.resize(
        static_cast<std::size_t>(options.prompt_lookup_max - options.prompt_lookup_min + 1));
    // The newest token's n-grams are what we look up, so they are inserted one call later.
    const std::int32_t limit = num_tokens - 1;
    for (std::int32_t n = options.prompt_lookup_min; n <= options.prompt_lookup_max; ++n) {
      NgramIndex& grams = index.by_length[static_cast<std::size_t>(n - options.prompt_lookup_min)];
      grams.older.resize(static_cast<std::size_t>(num_tokens), -1);
      for (std::int32_t end = std::max(index.num_indexed, n - 1); end < limit; ++end) {
        grams.insert(hash_ngram(tokens, end, n), end);
      }
    }
    index.num_indexed = std::max(index.num_indexed, limit);
  }

  void draft(const RequestIndex& index, const ProposeRequest& request, TokenTree& tree) const {
    const std::span<const TokenId> tokens = request.tokens;
    const auto last = static_cast<std::int32_t>(tokens.size()) - 1;
    std::int32_t branches = 0;
    for (std::int32_t n = options.prompt_lookup_max; n >= options.prompt_lookup_min; --n) {
      if (last + 1 < n) continue;
      const NgramIndex& grams =
          index.by_length[static_cast<std::size_t>(n - options.prompt_lookup_min)];
      const auto entry = grams.newest.find(hash_ngram(tokens, last, n));
      std::int32_t end = entry == grams.newest.end() ? -1 : entry->second;
      for (std::int32_t seen = 0; end >= 0 && seen < kMaxOccurrences; ++seen) {
        if (branches >= options.tree_width) return;
        const std::int32_t length = match_length(tokens, end, last);
        if (length >= n) {  // not only the same hash
          const std::int32_t before = tree.size();
          add_continuation(tokens, end, length, request, tree);
          if (tree.size() > before) ++branches;
        }
        end = grams.older[static_cast<std::size_t>(end)];
      }
    }
  }
};

PromptLookupProposer::PromptLookupProposer(const PromptLookupOptions& options)
    : impl_(std::make_unique<Impl>()) {
  if (options.prompt_lookup_min < 1) {
    throw std::invalid_argument("prompt_lookup_min must be at least 1, got " +
                                std::to_string(options.prompt_lookup_min));
  }
  if (options.prompt_lookup_max < options.prompt_lookup_min ||
      options.prompt_lookup_max > kMaxNgram) {
    throw std::invalid_argument("prompt_lookup_max must be in [prompt_lookup_min, " +
                                std::to_string(kMaxNgram) + "], got " +
                                std::to_string(options.prompt_lookup_max));
  }
  if (options.tree_width < 1 || options.tree_width > kMaxTreeNodes) {
    throw std::invalid_argument("tree_width must be in [1, " + std::to_string(kMaxTreeNodes) +
                                "], got " + std::to_string(options.tree_width));
  }
  impl_->options = options;
}

PromptLookupProposer::~PromptLookupProposer() = default;

std::string_view PromptLookupProposer::name() const { return "lookup"; }

void PromptLookupProposer::propose(std::span<const ProposeRequest> requests,
                                   std::span<TokenTree> trees) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const ProposeRequest& request = requests[i];
    RequestIndex& index = impl_->requests[request.id];
    // A request's text only grows; a shorter one is another text under the same id.
    if (static_cast<std::int32_t>(request.tokens.size()) - 1 < index.num_indexed) index = {};
    impl_->update(index, request.tokens);
    impl_->draft(index, request, trees[i]);
  }
}

void PromptLookupProposer::finish(RequestId id) { impl_->requests.erase(id); }

}  // namespace smartspec
