// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Files that save() has not written, or not so: refused with nothing changed, or, where a faulty
// program made the checksums fit, harmless.
#include <gtest/gtest.h>

#include <cstring>

#include "propose/suffix/file_format.hpp"
#include "propose/suffix/image.hpp"
#include "smartspec/error.hpp"
#include "suffix_file_world.hpp"

namespace smartspec {
namespace {

using namespace testing;  // NOLINT: of this project's tests
using suffix::FileHeader;
using suffix::FileSection;
using suffix::SectionKind;

/// A file's bytes, taken apart.
struct Image {
  std::string bytes;

  [[nodiscard]] FileHeader header() const {
    FileHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    return header;
  }
  [[nodiscard]] std::vector<FileSection> sections() const {
    std::vector<FileSection> sections(header().num_sections);
    std::memcpy(sections.data(), bytes.data() + sizeof(FileHeader),
                sections.size() * sizeof(FileSection));
    return sections;
  }
  void put(const FileHeader& header) { std::memcpy(bytes.data(), &header, sizeof(header)); }
  void put(const std::vector<FileSection>& sections) {
    std::memcpy(bytes.data() + sizeof(FileHeader), sections.data(),
                sections.size() * sizeof(FileSection));
  }
  [[nodiscard]] std::span<const std::byte> part(std::uint64_t offset, std::uint64_t size) const {
    return std::as_bytes(std::span(bytes)).subspan(offset, size);
  }
  void seal_sections() {
    std::vector<FileSection> all = sections();
    for (FileSection& section : all) {
      if (section.offset > bytes.size() || section.bytes > bytes.size() - section.offset) continue;
      section.checksum = suffix::checksum(part(section.offset, section.bytes));
    }
    put(all);
  }
  void seal_header() {
    FileHeader sealed = header();
    sealed.checksum = 0;
    put(sealed);
    sealed.checksum = suffix::checksum(part(0, sealed.header_bytes));
    put(sealed);
  }
};

class SuffixFileDamageTest : public ::testing::Test {
 protected:
  SuffixFileDamageTest() : saved_(1), world_(2) {
    saved_.index.save(path_);
    image_.bytes = read_file(path_);
    for (int i = 0; i < 50; ++i) {
      queries_.push_back(world_.query());
      answers_.push_back(world_.index.lookup(queries_.back(), kNameSpaces[i % 4]));
    }
    stats_ = world_.index.stats();
  }

  void expect_unchanged() {
    for (std::size_t i = 0; i < queries_.size(); ++i) {
      const SuffixLookup now = world_.index.lookup(queries_[i], kNameSpaces[i % 4]);
      ASSERT_EQ(now.match_length, answers_[i].match_length);
      ASSERT_EQ(now.count, answers_[i].count);
      ASSERT_EQ(now.best_token, answers_[i].best_token);
    }
    const SuffixIndexStats now = world_.index.stats();
    ASSERT_EQ(now.num_tokens, stats_.num_tokens);
    ASSERT_EQ(now.num_bytes, stats_.num_bytes);
    ASSERT_EQ(now.num_generations, stats_.num_generations);
    ASSERT_EQ(now.num_namespaces, stats_.num_namespaces);
    ASSERT_EQ(now.num_requests, stats_.num_requests);
    ASSERT_EQ(now.evicted_tokens, stats_.evicted_tokens);
  }

  /// `reason`: must occur in the text of the error.
  void expect_refused(const std::string& bytes, const std::string& reason = "") {
    write_file(path_, bytes);
    expect_file_refused(reason);
  }
  void expect_file_refused(const std::string& reason = "") {
    try {
      world_.index.load(path_);
      FAIL() << "accepted";
    } catch (const FormatError& error) {
      const std::string what = error.what();
      ASSERT_NE(what.find(path_), std::string::npos) << what;
      ASSERT_NE(what.find(reason), std::string::npos) << what;
    }
    expect_unchanged();
  }

  TempFolder folder_;
  std::string path_ = folder_.file("index");
  World saved_;
  World world_;
  Image image_;
  std::vector<Tokens> queries_;
  std::vector<SuffixLookup> answers_;
  SuffixIndexStats stats_;
};

void flip(const std::string& path, std::size_t bit) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(bit / 8));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(bit / 8));
  file.put(static_cast<char>(byte ^ 1 << bit % 8));
}

TEST_F(SuffixFileDamageTest, EveryFlippedBitOfHeaderAndTable) {
  const std::size_t size = sizeof(FileHeader) + image_.header().num_sections * sizeof(FileSection);
  for (std::size_t bit = 0; bit < size * 8; ++bit) {
    flip(path_, bit);
    expect_file_refused();
    if (HasFatalFailure()) FAIL() << "bit " << bit;
    flip(path_, bit);
  }
  world_.index.load(path_);
}

TEST_F(SuffixFileDamageTest, FlippedBitsOfTheBody) {
  std::mt19937 random(3);
  for (int i = 0; i < 2'000 / kSlowdown; ++i) {
    const std::size_t bit = random() % (image_.bytes.size() * 8);
    flip(path_, bit);
    expect_file_refused();
    if (HasFatalFailure()) FAIL() << "bit " << bit;
    flip(path_, bit);
  }
  world_.index.load(path_);
}

TEST_F(SuffixFileDamageTest, CutOffAnywhere) {
  std::vector<std::size_t> sizes = {0, 1, 7, 8, 127, 128, 129, 4095, 4096, 4097};
  for (const FileSection& section : image_.sections()) {
    for (const std::uint64_t at : {section.offset, section.offset + section.bytes}) {
      for (const std::uint64_t size : {at - 1, at, at + 1}) {
        if (size < image_.bytes.size()) sizes.push_back(size);
      }
    }
  }
  std::mt19937 random(4);
  for (int i = 0; i < 100; ++i) sizes.push_back(random() % image_.bytes.size());
  for (const std::size_t size : sizes) {
    expect_refused(image_.bytes.substr(0, size), "file size");
    if (HasFatalFailure()) FAIL() << "size " << size;
    // The same with a header that says so.
    if (size < sizeof(FileHeader)) continue;
    Image cut{image_.bytes.substr(0, size)};
    FileHeader header = cut.header();
    header.file_bytes = size;
    cut.put(header);
    if (size >= header.header_bytes) cut.seal_header();
    expect_refused(cut.bytes);
    if (HasFatalFailure()) FAIL() << "size " << size;
  }
  expect_refused(image_.bytes + '\0', "file size");
  expect_refused(image_.bytes + std::string(4096, '\0'), "file size");
}

TEST_F(SuffixFileDamageTest, ForeignFiles) {
  expect_refused("", "file size");
  expect_refused("Once upon a time", "not a suffix index");
  std::string text;
  while (text.size() < 10'000) text += "Once upon a time there was a file. ";
  expect_refused(text, "not a suffix index");
  const auto with = [&](auto&& change) {
    Image other = image_;
    FileHeader header = other.header();
    change(header);
    other.put(header);
    other.seal_header();
    return other.bytes;
  };
  expect_refused(with([](FileHeader& h) { h.magic[7] = 'Y'; }), "not a suffix index");
  expect_refused(with([](FileHeader& h) { h.version = 2; }), "version is 2, must be 1");
  expect_refused(with([](FileHeader& h) { h.byte_order = 0x04030201; }), "byte_order");
  expect_refused(with([](FileHeader& h) { h.vocab_size = kVocab + 1; }), "vocab_size is 41");
  expect_refused(with([](FileHeader& h) { h.vocab_size = 0; }), "vocab_size is 0");
  expect_refused(with([](FileHeader& h) { h.tokenizer_hash[0] = 'T'; }), "Tokenizer-1");
  expect_refused(with([](FileHeader& h) { h.tokenizer_hash_size = 0; }), "unknown");
  expect_refused(with([](FileHeader& h) { h.tokenizer_hash_size = 65; }), "at most 64");
  expect_refused(with([](FileHeader& h) { ++h.num_namespaces; }), "num_namespaces");
  expect_refused(with([](FileHeader& h) { ++h.num_generations; }), "num_generations");
  expect_refused(with([](FileHeader& h) { h.num_generations = 0; }), "num_generations");
  expect_refused(with([](FileHeader& h) { --h.num_sections; }));
  expect_refused(with([](FileHeader& h) { h.num_sections = 0xFFFFFFFF; }));
  std::filesystem::remove(path_);
  EXPECT_THROW(world_.index.load(path_), Error);
  EXPECT_THROW(world_.index.load(folder_.file("")), FormatError);
  expect_unchanged();
}

TEST_F(SuffixFileDamageTest, AnIndexThatLeavesThemOpenTakesAnyVocabularyAndTokenizer) {
  SuffixIndexOptions options = world_options();
  options.vocab_size = 0;
  options.tokenizer_hash = "";
  SuffixIndex index(options);
  index.load(path_);
  EXPECT_EQ(index.stats().num_tokens, saved_.index.stats().num_tokens);
}

TEST_F(SuffixFileDamageTest, NoTraceOfForgottenOutputs) {
  // Token 31 occurs in outputs 0 to 4 only, and a vocabulary of 31 is checked in all of a file.
  const auto save = [&](bool freeze_first, bool forgets) {
    SuffixIndex index(world_options());
    std::mt19937 random(9);
    const auto fill = [&] {
      for (int i = 0; i < 40; ++i) preload(index, {repetitive_tokens(random, 100, 30)}, "");
    };
    fill();
    for (RequestId id = 0; id < 5; ++id) {
      start(index, id);
      for (int i = 0; i < 50; ++i) {
        feed(index, id, Tokens{31, static_cast<TokenId>(random() % 30)});
      }
      if (id % 2 == 0) index.finish_request(id);
    }
    if (freeze_first) fill();
    EXPECT_EQ(index.stats().frozen_tokens > 4'500, freeze_first);
    for (RequestId id = 0; id < 5 && forgets; ++id) EXPECT_TRUE(index.forget(id));
    index.save(path_);
    Image image{read_file(path_)};
    FileHeader header = image.header();
    header.vocab_size = 31;
    image.put(header);
    image.seal_header();
    write_file(path_, image.bytes);
  };
  SuffixIndexOptions options = world_options();
  options.vocab_size = 31;
  for (const bool freeze_first : {false, true}) {
    save(freeze_first, false);
    EXPECT_THROW(SuffixIndex(options).load(path_), FormatError);
    save(freeze_first, true);
    SuffixIndex index(options);
    index.load(path_);
    EXPECT_EQ(index.stats().num_tokens, freeze_first ? 8'000 : 4'000);
  }
}

/// All that an index is asked to do, after it took a file that lies.
void exercise(SuffixIndex& index, std::mt19937& random) {
  for (const char* name : kNameSpaces) {
    for (int i = 0; i < 20; ++i) {
      (void)index.lookup(repetitive_tokens(random, 1 + random() % 30, kVocab), name);
    }
    const auto id = static_cast<RequestId>(random());
    start(index, id, name, 10);
    for (int i = 0; i < 60; ++i) {
      feed(index, id, repetitive_tokens(random, 10, kVocab));
      const Draft drafted = draft(index, id);
      for (const TokenId token : drafted.tokens) ASSERT_TRUE(token >= 0 && token < kVocab);
    }
    index.finish_request(id);
    EXPECT_TRUE(index.forget(id));
    const Tokens more = repetitive_tokens(random, 3'000, kVocab);  // enough to freeze what is live
    index.preload(std::vector<std::int64_t>{0, 1'500, 3'000}, more, name);
    (void)index.lookup(repetitive_tokens(random, 10, kVocab), name);
  }
  (void)index.stats();
}

TEST_F(SuffixFileDamageTest, LiesWithFittingChecksumsAreHarmless) {
  std::mt19937 random(5);
  int taken = 0;
  for (int round = 0; round < 1'500 / kSlowdown; ++round) {
    Image lie = image_;
    const std::vector<FileSection> sections = lie.sections();
    const FileSection& section = sections[random() % sections.size()];
    const auto changes = 1 + random() % 4;
    for (unsigned i = 0; i < changes && section.bytes >= 4; ++i) {
      // A word becomes a near, a small or any number; or a byte changes.
      const std::size_t at = section.offset + random() % (section.bytes / 4) * 4;
      std::uint32_t word = 0;
      std::memcpy(&word, &lie.bytes[at], 4);
      const auto kind = random() % 4;
      if (kind == 0) word += static_cast<std::uint32_t>(random() % 5) - 2;
      if (kind == 1) word = static_cast<std::uint32_t>(random() % 50);
      if (kind == 2) word = static_cast<std::uint32_t>(random());
      if (kind == 3) word ^= 1U << random() % 32;
      std::memcpy(&lie.bytes[at], &word, 4);
    }
    lie.seal_sections();
    lie.seal_header();
    write_file(path_, lie.bytes);
    SuffixIndex index(world_options());
    try {
      index.load(path_);
    } catch (const FormatError&) {
      continue;
    }
    ++taken;
    exercise(index, random);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
  EXPECT_GT(taken, 100 / kSlowdown);
}

TEST(SuffixFileAdoptTest, RefusesWhatWouldNotEndOrNotStayInside) {
  using suffix::State;
  suffix::SuffixAutomaton automaton;
  std::mt19937 random(7);
  suffix::StateId end = suffix::kRoot;
  // 16 tokens follow one another at random: a hashed table at least at the root.
  for (const TokenId token : random_tokens(random, 2'000, 16)) {
    end = automaton.append(end, token).state;
  }
  automaton.settle();
  const auto refused = [&](auto&& change) {
    suffix::AutomatonImage image = image_of(automaton);
    change(image.states, image.edges);
    try {
      (void)suffix::SuffixAutomaton::adopt(std::move(image.states), std::move(image.edges),
                                           image.summary, 2, 16);
      return false;
    } catch (const FormatError&) {
      return true;
    }
  };
  const auto first_table = [](auto& states, std::size_t least) {
    std::size_t id = 0;
    while (states[id].num_edges < least) ++id;
    return id;
  };
  EXPECT_FALSE(refused([](auto&, auto&) {}));
  EXPECT_TRUE(refused([](auto& states, auto&) { states[5].link = 5; }));
  EXPECT_TRUE(refused([](auto& states, auto&) { states[5].link = 6; }));
  EXPECT_TRUE(refused([](auto& states, auto&) { states[0].link = 1; }));
  EXPECT_TRUE(refused([](auto& states, auto&) { states[5].link = suffix::kNoState; }));
  EXPECT_TRUE(refused([](auto& states, auto&) { states[5].best_to = 0; }));
  EXPECT_TRUE(refused([](auto& states, auto&) { states[5].best_token = 16; }));
  EXPECT_TRUE(refused([](auto& states, auto&) { states[5].length = 2'001; }));
  EXPECT_TRUE(refused(
      [](auto& states, auto&) { states[0].best_to = static_cast<unsigned>(states.size()); }));
  EXPECT_TRUE(refused([&](auto& states, auto&) {  // two tables in one place
    const std::size_t one = first_table(states, 1);
    std::size_t two = one + 1;
    while (states[two].num_edges != states[one].num_edges) ++two;
    states[two].edges = states[one].edges;
  }));
  EXPECT_TRUE(refused([&](auto& states, auto& edges) {  // a hashed table without a free slot
    State& state = states[first_table(states, 9)];
    const std::uint32_t slots = 1U << state.log2_slots;
    for (std::uint32_t i = 0; i < slots; ++i) edges[state.edges + i] = {3, 1};
    state.num_edges = slots & 0x7FFFFFFU;
  }));
  EXPECT_TRUE(refused([](auto&, auto& edges) { edges.push_back({3, 1}); }));
}

TEST_F(SuffixFileDamageTest, LyingTables) {
  std::mt19937 random(6);
  const std::size_t words = image_.sections().size() * sizeof(FileSection) / 4;
  const int num_rounds = 2'000 / kSlowdown;
  int refused = 0;
  for (int round = 0; round < num_rounds; ++round) {
    Image lie = image_;
    const std::size_t at = sizeof(FileHeader) + random() % words * 4;
    const std::uint32_t word = random() % 2 == 0 ? static_cast<std::uint32_t>(random() % 12)
                                                 : static_cast<std::uint32_t>(random());
    std::memcpy(&lie.bytes[at], &word, 4);
    lie.seal_sections();
    lie.seal_header();
    write_file(path_, lie.bytes);
    SuffixIndex index(world_options());
    try {
      index.load(path_);  // the same word, or a name or a list of lengths with zeros behind it
      exercise(index, random);
    } catch (const FormatError&) {
      ++refused;
    }
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
  EXPECT_GT(refused, num_rounds * 6 / 10);
}

}  // namespace
}  // namespace smartspec
