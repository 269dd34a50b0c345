// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "propose/suffix/automaton.hpp"
#include "propose/suffix/edge_table.hpp"
#include "propose/suffix/image.hpp"
#include "smartspec/error.hpp"
#include "substring_oracle.hpp"

namespace smartspec::suffix {
namespace {

using testing::random_tokens;
using testing::repetitive_tokens;
using testing::SubstringOracle;
using testing::Tokens;

constexpr std::size_t kMaxLength = 10;  // contexts compared

struct Corpus {
  std::vector<Tokens> sequences;
  SuffixAutomaton automaton;

  // Appends the sequences interleaved in random chunks, as requests of one batch do.
  void append_all(std::mt19937& random) {
    std::vector<StateId> ends(sequences.size(), kRoot);
    std::vector<std::size_t> done(sequences.size(), 0);
    for (std::size_t left = sequences.size(); left > 0;) {
      const std::size_t i = random() % sequences.size();
      const std::size_t chunk = 1 + random() % 4;
      for (std::size_t k = 0; k < chunk && done[i] < sequences[i].size(); ++k) {
        ends[i] = automaton.append(ends[i], sequences[i][done[i]++]).state;
        if (done[i] == sequences[i].size()) --left;
      }
    }
  }
};

Corpus random_corpus(std::mt19937& random) {
  Corpus corpus;
  const auto vocab_size = static_cast<TokenId>(2 + random() % 40);
  const std::size_t num_sequences = 1 + random() % 5;
  for (std::size_t i = 0; i < num_sequences; ++i) {
    const std::size_t size = 1 + random() % 120;
    corpus.sequences.push_back(random() % 2 == 0 ? random_tokens(random, size, vocab_size)
                                                 : repetitive_tokens(random, size, vocab_size));
  }
  corpus.append_all(random);
  return corpus;
}

// A context from the corpus, from nowhere, or from both.
Tokens random_query(std::mt19937& random, const std::vector<Tokens>& sequences) {
  const Tokens& source = sequences[random() % sequences.size()];
  const std::size_t begin = random() % source.size();
  const std::size_t size = std::min(source.size() - begin, 1 + random() % kMaxLength);
  Tokens query(source.begin() + static_cast<std::ptrdiff_t>(begin),
               source.begin() + static_cast<std::ptrdiff_t>(begin + size));
  if (random() % 3 == 0) query[random() % query.size()] = static_cast<TokenId>(random() % 42);
  return query;
}

void expect_equal(const SuffixAutomaton& automaton, const SubstringOracle& oracle,
                  const Tokens& query) {
  const Match match = automaton.match(query);
  ASSERT_EQ(match.length, oracle.longest_match(query));
  const auto context = std::span(query).last(match.length);
  const ContextCounts counts = automaton.lookup(match);
  ASSERT_EQ(counts.count, oracle.count(context));
  ASSERT_EQ(counts.best_count, oracle.best_count(context));
  if (counts.best_token >= 0) {
    ASSERT_EQ(oracle.next_count(context, counts.best_token), counts.best_count);
  } else {
    ASSERT_EQ(counts.best_count, 0U);
  }
  const State& state = automaton.state(automaton.class_of(match));
  ASSERT_EQ(state.best_count, counts.best_count) << "the continuation at hand is not a best one";
}

TEST(SuffixAutomaton, EqualsTheOracle) {
  std::mt19937 random(1);
  std::size_t queries = 0;
  for (int round = 0; round < 300; ++round) {
    Corpus corpus = random_corpus(random);
    corpus.automaton.settle();
    SubstringOracle oracle(kMaxLength);
    for (const Tokens& sequence : corpus.sequences) oracle.add(sequence);
    for (int i = 0; i < 800; ++i, ++queries) {
      expect_equal(corpus.automaton, oracle, random_query(random, corpus.sequences));
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_EQ(queries, 240'000U);
}

TEST(SuffixAutomaton, ForgetsASequenceAsIfItHadNeverBeenThere) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    Corpus corpus = random_corpus(random);
    SubstringOracle oracle(kMaxLength);
    const std::size_t kept = random() % corpus.sequences.size();
    for (std::size_t i = 0; i < corpus.sequences.size(); ++i) {
      if (i <= kept) oracle.add(corpus.sequences[i]);
      if (i > kept) corpus.automaton.forget(corpus.sequences[i]);
    }
    for (int i = 0; i < 300; ++i) {
      expect_equal(corpus.automaton, oracle, random_query(random, corpus.sequences));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(SuffixAutomaton, GrowsOnAfterForgetting) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    Corpus corpus = random_corpus(random);
    corpus.automaton.forget(corpus.sequences[0]);
    Corpus more = random_corpus(random);
    SubstringOracle oracle(kMaxLength);
    for (std::size_t i = 1; i < corpus.sequences.size(); ++i) oracle.add(corpus.sequences[i]);
    for (const Tokens& sequence : more.sequences) {
      oracle.add(sequence);
      StateId last = kRoot;
      for (const TokenId token : sequence) last = corpus.automaton.append(last, token).state;
      corpus.sequences.push_back(sequence);
    }
    corpus.automaton.settle();
    for (int i = 0; i < 300; ++i) {
      expect_equal(corpus.automaton, oracle, random_query(random, corpus.sequences));
      if (HasFatalFailure()) return;
    }
  }
}

// Contexts nested deeper than an append walks: one token repeated, and short periods.
TEST(SuffixAutomaton, CountsDeeplyNestedContextsExactlyOnceSettled) {
  std::mt19937 random(4);
  for (const std::size_t period : {1U, 2U, 3U, 7U}) {
    const Tokens unit = random_tokens(random, period, 5);
    Tokens text;
    for (std::size_t i = 0; i < 6000; ++i) {
      text.push_back(i % 997 == 996 ? 9 : unit[i % period]);
    }
    SuffixAutomaton automaton;
    StateId last = kRoot;
    for (const TokenId token : text) last = automaton.append(last, token).state;
    automaton.settle();
    SubstringOracle oracle(kMaxLength);
    oracle.add(text);
    for (int i = 0; i < 2000; ++i) {
      expect_equal(automaton, oracle, random_query(random, {text}));
      if (HasFatalFailure()) return;
    }
    automaton.forget(text);
    EXPECT_EQ(automaton.match(text).length, 0U);
  }
}

// Many contexts lead to one class, which a later append splits before the counts are settled.
TEST(SuffixAutomaton, CountsWhatFollowsDeeplyNestedContextsOnce) {
  std::mt19937 random(10);
  for (int round = 0; round < 200; ++round) {
    SuffixAutomaton automaton;
    SubstringOracle oracle(kMaxLength);
    std::vector<Tokens> sequences;
    for (int i = 0; i < 4; ++i) {
      Tokens text;
      while (text.size() < 600) {
        const std::size_t period = 1 + random() % 2;
        const Tokens unit = random_tokens(random, period, 4);
        for (std::size_t left = 1 + random() % 200; left > 0; --left) {
          text.push_back(unit[left % period]);
        }
      }
      StateId last = kRoot;
      for (const TokenId token : text) last = automaton.append(last, token).state;
      oracle.add(text);
      sequences.push_back(std::move(text));
      if (random() % 2 == 0) automaton.settle();
    }
    automaton.settle();
    for (int i = 0; i < 100; ++i) {
      expect_equal(automaton, oracle, random_query(random, sequences));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(SuffixAutomaton, FollowsATextWhileOthersGrowIt) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const auto vocab_size = static_cast<TokenId>(2 + random() % 6);
    std::vector<Tokens> sequences(3);
    std::vector<StateId> ends(3, kRoot);
    SuffixAutomaton automaton;
    Tokens text;
    Match carried;
    for (int i = 0; i < 100; ++i) {
      const auto token = static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab_size));
      text.push_back(token);
      automaton.advance(carried, token);
      const Match fresh = automaton.match(text);
      ASSERT_LE(carried.length, fresh.length);  // others may have made a longer one possible
      SubstringOracle oracle(100);
      if (i % 25 == 0) {
        for (const Tokens& sequence : sequences) oracle.add(sequence);
        ASSERT_EQ(fresh.length, oracle.longest_match(text));
      }
      if (carried.length == fresh.length) {
        ASSERT_EQ(automaton.class_of(carried), automaton.class_of(fresh));
      }
      const std::size_t grown = random() % 3;
      for (const TokenId next : random_tokens(random, 1 + random() % 3, vocab_size)) {
        sequences[grown].push_back(next);
        ends[grown] = automaton.append(ends[grown], next).state;
      }
    }
  }
}

// What append() says was seen before is the longest match there was before it.
TEST(SuffixAutomaton, TellsWhatOfATextWasSeenBefore) {
  std::mt19937 random(9);
  for (int round = 0; round < 200; ++round) {
    Corpus corpus = random_corpus(random);
    const Tokens text = repetitive_tokens(random, 80, 12);
    StateId last = kRoot;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const Match before = corpus.automaton.match(std::span(text).first(i + 1));
      const TextEnd end = corpus.automaton.append(last, text[i]);
      ASSERT_EQ(end.seen.length, before.length);
      ASSERT_EQ(corpus.automaton.class_of(end.seen),
                corpus.automaton.class_of(
                    corpus.automaton.match(std::span(text).first(i + 1).last(before.length))));
      last = end.state;
    }
  }
}

TEST(SuffixAutomaton, StaysSmallOnPathologicalTexts) {
  constexpr std::size_t kTokens = 100'000;
  Tokens fibonacci{0};
  for (Tokens before{1}; fibonacci.size() < kTokens;) {
    Tokens next = fibonacci;
    next.insert(next.end(), before.begin(), before.end());
    before = std::exchange(fibonacci, std::move(next));
  }
  Tokens distinct(kTokens);
  for (std::size_t i = 0; i < kTokens; ++i) distinct[i] = static_cast<TokenId>(i);
  for (const Tokens& text : {Tokens(kTokens, 7), fibonacci, distinct}) {
    SuffixAutomaton automaton;
    StateId last = kRoot;
    for (const TokenId token : text) last = automaton.append(last, token).state;
    EXPECT_LE(automaton.bytes(), 2 * 60 * text.size());
    EXPECT_EQ(automaton.match(text).length, text.size());
  }
}

TEST(SuffixAutomaton, GrowsOnAfterBeingAdopted) {
  std::mt19937 random(6);
  for (int round = 0; round < 50; ++round) {
    Corpus corpus = random_corpus(random);
    corpus.automaton.settle();
    AutomatonImage image = image_of(corpus.automaton);
    SuffixAutomaton adopted = SuffixAutomaton::adopt(
        std::move(image.states), std::move(image.edges), image.summary, 1 + round % 3);
    ASSERT_EQ(adopted.num_states(), corpus.automaton.num_states());
    const Tokens more = random_tokens(random, 100, 10);
    StateId a = kRoot;
    StateId b = kRoot;
    for (const TokenId token : more) {
      a = corpus.automaton.append(a, token).state;
      b = adopted.append(b, token).state;
    }
    ASSERT_EQ(adopted.num_states(), corpus.automaton.num_states());
    corpus.sequences.push_back(more);
    SubstringOracle oracle(kMaxLength);
    for (const Tokens& sequence : corpus.sequences) oracle.add(sequence);
    adopted.settle();
    for (int i = 0; i < 100; ++i) {
      expect_equal(adopted, oracle, random_query(random, corpus.sequences));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(SuffixAutomaton, RefusesIdsThatLeadOutside) {
  std::mt19937 random(7);
  std::size_t refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::mt19937 same(8);
    Corpus corpus = random_corpus(same);
    auto [states, edges, summary] = image_of(corpus.automaton);
    std::byte* bytes = reinterpret_cast<std::byte*>(states.data());
    std::size_t size = states.bytes();
    if (round % 3 == 1) {
      bytes = reinterpret_cast<std::byte*>(edges.data());
      size = edges.bytes();
    } else if (round % 3 == 2) {
      bytes = reinterpret_cast<std::byte*>(&summary);
      size = sizeof(summary);
    }
    bytes[random() % size] ^= static_cast<std::byte>(1U << random() % 8);
    try {
      SuffixAutomaton adopted =
          SuffixAutomaton::adopt(std::move(states), std::move(edges), summary);
      for (const Tokens& sequence : corpus.sequences) (void)adopted.match(sequence);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500U);
}

}  // namespace
}  // namespace smartspec::suffix
