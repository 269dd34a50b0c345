// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the suffix index costs: memory per token of history, appends, a step of 256 requests with
// warm and cold caches, single drafts, a long prompt, a warm start, pathological texts. Beside them
// the machine's random memory access, one at a time and 16 in flight, which bounds a cold step.
//
//   bench_suffix [--tokens 3000000] [--data DIR] [--vocab 8192]
//
// DIR: workloads exported by bench/python/suffix_workloads.py (train.bin, held.bin, edit.bin,
// reask.bin). Without it a synthetic text that repeats itself as code does.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "smartspec/suffix_index.hpp"

namespace {

using namespace smartspec;
using Tokens = std::vector<TokenId>;

constexpr std::int32_t kMaxTokens = 16;
constexpr std::size_t kBatch = 256;

struct Dialogue {
  Tokens prompt;
  Tokens response;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string argument(int argc, char** argv, const std::string& name, const std::string& fallback) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == "--" + name) return argv[i + 1];
  }
  return fallback;
}

double percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(p * static_cast<double>(values.size() - 1))];
}

std::vector<Dialogue> read_dialogues(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const auto read = [&](std::size_t count) {
    Tokens tokens(count);
    file.read(reinterpret_cast<char*>(tokens.data()),
              static_cast<std::streamsize>(count * sizeof(TokenId)));
    return tokens;
  };
  std::vector<Dialogue> dialogues(static_cast<std::size_t>(file ? read(1)[0] : 0));
  for (Dialogue& dialogue : dialogues) {
    const Tokens sizes = read(2);
    dialogue.prompt = read(static_cast<std::size_t>(sizes[0]));
    dialogue.response = read(static_cast<std::size_t>(sizes[1]));
  }
  return dialogues;
}

/// Zipf-like tokens among which earlier stretches come back.
Tokens synthetic(std::mt19937& random, std::size_t size, std::int32_t vocab_size,
                 const Tokens& source) {
  Tokens tokens;
  std::uniform_real_distribution<double> uniform(0, 1);
  while (tokens.size() < size) {
    const Tokens& from = source.empty() || random() % 2 == 0 ? tokens : source;
    const std::size_t length = 2 + random() % 24;
    if (from.size() > 100 && uniform(random) < 0.6) {
      const std::size_t begin = random() % (from.size() - 50);
      for (std::size_t i = 0; i < length; ++i) tokens.push_back(from[begin + i]);
    } else {
      const double rank = std::pow(static_cast<double>(vocab_size), uniform(random));
      tokens.push_back(static_cast<TokenId>(rank) % vocab_size);
    }
  }
  tokens.resize(size);
  return tokens;
}

struct Workload {
  Tokens history;
  std::vector<std::int64_t> offsets{0};
  std::vector<Dialogue> dialogues;
};

Workload make_workload(const std::string& directory, std::size_t num_tokens,
                       std::int32_t vocab_size) {
  Workload workload;
  const auto add = [&](const Tokens& sequence) {
    workload.history.insert(workload.history.end(), sequence.begin(), sequence.end());
    workload.offsets.push_back(static_cast<std::int64_t>(workload.history.size()));
  };
  if (!directory.empty()) {
    for (const Dialogue& dialogue : read_dialogues(directory + "/train.bin")) {
      if (workload.history.size() < num_tokens) add(dialogue.response);
    }
    for (const char* name : {"/held.bin", "/edit.bin", "/reask.bin"}) {
      for (Dialogue& dialogue : read_dialogues(directory + name)) {
        if (dialogue.response.size() < 300) continue;
        dialogue.prompt.resize(std::min<std::size_t>(dialogue.prompt.size(), 6000));
        workload.dialogues.push_back(std::move(dialogue));
      }
    }
  } else {
    std::mt19937 random(1);
    while (workload.history.size() < num_tokens) {
      add(synthetic(random, 1400, vocab_size, workload.history));
    }
    while (workload.dialogues.size() < kBatch) {
      workload.dialogues.push_back({synthetic(random, 1000, vocab_size, workload.history),
                                    synthetic(random, 1000, vocab_size, workload.history)});
    }
  }
  if (workload.history.empty() || workload.dialogues.empty()) {
    std::fprintf(stderr, "no workload in %s\n", directory.c_str());
    std::exit(1);
  }
  return workload;
}

void preload(SuffixIndex& index, const Workload& workload) {
  index.preload(workload.offsets, workload.history);
}

void update(SuffixIndex& index, RequestId id, std::int64_t position,
            std::span<const TokenId> tokens) {
  const std::int64_t offsets[] = {0, static_cast<std::int64_t>(tokens.size())};
  index.update({{&id, 1}, {&position, 1}, offsets, tokens});
}

/// Running requests that are fed their true continuation step by step.
class Batch {
 public:
  Batch(SuffixIndex& index, const std::vector<Dialogue>& dialogues, std::size_t size)
      : index_(index) {
    const std::size_t cells = size * static_cast<std::size_t>(kMaxTokens);
    tokens_.resize(cells);
    parents_.resize(cells);
    survival_.resize(cells);
    lengths_.resize(size);
    match_lengths_.resize(size);
    for (std::size_t i = 0; i < size; ++i) {
      const Dialogue& dialogue = dialogues[i % dialogues.size()];
      texts_.push_back(dialogue.prompt);
      texts_.back().insert(texts_.back().end(), dialogue.response.begin(), dialogue.response.end());
      fed_.push_back(static_cast<std::int64_t>(dialogue.prompt.size()));
      ids_.push_back(static_cast<RequestId>(i));
      SuffixRequest request;
      request.id = ids_[i];
      request.num_prompt_tokens = fed_[i];
      index_.start_request(request);
      feed_prompt(i);
    }
  }
  ~Batch() {
    for (const RequestId id : ids_) {
      index_.finish_request(id);
      index_.forget(id);
    }
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  /// The next three tokens of every request.
  void collect() {
    positions_ = fed_;
    offsets_.assign(1, 0);
    new_tokens_.clear();
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      for (int k = 0; k < 3 && fed_[i] < static_cast<std::int64_t>(texts_[i].size()); ++k) {
        new_tokens_.push_back(texts_[i][static_cast<std::size_t>(fed_[i]++)]);
      }
      offsets_.push_back(static_cast<std::int64_t>(new_tokens_.size()));
    }
  }
  void update_all() { index_.update({ids_, positions_, offsets_, new_tokens_}); }
  void draft_all() {
    SuffixDraftOptions options;
    options.max_tokens = kMaxTokens;
    index_.draft(ids_, {}, options, {tokens_, parents_, survival_, lengths_, match_lengths_});
  }
  void draft_one(std::size_t i) {
    SuffixDraftOptions options;
    options.max_tokens = kMaxTokens;
    index_.draft(
        {&ids_[i], 1}, {}, options,
        {row(tokens_), row(parents_), row(survival_), {&lengths_[i], 1}, {&match_lengths_[i], 1}});
  }
  [[nodiscard]] std::size_t size() const { return ids_.size(); }
  [[nodiscard]] std::int32_t match_length(std::size_t i) const { return match_lengths_[i]; }
  [[nodiscard]] double mean_drafted() const {
    return static_cast<double>(std::accumulate(lengths_.begin(), lengths_.end(), 0)) /
           static_cast<double>(lengths_.size());
  }

 private:
  template <class T>
  std::span<T> row(std::vector<T>& cells) {
    return std::span(cells).first(static_cast<std::size_t>(kMaxTokens));
  }
  void feed_prompt(std::size_t i) {
    update(index_, ids_[i], 0, std::span(texts_[i]).first(static_cast<std::size_t>(fed_[i])));
  }

  SuffixIndex& index_;
  std::vector<Tokens> texts_;
  std::vector<RequestId> ids_;
  std::vector<std::int64_t> fed_, positions_, offsets_;
  Tokens new_tokens_, tokens_;
  std::vector<std::int32_t> parents_, lengths_, match_lengths_;
  std::vector<float> survival_;
};

void evict_caches() {
  static std::vector<char> trash(std::size_t{256} << 20, 1);
  for (std::size_t i = 0; i < trash.size(); i += 64) trash[i] = static_cast<char>(trash[i] + 1);
}

void memory_access() {
  constexpr std::size_t kSlots = std::size_t{1} << 24;  // of 64 bytes: far beyond any cache
  constexpr int kHops = 200'000;
  std::vector<std::uint32_t> next(kSlots * 16);
  std::vector<std::uint32_t> order(kSlots);
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  for (std::size_t i = 0; i < kSlots; ++i)
    next[std::size_t{order[i]} * 16] = order[(i + 1) % kSlots];
  for (const std::size_t chains : {1U, 16U}) {
    std::vector<std::uint32_t> at(order.begin(),
                                  order.begin() + static_cast<std::ptrdiff_t>(chains));
    for (std::size_t i = 0; i < chains; ++i) at[i] = order[i * (kSlots / chains)];
    const double begin = now();
    for (int hop = 0; hop < kHops; ++hop) {
      for (std::uint32_t& slot : at) slot = next[std::size_t{slot} * 16];
    }
    const double seconds = now() - begin;
    std::printf("random memory access, %2zu in flight   %8.1f ns each%s\n", chains,
                seconds / kHops / static_cast<double>(chains) * 1e9, at[0] == 1 ? " " : "");
  }
}

void history(const Workload& workload) {
  const auto tokens = static_cast<double>(workload.history.size());
  std::vector<double> seconds;
  SuffixIndexStats stats;
  for (int round = 0; round < 5; ++round) {
    SuffixIndexOptions options;
    options.max_bytes = std::size_t{2} << 30;
    SuffixIndex index(options);
    const double begin = now();
    preload(index, workload);
    seconds.push_back(now() - begin);
    stats = index.stats();
  }
  std::printf("append                               %8.2f M tokens/s\n",
              tokens / percentile(seconds, 0.5) / 1e6);
  std::printf("memory, live                         %8.1f bytes/token\n",
              static_cast<double>(stats.num_bytes) / tokens);
  SuffixIndexOptions options;
  options.max_bytes = std::size_t{2} << 30;
  options.generation_bytes = std::size_t{32} << 20;
  SuffixIndex index(options);
  preload(index, workload);
  index.wait();
  stats = index.stats();
  std::printf("memory, frozen (%.1f M tokens)        %8.2f bytes/token\n",
              static_cast<double>(stats.frozen_tokens) / 1e6,
              static_cast<double>(stats.frozen_bytes) / static_cast<double>(stats.frozen_tokens));
}

void steps(const Workload& workload, std::size_t generation_bytes, const char* name) {
  SuffixIndexOptions options;
  options.max_bytes = std::size_t{2} << 30;
  options.generation_bytes = generation_bytes;
  SuffixIndex index(options);
  preload(index, workload);
  index.wait();
  for (const bool is_cold : {false, true}) {
    Batch batch(index, workload.dialogues, kBatch);
    std::vector<double> updates, drafts, sums;
    double drafted = 0;
    for (int step = 0; step < 60; ++step) {
      batch.collect();
      if (is_cold) evict_caches();
      double begin = now();
      batch.update_all();
      updates.push_back((now() - begin) * 1e3);
      if (is_cold) evict_caches();
      begin = now();
      batch.draft_all();
      drafts.push_back((now() - begin) * 1e3);
      sums.push_back(updates.back() + drafts.back());
      drafted += batch.mean_drafted() / 60;
    }
    std::printf(
        "step of %zu, %s, %s     update %.3f + draft %.3f = %.3f ms (p99 %.3f), "
        "3 new and %.1f drafted tokens each\n",
        kBatch, name, is_cold ? "cold" : "warm", percentile(updates, 0.5), percentile(drafts, 0.5),
        percentile(sums, 0.5), percentile(sums, 0.99), drafted);
  }
}

void single_drafts(const Workload& workload) {
  SuffixIndexOptions options;
  options.max_bytes = std::size_t{2} << 30;
  SuffixIndex index(options);
  preload(index, workload);
  Batch batch(index, workload.dialogues, kBatch);
  struct Bucket {
    const char* name;
    std::int32_t limit;
    std::vector<double> us;
  };
  std::vector<Bucket> buckets{{"0-1", 1, {}},      {"2-3", 3, {}},    {"4-7", 7, {}},
                              {"8-15", 15, {}},    {"16-31", 31, {}}, {"32-63", 63, {}},
                              {"64-", 1 << 30, {}}};
  std::vector<double> all;
  for (int step = 0; step < 60; ++step) {
    batch.collect();
    batch.update_all();
    for (std::size_t i = 0; i < batch.size(); ++i) {
      batch.draft_one(i);  // warm: the last of three
      double us = 0;
      for (int k = 0; k < 2; ++k) {
        const double begin = now();
        batch.draft_one(i);
        us = (now() - begin) * 1e6;
      }
      all.push_back(us);
      for (Bucket& bucket : buckets) {
        if (batch.match_length(i) > bucket.limit) continue;
        bucket.us.push_back(us);
        break;
      }
    }
  }
  std::printf("single draft, warm                   p50 %.2f, p99 %.2f us\n", percentile(all, 0.5),
              percentile(all, 0.99));
  for (const Bucket& bucket : buckets) {
    if (bucket.us.empty()) continue;
    std::printf("  match length %-6s                p50 %.2f, p99 %.2f us (%zu)\n", bucket.name,
                percentile(bucket.us, 0.5), percentile(bucket.us, 0.99), bucket.us.size());
  }
}

void long_prompt(const Workload& workload) {
  constexpr std::size_t kPrompt = 128 * 1024;
  constexpr std::size_t kSlice = 8 * 1024;
  const Tokens prompt(workload.history.begin(),
                      workload.history.begin() +
                          static_cast<std::ptrdiff_t>(std::min(kPrompt, workload.history.size())));
  SuffixIndex index;
  std::vector<double> whole, drop, slice;
  for (RequestId id = 0; id < 40; ++id) {
    SuffixRequest request;
    request.id = id;
    request.num_prompt_tokens = static_cast<std::int64_t>(prompt.size());
    index.start_request(request);
    double begin = now();
    if (id % 2 == 0) {
      update(index, id, 0, prompt);
      whole.push_back((now() - begin) * 1e3);
    } else {
      for (std::size_t at = 0; at < prompt.size(); at += kSlice) {
        begin = now();
        update(index, id, static_cast<std::int64_t>(at),
               std::span(prompt).subspan(at, std::min(kSlice, prompt.size() - at)));
        slice.push_back((now() - begin) * 1e3);
      }
    }
    begin = now();
    index.finish_request(id);
    drop.push_back((now() - begin) * 1e3);
  }
  std::printf(
      "prompt of %zu tokens               index %.2f ms (in slices of 8k: longest %.2f), "
      "drop %.3f ms\n",
      prompt.size(), percentile(whole, 0.5), percentile(slice, 1.0), percentile(drop, 0.5));
}

void warm_start(const Workload& workload) {
  const auto path = (std::filesystem::temp_directory_path() / "bench_suffix.index").string();
  SuffixIndexOptions options;
  options.max_bytes = std::size_t{2} << 30;
  SuffixIndex index(options);
  preload(index, workload);
  double begin = now();
  index.save(path);
  const double save = now() - begin;
  std::vector<double> loads, first;
  for (int round = 0; round < 7; ++round) {
    SuffixIndex loaded(options);
    begin = now();
    loaded.load(path);
    loads.push_back((now() - begin) * 1e3);
    Batch batch(loaded, workload.dialogues, 16);
    batch.collect();
    begin = now();
    batch.update_all();
    batch.draft_all();
    first.push_back((now() - begin) * 1e3);
  }
  std::printf(
      "file of %.0f MB                       save %.0f ms, load %.1f ms, first step of 16 "
      "after it %.2f ms\n",
      static_cast<double>(std::filesystem::file_size(path)) / 1e6, save * 1e3,
      percentile(loads, 0.5), percentile(first, 0.5));
  std::filesystem::remove(path);
}

void pathological() {
  constexpr std::size_t kTokens = 1'000'000;
  Tokens fibonacci{0};
  for (Tokens before{1}; fibonacci.size() < kTokens;) {
    Tokens next = fibonacci;
    next.insert(next.end(), before.begin(), before.end());
    before = std::exchange(fibonacci, std::move(next));
  }
  Tokens distinct(kTokens);
  std::iota(distinct.begin(), distinct.end(), 0);
  const std::pair<const char*, Tokens> texts[] = {{"one token repeated", Tokens(kTokens, 7)},
                                                  {"Fibonacci", fibonacci},
                                                  {"all distinct", distinct}};
  for (const auto& [name, text] : texts) {
    SuffixIndexOptions options;
    options.max_bytes = std::size_t{2} << 30;
    SuffixIndex index(options);
    const std::int64_t offsets[] = {0, static_cast<std::int64_t>(text.size())};
    const double begin = now();
    index.preload(offsets, text);
    const double seconds = now() - begin;
    Batch batch(index,
                {{Tokens(text.begin(), text.begin() + 5000),
                  Tokens(text.begin() + 5000, text.begin() + 6000)}},
                1);
    std::vector<double> us;
    for (int step = 0; step < 200; ++step) {
      batch.collect();
      batch.update_all();
      const double start = now();
      batch.draft_one(0);
      us.push_back((now() - start) * 1e6);
    }
    std::printf("pathological: %-22s %8.2f M tokens/s, %.1f bytes/token, draft p99 %.2f us\n", name,
                static_cast<double>(text.size()) / seconds / 1e6,
                static_cast<double>(index.stats().num_bytes) / static_cast<double>(text.size()),
                percentile(us, 0.99));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string directory = argument(argc, argv, "data", "");
  const auto num_tokens =
      static_cast<std::size_t>(std::stoll(argument(argc, argv, "tokens", "3000000")));
  const Workload workload =
      make_workload(directory, num_tokens, std::stoi(argument(argc, argv, "vocab", "8192")));
  std::printf("%.2f M tokens of history in %zu sequences, %zu dialogues (%s), one thread\n",
              static_cast<double>(workload.history.size()) / 1e6, workload.offsets.size() - 1,
              workload.dialogues.size(), directory.empty() ? "synthetic" : "from files");
  memory_access();
  history(workload);
  steps(workload, 0, "all live");
  steps(workload, std::size_t{32} << 20, "mostly frozen");
  single_drafts(workload);
  long_prompt(workload);
  warm_start(workload);
  pathological();
  return 0;
}
