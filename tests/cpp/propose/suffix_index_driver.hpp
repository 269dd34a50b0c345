// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drives a SuffixIndex with arbitrary calls next to the naive model, for random tests and fuzzing.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "propose/suffix_index_model.hpp"
#include "propose/suffix_index_util.hpp"
#include "smartspec/suffix_index.hpp"
#include "smartspec/token_tree.hpp"

namespace smartspec::suffix_test {

struct DriverOptions {
  std::uint32_t max_requests = 8;
  std::uint32_t max_slice = 60;       // tokens of an update, per request
  std::uint32_t max_sequence = 300;   // tokens preloaded at once
  std::uint32_t lookups = 12;         // per operation, times up to two
  std::uint32_t num_documents = 24;   // texts follow them, mostly
  std::uint32_t clear_interval = 64;  // of the operations that could be one
};

/// `Source(bound)` gives a number below `bound`: a random generator, or a fuzzer's bytes.
template <class Source>
class IndexDriver {
 public:
  struct Coverage {
    std::int64_t lookups = 0, drafts = 0, drafted_nodes = 0, long_matches = 0, evictions = 0,
                 forgotten = 0, refused = 0, repeats = 0, clears = 0;
  };

  IndexDriver(SuffixIndex& index, Source source, DriverOptions options)
      : index_(index), source_(source), options_(options) {}

  void operation() {
    switch (below(16)) {
      case 0:
      case 1:
        preload_one();
        break;
      case 2:
      case 3:
        start_one();
        break;
      case 4:
        finish_one();
        break;
      case 5:
        forget_one();
        break;
      case 6:
        misuse();
        break;
      case 7:
        if (one_in(options_.clear_interval)) {
          clear_one();
        } else if (one_in(8)) {
          index_.wait();
        }
        break;
      default:
        if (model_.requests().empty()) {
          start_one();
        } else if (one_in(3)) {
          draft_some();
        } else {
          feed_some();
        }
    }
    check_stats();
    const std::uint32_t lookups = below(2 * options_.lookups + 1);
    for (std::uint32_t i = 0; i < lookups; ++i) look_up_one();
  }

  /// Finishes everything; statistics and lookups hold when nothing is under way any more.
  void finish() {
    while (!model_.requests().empty()) finish_one();
    index_.wait();
    check_stats();
    const SuffixIndexStats stats = index_.stats();
    expect(!index_.options().freeze || stats.frozen_tokens == model_.num_tokens(true),
           "sealed generations hold " + std::to_string(model_.num_tokens(true)) +
               " tokens, frozen ones " + std::to_string(stats.frozen_tokens));
    for (int i = 0; i < 100; ++i) look_up_one();
  }

  const Coverage& coverage() const { return coverage_; }
  const IndexModel& model() const { return model_; }

 private:
  std::uint32_t below(std::uint32_t bound) { return source_(bound); }
  bool one_in(std::uint32_t n) { return below(n) == 0; }
  std::string pick_space() {
    static const std::array<std::string, 3> kNames{"", "a", "tenant b"};
    return kNames[below(4) % 3];
  }
  RequestId pick_active() {
    auto at = model_.requests().begin();
    std::advance(at, below(static_cast<std::uint32_t>(model_.requests().size())));
    return at->first;
  }

  // A stretch of a document with few deviations, noise, or one short unit again and again.
  Tokens random_text(std::size_t size) {
    const std::uint32_t kind = below(8);
    const std::uint32_t document = below(options_.num_documents);
    const std::uint32_t begin = below(200);
    const auto unit = kind == 0 ? 1 + below(3) : 200;
    Tokens text(size);
    for (std::size_t i = 0; i < size; ++i) {
      std::uint32_t hash = document * 0x9E3779B9U + (begin + static_cast<std::uint32_t>(i)) % unit;
      hash = (hash ^ hash >> 16) * 0x7FEB352DU;
      hash ^= hash >> 15;
      if (kind == 1 || one_in(32)) hash = below(kVocabSize);
      text[i] = static_cast<TokenId>(hash % static_cast<std::uint32_t>(kVocabSize));
    }
    return text;
  }

  // After a call that may have sealed (in `fed` only) and evicted.
  void follow(const std::string* fed) {
    const SuffixIndexStats stats = index_.stats();
    const std::int64_t evicted = stats.evicted_tokens - evicted_;
    evicted_ = stats.evicted_tokens;
    model_.follow(fed, stats.num_generations, evicted);
    if (evicted == 0) return;
    ++coverage_.evictions;
    expect(stats.num_bytes * 2 >= static_cast<std::int64_t>(index_.options().max_bytes) ||
               index_.options().background,
           "evicted down to " + std::to_string(stats.num_bytes) + " bytes");
  }

  void start_one() {
    if (model_.requests().size() >= options_.max_requests) return finish_one();
    const std::string space = pick_space();
    Tokens prediction;
    if (one_in(4)) prediction = random_text(below(50));
    SuffixRequest request;
    request.id = next_id_++;
    if (next_id_ > 4 && one_in(4)) request.id = below(static_cast<std::uint32_t>(next_id_) - 1);
    request.num_prompt_tokens = one_in(4) ? 0 : below(100);
    request.name_space = space;
    request.share_output = !one_in(4);
    request.prediction = prediction;
    if (model_.is_active(request.id) || model_.is_remembered(request.id)) {
      return refuse("start", [&] { index_.start_request(request); });
    }
    index_.start_request(request);
    model_.start(request);
  }

  void finish_one() {
    if (model_.requests().empty()) return;
    const RequestId id = pick_active();
    index_.finish_request(id);
    model_.finish(id);
    follow(nullptr);
  }

  void forget_one() {
    const RequestId id = below(static_cast<std::uint32_t>(next_id_) + 1);
    if (model_.would_empty_a_generation(id)) return;
    const bool found = index_.forget(id);
    expect(model_.forget(id) == found, "forget found " + std::to_string(found));
    follow(nullptr);
    coverage_.forgotten += found ? 1 : 0;
  }

  void clear_one() {
    const std::string space = pick_space();
    index_.clear(space);
    model_.clear(space);
    evicted_ = index_.stats().evicted_tokens;
    ++coverage_.clears;
    expect(index_.lookup(random_text(5), space).match_length == 0, "something left by clear");
  }

  void preload_one() {
    const std::string space = pick_space();
    const Tokens text = random_text(below(options_.max_sequence + 1));
    preload(index_, text, space);
    model_.preload(space, text);
    follow(&space);
  }

  // Slices of requests of one namespace, with and without what is known already.
  void feed_some() {
    const std::string space = model_.requests().at(pick_active()).space;
    std::vector<RequestId> ids;
    std::vector<std::int64_t> positions;
    std::vector<std::int64_t> offsets{0};
    Tokens tokens;
    for (const auto& [id, request] : model_.requests()) {
      if (request.space != space || one_in(4)) continue;
      const auto known = static_cast<std::uint32_t>(request.text.size());
      const std::uint32_t back = one_in(2) ? 0 : std::min(known, below(12));
      Tokens slice(request.text.end() - static_cast<std::ptrdiff_t>(back), request.text.end());
      if (back > 0 && one_in(4)) {
        slice.resize(below(back + 1));
        ++coverage_.repeats;
      } else {
        const Tokens fresh = next_of(request);
        slice.insert(slice.end(), fresh.begin(), fresh.end());
      }
      ids.push_back(id);
      positions.push_back(known - back);
      tokens.insert(tokens.end(), slice.begin(), slice.end());
      offsets.push_back(static_cast<std::int64_t>(tokens.size()));
    }
    index_.update({ids, positions, offsets, tokens});
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t end = positions[i] + offsets[i + 1] - offsets[i];
      const auto known = static_cast<std::int64_t>(model_.requests().at(ids[i]).text.size());
      const std::int64_t fresh = std::max<std::int64_t>(end - known, 0);
      model_.feed(ids[i],
                  std::span(tokens).subspan(static_cast<std::size_t>(offsets[i + 1] - fresh),
                                            static_cast<std::size_t>(fresh)));
      expect(index_.num_tokens(ids[i]) == known + fresh, "num_tokens after an update");
    }
    follow(&space);
  }

  // Sometimes what was drafted last, so that there is something to learn.
  Tokens next_of(const ModelRequest& request) {
    Tokens fresh = random_text(one_in(3) ? 1 : below(options_.max_slice + 1));
    if (request.text.empty() || !one_in(2)) return fresh;
    TokenId last = request.text.back();
    for (TokenId& token : fresh) {
      const SuffixLookup found = index_.lookup(std::span(&last, 1), request.space);
      if (found.best_token < 0 || one_in(6)) break;
      last = token = found.best_token;
    }
    return fresh;
  }

  void draft_some() {
    std::vector<RequestId> ids;
    for (const auto& [id, request] : model_.requests()) {
      if (!one_in(4)) ids.push_back(id);
    }
    SuffixDraftOptions options;
    options.max_tokens = 1 + static_cast<std::int32_t>(below(one_in(8) ? kMaxTreeNodes : 20));
    options.tree_width = 1 + static_cast<std::int32_t>(below(4));
    options.min_survival = static_cast<float>(below(11)) / 20.0F;
    std::vector<std::int32_t> max_tokens;
    if (one_in(2)) {
      for (std::size_t i = 0; i < ids.size(); ++i) {
        max_tokens.push_back(
            static_cast<std::int32_t>(below(static_cast<std::uint32_t>(options.max_tokens) + 1)));
      }
    }
    const DraftBuffers drafts = draft(index_, ids, options, max_tokens);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      check_draft(model_.requests().at(ids[i]), drafts, i, options,
                  max_tokens.empty() ? options.max_tokens : max_tokens[i]);
    }
    if (!index_.options().background) {
      expect(draft(index_, ids, options, max_tokens) == drafts, "drafting again gives others");
    }
  }

  void check_draft(const ModelRequest& request, const DraftBuffers& drafts, std::size_t row,
                   const SuffixDraftOptions& options, std::int32_t wanted) {
    ++coverage_.drafts;
    expect(drafts.lengths[row] >= 0 && drafts.lengths[row] <= wanted, "more drafted than wanted");
    const TokenTree tree = drafts.tree(row);
    const std::string fault = tree.validate(kVocabSize, wanted, std::max(wanted, 1));
    expect(fault.empty(), fault);
    for (std::int32_t i = 0; i < tree.size(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::int32_t parent = tree.parents[at];
      ++coverage_.drafted_nodes;
      expect(tree.survival[at] >= options.min_survival, "a node survives too rarely");
      expect(i == 0 || tree.survival[at] <= tree.survival[at - 1], "not in the order of survival");
      expect(std::count(tree.parents.begin(), tree.parents.end(), parent) <= options.tree_width,
             "too many children");
      expect(tree.find_child(parent, tree.tokens[at]) == i, "a token twice under one node");
      const TokenId before =
          parent < 0 ? request.text.back() : tree.tokens[static_cast<std::size_t>(parent)];
      const auto context = std::span(&before, 1);
      expect(request.local.next_count(context, tree.tokens[at]) > 0 ||
                 model_.counts(request.space).next_count(context, tree.tokens[at]) > 0,
             "drafted a token that never followed the one before it");
    }
    check_match(request, drafts.match_lengths[row]);
  }

  void check_match(const ModelRequest& request, std::int32_t match) {
    expect(match >= 0 && match <= static_cast<std::int32_t>(request.text.size()),
           "match of " + std::to_string(match) + " tokens");
    if (match > 8) ++coverage_.long_matches;
    const auto context =
        std::span(request.text).last(std::min(static_cast<std::size_t>(match), kMaxContext));
    if (context.empty()) return;
    expect(request.local.count(context) > 1 || model_.counts(request.space).count(context) > 0,
           "a match of " + std::to_string(match) + " tokens that nobody knows");
  }

  void look_up_one() {
    const std::string space = pick_space();
    Tokens context = random_text(1 + below(kMaxContext));
    if (!model_.requests().empty() && one_in(3)) {
      const Tokens& text = model_.requests().at(pick_active()).text;
      const auto size = std::min<std::size_t>(text.size(), context.size());
      context.assign(text.end() - static_cast<std::ptrdiff_t>(size), text.end());
    }
    ++coverage_.lookups;
    model_.check(index_.lookup(context, space), context, space);
  }

  template <class Call>
  void refuse(const char* name, Call&& call) {
    const SuffixIndexStats before = index_.stats();
    bool is_refused = false;
    try {
      call();
    } catch (const std::invalid_argument&) {
      is_refused = true;
    }
    expect(is_refused, std::string(name) + " was not refused");
    expect(index_.options().background || index_.stats() == before,
           std::string(name) + " was refused and changed something");
    ++coverage_.refused;
  }

  void misuse() {
    const RequestId nobody = next_id_ + 5;
    const Tokens outside{0, kVocabSize};
    switch (below(6)) {
      case 0:
        return refuse("finish", [&] { index_.finish_request(nobody); });
      case 1:
        return refuse("draft", [&] { (void)draft(index_, {nobody}); });
      case 2:
        return refuse("preload", [&] { preload(index_, outside, "never seen"); });
      case 3:
        return refuse("lookup", [&] { (void)index_.lookup(outside); });
      default:
        if (model_.requests().empty()) return;
    }
    const RequestId id = pick_active();
    const Tokens& text = model_.requests().at(id).text;
    const auto known = static_cast<std::int64_t>(text.size());
    if (text.empty() || one_in(2)) {
      return refuse("a gap", [&] { feed(index_, id, known + 1, std::span(outside).first(1)); });
    }
    const std::array<TokenId, 3> other{(text.back() + 1) % kVocabSize, 1, 2};
    refuse("another token", [&] { feed(index_, id, known - 1, other); });
  }

  void check_stats() {
    const SuffixIndexStats stats = index_.stats();
    const auto same = [](const char* field, std::int64_t got, std::int64_t wanted) {
      expect(got == wanted,
             std::string(field) + " is " + std::to_string(got) + ", not " + std::to_string(wanted));
    };
    same("num_tokens", stats.num_tokens, model_.num_tokens());
    same("num_generations", stats.num_generations, model_.num_generations());
    same("num_namespaces", stats.num_namespaces, static_cast<std::int64_t>(model_.num_spaces()));
    same("num_requests", stats.num_requests, static_cast<std::int64_t>(model_.requests().size()));
    expect(stats.num_bytes <= static_cast<std::int64_t>(index_.options().max_bytes),
           "num_bytes is " + std::to_string(stats.num_bytes));
    expect(stats.accepted_tokens <= stats.drafted_tokens && stats.expected_tokens >= 0 &&
               stats.expected_tokens <= static_cast<double>(stats.drafted_tokens),
           "more accepted or expected than drafted");
    const bool is_settled = index_.options().freeze && !index_.options().background;
    if (is_settled) same("frozen_tokens", stats.frozen_tokens, model_.num_tokens(true));
    if (!index_.options().freeze) same("frozen_tokens", stats.frozen_tokens, 0);
  }

  SuffixIndex& index_;
  Source source_;
  DriverOptions options_;
  IndexModel model_;
  RequestId next_id_ = 0;
  std::int64_t evicted_ = 0;
  Coverage coverage_;
};

}  // namespace smartspec::suffix_test
