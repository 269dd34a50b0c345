// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <thread>

#include "smartspec/error.hpp"
#include "suffix_file_world.hpp"

namespace smartspec {
namespace {

using namespace testing;  // NOLINT: of this project's tests

constexpr std::size_t kMaxLength = 10;  // of contexts compared with the oracle

class SuffixFileTest : public ::testing::Test {
 protected:
  TempFolder folder_;
  std::string path_ = folder_.file("index");
};

void expect_oracle_answers(World& world, const SuffixIndex& index, int num_queries) {
  for (const auto& [name, sequences] : world.kept) {
    SubstringOracle oracle(kMaxLength);
    for (const Tokens& sequence : sequences) oracle.add(sequence);
    for (int i = 0; i < num_queries; ++i) {
      const Tokens context = world.query();
      const SuffixLookup found = index.lookup(context, name);
      const std::uint32_t length = oracle.longest_match(context);
      ASSERT_EQ(found.match_length, static_cast<std::int32_t>(length));
      if (length == 0) continue;
      const auto matched = std::span(context).last(length);
      ASSERT_EQ(found.count, oracle.count(matched));
      ASSERT_EQ(found.best_count, oracle.best_count(matched));
      if (found.best_token < 0) continue;
      ASSERT_EQ(found.best_count, oracle.next_count(matched, found.best_token));
    }
  }
}

TEST_F(SuffixFileTest, AnswersAsBefore) {
  for (unsigned round = 0; round < 4; ++round) {
    SuffixIndexOptions options = world_options();
    options.freeze = round % 2 == 0;  // old generations are automata in files, too
    const bool forgets = round < 2;
    World world(round, options, 120, forgets);
    world.index.save(path_);
    SuffixIndex loaded(options);
    loaded.load(path_);
    const SuffixIndexStats before = world.index.stats();
    const SuffixIndexStats after = loaded.stats();
    EXPECT_EQ(after.num_tokens, before.num_tokens);
    EXPECT_EQ(after.num_generations, before.num_generations);
    EXPECT_EQ(after.num_namespaces, before.num_namespaces);
    EXPECT_EQ(after.frozen_tokens > 0, options.freeze);
    EXPECT_GT(after.num_generations, 4);
    EXPECT_LE(after.num_bytes, before.num_bytes);
    expect_same_answers(world, world.index, loaded, 15'000 / kSlowdown);
    expect_oracle_answers(world, loaded, 2'000 / kSlowdown);
    // Continuations that were forgotten still make a context look less certain until a save.
    if (!forgets) expect_same_drafts(world, world.index, loaded, 400 / kSlowdown);
    if (HasFatalFailure()) return;
  }
}

TEST_F(SuffixFileTest, GrowsOnAsIfNothingHadHappened) {
  World world(7);  // outputs of active requests are frozen like others
  world.index.save(path_);
  SuffixIndex loaded(world_options());
  loaded.load(path_);
  for (int round = 0; round < 30; ++round) {
    // Requests, cut where a generation is sealed, would tell the two apart: those of the loaded one
    // are smaller, by what was forgotten.
    for (const char* name : kNameSpaces) {
      std::vector<Tokens> sequences;
      for (int i = 0; i < 4; ++i) {
        sequences.push_back(repetitive_tokens(world.random, world.random() % 150, kVocab));
      }
      preload(world.index, sequences, name);
      preload(loaded, sequences, name);
      for (Tokens& each : sequences) world.kept[name].push_back(std::move(each));
    }
    expect_same_answers(world, world.index, loaded, 200);
    if (HasFatalFailure()) return;
  }
  // By now, what was live in the file is frozen, without what was forgotten.
  EXPECT_GT(loaded.stats().frozen_tokens, 15'000);
  expect_oracle_answers(world, loaded, 2'000 / kSlowdown);
}

TEST_F(SuffixFileTest, DraftsAndLearnsOnAsBefore) {
  SuffixIndexOptions options = world_options();
  options.generation_bytes = 1'000'000;  // nothing is sealed
  World world(8, options, 120, false);
  for (const RequestId id : world.active) world.index.finish_request(id);
  world.index.save(path_);
  SuffixIndex loaded(options);
  loaded.load(path_);
  for (int i = 0; i < 20; ++i) {
    const RequestId id = world.next_id++;
    const Tokens output = repetitive_tokens(world.random, 60, kVocab);
    for (SuffixIndex* index : {&world.index, &loaded}) start(*index, id);
    for (const TokenId token : output) {
      feed(world.index, id, {&token, 1});
      feed(loaded, id, {&token, 1});
      ASSERT_EQ(draft(world.index, id), draft(loaded, id));
    }
    for (SuffixIndex* index : {&world.index, &loaded}) {
      if (i % 3 == 0) index->finish_request(id);
      if (i % 4 == 0) {
        EXPECT_TRUE(index->forget(id));
      }
    }
  }
  expect_same_answers(world, world.index, loaded, 2'000);
}

TEST_F(SuffixFileTest, OutputsOfActiveRequestsAreSaved) {
  SuffixIndex index(world_options());
  start(index, 1, "", 2);
  feed(index, 1, Tokens{30, 31, 1, 2, 3, 4});
  index.save(path_);
  SuffixIndex loaded(world_options());
  loaded.load(path_);
  EXPECT_EQ(loaded.lookup(Tokens{2, 3}).best_token, 4);
  EXPECT_EQ(loaded.lookup(Tokens{31, 1}).match_length, 1);  // prompts are nobody else's
  EXPECT_EQ(loaded.stats().num_tokens, 4);
  // The request goes on where it was saved, and the file's part of it belongs to nobody.
  feed(index, 1, Tokens{5});
  EXPECT_EQ(index.lookup(Tokens{3, 4}).best_token, 5);
  start(loaded, 1);
  EXPECT_FALSE(loaded.forget(1));
}

TEST_F(SuffixFileTest, ActiveRequestsGoOnWithTheirOwnText) {
  World saved(10);
  saved.index.save(path_);
  World world(11);
  ASSERT_FALSE(world.active.empty());
  start(world.index, 5000, "not in the file");
  world.active.push_back(5000);
  for (const RequestId id : world.active) (void)draft(world.index, id);
  world.index.load(path_);
  expect_same_answers(saved, saved.index, world.index, 2'000 / kSlowdown);
  for (const RequestId id : world.active) {
    const Tokens more = repetitive_tokens(world.random, 30, kVocab);
    for (const TokenId token : more) {
      feed(world.index, id, {&token, 1});
      (void)draft(world.index, id);
    }
    if (id % 2 == 0) world.index.finish_request(id);
  }
  EXPECT_TRUE(world.index.forget(5000));
  // Ids of outputs that the file replaced are free again.
  for (RequestId id = 1; id < 100; ++id) {
    if (world.index.is_active(id)) continue;
    start(world.index, id);
    world.index.finish_request(id);
  }
  world.index.load(path_);
  expect_same_answers(saved, saved.index, world.index, 2'000 / kSlowdown);
}

TEST_F(SuffixFileTest, LargeOnesAreMappedAndMayBeReplaced) {
  SuffixIndexOptions options;
  options.max_bytes = std::size_t{88} << 20;
  options.background = false;
  SuffixIndex index(options);
  std::mt19937 random(12);
  std::vector<Tokens> sequences;
  for (int i = 0; i < 1'500; ++i) sequences.push_back(repetitive_tokens(random, 400, 5'000));
  preload(index, sequences, "");
  ASSERT_GT(index.stats().frozen_tokens, 300'000);
  index.save(path_);
  auto loaded = std::make_unique<SuffixIndex>(options);
  loaded->load(path_);
  const auto compare = [&] {
    for (int i = 0; i < 2'000; ++i) {
      const Tokens& source = sequences[random() % sequences.size()];
      const auto context = std::span(source).subspan(random() % 300, 1 + random() % 20);
      const SuffixLookup a = index.lookup(context);
      const SuffixLookup b = loaded->lookup(context);
      ASSERT_EQ(a.match_length, b.match_length);
      ASSERT_EQ(a.count, b.count);
      ASSERT_EQ(a.best_token, b.best_token);
    }
  };
  compare();
  loaded->save(path_);  // over the file it stands on
  compare();
  loaded->load(path_);
  for (SuffixIndex* each : {&index, loaded.get()}) {
    preload(*each, {sequences.begin(), sequences.begin() + 700}, "");
  }
  EXPECT_GT(loaded->stats().frozen_tokens, 500'000);  // also what was live in the file
  compare();
}

TEST_F(SuffixFileTest, ObeysTheBoundsOfTheIndexItIsLoadedInto) {
  World world(13);
  world.index.save(path_);
  SuffixIndexOptions options = world_options();
  options.max_bytes = std::size_t{1} << 20;
  options.generation_bytes = 50'000;
  SuffixIndex smaller(options);
  smaller.load(path_);
  EXPECT_LE(smaller.stats().num_bytes, 1 << 20);
  EXPECT_GT(smaller.stats().num_tokens, 0);
  preload(smaller, {repetitive_tokens(world.random, 5'000, kVocab)}, "");
  EXPECT_LE(smaller.stats().num_bytes, 1 << 20);
}

TEST_F(SuffixFileTest, EmptyIndex) {
  const SuffixIndex index(world_options());
  index.save(path_);
  World world(14);
  world.index.load(path_);
  EXPECT_EQ(world.index.stats().num_tokens, 0);
  EXPECT_EQ(world.index.lookup(Tokens{1, 2}).match_length, 0);
}

TEST_F(SuffixFileTest, FailedSavesLeaveTheOlderFile) {
  World world(15);
  const std::string nowhere = folder_.file("no such folder/index");
  try {
    world.index.save(nowhere);
    FAIL() << "saved";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(nowhere), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("No such file"), std::string::npos) << error.what();
  }
  EXPECT_THROW(world.index.save(folder_.file("")), Error);
  EXPECT_THROW(world.index.save(""), Error);
  write_file(path_, "what was there");
  // The disk is full.
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  rlimit small = limit;
  small.rlim_cur = 100'000;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(world.index.save(path_), Error);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_file(path_), "what was there");
  EXPECT_EQ(folder_.num_files(), 1U);
}

TEST_F(SuffixFileTest, IsItsOwnersUnlessItReplacesOneThatIsNot) {
  const SuffixIndex index(world_options());
  const auto permissions = [&] {
    struct stat info{};
    EXPECT_EQ(::stat(path_.c_str(), &info), 0);
    return info.st_mode & 0777;
  };
  index.save(path_);
  EXPECT_EQ(permissions(), 0600U);
  ASSERT_EQ(::chmod(path_.c_str(), 0640), 0);
  index.save(path_);
  EXPECT_EQ(permissions(), 0640U);
}

TEST_F(SuffixFileTest, DraftsAndUpdatesGoOnMeanwhile) {
  SuffixIndexOptions options = world_options();
  options.background = true;
  World world(16, options, 40);
  ASSERT_FALSE(world.active.empty());
  std::atomic<bool> is_over = false;
  std::thread drafting([&] {
    while (!is_over) {
      for (const RequestId id : world.active) (void)draft(world.index, id);
    }
  });
  std::thread updating([&] {
    std::mt19937 random(17);
    while (!is_over) {
      for (const RequestId id : world.active) {
        feed(world.index, id, random_tokens(random, 2, kVocab));
      }
    }
  });
  for (int i = 0; i < 10; ++i) {
    world.index.save(path_);
    world.index.load(path_);
  }
  is_over = true;
  drafting.join();
  updating.join();
  world.index.wait();
  EXPECT_EQ(folder_.num_files(), 1U);
}

}  // namespace
}  // namespace smartspec
