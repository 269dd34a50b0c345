// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The suffix index: drafts what followed the same context in the request's own text and in past
// outputs, each drafted token with a calibrated probability. Stands alone: a server feeds it tokens
// and takes drafts, without the engine.
//
// SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975) drafts from suffix trees over past outputs;
// here the index is an online generalised suffix automaton, one per request over its prompt and
// output, and one over the outputs of all requests of a namespace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/token_tree.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

struct SuffixIndexOptions {
  std::int32_t vocab_size = 0;  // token ids are below it; 0: any id from 0 on
  // Shared history of all namespaces together; the oldest generation goes when it is exceeded.
  // Requests' own text comes on top, about 62 bytes per token, until they finish.
  std::size_t max_bytes = std::size_t{1} << 30;  // >= 1 MiB
  // A generation that has grown to this is frozen (8 bytes per token in place of 58) and a new one
  // begun; 0: a quarter of max_bytes, which is also the largest allowed. Outputs that run
  // meanwhile, and texts of more than 1024 tokens, may be cut there.
  std::size_t generation_bytes = 0;
  bool freeze = true;      // false: old generations stay as they are until they are evicted
  bool background = true;  // freeze on a thread of the index; false: inside the call that fills it
  std::string tokenizer_hash;  // at most 64 bytes, written to files; another's file is refused
};

struct SuffixRequest {
  RequestId id = 0;                    // unique among active and remembered requests
  std::int64_t num_prompt_tokens = 0;  // the first tokens fed; they are never shared
  std::string_view name_space;         // nothing crosses namespaces
  bool share_output = true;            // its output becomes history for others as it grows
  // Text the output may resemble (OpenAI's `prediction`); indexed for this request only.
  std::span<const TokenId> prediction;
};

/// New tokens of a batch. Keyed by position: what is known already is compared and skipped, so a
/// step may be repeated, and a request may sit out any number of steps.
struct SuffixUpdate {
  std::span<const RequestId> ids;           // [B], distinct
  std::span<const std::int64_t> positions;  // [B], of each first token in its prompt and output
  std::span<const std::int64_t> offsets;    // [B + 1] into tokens, ascending from 0
  std::span<const TokenId> tokens;          // verified tokens only
};

struct SuffixDraftOptions {
  std::int32_t max_tokens = 16;  // [1, kMaxTreeNodes], per request
  // A node is drafted while the probability that its whole path is accepted is at least this.
  float min_survival = 0.1F;    // [0, 1]
  std::int32_t tree_width = 1;  // [1, 4] children of one node; 1: chains
};

/// Caller-owned outputs, row-major; K = options.max_tokens.
struct SuffixDrafts {
  std::span<TokenId> tokens;              // [B, K]
  std::span<std::int32_t> parents;        // [B, K], -1: child of the last token
  std::span<float> survival;              // [B, K], P(whole path to this node is accepted)
  std::span<std::int32_t> lengths;        // [B], nodes drafted
  std::span<std::int32_t> match_lengths;  // [B] or empty: tokens of context known to some source
};

/// What the shared history of a namespace knows of a context.
struct SuffixLookup {
  std::int32_t match_length = 0;  // its longest suffix that occurs; the rest is about that suffix
  std::int64_t count = 0;         // occurrences
  TokenId best_token = -1;        // most frequent continuation, any of equals; -1: none
  std::int64_t best_count = 0;    // its occurrences
};

struct SuffixIndexStats {
  std::int64_t num_tokens = 0;  // of shared history
  std::int64_t num_bytes = 0;   // it takes, at most max_bytes
  std::int64_t frozen_tokens = 0;
  std::int64_t frozen_bytes = 0;
  std::int32_t num_generations = 0;
  std::int32_t num_namespaces = 0;
  std::int32_t num_requests = 0;     // active
  std::int64_t request_bytes = 0;    // their own text and index
  std::int64_t evicted_tokens = 0;   // dropped to stay within max_bytes, or by clear()
  std::int64_t drafted_tokens = 0;   // of drafts followed up by later tokens
  std::int64_t accepted_tokens = 0;  // of those, equal to the text that came
  double expected_tokens = 0;        // sum of their claimed survivals
};

/// Thread safety: many readers, one writer. draft(), lookup() and stats() run side by side, also
/// beside one of the others; the others wait for each other. Two drafts of one request wait for
/// each other. Indexing a prompt does not stop drafts of other requests.
/// Errors: bad input throws std::invalid_argument naming field, value and what is allowed, and
/// changes nothing, for no request of the batch.
class SMARTSPEC_API SuffixIndex {
 public:
  explicit SuffixIndex(const SuffixIndexOptions& options = {});
  ~SuffixIndex();
  SuffixIndex(const SuffixIndex&) = delete;
  SuffixIndex& operator=(const SuffixIndex&) = delete;

  [[nodiscard]] const SuffixIndexOptions& options() const noexcept;

  void start_request(const SuffixRequest& request);
  /// Drops the request's own text; its output stays in the history. O(output).
  void finish_request(RequestId id);
  /// The tokens known of an active request: the position an update may start at, at most.
  [[nodiscard]] std::int64_t num_tokens(RequestId id) const;
  [[nodiscard]] bool is_active(RequestId id) const;

  /// Feeds new tokens, and learns from them how good the last drafts were. A long prompt may be fed
  /// in slices. Amortised O(1) per token.
  void update(const SuffixUpdate& batch);

  /// Drafts for `ids` (distinct, active) from what update() was fed. `max_tokens`: per request, in
  /// [0, options.max_tokens], or empty for options.max_tokens each. Never touches other outputs'
  /// rows. Does not allocate once a request has drafted before and no generation was sealed since.
  void draft(std::span<const RequestId> ids, std::span<const std::int32_t> max_tokens,
             const SuffixDraftOptions& options, const SuffixDrafts& out) const;

  /// Adds finished texts: CSR as in SuffixUpdate.
  void preload(std::span<const std::int64_t> offsets, std::span<const TokenId> tokens,
               std::string_view name_space = {});

  /// Takes a request's output out of the history, whether it is active or finished; false: nothing
  /// of it is there (never shared, evicted, or from a file). An active one is no longer shared.
  bool forget(RequestId id);
  /// Drops all history of a namespace, and what was learnt in it. A namespace without active
  /// requests is gone then; until it is cleared it costs 76 KiB beside its history.
  void clear(std::string_view name_space = {});

  /// The shared history only. O(size of context + number of continuations), settles counts first.
  [[nodiscard]] SuffixLookup lookup(std::span<const TokenId> context,
                                    std::string_view name_space = {}) const;
  [[nodiscard]] SuffixIndexStats stats() const;

  /// Returns when no generation is waiting to be frozen.
  void wait() const;

  /// Writes history and calibration of all namespaces, atomically: a failed save leaves an older
  /// file as it was. Drafts go on meanwhile; updates wait, though not for the disk. Forgotten text
  /// is not in the file. Throws Error with path and reason.
  void save(const std::string& path) const;
  /// Replaces history and calibration by a file's; active requests go on with their own text, and
  /// the file's outputs belong to nobody. Frozen text is mapped: the file may be replaced, but must
  /// not be changed in place. Throws FormatError when the file is truncated, corrupted, of another
  /// version, vocabulary size or tokenizer (what the options leave open is not compared), Error
  /// when it cannot be read, and changes nothing then.
  void load(const std::string& path);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
