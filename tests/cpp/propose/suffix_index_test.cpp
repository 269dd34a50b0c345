// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What SuffixIndex drafts, for whom, and for whom not. Random calls against a model are in
// suffix_index_random_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "propose/substring_oracle.hpp"
#include "propose/suffix_index_util.hpp"

namespace smartspec {
namespace {

using ::smartspec::testing::repetitive_tokens;
using suffix_test::draft;
using suffix_test::draft_after;
using suffix_test::DraftBuffers;
using suffix_test::feed;
using suffix_test::kEverything;
using suffix_test::plain_options;
using suffix_test::preload;
using suffix_test::range;
using suffix_test::run_request;
using suffix_test::seal;
using suffix_test::small_options;
using suffix_test::start;
using suffix_test::Tokens;
using suffix_test::operator==;
using ::smartspec::testing::repetitive_tokens;

TEST(SuffixIndex, DraftsWhatFollowedInTheOwnText) {
  SuffixIndex index(plain_options());
  Tokens prompt = range(10, 20);
  prompt.insert(prompt.end(), {5, 6, 10, 11, 12});
  start(index, 1, prompt);
  const DraftBuffers drafts = draft(index, {1}, {.max_tokens = 8, .min_survival = 0});
  EXPECT_EQ(drafts.chain(0), range(13, 8));
  EXPECT_EQ(drafts.match_lengths[0], 3);
  feed(index, 1, range(13, 4));
  EXPECT_EQ(draft(index, {1}, {.max_tokens = 8, .min_survival = 0}).chain(0), range(17, 8));
}

TEST(SuffixIndex, DraftsWhatFollowedInOutputsOfOthersWhereverTheyAre) {
  for (const bool freeze : {false, true}) {
    SuffixIndexOptions options = small_options();
    options.freeze = freeze;
    SuffixIndex index(options);
    start(index, 1, {});
    feed(index, 1, range(100, 30));
    EXPECT_EQ(draft_after(index, {3, 100, 101}), range(102, 16)) << "active";
    index.finish_request(1);
    EXPECT_EQ(draft_after(index, {3, 100, 101}), range(102, 16)) << "finished";
    seal(index);
    EXPECT_EQ(index.stats().frozen_tokens > 0, freeze);
    EXPECT_EQ(draft_after(index, {3, 100, 101}), range(102, 16)) << "sealed";
  }
}

TEST(SuffixIndex, DraftsThePrediction) {
  SuffixIndex index(plain_options());
  const Tokens prediction = range(50, 40);
  SuffixRequest request;
  request.id = 4;
  request.num_prompt_tokens = 2;
  request.prediction = prediction;
  index.start_request(request);
  feed(index, 4, Tokens{1, 2});
  EXPECT_TRUE(draft(index, {4}, kEverything).chain(0).empty());
  feed(index, 4, Tokens{50, 51});
  EXPECT_EQ(draft(index, {4}, kEverything).chain(0), range(52, 16));
  EXPECT_TRUE(draft_after(index, {50, 51}).size() == 0) << "a prediction is nobody else's";
}

TEST(SuffixIndex, NeverDraftsAnotherRequestsPrompt) {
  SuffixIndex index(small_options());
  for (RequestId id = 0; id < 40; ++id) {
    start(index, id, range(700, 200));
    feed(index, id, range(2000 + static_cast<TokenId>(id) * 50, 50));
    if (id % 2 == 0) index.finish_request(id);
  }
  seal(index);
  for (TokenId token = 700; token < 899; ++token) {
    EXPECT_TRUE(draft_after(index, {token}).empty());
    EXPECT_EQ(index.lookup(Tokens{token}).match_length, 0);
  }
  // Where the prompt ends and the output begins is nobody else's business either.
  EXPECT_TRUE(draft_after(index, {898, 899}).empty());
}

TEST(SuffixIndex, NothingCrossesNamespaces) {
  SuffixIndex index(small_options());
  std::mt19937 random(3);
  for (RequestId id = 0; id < 30; ++id) {
    const TokenId marker = id % 3 == 0 ? 500 : id % 3 == 1 ? 600 : 700;
    const std::string_view space = id % 3 == 0 ? "" : id % 3 == 1 ? "a" : "a ";
    Tokens output;
    for (int i = 0; i < 100; ++i) {
      output.push_back(static_cast<TokenId>(random() % 5));  // the same contexts everywhere
      output.push_back(marker + static_cast<TokenId>(random() % 20));
    }
    run_request(index, id, output, space);
  }
  EXPECT_EQ(index.stats().num_namespaces, 3);
  std::size_t drafted = 0;
  for (const auto& [space, marker] :
       {std::pair("", 500), std::pair("a", 600), std::pair("a ", 700), std::pair("b", 800)}) {
    for (const TokenId foreign : {500, 600, 700}) {
      for (TokenId token = foreign; token < foreign + 20; ++token) {
        const bool is_own = marker == foreign;
        EXPECT_LE(index.lookup(Tokens{token}, space).count, is_own ? 1000 : 0);
      }
    }
    for (TokenId token = 0; token < 5; ++token) {
      for (const TokenId next : draft_after(index, {token}, space)) {
        ++drafted;
        EXPECT_TRUE(next < 5 || (next >= marker && next < marker + 20)) << space << next;
      }
    }
  }
  EXPECT_GT(drafted, 15U);
}

TEST(SuffixIndex, AnOutputThatIsNotSharedLeavesNoTrace) {
  SuffixIndex index(small_options());
  preload(index, range(0, 50));
  const SuffixIndexStats before = index.stats();
  start(index, 1, range(0, 10), {}, false);
  for (TokenId token = 300; token < 3000; ++token) feed(index, 1, Tokens{token});
  EXPECT_EQ(index.stats().num_tokens, before.num_tokens);
  EXPECT_EQ(index.stats().num_bytes, before.num_bytes);
  EXPECT_TRUE(draft_after(index, {300, 301}).empty());
  feed(index, 1, range(300, 3));
  EXPECT_EQ(draft(index, {1}, kEverything).chain(0), range(303, 16)) << "its own use of it";
  index.finish_request(1);
  EXPECT_EQ(index.lookup(range(300, 10)).match_length, 0);
  EXPECT_FALSE(index.forget(1));
  start(index, 1, {});  // and the id is free again
}

TEST(SuffixIndex, ABatchDraftsAsOneByOne) {
  SuffixIndex index(small_options());
  std::mt19937 random(5);
  const Tokens corpus = repetitive_tokens(random, 6000, 30);
  for (std::size_t i = 0; i < 5000; i += 100) {
    preload(index, std::span(corpus).subspan(i, 100));
  }
  ASSERT_GT(index.stats().num_generations, 3);
  std::vector<RequestId> ids;
  for (RequestId id = 0; id < 40; ++id) {
    const std::size_t begin = random() % 5500;
    start(index, id,
          {corpus.begin() + static_cast<std::ptrdiff_t>(begin),
           corpus.begin() + static_cast<std::ptrdiff_t>(begin + 100 + random() % 200)});
    feed(index, id, repetitive_tokens(random, random() % 30, 30));
    ids.push_back(id);
  }
  for (std::int32_t width = 1; width <= 4; ++width) {
    const SuffixDraftOptions options{.max_tokens = 20, .min_survival = 0.02F, .tree_width = width};
    std::shuffle(ids.begin(), ids.end(), random);
    std::vector<std::int32_t> wanted;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      wanted.push_back(static_cast<std::int32_t>(random() % 21));
    }
    const DraftBuffers all = draft(index, ids, options, wanted);
    std::size_t branches = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const DraftBuffers one = draft(index, {ids[i]}, options, {wanted[i]});
      EXPECT_EQ(one.tree(0).tokens, all.tree(i).tokens);
      EXPECT_EQ(one.tree(0).parents, all.tree(i).parents);
      EXPECT_EQ(one.tree(0).survival, all.tree(i).survival);
      EXPECT_EQ(one.match_lengths[0], all.match_lengths[i]);
      EXPECT_LE(all.lengths[i], wanted[i]);
      for (std::int32_t k = 0; k < all.lengths[i]; ++k) {
        branches += all.tree(i).parents[static_cast<std::size_t>(k)] != k - 1 ? 1U : 0U;
      }
    }
    EXPECT_EQ(branches > 0, width > 1);
    EXPECT_EQ(draft(index, ids, options, wanted), all) << "drafting leaves everything as it was";
  }
}

TEST(SuffixIndex, DraftsUpToTheLimitsAndTouchesNoOtherRow) {
  SuffixIndex index(plain_options());
  start(index, 1, Tokens(200, 7));
  start(index, 2, Tokens(200, 8));
  DraftBuffers buffers(3, 256);
  const std::size_t cells = 2 * 256;
  const std::vector<RequestId> ids{1, 2};
  const std::vector<std::int32_t> wanted{0, 256};
  index.draft(ids, wanted, {.max_tokens = 256, .min_survival = 0},
              {std::span(buffers.tokens).first(cells),
               std::span(buffers.parents).first(cells),
               std::span(buffers.survival).first(cells),
               std::span(buffers.lengths).first(2),
               {}});
  EXPECT_EQ(buffers.lengths, (std::vector<std::int32_t>{0, 256, -7}));
  EXPECT_EQ(buffers.match_lengths, (std::vector<std::int32_t>{-7, -7, -7}));
  EXPECT_EQ(std::count(buffers.tokens.begin(), buffers.tokens.end(), -7), 512);
  EXPECT_EQ(std::count(buffers.tokens.begin(), buffers.tokens.end(), 8), 256);
  EXPECT_EQ(draft(index, ids, {.max_tokens = 9, .min_survival = 1}).lengths,
            (std::vector<std::int32_t>{0, 0}));
  index.draft({}, {}, {}, {});  // a step without requests
}

// The same text in one piece, token by token, and in overlapping slices with requests sitting out.
TEST(SuffixIndex, HowATextArrivesDoesNotMatter) {
  for (unsigned seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const Tokens corpus = repetitive_tokens(random, 3000, 25);
    const Tokens text = repetitive_tokens(random, 150, 25);
    const auto num_prompt = static_cast<std::int64_t>(random() % 100);
    std::vector<DraftBuffers> results;
    for (int way = 0; way < 4; ++way) {
      SuffixIndexOptions options = small_options();
      options.freeze = seed % 3 != 0;
      SuffixIndex index(options);
      for (std::size_t i = 0; i < corpus.size(); i += 60) {
        preload(index, std::span(corpus).subspan(i, 60));
      }
      SuffixRequest request;
      request.num_prompt_tokens = num_prompt;
      index.start_request(request);
      std::mt19937 slices(seed + static_cast<unsigned>(way));
      for (std::size_t known = 0; known < text.size();) {
        std::size_t begin = known;
        std::size_t end = way == 0 ? text.size() : known + 1;
        if (way >= 2) {
          begin -= std::min<std::size_t>(begin, slices() % 20);
          end = std::min(text.size(), begin + slices() % 30);
        }
        feed(index, 0, static_cast<std::int64_t>(begin),
             std::span(text).subspan(begin, end - begin));
        known = std::max(known, end);
        ASSERT_EQ(index.num_tokens(0), static_cast<std::int64_t>(known));
        // A draft that wants nothing finds the text's place, and is nothing to learn from.
        if (way == 3) (void)draft(index, {0}, {}, {0});
      }
      results.push_back(
          draft(index, {0}, {.max_tokens = 24, .min_survival = 0.01F, .tree_width = 3}));
    }
    for (const DraftBuffers& other : results) EXPECT_EQ(other, results[0]) << "seed " << seed;
  }
}

TEST(SuffixIndex, TheSameCallsGiveTheSameDrafts) {
  std::vector<DraftBuffers> drafts[2];
  SuffixIndexStats stats[2];
  for (int run = 0; run < 2; ++run) {
    SuffixIndex index(small_options());
    std::mt19937 random(11);
    const Tokens corpus = repetitive_tokens(random, 9000, 40);
    for (RequestId id = 0; id < 60; ++id) {
      const std::size_t begin = random() % 8000;
      start(index, id, {corpus.begin(), corpus.begin() + static_cast<std::ptrdiff_t>(id)},
            id % 4 == 0 ? "a" : "");
      for (std::size_t i = begin; i < begin + 200; i += 1 + random() % 4) {
        drafts[run].push_back(draft(index, {id}, {.max_tokens = 10, .tree_width = 2}));
        feed(index, id, static_cast<std::int64_t>(id) + static_cast<std::int64_t>(i - begin),
             std::span(corpus).subspan(i, std::min<std::size_t>(5, begin + 200 - i)));
      }
      if (id % 5 == 0) index.forget(id);
      if (id % 3 == 0) index.finish_request(id);
    }
    stats[run] = index.stats();
  }
  EXPECT_TRUE(drafts[0] == drafts[1]);
  EXPECT_TRUE(stats[0] == stats[1]);
  EXPECT_GT(stats[0].accepted_tokens, 500);
}

}  // namespace
}  // namespace smartspec
