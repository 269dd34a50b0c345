// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Every invalid argument of SuffixIndex is refused with a text that names it, and changes nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "propose/suffix_index_util.hpp"

namespace smartspec {
namespace {

using suffix_test::draft;
using suffix_test::DraftBuffers;
using suffix_test::feed;
using suffix_test::preload;
using suffix_test::Tokens;
using suffix_test::operator==;

constexpr TokenId kVocabSize = 100;

struct Bad {
  std::string name;
  std::vector<std::string> named;  // in the text of the error
  std::function<void(SuffixIndex&)> call;
};

// Request 1 has 6 tokens, 4 of them prompt, request 2 has 3, and 3 is done and remembered.
std::unique_ptr<SuffixIndex> make_index() {
  SuffixIndexOptions options;
  options.vocab_size = kVocabSize;
  options.background = false;
  auto index = std::make_unique<SuffixIndex>(options);
  preload(*index, Tokens{1, 2, 3, 4, 5, 6, 7, 8, 9});
  for (const RequestId id : {1, 2, 3}) {
    SuffixRequest request;
    request.id = id;
    request.num_prompt_tokens = id == 1 ? 4 : 0;
    index->start_request(request);
  }
  feed(*index, 1, Tokens{1, 2, 3, 1, 2, 3});
  feed(*index, 2, Tokens{3, 4, 5});
  feed(*index, 3, Tokens{6, 7});
  index->finish_request(3);
  return index;
}

std::vector<Bad> bad_options() {
  const auto with = [](auto change) {
    return [change](SuffixIndex&) {
      SuffixIndexOptions options;
      change(options);
      const SuffixIndex index(options);
    };
  };
  using Options = SuffixIndexOptions;
  return {
      {"negative vocab_size", {"vocab_size", "-3", "0"}, with([](Options& o) {
         o.vocab_size = -3;
       })},
      {"max_bytes", {"max_bytes", "1000", "1048576"}, with([](Options& o) { o.max_bytes = 1000; })},
      {"generation_bytes", {"generation_bytes", "300000", "262144"}, with([](Options& o) {
         o.max_bytes = 1 << 20;
         o.generation_bytes = 300'000;
       })},
      {"tokenizer_hash", {"tokenizer_hash", "64", "65"}, with([](Options& o) {
         o.tokenizer_hash = std::string(65, 'x');
       })},
  };
}

std::vector<Bad> bad_requests() {
  const auto start = [](RequestId id, std::int64_t prompt, const Tokens& prediction) {
    return [=](SuffixIndex& index) {
      SuffixRequest request;
      request.id = id;
      request.num_prompt_tokens = prompt;
      request.name_space = "new";
      request.prediction = prediction;
      index.start_request(request);
    };
  };
  return {
      {"negative id", {"id", "-1", "at least 0"}, start(-1, 0, {})},
      {"negative prompt", {"num_prompt_tokens", "-2", "at least 0"}, start(9, -2, {})},
      {"prediction", {"prediction[1]", "100", "[0, 100)"}, start(9, 0, {1, 100})},
      {"prediction below 0", {"prediction[0]", "-1", "[0, 100)"}, start(9, 0, {-1})},
      {"active id", {"request 1", "active"}, start(1, 0, {})},
      {"remembered id", {"request 3", "remembered", "forget"}, start(3, 0, {})},
      {"finish unknown", {"request 9", "active"}, [](SuffixIndex& x) { x.finish_request(9); }},
      {"finish twice", {"request 3", "active"}, [](SuffixIndex& x) { x.finish_request(3); }},
      {"num_tokens", {"request 9", "active"}, [](SuffixIndex& x) { (void)x.num_tokens(9); }},
      {"lookup",
       {"context[1]", "-1", "[0, 100)"},
       [](SuffixIndex& x) { (void)x.lookup(Tokens{1, -1}); }},
  };
}

using Positions = std::vector<std::int64_t>;

// Each but the first few begins with a good slice, which must not be taken either.
std::vector<Bad> bad_updates() {
  const auto update = [](const std::vector<RequestId>& ids, const Positions& positions,
                         const Positions& offsets, const Tokens& tokens) {
    return [=](SuffixIndex& index) { index.update({ids, positions, offsets, tokens}); };
  };
  return {
      {"no offsets", {"offset", "0"}, update({}, {}, {}, {})},
      {"positions", {"positions", "2", "1"}, update({1, 2}, {6}, {0, 1, 2}, {1, 1})},
      {"offsets", {"offset", "2"}, update({1, 2}, {6, 3}, {0, 1}, {1})},
      {"first offset", {"offsets[0] = 1", "0 to 2"}, update({1, 2}, {6, 3}, {1, 1, 2}, {1, 1})},
      {"descending", {"offsets[1] = 3", "0 to 2"}, update({1, 2}, {6, 3}, {0, 3, 2}, {1, 1})},
      {"last offset", {"offsets[2] = 3", "0 to 2"}, update({1, 2}, {6, 3}, {0, 1, 3}, {1, 1})},
      {"token", {"tokens[1]", "100", "[0, 100)"}, update({1, 2}, {6, 3}, {0, 1, 2}, {1, 100})},
      {"placeholder", {"tokens[1]", "-1", "[0, 100)"}, update({1, 2}, {6, 3}, {0, 1, 2}, {1, -1})},
      {"unknown id", {"9"}, update({1, 9}, {6, 0}, {0, 1, 2}, {1, 1})},
      {"finished id", {"3"}, update({1, 3}, {6, 2}, {0, 1, 2}, {1, 1})},
      {"twice", {"ids[1]", "1", "twice"}, update({1, 1}, {6, 7}, {0, 1, 2}, {1, 1})},
      {"position", {"positions[1]", "-1", "[0, 3]"}, update({1, 2}, {6, -1}, {0, 1, 2}, {1, 1})},
      {"gap", {"positions[1]", "4", "[0, 3]"}, update({1, 2}, {6, 4}, {0, 1, 2}, {1, 1})},
      {"another token",
       {"request 2", "token 4", "position 1", "7"},
       update({1, 2}, {6, 0}, {0, 1, 5}, {1, 3, 7, 5, 6})},
  };
}

std::vector<Bad> bad_preloads() {
  const auto load = [](const Positions& offsets, const Tokens& tokens) {
    return [=](SuffixIndex& index) { index.preload(offsets, tokens, "new"); };
  };
  return {
      {"no offsets", {"offsets", "1", "0"}, load({}, {})},
      {"lone offset", {"offsets[0] = 0", "0 to 2"}, load({0}, {1, 2})},
      {"first offset", {"offsets[0] = 1", "0 to 2"}, load({1, 2}, {1, 2})},
      {"descending", {"offsets[2] = 1", "0 to 2"}, load({0, 2, 1, 2}, {1, 2})},
      {"beyond", {"offsets[1] = 3", "0 to 2"}, load({0, 3, 2}, {1, 2})},
      {"last offset", {"offsets[1] = 1", "0 to 2"}, load({0, 1}, {1, 2})},
      {"token", {"tokens[1]", "100", "[0, 100)"}, load({0, 1, 2}, {1, 100})},
      {"placeholder", {"tokens[1]", "-1", "[0, 100)"}, load({0, 1, 2}, {1, -1})},
  };
}

std::vector<Bad> bad_drafts() {
  const auto with = [](auto change) {
    return [change](SuffixIndex& index) {
      SuffixDraftOptions options;
      std::vector<RequestId> ids{1, 2};
      std::vector<std::int32_t> max_tokens;
      DraftBuffers buffers(2, options.max_tokens);
      change(options, ids, max_tokens, buffers);
      const DraftBuffers before = buffers;
      try {
        index.draft(ids, max_tokens, options, buffers.out());
      } catch (...) {
        EXPECT_EQ(buffers, before) << "outputs written";
        throw;
      }
    };
  };
  using O = SuffixDraftOptions;
  using Ids = std::vector<RequestId>;
  using Max = std::vector<std::int32_t>;
  using B = DraftBuffers;
  return {
      {"max_tokens 0", {"max_tokens", "0", "[1, 256]"}, with([](O& o, Ids&, Max&, B&) {
         o.max_tokens = 0;
       })},
      {"max_tokens", {"max_tokens", "257", "[1, 256]"}, with([](O& o, Ids&, Max&, B&) {
         o.max_tokens = 257;
       })},
      {"min_survival", {"min_survival", "-0.1", "[0, 1]"}, with([](O& o, Ids&, Max&, B&) {
         o.min_survival = -0.1F;
       })},
      {"min_survival 2", {"min_survival", "2", "[0, 1]"}, with([](O& o, Ids&, Max&, B&) {
         o.min_survival = 2;
       })},
      {"min_survival NaN", {"min_survival", "nan", "[0, 1]"}, with([](O& o, Ids&, Max&, B&) {
         o.min_survival = std::nanf("");
       })},
      {"tree_width 0", {"tree_width", "0", "[1, 4]"}, with([](O& o, Ids&, Max&, B&) {
         o.tree_width = 0;
       })},
      {"tree_width 5", {"tree_width", "5", "[1, 4]"}, with([](O& o, Ids&, Max&, B&) {
         o.tree_width = 5;
       })},
      {"tokens", {"tokens", "31", "32"}, with([](O&, Ids&, Max&, B& b) { b.tokens.resize(31); })},
      {"parents", {"parents", "33", "32"}, with([](O&, Ids&, Max&, B& b) {
         b.parents.resize(33);
       })},
      {"survival", {"survival", "0", "32"}, with([](O&, Ids&, Max&, B& b) { b.survival.clear(); })},
      {"lengths", {"lengths", "1", "2"}, with([](O&, Ids&, Max&, B& b) { b.lengths.resize(1); })},
      {"match_lengths", {"match_lengths", "3", "2"}, with([](O&, Ids&, Max&, B& b) {
         b.match_lengths.resize(3);
       })},
      {"few max_tokens", {"max_tokens", "1", "2"}, with([](O&, Ids&, Max& m, B&) { m = {4}; })},
      {"negative max_tokens", {"max_tokens[1]", "-1", "[0, 16]"}, with([](O&, Ids&, Max& m, B&) {
         m = {4, -1};
       })},
      {"large max_tokens", {"max_tokens[1]", "17", "[0, 16]"}, with([](O&, Ids&, Max& m, B&) {
         m = {4, 17};
       })},
      {"unknown id", {"9"}, with([](O&, Ids& ids, Max&, B&) { ids = {1, 9}; })},
      {"finished id", {"3"}, with([](O&, Ids& ids, Max&, B&) { ids = {1, 3}; })},
      {"twice", {"ids", "1", "twice"}, with([](O&, Ids& ids, Max&, B&) { ids = {1, 1}; })},
  };
}

class SuffixIndexErrors : public ::testing::TestWithParam<std::vector<Bad> (*)()> {};

TEST_P(SuffixIndexErrors, NameWhatIsWrongAndChangeNothing) {
  const SuffixDraftOptions everything{.max_tokens = 5, .min_survival = 0, .tree_width = 2};
  for (const Bad& bad : GetParam()()) {
    SCOPED_TRACE(bad.name);
    const std::unique_ptr<SuffixIndex> index = make_index();
    const SuffixIndexStats before = index->stats();
    const DraftBuffers drafts = draft(*index, {1, 2}, everything);
    try {
      bad.call(*index);
      ADD_FAILURE() << "not refused";
    } catch (const std::invalid_argument& error) {
      for (const std::string& part : bad.named) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "'" << part << "' is not in: " << error.what();
      }
    }
    EXPECT_TRUE(index->stats() == before);
    EXPECT_EQ(draft(*index, {1, 2}, everything), drafts);
    EXPECT_EQ(index->num_tokens(1), 6);
    EXPECT_EQ(index->num_tokens(2), 3);
    EXPECT_FALSE(index->is_active(3));
    EXPECT_FALSE(index->is_active(9));
    EXPECT_EQ(index->lookup(Tokens{1}).count, 1);
    // Nothing of the refused batch marks its requests.
    feed(*index, 1, Tokens{1});
    feed(*index, 2, Tokens{6});
    EXPECT_EQ(index->num_tokens(1), 7);
    EXPECT_TRUE(index->forget(3));
  }
}

INSTANTIATE_TEST_SUITE_P(Of, SuffixIndexErrors,
                         ::testing::Values(&bad_options, &bad_requests, &bad_updates, &bad_preloads,
                                           &bad_drafts));

TEST(SuffixIndex, TheLimitsThemselvesAreAllowed) {
  SuffixIndexOptions options;
  options.vocab_size = kVocabSize;
  options.max_bytes = 1 << 20;
  options.generation_bytes = 1 << 18;
  options.tokenizer_hash = std::string(64, 'x');
  SuffixIndex index(options);
  preload(index, Tokens{0, kVocabSize - 1});
  SuffixRequest request;
  request.id = std::numeric_limits<RequestId>::max();
  index.start_request(request);
  feed(index, request.id, Tokens{0});
  feed(index, request.id, 0, Tokens{0});
  feed(index, request.id, 1, Tokens{});
  const DraftBuffers drafts =
      draft(index, {request.id}, {.max_tokens = 256, .min_survival = 0, .tree_width = 4}, {256});
  EXPECT_EQ(drafts.chain(0), Tokens{kVocabSize - 1});
  EXPECT_EQ(draft(index, {request.id}, {.max_tokens = 1, .min_survival = 1}).lengths[0], 0);
}

}  // namespace
}  // namespace smartspec
