// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A naive model of SuffixIndex: plain lists of tokens per generation, and all substrings of up to
// ten tokens in a hash map. When the index seals and evicts depends on its bytes, which the model
// does not know: follow() works out from the statistics what happened, and refuses what cannot.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "propose/suffix_index_util.hpp"
#include "smartspec/suffix_index.hpp"

namespace smartspec::suffix_test {

struct ModelFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void expect(bool condition, const std::string& text) {
  if (!condition) throw ModelFailure(text);
}

inline constexpr TokenId kVocabSize = 40;      // so that ten tokens fit into 64 bits
inline constexpr std::size_t kMaxContext = 9;  // and one that follows

/// Every substring of up to kMaxContext + 1 tokens and how often it occurs.
class SubstringCounts {
 public:
  /// `text` has got its last token.
  void add_end(std::span<const TokenId> text) {
    for_each_end(text, [&](std::uint64_t key) { ++counts_[key]; });
  }
  void remove(std::span<const TokenId> text) {
    for (std::size_t i = 1; i <= text.size(); ++i) {
      for_each_end(text.first(i), [&](std::uint64_t key) {
        const auto found = counts_.find(key);
        if (--found->second == 0) counts_.erase(found);
      });
    }
  }
  [[nodiscard]] std::int64_t count(std::span<const TokenId> context) const {
    return count_of(pack(context));
  }
  [[nodiscard]] std::int64_t next_count(std::span<const TokenId> context, TokenId token) const {
    return count_of(append(pack(context), token));
  }
  [[nodiscard]] std::int64_t best_count(std::span<const TokenId> context) const {
    std::int64_t best = 0;
    for (TokenId token = 0; token < kVocabSize; ++token) {
      best = std::max(best, next_count(context, token));
    }
    return best;
  }
  /// Of at most kMaxContext tokens.
  [[nodiscard]] std::size_t longest_match(std::span<const TokenId> context) const {
    for (std::size_t n = std::min(context.size(), kMaxContext); n > 0; --n) {
      if (count(context.last(n)) > 0) return n;
    }
    return 0;
  }

 private:
  static std::uint64_t append(std::uint64_t key, TokenId token) {
    return key << 6 | static_cast<std::uint64_t>(token + 1);
  }
  static std::uint64_t pack(std::span<const TokenId> tokens) {
    std::uint64_t key = 0;
    for (const TokenId token : tokens) key = append(key, token);
    return key;
  }
  template <class Visit>
  static void for_each_end(std::span<const TokenId> text, Visit&& visit) {
    for (std::size_t n = 1; n <= std::min(text.size(), kMaxContext + 1); ++n) {
      visit(pack(text.last(n)));
    }
  }
  [[nodiscard]] std::int64_t count_of(std::uint64_t key) const {
    const auto found = counts_.find(key);
    return found == counts_.end() ? 0 : found->second;
  }
  std::unordered_map<std::uint64_t, std::int64_t> counts_;
};

struct ModelRequest {
  std::string space;
  std::int64_t num_prompt_tokens = 0;
  bool is_shared = true;
  Tokens text;
  Tokens part;            // what of its output stands in the live generation
  SubstringCounts local;  // prediction and text
};

class IndexModel {
 public:
  void start(const SuffixRequest& request) {
    ModelRequest added;
    added.space = std::string(request.name_space);
    added.num_prompt_tokens = request.num_prompt_tokens;
    added.is_shared = request.share_output;
    Tokens prediction;
    for (const TokenId token : request.prediction) {
      prediction.push_back(token);
      added.local.add_end(prediction);
    }
    space(added.space);
    requests_.emplace(request.id, std::move(added));
  }

  /// Tokens that are new.
  void feed(RequestId id, std::span<const TokenId> tokens) {
    ModelRequest& request = requests_.at(id);
    for (const TokenId token : tokens) {
      const bool is_output =
          static_cast<std::int64_t>(request.text.size()) >= request.num_prompt_tokens;
      request.text.push_back(token);
      request.local.add_end(request.text);
      if (!is_output || !request.is_shared) continue;
      Space& shared = space(request.space);
      shared.generations.back().is_touched = true;
      request.part.push_back(token);
      shared.counts.add_end(request.part);
    }
  }

  void finish(RequestId id) {
    keep_part(id);
    requests_.erase(id);
  }

  bool forget(RequestId id) {
    if (requests_.contains(id)) {
      keep_part(id);
      requests_.at(id).is_shared = false;
    }
    bool found = false;
    for (auto& [name, shared] : spaces_) {
      for (Generation& generation : shared.generations) {
        std::erase_if(generation.parts, [&](const Part& part) {
          if (part.owner != id) return false;
          shared.counts.remove(part.tokens);
          found = true;
          return true;
        });
      }
    }
    return found;
  }

  /// Then a generation would go unseen, and follow() could not tell.
  [[nodiscard]] bool would_empty_a_generation(RequestId id) const {
    for (const Row& row : rows()) {
      if (row.num_tokens > 0 && row.num_tokens == tokens_of(id, row)) return true;
    }
    return false;
  }

  void clear(const std::string& name) {
    const auto found = spaces_.find(name);
    if (found == spaces_.end()) return;
    while (found->second.generations.size() > 1) drop(name, found->second.generations.front().id);
    drop(name, found->second.generations.front().id);
    const bool is_used = std::any_of(requests_.begin(), requests_.end(),
                                     [&](const auto& each) { return each.second.space == name; });
    if (!is_used) spaces_.erase(name);
  }

  void preload(const std::string& name, std::span<const TokenId> tokens) {
    Space& shared = space(name);
    Generation& live = shared.generations.back();
    live.is_touched = true;
    live.parts.push_back({{}, -1});
    for (const TokenId token : tokens) {
      live.parts.back().tokens.push_back(token);
      shared.counts.add_end(live.parts.back().tokens);
    }
  }

  /// After a call: what was sealed, in `fed` if anywhere, and evicted, by what the index says.
  void follow(const std::string* fed, std::int64_t num_generations, std::int64_t evicted_tokens) {
    for (int seals = 0; seals <= (fed == nullptr ? 0 : 1); ++seals) {
      const int drops = explain(fed, seals, num_generations, evicted_tokens);
      if (drops < 0) continue;
      if (seals == 1) seal(*fed);
      const std::vector<Row> rows = oldest_first();
      for (int i = 0; i < drops; ++i) {
        drop(rows[static_cast<std::size_t>(i)].space, rows[static_cast<std::size_t>(i)].id);
      }
      return;
    }
    throw ModelFailure("no sealing and evicting of oldest generations leads from " +
                       std::to_string(this->num_generations()) + " generations to " +
                       std::to_string(num_generations) + " with " + std::to_string(evicted_tokens) +
                       " tokens evicted");
  }

  [[nodiscard]] std::int64_t num_tokens(bool sealed_only = false) const {
    std::int64_t tokens = 0;
    for (const Row& row : rows()) {
      if (!sealed_only || !row.is_live) tokens += row.num_tokens;
    }
    return tokens;
  }
  [[nodiscard]] std::int64_t num_generations() const {
    return static_cast<std::int64_t>(rows().size());
  }
  [[nodiscard]] std::size_t num_spaces() const { return spaces_.size(); }
  [[nodiscard]] std::int64_t num_seals() const { return num_seals_; }
  [[nodiscard]] bool is_active(RequestId id) const { return requests_.contains(id); }
  [[nodiscard]] const std::map<RequestId, ModelRequest>& requests() const { return requests_; }
  /// Something of its output is in the history and will be known by its id later on.
  [[nodiscard]] bool is_remembered(RequestId id) const {
    for (const auto& [name, shared] : spaces_) {
      for (const Generation& generation : shared.generations) {
        for (const Part& part : generation.parts) {
          if (part.owner == id) return true;
        }
      }
    }
    return false;
  }
  /// Of a namespace that may be unknown.
  [[nodiscard]] const SubstringCounts& counts(const std::string& name) const {
    static const SubstringCounts kNothing;
    const auto found = spaces_.find(name);
    return found == spaces_.end() ? kNothing : found->second.counts;
  }

  void check(const SuffixLookup& got, std::span<const TokenId> context,
             const std::string& name) const {
    const SubstringCounts& truth = counts(name);
    const std::size_t length = truth.longest_match(context);
    expect(got.match_length == static_cast<std::int32_t>(length),
           "lookup matches " + std::to_string(got.match_length) + " tokens, not " +
               std::to_string(length));
    const auto matched = context.last(length);
    const std::int64_t count = length == 0 ? 0 : truth.count(matched);
    expect(got.count == count, "lookup counts " + std::to_string(got.count) + " occurrences, not " +
                                   std::to_string(count));
    const std::int64_t best = length == 0 ? 0 : truth.best_count(matched);
    expect(got.best_count == best, "lookup's best continuation counts " +
                                       std::to_string(got.best_count) + ", not " +
                                       std::to_string(best));
    expect((got.best_token >= 0) == (best > 0), "lookup has a continuation where there is none");
    expect(best == 0 || truth.next_count(matched, got.best_token) == best,
           "lookup's continuation is not a most frequent one");
  }

 private:
  struct Part {
    Tokens tokens;
    RequestId owner;
  };
  struct Generation {
    std::uint64_t id;
    std::vector<Part> parts;
    bool is_touched = false;  // takes more bytes than an empty one
  };
  struct Space {
    std::deque<Generation> generations;
    SubstringCounts counts;
  };
  struct Row {
    std::uint64_t id;
    std::string space;
    std::int64_t num_tokens;
    bool is_live;
    bool is_empty;
  };

  Space& space(const std::string& name) {
    const auto [found, is_new] = spaces_.try_emplace(name);
    if (is_new) found->second.generations.push_back({next_generation_++, {}});
    return found->second;
  }

  void keep_part(RequestId id) {
    ModelRequest& request = requests_.at(id);
    if (request.part.empty()) return;
    space(request.space).generations.back().parts.push_back({std::move(request.part), id});
    request.part.clear();
  }

  void seal(const std::string& name) {
    for (const auto& [id, request] : requests_) {
      if (request.space == name) keep_part(id);
    }
    space(name).generations.push_back({next_generation_++, {}});
    ++num_seals_;
  }

  void drop(const std::string& name, std::uint64_t id) {
    Space& shared = spaces_.at(name);
    const auto at = std::find_if(shared.generations.begin(), shared.generations.end(),
                                 [&](const Generation& each) { return each.id == id; });
    const bool is_live = at + 1 == shared.generations.end();
    for (const Part& part : at->parts) shared.counts.remove(part.tokens);
    shared.generations.erase(at);
    if (!is_live) return;
    shared.generations.push_back({next_generation_++, {}});
    for (auto& [request_id, request] : requests_) {
      if (request.space != name) continue;
      shared.counts.remove(request.part);
      request.part.clear();
    }
  }

  [[nodiscard]] std::vector<Row> rows() const {
    std::vector<Row> all;
    for (const auto& [name, shared] : spaces_) {
      for (const Generation& generation : shared.generations) {
        const bool is_live = generation.id == shared.generations.back().id;
        Row row{generation.id, name, 0, is_live, is_live && !generation.is_touched};
        for (const Part& part : generation.parts) {
          row.num_tokens += static_cast<std::int64_t>(part.tokens.size());
        }
        for (const auto& [id, request] : requests_) {
          if (is_live && request.space == name) {
            row.num_tokens += static_cast<std::int64_t>(request.part.size());
          }
        }
        all.push_back(std::move(row));
      }
    }
    return all;
  }

  [[nodiscard]] std::int64_t tokens_of(RequestId id, const Row& row) const {
    std::size_t tokens = 0;
    for (const Generation& generation : spaces_.at(row.space).generations) {
      for (const Part& part : generation.parts) {
        if (generation.id == row.id && part.owner == id) tokens += part.tokens.size();
      }
    }
    const auto active = requests_.find(id);
    if (active != requests_.end() && row.is_live && active->second.space == row.space) {
      tokens += active->second.part.size();
    }
    return static_cast<std::int64_t>(tokens);
  }

  [[nodiscard]] std::vector<Row> oldest_first() const {
    std::vector<Row> all = rows();
    std::erase_if(all, [](const Row& row) { return row.is_empty; });
    std::sort(all.begin(), all.end(), [](const Row& a, const Row& b) { return a.id < b.id; });
    return all;
  }

  // How many of the oldest generations went, -1: it cannot be.
  [[nodiscard]] int explain(const std::string* fed, int seals, std::int64_t generations,
                            std::int64_t evicted) const {
    std::int64_t left = num_generations() + seals;
    int drops = 0;
    for (const Row& row : oldest_first()) {
      if (left == generations && evicted == 0) return drops;
      ++drops;
      evicted -= row.num_tokens;
      const bool is_replaced = row.is_live && !(seals == 1 && row.space == *fed);
      if (!is_replaced) --left;
    }
    return left == generations && evicted == 0 ? drops : -1;
  }

  std::map<std::string, Space> spaces_;
  std::map<RequestId, ModelRequest> requests_;
  std::uint64_t next_generation_ = 1;
  std::int64_t num_seals_ = 0;
};

}  // namespace smartspec::suffix_test
