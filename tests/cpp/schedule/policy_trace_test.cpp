// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/policy_trace.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "schedule/policy_replay.hpp"
#include "schedule/policy_world.hpp"
#include "schedule/trace_format.hpp"
#include "smartspec/baseline_policies.hpp"
#include "smartspec/error.hpp"
#include "smartspec/goodput_policy.hpp"

namespace smartspec {
namespace {

using testing::PolicyDriver;

using Bytes = std::vector<char>;

class TraceFile : public ::testing::Test {
 protected:
  TraceFile() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            ("smartspec_trace_" + std::string(test->name()) + "_" +
             std::to_string(std::hash<const void*>()(this)));
  }
  ~TraceFile() override { std::filesystem::remove(path_); }

  [[nodiscard]] Bytes read() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void record(std::shared_ptr<LengthPolicy> policy, std::uint32_t seed, std::int32_t steps) const {
    const auto recording = make_recording_policy(std::move(policy), path_);
    PolicyDriver(*recording, seed).run(steps);
    ASSERT_EQ(finish_recording(*recording), "");
  }

  std::filesystem::path path_;
};

using Make = std::function<std::shared_ptr<LengthPolicy>()>;
std::vector<Make> all_policies() {
  return {
      [] { return make_off_policy(); },
      [] { return make_fixed_policy(5); },
      [] { return make_table_policy({{1, 4, 3}, {5, 8, 1}}); },
      [] { return make_turbospec_policy({.max_tokens = 5, .period = 7, .window = 5}); },
      [] { return make_threshold_policy(6); },
      [] { return make_disco_policy(6); },
      [] { return make_tetris_policy(6, 9); },
      [] {
        return make_full_draft_policy(6, {.tokens = {1, 8, 40}, .seconds = {1e-3, 1.2e-3, 4e-3}});
      },
      [] { return make_sequoia_policy(6, 4, {.6, .2}); },
      [] { return make_dynamic_depth_policy(6); },
      [] { return make_goodput_policy({}); },
  };
}

void expect_same(const PolicyStats& a, const PolicyStats& b) {
  EXPECT_EQ(a.num_steps, b.num_steps);
  EXPECT_EQ(a.length_histogram, b.length_histogram);
  EXPECT_EQ(a.num_drafted, b.num_drafted);
  EXPECT_EQ(a.num_accepted, b.num_accepted);
  EXPECT_EQ(a.num_probes, b.num_probes);
  EXPECT_EQ(a.expected_accepted, b.expected_accepted);
  EXPECT_EQ(a.predicted_seconds, b.predicted_seconds);
  EXPECT_EQ(a.measured_seconds, b.measured_seconds);
}

TEST_F(TraceFile, ReplaysEveryDecision) {
  for (const Make& make : all_policies()) {
    const auto bare = make();
    PolicyDriver(*bare, 3).run(400);
    const auto inner = make();
    record(inner, 3, 400);
    // The recorder changes nothing: the same luck gave the same run.
    expect_same(inner->stats(), bare->stats());
    EXPECT_EQ(inner->stats().num_drafted > 0, inner->name() != "off") << inner->name();
    const auto fresh = make();
    const ReplayResult result = replay(path_, *fresh);
    EXPECT_EQ(result.recorded_policy, fresh->name());
    EXPECT_EQ(result.num_steps, 400);
    EXPECT_GT(result.num_decisions, 800);
    EXPECT_EQ(result.num_different, 0) << fresh->name();
    EXPECT_EQ(result.first_different_step, -1) << fresh->name();
    expect_same(result.stats, bare->stats());
  }
}

TEST_F(TraceFile, IsWrittenPieceByPiece) {
  record(make_fixed_policy(4), 4, 3000);
  EXPECT_GT(std::filesystem::file_size(path_), std::size_t{3} << 20U);
  EXPECT_EQ(replay(path_, *make_fixed_policy(4)).num_different, 0);
}

/// Three requests, the second without a draft, for two steps.
void three_requests(LengthPolicy& policy) {
  const std::vector<ProposerView> proposers{{.name = "lookup"}};
  std::vector<LengthRequest> requests(3);
  for (std::size_t i = 0; i < 3; ++i) {
    requests[i].id = static_cast<RequestId>(i);
    requests[i].max_depth = i == 2 ? 2 : 8;
  }
  const std::vector<TokenId> tokens{5, 6, 7, 8};
  const std::vector<float> survival{.9F, .6F, .5F, .1F};
  const TokenTree draft = TokenTree::chain(tokens, survival);
  const std::vector<Candidate> candidates{{.request = 0, .proposer = 0, .tree = &draft},
                                          {.request = 2, .proposer = 0, .tree = &draft}};
  StepView step{.num_decodes = 3, .token_budget = 99, .proposers = proposers};
  for (std::int32_t i = 0; i < 2; ++i) {
    step.now = i;
    std::vector<DraftChoice> choices(3);
    policy.plan(step, requests, candidates, choices);
    std::vector<TokenTree> trees{draft, {}, draft};
    trees[2].truncate(2);
    const std::vector<TokenTree*> pointers{&trees[0], &trees[1], &trees[2]};
    policy.allocate(step, requests, choices, {}, pointers);
    policy.observe({.now = step.now, .seconds = 1});
  }
}

TEST_F(TraceFile, CountsTheDecisionsOfAnotherPolicyThatDiffer) {
  const auto recording = make_recording_policy(make_fixed_policy(3), path_);
  three_requests(*recording);
  EXPECT_EQ(finish_recording(*recording), "");
  // Request 0 gets another depth; request 2 may draft only 2 in any case.
  ReplayResult result = replay(path_, *make_fixed_policy(4));
  EXPECT_EQ(result.num_steps, 2);
  EXPECT_EQ(result.num_decisions, 6);
  EXPECT_EQ(result.num_different, 2);
  EXPECT_EQ(result.first_different_step, 0);
  // The same choices, but it prunes the fourth node, whose survival is .1, of request 0.
  EXPECT_EQ(replay(path_, *make_tetris_policy(3, 5)).num_different, 2);
  EXPECT_EQ(replay(path_, *make_tetris_policy(3, 6)).num_different, 0);
  // Both requests that drafted.
  EXPECT_EQ(replay(path_, *make_off_policy()).num_different, 4);
}

TEST_F(TraceFile, CountsARequestOncePerStep) {
  const auto recording = make_recording_policy(make_tetris_policy(3, 2), path_);
  three_requests(*recording);
  EXPECT_EQ(finish_recording(*recording), "");
  EXPECT_EQ(replay(path_, *make_off_policy()).num_different, 4);  // by choice and by kept nodes
}

/// Keeps one of two siblings.
class Sibling final : public LengthPolicy {
 public:
  explicit Sibling(TokenId token) : token_(token) {}
  [[nodiscard]] std::string_view name() const override { return "sibling"; }
  [[nodiscard]] std::int32_t max_depth() const override { return 1; }
  void plan(const StepView&, std::span<const LengthRequest>, std::span<const Candidate>,
            std::span<DraftChoice>) override {}
  void allocate(const StepView&, std::span<const LengthRequest>, std::span<const DraftChoice>,
                std::span<const DraftWork>, std::span<TokenTree* const> trees) override {
    *trees[0] = TokenTree::chain(std::span(&token_, 1));
  }

 private:
  TokenId token_;
};

TEST_F(TraceFile, TellsSiblingsApart) {
  const auto recording = make_recording_policy(std::make_shared<Sibling>(1), path_);
  TokenTree tree;
  tree.add(0, -1, .5F);
  tree.add(1, -1, .5F);
  const std::vector<TokenTree*> trees{&tree};
  const std::vector<LengthRequest> requests{{.id = 1, .max_depth = 4}};
  std::vector<DraftChoice> choices(1);
  recording->plan({}, requests, {}, choices);
  recording->allocate({}, requests, choices, {}, trees);
  EXPECT_EQ(finish_recording(*recording), "");
  Sibling other(0);
  EXPECT_EQ(replay(path_, other).num_different, 1);
  Sibling same(1);
  EXPECT_EQ(replay(path_, same).num_different, 0);
}

/// Writes down all that it is shown, tokens as they relate to each other within a request, and
/// answers at random.
class Spy final : public LengthPolicy {
 public:
  [[nodiscard]] std::string_view name() const override { return "spy"; }
  [[nodiscard]] std::int32_t max_depth() const override { return 6; }
  std::int32_t max_prefill_tokens(const StepView& step, std::span<const LengthRequest> requests,
                                  std::int32_t wanted) override {
    log << "prefill " << wanted;
    show(step, requests);
    return static_cast<std::int32_t>(random_() % static_cast<unsigned>(wanted + 1));
  }
  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> candidates, std::span<DraftChoice> choices) override {
    log << "plan";
    show(step, requests);
    for (const Candidate& candidate : candidates) {
      log << " candidate " << candidate.request << ' ' << candidate.proposer;
      show(candidate.tree, requests[static_cast<std::size_t>(candidate.request)].id);
    }
    for (DraftChoice& choice : choices) {
      choice.proposer = static_cast<std::int32_t>(random_() % 4U) - 1;
      choice.depth = choice.proposer < 0 ? 0 : 1 + static_cast<std::int32_t>(random_() % 6U);
      choice.min_survival = static_cast<float>(random_() % 100U) / 100.0F;
      choice.claims = {.offset = static_cast<float>(random_() % 10U), .scale = 0.25F};
    }
  }
  void allocate(const StepView& step, std::span<const LengthRequest> requests,
                std::span<const DraftChoice> choices, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees) override {
    log << "allocate";
    show(step, requests);
    for (const DraftChoice& choice : choices) {
      log << ' ' << choice.proposer << ' ' << choice.depth << ' ' << choice.min_survival << ' '
          << choice.claims.offset << ' ' << choice.claims.scale;
    }
    show(drafts);
    for (std::size_t i = 0; i < trees.size(); ++i) {
      show(trees[i], requests[i].id);
      if (trees[i]->size() > 1 && random_() % 4U == 0) {  // a leaf that is not the last one
        TokenTree& tree = *trees[i];
        const auto last = static_cast<std::size_t>(tree.size() - 1);
        if (tree.parents[last] < static_cast<std::int32_t>(last) - 1) {
          std::swap(tree.tokens[last - 1], tree.tokens[last]);
          std::swap(tree.parents[last - 1], tree.parents[last]);
          std::swap(tree.depths[last - 1], tree.depths[last]);
          std::swap(tree.survival[last - 1], tree.survival[last]);
        }
      }
      trees[i]->truncate(static_cast<std::int32_t>(random_() % 7U));
    }
  }
  void observe(const StepOutcome& outcome) override {
    log << "observe " << outcome.now << ' ' << outcome.seconds;
    show(outcome.load);
    show(outcome.drafts);
    for (const RequestOutcome& request : outcome.requests) {
      log << " of " << request.id << ' ' << request.num_verified << ' ' << request.num_accepted;
      for (const TokenId token : request.emitted) log << " t" << number(request.id, token);
    }
    log << '\n';
  }
  void finish(RequestId id) override { log << "finish " << id << '\n'; }

  std::ostringstream log;

 private:
  std::size_t number(RequestId id, TokenId token) {
    auto& numbers = numbers_[id];
    return numbers.try_emplace(token, numbers.size()).first->second;
  }
  void show(const StepLoad& load) {
    log << " load " << load.num_passes << ' ' << load.num_tokens << ' ' << load.num_sequences << ' '
        << load.num_logits << ' ' << load.kv_tokens << ' ' << load.attention_pairs;
  }
  void show(std::span<const DraftWork> drafts) {
    for (const DraftWork& work : drafts) {
      log << " work " << work.proposer << ' ' << work.seconds;
      show(work.load);
    }
  }
  void show(const StepView& step, std::span<const LengthRequest> requests) {
    log << ' ' << step.now << ' ' << step.num_decodes << ' ' << step.token_budget << ' '
        << step.block_size << ' ' << step.free_blocks;
    show(step.base);
    for (const ProposerView& proposer : step.proposers) {
      log << ' ' << proposer.name << ' ' << proposer.pays_per_depth;
    }
    for (const LengthRequest& r : requests) {
      log << " request " << r.id << ' ' << r.num_tokens << ' ' << r.max_depth << ' '
          << r.num_drafted << ' ' << r.num_accepted << ' ' << r.group << ' ' << r.num_output_tokens
          << ' ' << r.decode_seconds << ' ' << r.block_room << ' ' << r.backlog << ' '
          << r.num_remaining << ' ' << r.control.enabled << ' ' << r.control.min_tokens << ' '
          << r.control.max_tokens << ' ' << r.control.proposer << ' ' << r.control.tpot_target;
    }
    log << '\n';
  }
  void show(const TokenTree* tree, RequestId id) {
    if (tree == nullptr) {
      log << " null";
      return;
    }
    log << " tree";
    for (std::size_t i = 0; i < tree->tokens.size(); ++i) {
      log << ' ' << number(id, tree->tokens[i]) << '/' << tree->parents[i] << '/' << tree->depths[i]
          << '/' << tree->survival[i];
    }
    log << '\n';
  }

  std::mt19937 random_{11};
  std::unordered_map<RequestId, std::unordered_map<TokenId, std::size_t>> numbers_;
};

TEST_F(TraceFile, ShowsExactlyWhatWasSeen) {
  const auto live = std::make_shared<Spy>();
  live->log.precision(17);
  record(live, 5, 300);
  Spy replayed;
  replayed.log.precision(17);
  const ReplayResult result = replay(path_, replayed);
  EXPECT_EQ(result.num_different, 0);
  EXPECT_EQ(replayed.log.str() == live->log.str(), true);
  EXPECT_GT(live->log.str().size(), std::size_t{100000});
}

TEST_F(TraceFile, HoldsNoTokenIds) {
  const auto recording = make_recording_policy(make_fixed_policy(3), path_);
  const std::vector<ProposerView> proposers{{.name = "lookup"}};
  const std::vector<LengthRequest> requests{{.id = 1, .max_depth = 4}};
  const std::vector<TokenId> tokens{0x5A5B5C5D, 0x6A6B6C6D};
  TokenTree draft = TokenTree::chain(tokens);
  const std::vector<Candidate> candidates{{.request = 0, .proposer = 0, .tree = &draft}};
  std::vector<DraftChoice> choices(1);
  recording->plan({.num_decodes = 1, .proposers = proposers}, requests, candidates, choices);
  const std::vector<TokenTree*> trees{&draft};
  recording->allocate({.num_decodes = 1, .proposers = proposers}, requests, choices, {}, trees);
  const std::vector<RequestOutcome> outcomes{
      {.id = 1, .num_verified = 2, .num_accepted = 1, .emitted = tokens}};
  recording->observe({.requests = outcomes});
  EXPECT_EQ(finish_recording(*recording), "");
  const Bytes bytes = read();
  const std::string text(bytes.begin(), bytes.end());
  EXPECT_EQ(text.find("\x5D\x5C\x5B\x5A"), std::string::npos);
  EXPECT_EQ(text.find("\x6D\x6C\x6B\x6A"), std::string::npos);
}

/// Throws at every third plan.
class Thrower final : public LengthPolicy {
 public:
  [[nodiscard]] std::string_view name() const override { return "thrower"; }
  [[nodiscard]] std::int32_t max_depth() const override { return 1; }
  void plan(const StepView&, std::span<const LengthRequest>, std::span<const Candidate>,
            std::span<DraftChoice>) override {
    if (++calls_ % 3 == 0) throw std::runtime_error("no");
  }

 private:
  std::int32_t calls_ = 0;
};

TEST_F(TraceFile, DropsACallThatThrew) {
  const auto recording = make_recording_policy(std::make_shared<Thrower>(), path_);
  const std::vector<LengthRequest> requests(1);
  std::vector<DraftChoice> choices(1);
  for (std::int32_t i = 0; i < 9; ++i) {
    try {
      recording->plan({.now = static_cast<double>(i)}, requests, {}, choices);
    } catch (const std::runtime_error&) {
      EXPECT_EQ(i % 3, 2);
    }
  }
  EXPECT_EQ(finish_recording(*recording), "");
  EXPECT_EQ(replay(path_, *make_off_policy()).num_steps, 6);
}

TEST_F(TraceFile, FollowsTheProposersWhenTheyChange) {
  const auto recording = make_recording_policy(make_fixed_policy(3), path_);
  const std::vector<LengthRequest> requests{{.id = 1, .max_depth = 4}};
  std::vector<DraftChoice> choices(1);
  const std::vector<ProposerView> none;
  const std::vector<ProposerView> one{{.name = "draft", .pays_per_depth = true}};
  for (const auto* proposers : {&none, &one, &none, &none, &one}) {
    recording->plan({.proposers = *proposers}, requests, {}, choices);
  }
  EXPECT_EQ(finish_recording(*recording), "");
  const ReplayResult result = replay(path_, *make_fixed_policy(3));
  EXPECT_EQ(result.num_steps, 5);
  EXPECT_EQ(result.num_different, 0);
  EXPECT_EQ(replay(path_, *make_off_policy()).num_different, 2);
}

TEST_F(TraceFile, EndsWithTheRecording) {
  const auto inner = make_fixed_policy(3);
  auto recording = make_recording_policy(inner, path_);
  three_requests(*recording);
  EXPECT_EQ(finish_recording(*recording), "");
  EXPECT_EQ(finish_recording(*recording), "");
  const auto size = std::filesystem::file_size(path_);
  three_requests(*recording);  // goes on, unrecorded
  EXPECT_EQ(inner->stats().num_steps, 4);
  recording.reset();
  EXPECT_EQ(std::filesystem::file_size(path_), size);
  // One that nobody finished is finished when it goes.
  three_requests(*make_recording_policy(make_fixed_policy(3), path_));
  EXPECT_EQ(replay(path_, *make_fixed_policy(3)).num_different, 0);
}

TEST_F(TraceFile, TellsWhatWentWrong) {
  EXPECT_THROW(make_recording_policy(nullptr, path_), std::invalid_argument);
  EXPECT_THROW(make_recording_policy(make_off_policy(), path_ / "missing" / "trace"), Error);
  EXPECT_THROW(finish_recording(*make_off_policy()), std::invalid_argument);
  EXPECT_THROW(replay(path_, *make_off_policy()), FormatError);
  const std::filesystem::path full = "/dev/full";
  if (!std::filesystem::exists(full)) GTEST_SKIP() << "no /dev/full";
  const auto recording = make_recording_policy(make_fixed_policy(3), full);
  PolicyDriver(*recording, 1).run(2000);
  EXPECT_EQ(recording->stats().num_steps, 2000);
  EXPECT_NE(finish_recording(*recording).find("/dev/full"), std::string::npos);
}

ReplayResult replay_of(const Bytes& trace, LengthPolicy& policy) {
  return replay_bytes(std::as_bytes(std::span(trace)), policy);
}

/// Shows it to one policy of several. Anything but FormatError and success ends the test.
bool is_valid(const Bytes& trace, std::int32_t which) {
  const auto make = [&]() -> std::shared_ptr<LengthPolicy> {
    switch (which % 6) {
      case 0:
        return make_goodput_policy({});
      case 1:
        return make_turbospec_policy({.max_tokens = 5, .period = 2});
      case 2:
        return make_sequoia_policy(6, 4, {.6, .2});
      case 3:
        return make_dynamic_depth_policy(4);
      case 4:
        return make_tetris_policy(5, 3);
      default:
        return make_full_draft_policy(5, {});
    }
  };
  try {
    replay_of(trace, *make());
  } catch (const FormatError&) {
    return false;
  } catch (const std::invalid_argument&) {  // a policy may refuse what it is shown
  }
  return true;
}

TEST_F(TraceFile, NoticesEveryCut) {
  record(make_fixed_policy(3), 6, 3);
  const Bytes whole = read();
  EXPECT_TRUE(is_valid(whole, 0));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(replay_of(part, *make_fixed_policy(3)), FormatError) << size;
  }
  Bytes longer = whole;
  longer.push_back(0);
  EXPECT_FALSE(is_valid(longer, 0));
}

TEST_F(TraceFile, NoticesEveryFlippedByteOfARecord) {
  record(make_fixed_policy(3), 6, 3);
  const Bytes whole = read();
  const std::size_t name = trace::kMagic.size() + 4;
  const std::size_t records = name + 4 + std::string_view("fixed").size();
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (i >= name + 4 && i < records) continue;  // another name is as good
    for (const int mask : {0x01, 0x80, 0xFF}) {
      Bytes bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ mask);
      EXPECT_THROW(replay_of(bytes, *make_fixed_policy(3)), FormatError) << i;
    }
  }
}

struct Frame {
  std::size_t first = 0;  // of the record
  std::size_t size = 0;   // of the payload
};
std::vector<Frame> frames_of(const Bytes& bytes) {
  std::vector<Frame> frames;
  const auto u32 = [&](std::size_t at) {
    std::size_t value = 0;
    for (std::size_t i = 4; i-- > 0;)
      value = value << 8U | static_cast<unsigned char>(bytes[at + i]);
    return value;
  };
  std::size_t at = trace::kMagic.size() + 4;
  at += 4 + u32(at);
  while (at < bytes.size()) {
    frames.push_back({at, u32(at + 1)});
    at += 5 + frames.back().size + 4;
  }
  return frames;
}

TEST_F(TraceFile, SurvivesDamageThatTheChecksumDoesNotShow) {
  record(make_fixed_policy(3), 6, 3);
  const Bytes whole = read();
  std::int32_t num_refused = 0;
  std::int32_t num_tried = 0;
  for (const Frame& frame : frames_of(whole)) {
    for (std::size_t i = 0; i < frame.size + 5; ++i) {
      if (i >= 1 && i < 5) continue;  // the size: then the checksum is elsewhere
      for (const int mask : {0x01, 0x80, 0xFF}) {
        Bytes bytes = whole;
        bytes[frame.first + i] = static_cast<char>(bytes[frame.first + i] ^ mask);
        const std::span covered(bytes.data() + frame.first, frame.size + 5);
        const std::uint32_t sum = trace::checksum(std::as_bytes(covered));
        for (std::size_t k = 0; k < 4; ++k) {
          bytes[frame.first + frame.size + 5 + k] = static_cast<char>(sum >> (8 * k) & 0xFFU);
        }
        num_refused += is_valid(bytes, num_tried++) ? 0 : 1;
      }
    }
  }
  EXPECT_GT(num_tried, 3000);
  EXPECT_GT(num_refused, num_tried / 20);
}

}  // namespace
}  // namespace smartspec
