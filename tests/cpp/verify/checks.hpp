// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The checks that hold a verification system to the target's distribution and to plain decoding.
// The same code that passes the product must fail every planted mutant (mutants_test.cpp).
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "verify/oracle.hpp"
#include "verify/sampler_core.hpp"
#include "verify/stats.hpp"
#include "verify/support.hpp"
#include "verify/walk.hpp"

namespace smartspec::verify_test {

/// One request of an implementation under test. Virtual, so that the checks are compiled once.
class System {
 public:
  virtual ~System() = default;
  virtual void verify(const TokenTree& tree, const LogitsRow& rows, Verification& out) = 0;
  virtual TokenId sample(std::span<const float> row) = 0;
};

struct Subject {
  using Make = std::unique_ptr<System> (*)(const SamplingParams& params, std::uint64_t seed,
                                           std::span<const TokenId> prompt, int vocab);
  Make make;
  double (*uniform)(std::uint32_t high, std::uint32_t low);
};

template <class AnySystem, class Rule = verify::StandardRule>
constexpr Subject subject() {
  return {[](const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
             int vocab) -> std::unique_ptr<System> {
            return std::make_unique<AnySystem>(params, seed, prompt, vocab);
          },
          [](std::uint32_t high, std::uint32_t low) { return Rule::uniform(high, low); }};
}

/// The library's own code over any rule.
template <class Rule>
class RuleSystem final : public System {
 public:
  RuleSystem(const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
             int vocab)
      : sampler_(params, seed, prompt, vocab, nullptr) {}
  void verify(const TokenTree& tree, const LogitsRow& rows, Verification& out) override {
    verify::walk<Rule>(tree, rows, sampler_, out);
  }
  TokenId sample(std::span<const float> row) override { return sampler_.sample(row); }

 private:
  verify::BasicSampler<Rule> sampler_;
};

struct Failure {
  std::string check;  // "first", "middle", "bonus", "rejected", "after", "pairs", "seeds", ...
  std::string detail;
};
using Failures = std::vector<Failure>;

struct Config {
  std::string name;
  SamplingParams params;
  Shape shape = Shape::kSmooth;
};

inline std::vector<Config> configs() {
  const auto make = [](const char* name, auto edit, Shape shape = Shape::kSmooth) {
    Config c{name, {}, shape};
    c.params.max_tokens = 100;
    edit(c.params);
    return c;
  };
  return {make("plain", [](auto&) {}),
          make("warm", [](auto& p) { p.temperature = 1.6F; }),
          make("cool", [](auto& p) { p.temperature = 0.6F; }),
          make("top_k", [](auto& p) { p.top_k = 3; }),
          make("top_p", [](auto& p) { p.top_p = 0.8F; }),
          make(
              "top_p_ties", [](auto& p) { p.top_p = 0.5F; }, Shape::kFlat),
          make("min_p", [](auto& p) { p.min_p = 0.15F; }),
          make("filters", [](auto& p) { p.top_k = 4, p.top_p = 0.9F, p.min_p = 0.05F; }),
          make("repetition", [](auto& p) { p.repetition_penalty = 1.8F; }),
          make("penalties", [](auto& p) { p.frequency_penalty = 0.8F, p.presence_penalty = 0.5F; }),
          make("masks", [](auto& p) {
            p.logit_bias = {{1, 1.0F}};
            p.allowed_token_ids = {{0, 1, 2, 4}};
            p.bad_words = {{2, 1}};
          })};
}

/// Tables of next-token counts by context: what was emitted before, up to 3 tokens.
class LawCheck {
 public:
  static constexpr int kVocab = 6;
  static constexpr int kDepth = 4;  // tokens of each request that are looked at
  enum Kind { kFirst, kMiddle, kBonus, kRejected, kAfter, kKinds };
  static constexpr std::array<const char*, kKinds> kNames{"first", "middle", "bonus", "rejected",
                                                          "after"};

  explicit LawCheck(const Config& config)
      : config_(config), model_{kVocab, 77, config.shape}, nodes_(node_count()) {}

  void run(const Subject& subject, int num_seeds) {
    Verification out;
    TokenId previous = -1;
    for (int s = 0; s < num_seeds; ++s) {
      const auto system =
          subject.make(config_.params, static_cast<std::uint64_t>(s), kPrompt, kVocab);
      std::vector<TokenId> tokens;
      bool after = false;
      while (tokens.size() < kDepth) after = step(*system, tokens, after, out);
      pairs_[0][static_cast<std::size_t>(tokens[0] * kVocab + tokens[1])] += 1;
      pairs_[1][static_cast<std::size_t>(tokens[1] * kVocab + tokens[2])] += 1;
      if (s % 2 == 1) pairs_[2][static_cast<std::size_t>(previous * kVocab + tokens[0])] += 1;
      previous = tokens[0];
    }
  }

  /// One p-value per kind of position and per table of pairs.
  [[nodiscard]] std::vector<std::pair<std::string, ChiSquare>> results() const {
    std::vector<std::pair<std::string, ChiSquare>> all;
    for (int kind = 0; kind < kKinds; ++kind) {
      ChiSquare test;
      for (std::size_t at = 0; at < nodes_.size(); ++at) {
        const Node& node = nodes_[at];
        if (node.law.empty()) continue;
        auto law = node.law;
        if (kind == kRejected) {  // drawn, and carried by no child
          double rest = 0;
          for (const TokenId c : node.children) law[static_cast<std::size_t>(c)] = 0;
          for (const double p : law) rest += p;
          for (double& p : law) p = rest > 1e-12 ? p / rest : 0;
        }
        test.add(law, node.counts[static_cast<std::size_t>(kind)]);
      }
      all.emplace_back(kNames[static_cast<std::size_t>(kind)], test);
    }
    const auto joint = joint_laws();
    const std::array<const char*, 3> names{"pairs", "pairs", "seeds"};
    for (std::size_t i = 0; i < 3; ++i) {
      ChiSquare test;
      test.add(joint[i], pairs_[i]);
      all.emplace_back(names[i], test);
    }
    return all;
  }

 private:
  using Counts = std::array<std::int64_t, kVocab>;
  struct Node {  // a context
    std::vector<float> logits;
    std::vector<double> law;        // [vocab], exact
    std::vector<TokenId> children;  // what the trees propose here
    std::array<Counts, kKinds> counts{};
  };
  static constexpr std::array<TokenId, 2> kPrompt{1, 2};

  static std::size_t node_count() {
    std::size_t n = 0;
    for (int d = 0, size = 1; d < kDepth + 2; ++d, size *= kVocab) {
      n += static_cast<std::size_t>(size);
    }
    return n;
  }
  static std::size_t index_of(std::span<const TokenId> emitted) {
    std::size_t at = 0;
    for (const TokenId t : emitted) at = at * kVocab + static_cast<std::size_t>(t) + 1;
    return at;
  }
  Node& node(std::span<const TokenId> emitted) {
    Node& n = nodes_[index_of(emitted)];
    if (!n.law.empty()) return n;
    std::vector<TokenId> prefix(kPrompt.begin(), kPrompt.end());
    prefix.insert(prefix.end(), emitted.begin(), emitted.end());
    n.logits = model_.logits(prefix);
    const Oracle oracle{config_.params,
                        0,
                        {kPrompt.begin(), kPrompt.end()},
                        nullptr,
                        {emitted.begin(), emitted.end()}};
    const auto law = oracle.law(oracle.process(n.logits));
    n.law.assign(kVocab, 0.0);
    for (const auto& [v, p] : law) n.law[static_cast<std::size_t>(v)] = p;
    // Trees look at the prefix only, never at noise: the likeliest token and an arbitrary one.
    n.children = {
        law.front().first,
        (law.front().first + 1 + static_cast<TokenId>(index_of(emitted) % (kVocab - 1))) % kVocab};
    return n;
  }

  /// Depth 2, two children per node.
  TokenTree make_tree(const std::vector<TokenId>& tokens) {
    TokenTree tree;
    auto context = tokens;
    for (const TokenId a : node(tokens).children) {
      const auto parent = tree.add(a, -1);
      context.push_back(a);
      for (const TokenId b : node(context).children) tree.add(b, parent);
      context.pop_back();
    }
    return tree;
  }

  /// One verification; says whether it ended in a rejection.
  bool step(System& system, std::vector<TokenId>& tokens, bool after, Verification& out) {
    const TokenTree tree = make_tree(tokens);
    system.verify(
        tree,
        [&](std::int32_t n) {
          return std::span<const float>(node(path_prefix(tree, n, tokens)).logits);
        },
        out);
    bool rejected = false;
    for (std::size_t i = 0; i < out.tokens.size(); ++i) {
      const bool leaf = i == 2;
      const bool carried = i < out.path.size();
      rejected = !carried && !leaf;
      if (tokens.size() < kDepth) {
        Node& n = node(tokens);
        const auto v = static_cast<std::size_t>(out.tokens[i]);
        const Kind kind = i == 0 ? (after ? kAfter : kFirst) : leaf ? kBonus : kMiddle;
        n.counts[kind][v] += 1;
        if (rejected) n.counts[kRejected][v] += 1;
      }
      tokens.push_back(out.tokens[i]);
    }
    return rejected;
  }

  [[nodiscard]] std::array<std::vector<double>, 3> joint_laws() const {
    std::array<std::vector<double>, 3> joint;
    for (auto& j : joint) j.assign(kVocab * kVocab, 0.0);
    LawCheck fresh(config_);
    const auto first = fresh.node({}).law;
    for (TokenId a = 0; a < kVocab; ++a) {
      const double pa = first[static_cast<std::size_t>(a)];
      for (TokenId b = 0; b < kVocab; ++b) {
        const auto ab = static_cast<std::size_t>(a * kVocab + b);
        joint[2][ab] = pa * first[static_cast<std::size_t>(b)];
        if (pa == 0.0) continue;
        const std::array<TokenId, 1> one{a};
        const double pab = pa * fresh.node(one).law[static_cast<std::size_t>(b)];
        joint[0][ab] = pab;
        if (pab == 0.0) continue;
        const std::array<TokenId, 2> two{a, b};
        const auto third = fresh.node(two).law;
        for (TokenId c = 0; c < kVocab; ++c) {
          joint[1][static_cast<std::size_t>(b * kVocab + c)] +=
              pab * third[static_cast<std::size_t>(c)];
        }
      }
    }
    return joint;
  }

  Config config_;
  TinyModel model_;
  std::vector<Node> nodes_;
  std::array<std::array<std::int64_t, kVocab * kVocab>, 3> pairs_{};
};

/// Chi-square of every kind of position under every config; p below 1e-4 over the number of tests.
inline Failures check_laws(const Subject& subject, int num_seeds, std::int64_t* draws = nullptr) {
  std::vector<std::pair<std::string, ChiSquare>> all;
  std::vector<std::string> details;
  for (const Config& config : configs()) {
    LawCheck check(config);
    check.run(subject, num_seeds);
    for (auto& result : check.results()) {
      details.push_back(config.name + ": df " + std::to_string(result.second.df()) + ", p " +
                        std::to_string(result.second.p_value()));
      all.push_back(std::move(result));
    }
  }
  Failures failures;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string& kind = all[i].first;
    const bool counts_draws = kind != "pairs" && kind != "seeds" && kind != "rejected";
    if (draws != nullptr && counts_draws) *draws += all[i].second.draws();
    if (all[i].second.p_value() < 1e-4 / static_cast<double>(all.size())) {
      failures.push_back({all[i].first, details[i]});
    }
  }
  return failures;
}

/// Single draws against the oracle: ties, several groups of tokens, greedy and sampled.
inline Failures check_oracle(const Subject& subject, int cases) {
  Random random(51);
  for (int i = 0; i < cases; ++i) {
    SamplingParams params;
    params.temperature = i % 3 == 0 ? 0.0F : static_cast<float>(0.3 + random.unit());
    const int vocab = 4 + random.below(200);
    const auto row = random_row(random, vocab, i % 2 == 0 ? Shape::kTies : Shape::kSmooth);
    const auto prompt = random.tokens(random.below(4), vocab);
    const std::uint64_t seed = random.next();
    const auto system = subject.make(params, seed, prompt, vocab);
    const Oracle oracle{params, seed, prompt, nullptr, {}};
    if (system->sample(row) != oracle.order(row).front()) {
      return {{"oracle", "case " + std::to_string(i)}};
    }
  }
  return {};
}

/// Whole requests through random trees against plain decoding by the oracle, stops included.
inline Failures check_plain(const Subject& subject, int cases) {
  Random random(52);
  for (int i = 0; i < cases; ++i) {
    const TinyModel model{6, random.next(), Shape::kSmooth};
    SamplingParams params;
    params.max_tokens = 1 + random.below(12);
    params.stop_token_ids = random.tokens(1, model.vocab);
    if (i % 2 == 0) params.frequency_penalty = 1.0F;
    const auto prompt = random.tokens(2, model.vocab);
    const std::uint64_t seed = random.next();
    Oracle oracle{params, seed, prompt, nullptr, {}};
    auto prefix = prompt;
    do {
      prefix.push_back(oracle.order(model.logits(prefix)).front());
    } while (oracle.accept(prefix.back()) == FinishReason::kNone);

    const auto system = subject.make(params, seed, prompt, model.vocab);
    std::vector<TokenId> tokens = prompt;
    Verification out;
    std::vector<float> row;
    do {
      TokenTree tree;
      for (int n = random.below(20); n > 0; --n) {
        tree.add(random.token(model.vocab), random.below(tree.size() + 1) - 1);
      }
      system->verify(
          tree,
          [&](std::int32_t node) {
            row = model.logits(path_prefix(tree, node, tokens));
            return std::span<const float>(row);
          },
          out);
      tokens.insert(tokens.end(), out.tokens.begin(), out.tokens.end());
    } while (out.finish_reason == FinishReason::kNone && tokens.size() < prefix.size() + 20);
    if (tokens != prefix) return {{"plain", "case " + std::to_string(i)}};
  }
  return {};
}

/// The ends of the uniform: inside (0, 1), so that the noise is finite.
inline Failures check_bounds(const Subject& subject) {
  for (const std::uint32_t bits : {0U, 0xFFFFFFFFU}) {
    const double u = subject.uniform(bits, bits);
    if (!(u > 0.0 && u < 1.0)) return {{"bounds", "u = " + std::to_string(u)}};
  }
  return {};
}

struct Scale {
  int law_seeds;
  int cases;
};

inline Failures run_checks(const Subject& subject, const Scale& scale) {
  Failures all = check_laws(subject, scale.law_seeds);
  for (const Failures& more : {check_oracle(subject, scale.cases),
                               check_plain(subject, scale.cases), check_bounds(subject)}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

}  // namespace smartspec::verify_test
