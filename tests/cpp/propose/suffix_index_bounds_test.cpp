// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// SuffixIndex keeps to its bytes, gives memory back, drafts without allocating, and claims what
// comes true.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "propose/suffix_index_util.hpp"

namespace smartspec {
namespace {

using suffix_test::draft;
using suffix_test::DraftBuffers;
using suffix_test::feed;
using suffix_test::preload;
using suffix_test::Tokens;

#ifdef __SANITIZE_ADDRESS__
constexpr bool kIsSanitized = true;
#else
constexpr bool kIsSanitized = false;
#endif
constexpr std::size_t kMegabyte = std::size_t{1} << 20;

Tokens noise(std::mt19937& random, std::size_t size) {
  Tokens tokens(size);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 50'000);
  return tokens;
}

std::int64_t resident_megabytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t total = 0;
  std::int64_t resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE) / static_cast<std::int64_t>(kMegabyte);
}

TEST(SuffixIndexBounds, StaysWithinMaxBytesWhateverComes) {
  for (const bool freeze : {false, true}) {
    SuffixIndexOptions options;
    options.max_bytes = kMegabyte;
    options.freeze = freeze;
    options.background = freeze;
    SuffixIndex index(options);
    std::mt19937 random(1);
    RequestId next = 0;
    const auto expect_bounded = [&] {
      ASSERT_LE(index.stats().num_bytes, static_cast<std::int64_t>(kMegabyte));
    };
    for (int i = 0; i < (kIsSanitized ? 60 : 400); ++i) {
      const std::size_t size = i % 50 == 0 ? 40'000 : random() % 3000;  // also more than fits
      const std::string space(random() % 3, 'x');
      if (i % 2 == 0) {
        preload(index, noise(random, size), space);
        expect_bounded();
        continue;
      }
      SuffixRequest request;
      request.id = next++;
      request.name_space = space;
      index.start_request(request);
      expect_bounded();
      feed(index, request.id, noise(random, size));
      expect_bounded();
      if (request.id < 4) continue;
      index.finish_request(request.id - 4);
      expect_bounded();
      (void)index.forget(request.id - 3);
      expect_bounded();
    }
    EXPECT_GT(index.stats().evicted_tokens, 50'000);
  }
}

TEST(SuffixIndexBounds, GivesMemoryBackToTheSystem) {
  if (kIsSanitized) GTEST_SKIP() << "the sanitizer keeps freed memory";
  SuffixIndexOptions options;
  options.max_bytes = 64 * kMegabyte;
  options.freeze = false;
  options.background = false;
  SuffixIndex index(options);
  std::mt19937 random(2);
  const std::int64_t before = resident_megabytes();
  const auto fill = [&](std::size_t num_tokens) {
    for (std::size_t i = 0; i < num_tokens; i += 10'000) preload(index, noise(random, 10'000));
  };
  fill(600'000);
  const std::int64_t filled = resident_megabytes() - before;
  EXPECT_GT(filled, 30);
  EXPECT_EQ(index.stats().evicted_tokens, 0);
  index.clear();
  EXPECT_LT(resident_megabytes() - before, filled / 4) << "after clear";
  fill(3'000'000);
  EXPECT_GT(index.stats().evicted_tokens, 1'000'000);
  EXPECT_LT(resident_megabytes() - before, 2 * 64) << "after eviction";

  SuffixRequest request;
  request.id = 1;
  request.num_prompt_tokens = 1'000'000;
  index.start_request(request);
  index.clear();
  const std::int64_t without = resident_megabytes();
  feed(index, 1, noise(random, 1'000'000));
  EXPECT_GT(resident_megabytes() - without, 40);
  index.finish_request(1);
  EXPECT_LT(resident_megabytes() - without, 15) << "after finish_request";
}

Tokens fibonacci_word(std::size_t size) {
  Tokens word{0};
  for (Tokens before{1}; word.size() < size;) {
    Tokens next = word;
    next.insert(next.end(), before.begin(), before.end());
    before = std::exchange(word, std::move(next));
  }
  word.resize(size);
  return word;
}

TEST(SuffixIndexBounds, PathologicalTextsTakeNoMoreThanTwiceTheBytes) {
  constexpr std::size_t kTokens = kIsSanitized ? 50'000 : 1'000'000;
  Tokens distinct(kTokens);
  for (std::size_t i = 0; i < kTokens; ++i) distinct[i] = static_cast<TokenId>(i);
  for (const Tokens& text : {Tokens(kTokens, 7), fibonacci_word(kTokens), distinct}) {
    SuffixIndexOptions options;
    options.background = false;
    SuffixIndex index(options);
    preload(index, text);
    const auto size = static_cast<std::int64_t>(kTokens);
    EXPECT_LE(index.stats().num_bytes, 2 * 60 * size) << text[1];
    EXPECT_EQ(index.lookup(std::span(text).last(1000)).match_length, 1000);
    SuffixRequest request;
    request.num_prompt_tokens = size;
    index.start_request(request);
    feed(index, 0, text);
    EXPECT_LE(index.stats().request_bytes, 2 * 60 * size) << text[1];
    const DraftBuffers drafts = draft(index, {0}, {.max_tokens = 64, .min_survival = 0});
    EXPECT_EQ(drafts.tree(0).validate(static_cast<TokenId>(kTokens), 64, 64), "");
    EXPECT_EQ(drafts.lengths[0] > 0, text[1] != 1 || text[0] != 0 || text[2] != 2);
    index.finish_request(0);

    options.max_bytes = 256 * kMegabyte / (kIsSanitized ? 64 : 1);
    options.generation_bytes = options.max_bytes / 8;
    SuffixIndex frozen(options);
    for (std::size_t i = 0; i < kTokens; i += 1000) {
      preload(frozen, std::span(text).subspan(i, 1000));
    }
    const SuffixIndexStats stats = frozen.stats();
    EXPECT_EQ(stats.num_tokens, size);
    if (stats.frozen_tokens > 0) {
      EXPECT_LE(stats.frozen_bytes, 2 * 9 * stats.frozen_tokens);
    }
  }
}

TEST(SuffixIndexBounds, DraftingAllocatesNothingOnceItIsWarm) {
  SuffixIndexOptions options;
  options.max_bytes = 8 * kMegabyte;
  options.generation_bytes = kMegabyte / 4;
  options.background = false;
  SuffixIndex index(options);
  std::mt19937 random(3);
  const Tokens corpus = noise(random, 20'000);
  for (std::size_t i = 0; i < corpus.size(); i += 500) {
    preload(index, std::span(corpus).subspan(i, 500));
  }
  ASSERT_GT(index.stats().num_generations, 3);
  constexpr std::size_t kRequests = 40;
  std::vector<RequestId> ids;
  std::vector<std::size_t> at;
  for (std::size_t i = 0; i < kRequests; ++i) {
    ids.push_back(static_cast<RequestId>(i));
    at.push_back(random() % 10'000);
    SuffixRequest request;
    request.id = ids.back();
    request.num_prompt_tokens = 300;
    request.share_output = i % 2 == 0;
    index.start_request(request);
    feed(index, request.id, std::span(corpus).subspan(at.back(), 300));
    at.back() += 300;
  }
  const SuffixDraftOptions options_of_draft{
      .max_tokens = 24, .min_survival = 0.01F, .tree_width = 3};
  DraftBuffers buffers(kRequests, options_of_draft.max_tokens);
  std::int64_t nodes = 0;
  for (int step = 0; step < 300; ++step) {
    for (std::size_t i = 0; i < kRequests; ++i) {
      if (random() % 20 == 0) at[i] = random() % 10'000;
      feed(index, ids[i], std::span(corpus).subspan(at[i]++, 1));
    }
    const std::int64_t before = testing::allocations;
    index.draft(ids, {}, options_of_draft, buffers.out());
    if (step >= 100) {
      ASSERT_EQ(testing::allocations, before) << "step " << step;
    }
    for (const std::int32_t length : buffers.lengths) nodes += length;
  }
  EXPECT_GT(nodes, 100'000);
}

// Texts follow one of many templates and deviate from it at a known rate: claims must come true.
TEST(SuffixIndexBounds, ClaimsWhatComesTrue) {
  constexpr std::size_t kTemplates = 100;
  constexpr std::size_t kLength = 80;
  for (const double repeat : {0.5, 0.8, 0.95}) {
    for (const std::int32_t width : {1, 3}) {
      SuffixIndexOptions options;
      options.background = false;
      options.max_bytes = 32 * kMegabyte;
      SuffixIndex index(options);
      std::mt19937 random(4);
      std::vector<Tokens> templates(kTemplates);
      for (std::size_t i = 0; i < kTemplates; ++i) {
        templates[i] = noise(random, kLength);
        if (i % 2 == 1) {  // goes with the one before it most of the way
          templates[i] = templates[i - 1];
          for (std::size_t k = i % 5; k < kLength; k += 7) templates[i][k] += 1;
        }
        preload(index, templates[i]);
      }
      std::bernoulli_distribution repeats(repeat);
      SuffixIndexStats warm;
      const int num_requests = kIsSanitized ? 150 : 400;
      for (int id = 0; id < num_requests; ++id) {
        Tokens text = templates[random() % kTemplates];
        for (TokenId& token : text) {
          if (!repeats(random)) token = static_cast<TokenId>(random() % 50'000);
        }
        SuffixRequest request;
        request.id = id;
        request.share_output = false;  // deviations stay noise
        index.start_request(request);
        for (std::size_t known = 0; known < kLength;) {
          const TokenTree tree =
              draft(index, {id}, {.max_tokens = 12, .tree_width = width}).tree(0);
          std::int32_t node = -1;
          std::size_t fed = 0;
          do {  // what verification would accept, and the token after it
            node = tree.find_child(node, text[known + fed]);
            ++fed;
          } while (node >= 0 && known + fed < kLength);
          feed(index, id, std::span(text).subspan(known, fed));
          known += fed;
        }
        index.finish_request(id);
        if (id == num_requests / 4) warm = index.stats();
      }
      const SuffixIndexStats stats = index.stats();
      const auto drafted = static_cast<double>(stats.drafted_tokens - warm.drafted_tokens);
      const auto accepted = static_cast<double>(stats.accepted_tokens - warm.accepted_tokens);
      const double expected = stats.expected_tokens - warm.expected_tokens;
      EXPECT_GT(drafted, 1000);
      EXPECT_LE(std::abs(expected - accepted) / drafted, 0.03)
          << "repeats " << repeat << ", width " << width << ": claimed " << expected / drafted
          << ", came true " << accepted / drafted;
      std::printf("repeats %.2f width %d: claimed %.3f, came true %.3f of %.0f nodes\n", repeat,
                  width, expected / drafted, accepted / drafted, drafted);
    }
  }
}

}  // namespace
}  // namespace smartspec
