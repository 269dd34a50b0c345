// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/suffix_proposer.hpp"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <iterator>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace smartspec {
namespace {

constexpr std::int32_t kMaxSuffixTreeWidth = 4;

/// Request ids are unique within one engine only; an index may serve several. Process-wide, and far
/// from what a server that feeds the same index by hand would count to.
RequestId next_index_id() {
  static std::atomic<RequestId> next{kFirstSuffixProposerId};
  return next.fetch_add(1, std::memory_order_relaxed);
}

/// What the index was told of one request.
struct Entry {
  RequestId index_id = -1;      // -1: not started
  std::int64_t num_known = 0;   // tokens the index has; -1: a failed call left that open
  TokenId newest = -1;          // the last of them
  std::int32_t num_prompt = 0;  // as at the start
};

/// Another text under the same id. A request's own text only grows, so its newest known token
/// tells.
bool is_other_text(const Entry& entry, const ProposeRequest& request) {
  const auto num_tokens = static_cast<std::int64_t>(request.tokens.size());
  if (entry.num_prompt != request.num_prompt_tokens || num_tokens < entry.num_known) return true;
  return entry.num_known > 0 &&
         request.tokens[static_cast<std::size_t>(entry.num_known - 1)] != entry.newest;
}

std::shared_ptr<SuffixIndex> not_null(std::shared_ptr<SuffixIndex> index) {
  if (index == nullptr) throw std::invalid_argument("suffix index must not be null");
  return index;
}

}  // namespace

struct SuffixProposer::Impl {
  Impl(std::shared_ptr<SuffixIndex> shared_index, const SuffixProposerOptions& proposer_options)
      : index(not_null(std::move(shared_index))), options(proposer_options) {}

  std::shared_ptr<SuffixIndex> index;
  SuffixProposerOptions options;
  std::unordered_map<RequestId, Entry> entries;

  // Scratch of one call; capacity is kept.
  std::vector<Entry*> fed;  // [update_ids]
  std::vector<RequestId> update_ids;
  std::vector<std::int64_t> positions, offsets;
  std::vector<TokenId> new_tokens;
  std::vector<RequestId> draft_ids;
  std::vector<std::int32_t> max_tokens, lengths, parents, nodes;
  std::vector<TokenId> tokens;
  std::vector<float> survival;

  void start(Entry& entry, const ProposeRequest& request) const;
  void drop(Entry& entry) const;
  Entry& sync(const ProposeRequest& request);
  void begin_feeding();
  RequestId feed(const ProposeRequest& request);
  void finish_feeding();
  [[nodiscard]] std::int32_t num_wanted(const ProposeRequest& request) const;
  void copy_row(std::size_t row, std::size_t width, const ProposeRequest& request, TokenTree& tree);
};

void SuffixProposer::Impl::start(Entry& entry, const ProposeRequest& request) const {
  char name[24];
  const char* end = name;
  if (request.cache_salt != 0) {
    end = std::to_chars(std::begin(name), std::end(name), request.cache_salt).ptr;
  }
  const RequestId id = next_index_id();
  index->start_request({.id = id,
                        .num_prompt_tokens = request.num_prompt_tokens,
                        .name_space = std::string_view(name, static_cast<std::size_t>(end - name)),
                        .share_output = true,
                        .prediction = request.prediction});
  entry = {.index_id = id, .num_known = 0, .newest = -1, .num_prompt = request.num_prompt_tokens};
}

void SuffixProposer::Impl::drop(Entry& entry) const {
  const RequestId id = entry.index_id;
  entry.index_id = -1;
  if (id >= 0 && index->is_active(id)) index->finish_request(id);
}

Entry& SuffixProposer::Impl::sync(const ProposeRequest& request) {
  Entry& entry = entries[request.id];
  if (entry.num_known < 0) {
    if (index->is_active(entry.index_id)) {
      // What it knows beyond `newest` was this request's text as well: updates are compared.
      entry.num_known = index->num_tokens(entry.index_id);
      const auto num_tokens = static_cast<std::int64_t>(request.tokens.size());
      if (entry.num_known > 0 && entry.num_known <= num_tokens) {
        entry.newest = request.tokens[static_cast<std::size_t>(entry.num_known - 1)];
      }
    } else {
      entry.index_id = -1;
    }
  }
  if (entry.index_id >= 0 && is_other_text(entry, request)) drop(entry);
  if (entry.index_id < 0) start(entry, request);
  return entry;
}

void SuffixProposer::Impl::begin_feeding() {
  fed.clear();
  update_ids.clear();
  positions.clear();
  new_tokens.clear();
  offsets.assign(1, 0);
}

/// Lines up what the index does not know yet; returns the request's id in the index.
RequestId SuffixProposer::Impl::feed(const ProposeRequest& request) {
  Entry& entry = sync(request);
  const auto num_tokens = static_cast<std::int64_t>(request.tokens.size());
  if (num_tokens > entry.num_known) {
    const auto fresh = request.tokens.subspan(static_cast<std::size_t>(entry.num_known));
    fed.push_back(&entry);
    update_ids.push_back(entry.index_id);
    positions.push_back(entry.num_known);
    new_tokens.insert(new_tokens.end(), fresh.begin(), fresh.end());
    offsets.push_back(static_cast<std::int64_t>(new_tokens.size()));
  }
  return entry.index_id;
}

void SuffixProposer::Impl::finish_feeding() {
  if (fed.empty()) return;
  try {
    index->update(
        {.ids = update_ids, .positions = positions, .offsets = offsets, .tokens = new_tokens});
  } catch (...) {
    for (Entry* entry : fed) entry->num_known = -1;
    throw;
  }
  for (std::size_t i = 0; i < fed.size(); ++i) {
    fed[i]->num_known = positions[i] + offsets[i + 1] - offsets[i];
    fed[i]->newest = new_tokens[static_cast<std::size_t>(offsets[i + 1] - 1)];
  }
}

std::int32_t SuffixProposer::Impl::num_wanted(const ProposeRequest& request) const {
  const std::int32_t depth = std::min(request.max_depth, kMaxTreeNodes);
  return std::clamp(depth * options.tree_width, 1, std::clamp(request.max_nodes, 1, kMaxTreeNodes));
}

void SuffixProposer::Impl::copy_row(std::size_t row, std::size_t width,
                                    const ProposeRequest& request, TokenTree& tree) {
  const auto length = static_cast<std::size_t>(lengths[row]);
  nodes.resize(std::max(nodes.size(), length));
  for (std::size_t i = 0; i < length; ++i) {
    const std::size_t at = row * width + i;
    const std::int32_t parent = parents[at] < 0 ? -1 : nodes[static_cast<std::size_t>(parents[at])];
    const bool has_parent = parents[at] < 0 || parent >= 0;
    const std::int32_t depth = parent < 0 ? 0 : tree.depths[static_cast<std::size_t>(parent)] + 1;
    // The index knows no depth limit: best-first trees may run deeper than the request can use.
    nodes[i] =
        has_parent && depth < request.max_depth ? tree.add(tokens[at], parent, survival[at]) : -1;
  }
}

SuffixProposer::SuffixProposer(std::shared_ptr<SuffixIndex> index,
                               const SuffixProposerOptions& options)
    : impl_(std::make_unique<Impl>(std::move(index), options)) {
  if (!(options.min_survival >= 0.0F && options.min_survival <= 1.0F)) {
    throw std::invalid_argument("min_survival must be in [0, 1], got " +
                                std::to_string(options.min_survival));
  }
  if (options.tree_width < 1 || options.tree_width > kMaxSuffixTreeWidth) {
    throw std::invalid_argument("tree_width must be in [1, " + std::to_string(kMaxSuffixTreeWidth) +
                                "], got " + std::to_string(options.tree_width));
  }
}

SuffixProposer::~SuffixProposer() {
  for (auto& [id, entry] : impl_->entries) {
    try {
      impl_->drop(entry);
    } catch (const std::exception&) {  // only memory: its text stays in the index until that goes
    }
  }
}

std::string_view SuffixProposer::name() const { return "suffix"; }

const std::shared_ptr<SuffixIndex>& SuffixProposer::index() const noexcept { return impl_->index; }

void SuffixProposer::propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) {
  if (requests.empty()) return;
  Impl& impl = *impl_;
  impl.begin_feeding();
  impl.draft_ids.clear();
  impl.max_tokens.clear();
  for (const ProposeRequest& request : requests) {
    impl.draft_ids.push_back(impl.feed(request));
    impl.max_tokens.push_back(impl.num_wanted(request));
  }
  impl.finish_feeding();

  const std::int32_t width = *std::max_element(impl.max_tokens.begin(), impl.max_tokens.end());
  const std::size_t size = requests.size() * static_cast<std::size_t>(width);
  impl.tokens.resize(size);
  impl.parents.resize(size);
  impl.survival.resize(size);
  impl.lengths.resize(requests.size());
  impl.index->draft(impl.draft_ids, impl.max_tokens,
                    {.max_tokens = width,
                     .min_survival = impl.options.min_survival,
                     .tree_width = impl.options.tree_width},
                    {.tokens = impl.tokens,
                     .parents = impl.parents,
                     .survival = impl.survival,
                     .lengths = impl.lengths,
                     .match_lengths = {}});
  for (std::size_t i = 0; i < requests.size(); ++i) {
    impl.copy_row(i, static_cast<std::size_t>(width), requests[i], trees[i]);
  }
}

void SuffixProposer::observe(std::span<const Outcome> outcomes) {
  Impl& impl = *impl_;
  impl.begin_feeding();
  for (const Outcome& outcome : outcomes) {
    // Without its text the position of the tokens is unknown; the next propose() catches up.
    if (outcome.request != nullptr) impl.feed(*outcome.request);
  }
  impl.finish_feeding();
}

void SuffixProposer::finish(RequestId id) {
  const auto entry = impl_->entries.find(id);
  if (entry == impl_->entries.end()) return;
  Entry ended = entry->second;
  impl_->entries.erase(entry);
  impl_->drop(ended);
}

}  // namespace smartspec
