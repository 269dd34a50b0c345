// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/image.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include "propose/suffix/edge_table.hpp"

namespace smartspec::suffix {
namespace {

constexpr std::size_t kAhead = 16;  // states; links and edges are cache misses
constexpr Edge kFreeSlot{-1, 0};

class ImageBuilder {
 public:
  ImageBuilder(std::span<const State> states, std::span<const Edge> edges)
      : states_(states), edges_(edges) {
    ids_.extend(states.size());
    std::fill_n(ids_.data(), states.size(), kNoState);
    order_.reserve(states.size());
    image_.states.reserve(states.size());
    image_.edges.reserve(edges.size());
  }

  AutomatonImage run(std::uint32_t num_tokens) {
    give_ids();
    image_.states.extend(order_.size());
    for (std::size_t id = 0; id < order_.size(); ++id) {
      if (id + kAhead < order_.size()) prefetch(order_[id + kAhead]);
      copy(states_[order_[id]], image_.states[id]);
    }
    image_.summary.num_tokens = num_tokens;
    image_.summary.free_slots.fill(kNoSlots);
    return std::move(image_);
  }

 private:
  // A state's link right before it where it has none yet. Links of occurring states occur.
  void give_ids() {
    ids_[kRoot] = kRoot;
    order_.push_back(kRoot);
    for (std::size_t first = 1; first < states_.size(); ++first) {
      if (states_[first].count == 0) continue;
      path_.clear();
      auto id = static_cast<StateId>(first);
      for (; ids_[id] == kNoState; id = states_[id].link) path_.push_back(id);
      for (; !path_.empty(); path_.pop_back()) {
        ids_[path_.back()] = static_cast<StateId>(order_.size());
        order_.push_back(path_.back());
      }
    }
  }

  void prefetch(StateId old) const {
    const State& state = states_[old];
    if (state.best_to != kNoState) __builtin_prefetch(&ids_[state.best_to]);
    if (state.num_edges > 0) __builtin_prefetch(&edges_[state.edges]);
  }

  void copy(const State& old, State& state) {
    state = old;
    if (old.link != kNoState) state.link = ids_[old.link];
    if (old.best_token >= 0) state.best_to = ids_[old.best_to];
    if (state.best_to == kNoState) {  // the best one occurs if any does
      state.best_token = -1;
      state.best_count = 0;
    }
    state.edges = 0;
    state.num_edges = 0;
    state.log2_slots = 0;
    if (old.num_edges > 0) copy_edges(old, state);
  }

  void copy_edges(const State& old, State& state) {
    const auto table = edges_.subspan(old.edges, used_slots(old));
    kept_.clear();
    for (const Edge& edge : table) {
      if (edge.token >= 0 && ids_[edge.to] != kNoState) {
        kept_.push_back({edge.token, ids_[edge.to]});
      }
    }
    if (kept_.empty()) return;
    const std::size_t slots = std::size_t{1} << old.log2_slots;
    state.edges = static_cast<std::uint32_t>(image_.edges.extend(slots));
    state.num_edges = static_cast<std::uint32_t>(kept_.size()) & 0x7FFFFFFU;
    state.log2_slots = old.log2_slots;
    Edge* copies = &image_.edges[state.edges];
    std::fill_n(copies, slots, kFreeSlot);
    if (old.log2_slots <= kLinearLog2) {
      std::copy(kept_.begin(), kept_.end(), copies);
    } else if (kept_.size() == old.num_edges) {  // the same slots, so the same order
      for (std::size_t i = 0; i < slots; ++i) {
        if (table[i].token >= 0) copies[i] = {table[i].token, ids_[table[i].to]};
      }
    } else {
      for (const Edge& edge : kept_) {
        std::size_t i = hash_token(edge.token) & (slots - 1);
        while (copies[i].token >= 0) i = (i + 1) & (slots - 1);
        copies[i] = edge;
      }
    }
  }

  std::span<const State> states_;
  std::span<const Edge> edges_;
  Arena<StateId> ids_;          // by old id; kNoState: gone
  std::vector<StateId> order_;  // old ids, by new id
  std::vector<StateId> path_;
  std::vector<Edge> kept_;  // of one state
  AutomatonImage image_;
};

}  // namespace

AutomatonImage image_of(const SuffixAutomaton& automaton) {
  return ImageBuilder(automaton.states(), automaton.edges()).run(automaton.num_tokens());
}

FrozenImage image_of(const FrozenSegment& segment) {
  constexpr std::uint32_t kGone = FrozenSegment::kAll;
  FrozenImage image;
  image.text.push_back(kSeparator);
  std::vector<std::uint32_t> places(segment.text().size(), kGone);
  std::size_t position = 1;
  for (std::uint32_t i = 0; i < segment.num_sequences(); ++i) {
    const auto tokens = segment.sequence(i);
    if (!segment.forgotten(i)) {
      for (std::size_t k = 0; k < tokens.size(); ++k) {
        places[position + k] = static_cast<std::uint32_t>(image.text.size() + k);
      }
      image.text.insert(image.text.end(), tokens.begin(), tokens.end());
      image.text.push_back(kSeparator);
    }
    position += tokens.size() + 1;
  }
  image.order.reserve(segment.num_live_tokens());
  // Contexts end at separators, so those of other sequences keep their order.
  for (const std::uint32_t old : segment.order()) {
    if (places[old] != kGone) image.order.push_back(places[old]);
  }
  return image;
}

}  // namespace smartspec::suffix
