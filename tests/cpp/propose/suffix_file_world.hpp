// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// An index with something of everything in it, and what its files are compared by.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "smartspec/suffix_index.hpp"
#include "substring_oracle.hpp"

namespace smartspec::testing {

// Sanitizers are ten times slower; every kind of case is still met.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kSlowdown = 10;
#else
inline constexpr int kSlowdown = 1;
#endif

inline constexpr TokenId kVocab = 40;

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "smartspec_suffix_XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ / name; }
  [[nodiscard]] std::size_t num_files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);  // some file systems wait for the disk when one is overwritten
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline SuffixIndexOptions world_options() {
  SuffixIndexOptions options;
  options.vocab_size = kVocab;
  options.max_bytes = std::size_t{4} << 20;
  options.generation_bytes = 160'000;  // some 2,500 tokens
  options.background = false;
  options.tokenizer_hash = "tokenizer-1";
  return options;
}

struct Draft {
  Tokens tokens;
  std::vector<std::int32_t> parents;
  std::vector<float> survival;
  std::int32_t length = 0;
  std::int32_t match_length = 0;
  friend bool operator==(const Draft&, const Draft&) = default;
};

inline void feed(SuffixIndex& index, RequestId id, std::span<const TokenId> tokens) {
  const std::int64_t position = index.num_tokens(id);
  const std::int64_t offsets[2] = {0, static_cast<std::int64_t>(tokens.size())};
  index.update({{&id, 1}, {&position, 1}, offsets, tokens});
}

inline void start(SuffixIndex& index, RequestId id, std::string_view name = "",
                  std::int64_t num_prompt_tokens = 0, bool is_shared = true) {
  SuffixRequest request;
  request.id = id;
  request.num_prompt_tokens = num_prompt_tokens;
  request.name_space = name;
  request.share_output = is_shared;
  index.start_request(request);
}

inline void preload(SuffixIndex& index, const std::vector<Tokens>& sequences,
                    std::string_view name) {
  std::vector<std::int64_t> offsets{0};
  Tokens tokens;
  for (const Tokens& sequence : sequences) {
    tokens.insert(tokens.end(), sequence.begin(), sequence.end());
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
  }
  index.preload(offsets, tokens, name);
}

inline Draft draft(const SuffixIndex& index, RequestId id, std::int32_t width = 2) {
  constexpr std::size_t kNodes = 8;
  Draft draft{Tokens(kNodes), std::vector<std::int32_t>(kNodes), std::vector<float>(kNodes), 0, 0};
  index.draft(
      {&id, 1}, {}, {.max_tokens = kNodes, .min_survival = 0.01F, .tree_width = width},
      {draft.tokens, draft.parents, draft.survival, {&draft.length, 1}, {&draft.match_length, 1}});
  const auto length = static_cast<std::size_t>(draft.length);
  draft.tokens.resize(length);
  draft.parents.resize(length);
  draft.survival.resize(length);
  return draft;
}

/// Live and frozen generations, namespaces, forgotten, finished and active requests.
struct World {
  SuffixIndex index;
  std::map<std::string, std::vector<Tokens>> kept;  // what the history must hold
  std::vector<Tokens> forgotten;
  std::vector<RequestId> active;
  std::mt19937 random;
  RequestId next_id = 1;
  bool forgets;

  explicit World(unsigned seed, SuffixIndexOptions options = world_options(),
                 int num_requests = 120, bool may_forget = true)
      : index(options), random(seed), forgets(may_forget) {
    for (int i = 0; i < num_requests; ++i) serve(i, num_requests);
  }

  /// Serves one output; a seal on the way cuts it in two.
  void serve(int i, int num_requests) {
    static const char* const kNames[] = {"", "tenant", "other"};
    const std::string name = kNames[random() % 3];
    const RequestId id = next_id++;
    const bool is_shared = random() % 8 != 0;
    start(index, id, name, 20, is_shared);
    feed(index, id, repetitive_tokens(random, 20, kVocab));
    const Tokens output = repetitive_tokens(random, 1 + random() % 300, kVocab);
    std::vector<Tokens> pieces(1);
    for (std::size_t at = 0; at < output.size();) {
      (void)draft(index, id);
      const std::size_t count = std::min<std::size_t>(1 + random() % 4, output.size() - at);
      const auto before = index.stats().num_generations;
      feed(index, id, std::span(output).subspan(at, count));
      pieces.back().insert(pieces.back().end(), output.begin() + static_cast<std::ptrdiff_t>(at),
                           output.begin() + static_cast<std::ptrdiff_t>(at + count));
      if (index.stats().num_generations > before) pieces.emplace_back();
      at += count;
    }
    const auto fate = random() % 4;
    if (fate == 0 && is_shared && forgets) {
      if (random() % 2 == 0) index.finish_request(id);
      EXPECT_TRUE(index.forget(id));
      if (index.is_active(id)) active.push_back(id);
      forgotten.push_back(output);
      return;
    }
    if (i + 6 < num_requests) {
      index.finish_request(id);
    } else {
      active.push_back(id);
    }
    if (!is_shared) return;
    for (Tokens& piece : pieces) kept[name].push_back(std::move(piece));
  }

  [[nodiscard]] Tokens query() {
    const auto& sequences = std::next(kept.begin(), random() % 3)->second;
    const Tokens& source = random() % 8 == 0 && !forgotten.empty()
                               ? forgotten[random() % forgotten.size()]
                               : sequences[random() % sequences.size()];
    if (source.empty() || random() % 10 == 0) {
      return random_tokens(random, 1 + random() % 10, kVocab);
    }
    const std::size_t begin = random() % source.size();
    const std::size_t count = std::min(source.size() - begin, std::size_t{1} + random() % 10);
    return {source.begin() + static_cast<std::ptrdiff_t>(begin),
            source.begin() + static_cast<std::ptrdiff_t>(begin + count)};
  }
};

inline const char* const kNameSpaces[] = {"", "tenant", "other", "never heard of"};

inline void expect_same_answers(World& world, const SuffixIndex& a, const SuffixIndex& b,
                                int num_queries) {
  for (int i = 0; i < num_queries; ++i) {
    const Tokens context = world.query();
    const char* name = kNameSpaces[world.random() % 4];
    const SuffixLookup x = a.lookup(context, name);
    const SuffixLookup y = b.lookup(context, name);
    ASSERT_EQ(x.match_length, y.match_length);
    ASSERT_EQ(x.count, y.count);
    ASSERT_EQ(x.best_token, y.best_token);
    ASSERT_EQ(x.best_count, y.best_count);
  }
}

/// Feeds both the same new requests, and leaves them as they were but for what was learnt.
inline void expect_same_drafts(World& world, SuffixIndex& a, SuffixIndex& b, int num_requests) {
  for (int i = 0; i < num_requests; ++i) {
    const RequestId id = world.next_id++;
    const char* name = kNameSpaces[world.random() % 4];
    const Tokens prompt = world.query();
    for (SuffixIndex* index : {&a, &b}) {
      start(*index, id, name, static_cast<std::int64_t>(prompt.size()), false);
      feed(*index, id, prompt);
    }
    const Tokens output = world.query();
    for (const TokenId token : output) {
      const auto width = static_cast<std::int32_t>(1 + world.random() % 4);
      ASSERT_EQ(draft(a, id, width), draft(b, id, width));
      feed(a, id, {&token, 1});
      feed(b, id, {&token, 1});
    }
    a.finish_request(id);
    b.finish_request(id);
  }
}

}  // namespace smartspec::testing
