// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// SuffixIndex from many threads at once, while generations are sealed, frozen and evicted. Most
// useful under ThreadSanitizer.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "propose/suffix_index_util.hpp"

namespace smartspec {
namespace {

using suffix_test::draft;
using suffix_test::DraftBuffers;
using suffix_test::feed;
using suffix_test::preload;
using suffix_test::Tokens;

constexpr TokenId kVocabSize = 500;
constexpr RequestId kSteady = 24;      // requests that stay, 0 to 23
constexpr RequestId kFleeting = 1000;  // ids of those that come and go
constexpr int kSteps = 1000;           // of the thread that feeds
constexpr int kRounds = 300;           // of the others, at least

SuffixIndexOptions options() {
  SuffixIndexOptions options;
  options.vocab_size = kVocabSize;
  options.max_bytes = 1 << 20;
  options.generation_bytes = 48 << 10;
  return options;
}

// A stretch of one of a few texts, so that outputs repeat each other.
Tokens text(std::mt19937& random, std::size_t size) {
  const auto document = static_cast<std::uint32_t>(random() % 30);
  const auto begin = static_cast<std::uint32_t>(random() % 100);
  Tokens tokens(size);
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint32_t hash =
        (document * 7919 + begin + static_cast<std::uint32_t>(i)) * 2654435761U;
    tokens[i] = static_cast<TokenId>((random() % 20 == 0 ? random() : hash >> 8) % kVocabSize);
  }
  return tokens;
}

void start(SuffixIndex& index, RequestId id, std::size_t num_prompt_tokens) {
  SuffixRequest request;
  request.id = id;
  request.num_prompt_tokens = static_cast<std::int64_t>(num_prompt_tokens);
  request.name_space = id % 3 == 0 ? "a" : "";
  index.start_request(request);
}

class SuffixThreads : public ::testing::Test {
 protected:
  SuffixThreads() : index_(options()), fed_(kSteady, 0) {
    for (RequestId id = 0; id < kSteady; ++id) start(index_, id, 50);
  }

  // Calls round(random) from a thread of its own until the feeding one is done.
  template <class Round>
  void repeat(unsigned seed, Round round) {
    threads_.emplace_back([this, seed, round] {
      std::mt19937 random(seed);
      for (int i = 0; i < kRounds || !is_done_; ++i) {
        round(random);
        if (i > kRounds) std::this_thread::yield();
      }
    });
  }

  void feed_all() {
    std::mt19937 random(1);
    std::vector<RequestId> ids(kSteady);
    std::iota(ids.begin(), ids.end(), 0);
    for (int step = 0; step < kSteps; ++step) {
      std::vector<std::int64_t> offsets{0};
      Tokens tokens;
      for (RequestId id = 0; id < kSteady; ++id) {
        // Now and then a long slice, and the prompt to begin with.
        const Tokens slice = text(random, step == 0 ? 60 : random() % 50 == 0 ? 300 : random() % 5);
        tokens.insert(tokens.end(), slice.begin(), slice.end());
        offsets.push_back(static_cast<std::int64_t>(tokens.size()));
      }
      index_.update({ids, fed_, offsets, tokens});
      for (std::size_t i = 0; i < ids.size(); ++i) fed_[i] += offsets[i + 1] - offsets[i];
    }
    is_done_ = true;
  }

  void draft_some(std::mt19937& random, RequestId first, RequestId last) {
    std::vector<RequestId> ids;
    for (RequestId id = first; id < last; ++id) {
      if (random() % 4 != 0) ids.push_back(id);
    }
    std::shuffle(ids.begin(), ids.end(), random);
    const SuffixDraftOptions wanted{.max_tokens = 12, .min_survival = 0.05F, .tree_width = 3};
    const DraftBuffers drafts = draft(index_, ids, wanted);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ(drafts.tree(i).validate(kVocabSize, 12, 12), "");
      num_drafted_ += drafts.lengths[i];
    }
  }

  SuffixIndex index_;
  std::vector<std::int64_t> fed_;
  std::atomic<bool> is_done_{false};
  std::atomic<std::int64_t> num_drafted_{0};
  std::atomic<std::int64_t> num_preloaded_{0};
  std::atomic<std::int64_t> num_fleeting_{0};
  std::vector<std::jthread> threads_;
};

TEST_F(SuffixThreads, EverythingAtOnce) {
  repeat(2, [this](std::mt19937& random) { draft_some(random, 0, kSteady / 2); });
  repeat(3, [this](std::mt19937& random) { draft_some(random, kSteady / 2, kSteady); });
  repeat(4, [this](std::mt19937& random) { draft_some(random, 0, kSteady); });
  repeat(5, [this](std::mt19937& random) {
    const RequestId id = kFleeting + static_cast<RequestId>(random() % 20);
    try {
      start(index_, id, 200);
    } catch (const std::invalid_argument&) {
      (void)index_.forget(id);  // it is remembered
      return;
    }
    feed(index_, id, text(random, 200));  // while others draft
    feed(index_, id, text(random, 100));
    num_fleeting_ += 100;
    (void)draft(index_, {id, 3});
    if (random() % 3 == 0) (void)index_.forget(id);
    index_.finish_request(id);
  });
  repeat(6, [this](std::mt19937& random) {
    const std::size_t size = random() % 500;
    preload(index_, text(random, size), random() % 2 == 0 ? "a" : "");
    num_preloaded_ += static_cast<std::int64_t>(size);
  });
  repeat(7, [this](std::mt19937& random) {
    const Tokens context = text(random, 4);
    const SuffixLookup found = index_.lookup(context, random() % 2 == 0 ? "a" : "");
    EXPECT_LE(found.match_length, 4);
    EXPECT_LE(found.best_count, found.count);
    EXPECT_EQ(found.best_token >= 0, found.best_count > 0);
    const SuffixIndexStats stats = index_.stats();
    EXPECT_LE(stats.num_bytes, 1 << 20);
    EXPECT_LE(stats.frozen_tokens, stats.num_tokens);
    EXPECT_GE(index_.num_tokens(5), 0);
    (void)index_.is_active(kFleeting);
    if (random() % 16 == 0) index_.wait();
  });
  feed_all();
  threads_.clear();
  index_.wait();

  std::int64_t shared = 0;
  for (RequestId id = 0; id < kSteady; ++id) {
    EXPECT_EQ(index_.num_tokens(id), fed_[static_cast<std::size_t>(id)]);
    shared += fed_[static_cast<std::size_t>(id)] - 50;
  }
  const SuffixIndexStats stats = index_.stats();
  const std::int64_t kept = stats.num_tokens + stats.evicted_tokens;
  EXPECT_LE(kept, shared + num_preloaded_ + num_fleeting_);
  EXPECT_GE(kept, shared + num_preloaded_);
  EXPECT_EQ(stats.num_requests, kSteady);
  EXPECT_GT(stats.frozen_tokens, 0);
  EXPECT_GT(num_drafted_, 1000);
  const Tokens last{1, 2, 3, 4, 5, 6, 7};
  preload(index_, last);
  EXPECT_EQ(index_.lookup(last).match_length, 7);
}

// An index may go while generations are being frozen and others wait.
TEST(SuffixThreadsEnd, AnIndexGoesWhileItFreezes) {
  std::mt19937 random(8);
  for (int round = 0; round < 20; ++round) {
    SuffixIndex index(options());
    for (int i = 0; i < 20; ++i) preload(index, text(random, 300));
    if (round % 2 == 0) index.clear();
  }
}

}  // namespace
}  // namespace smartspec
