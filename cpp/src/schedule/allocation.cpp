// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/allocation.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <functional>
#include <limits>
#include <vector>

#include "schedule/allocation_check.hpp"
#include "schedule/size_search.hpp"

namespace smartspec {
namespace {

using schedule::Key;
using schedule::kForced;
using schedule::num_requests;
using schedule::SizeChoice;
using schedule::SizeQuery;

/// Denormal survivals count as 0, as NaN does.
Key key_of(float survival) {
  const float known = survival >= std::numeric_limits<float>::min() ? survival : 0.0F;
  return std::bit_cast<Key>(known < 1.0F ? known : 1.0F);
}

double survival_of(Key key) { return static_cast<double>(std::bit_cast<float>(key)); }

}  // namespace

struct Allocator::Impl {
  Allocation solve(const AllocationProblem& problem, std::span<std::uint8_t> selected);

 private:
  /// What one request may and must get.
  struct Limits {
    std::int32_t forced = 0;
    std::int32_t most = 0;
    std::int32_t blocks = 0;  // new ones
  };
  /// The nodes that fit into one new block of a request.
  struct Group {
    double gain;
    std::int32_t order;
    std::int32_t request;
  };

  void load_keys(const AllocationProblem& problem);
  bool chains_fall(const AllocationProblem& problem) const;
  bool trees_fall(const AllocationProblem& problem) const;
  /// Key above, complement of the node's index below.
  using Ranked = std::uint64_t;
  static std::size_t node_of(Ranked ranked) { return ~static_cast<std::uint32_t>(ranked); }
  static Key key_of_ranked(Ranked ranked) { return static_cast<Key>(ranked >> 32); }
  std::span<Ranked> list_nodes(const AllocationProblem& problem, std::size_t request);
  std::span<const Ranked> partition_nodes(const AllocationProblem& problem, std::size_t request);
  void rank_all(const AllocationProblem& problem);
  void set_limits(const AllocationProblem& problem);
  void share_forced(const AllocationProblem& problem);
  std::span<const Key> apply_limits(const AllocationProblem& problem);
  SizeChoice search(const AllocationProblem& problem);
  std::int64_t blocks_of(const AllocationProblem& problem, const SizeChoice& choice);
  SizeChoice search_with_blocks(const AllocationProblem& problem, const SizeChoice& unlimited);
  void grant_blocks(const AllocationProblem& problem, double price);
  void write(const SizeChoice& choice, std::span<std::uint8_t> selected) const;

  std::int64_t room(const AllocationProblem& problem, std::size_t request) const {
    return problem.block_room.empty() ? 0 : std::max(problem.block_room[request], 0);
  }
  std::int64_t blocks_for(const AllocationProblem& problem, std::size_t request,
                          std::int64_t nodes) const {
    const std::int64_t more = nodes - room(problem, request);
    return more <= 0 ? 0 : (more + problem.block_size - 1) / problem.block_size;
  }

  schedule::SizeSearch search_;
  std::vector<Key> keys_;             // [N] clamped survivals
  std::vector<Key> limited_;          // [N] the same with forced and excluded nodes marked
  std::vector<Ranked> ranking_;       // [N] scratch: the nodes of each request
  std::vector<Limits> limits_;        // [R] the caller's, and what is forced by them
  std::vector<std::int32_t> most_;    // [R] the limit in force: the caller's, or what blocks allow
  std::vector<std::int32_t> active_;  // scratch of share_forced
  std::vector<Group> groups_;
  std::span<const Key> current_;  // keys_ or limited_
  std::int64_t num_forced_ = 0;
  std::int64_t forced_blocks_ = 0;
  double forced_value_ = 0;
  bool ranked_ = false;  // ranking_ holds all requests, the most likely nodes first
  bool limited_by_budget_ = false;
  bool limited_by_blocks_ = false;
};

// Survivals rise nowhere along a path as a rule, and looking is faster than clamping: nothing waits
// for the node before.
void Allocator::Impl::load_keys(const AllocationProblem& problem) {
  const std::size_t size = problem.survival.size();
  keys_.resize(size);
  Key* const keys = keys_.data();
  const float* const survival = problem.survival.data();
  for (std::size_t i = 0; i < size; ++i) keys[i] = key_of(survival[i]);
  const bool clean = problem.parents.empty() ? chains_fall(problem) : trees_fall(problem);
  if (clean) return;
  for (std::size_t r = 0; r + 1 < problem.offsets.size(); ++r) {
    const auto begin = static_cast<std::size_t>(problem.offsets[r]);
    const auto end = static_cast<std::size_t>(problem.offsets[r + 1]);
    for (std::size_t i = begin; i < end; ++i) {
      const std::int32_t parent =
          problem.parents.empty() ? static_cast<std::int32_t>(i - begin) - 1 : problem.parents[i];
      if (parent >= 0) keys[i] = std::min(keys[i], keys[begin + static_cast<std::size_t>(parent)]);
    }
  }
}

bool Allocator::Impl::chains_fall(const AllocationProblem& problem) const {
  const std::size_t size = problem.survival.size();
  const Key* const keys = keys_.data();
  std::int32_t rises = 0;
  for (std::size_t i = 1; i < size; ++i) rises += keys[i] > keys[i - 1] ? 1 : 0;
  std::int32_t last = 0;
  for (const std::int32_t offset : problem.offsets) {  // between requests they may rise
    if (offset == last || static_cast<std::size_t>(offset) == size) continue;
    rises -= keys[offset] > keys[offset - 1] ? 1 : 0;
    last = offset;
  }
  return rises == 0;
}

bool Allocator::Impl::trees_fall(const AllocationProblem& problem) const {
  std::int64_t sound = 0;  // negative: some parent is not an earlier node
  std::int32_t falls = 0;  // negative: some survival rises
  for (std::size_t r = 0; r + 1 < problem.offsets.size(); ++r) {
    const auto begin = static_cast<std::size_t>(problem.offsets[r]);
    const auto size = static_cast<std::uint32_t>(problem.offsets[r + 1] - problem.offsets[r]);
    const std::int32_t* const parents = problem.parents.data() + begin;
    const Key* const keys = keys_.data() + begin;
    for (std::uint32_t i = 0; i < size; ++i) {
      const auto parent = static_cast<std::uint32_t>(parents[i]);
      const std::uint32_t above = parent < i ? parent : i;
      sound |= std::int64_t{i} - std::int64_t{parent + 1};
      falls |= keys[above] - keys[i];
    }
  }
  if (sound < 0) schedule::reject_parents(problem);
  return falls >= 0;
}

// The nodes of a request in any order.
std::span<Allocator::Impl::Ranked> Allocator::Impl::list_nodes(const AllocationProblem& problem,
                                                               std::size_t request) {
  const auto begin = static_cast<std::size_t>(problem.offsets[request]);
  const auto end = static_cast<std::size_t>(problem.offsets[request + 1]);
  for (std::size_t i = begin; i < end; ++i) {
    ranking_[i] = static_cast<Ranked>(keys_[i]) << 32 | ~static_cast<std::uint32_t>(i);
  }
  return {ranking_.data() + begin, end - begin};
}

// The forced nodes first, those beyond the limit last. A request's most likely nodes, the earlier
// one among equals, are closed under ancestors.
std::span<const Allocator::Impl::Ranked> Allocator::Impl::partition_nodes(
    const AllocationProblem& problem, std::size_t request) {
  const auto begin = static_cast<std::size_t>(problem.offsets[request]);
  const auto size = static_cast<std::size_t>(problem.offsets[request + 1]) - begin;
  if (ranked_) return {ranking_.data() + begin, size};
  const std::span<Ranked> nodes = list_nodes(problem, request);
  if (problem.parents.empty()) return nodes;
  const auto most = nodes.begin() + most_[request];
  const auto forced = nodes.begin() + limits_[request].forced;
  if (most != nodes.end()) std::nth_element(nodes.begin(), most, nodes.end(), std::greater<>());
  if (forced != most) std::nth_element(nodes.begin(), forced, most, std::greater<>());
  return nodes;
}

void Allocator::Impl::rank_all(const AllocationProblem& problem) {
  for (std::size_t r = 0; r < limits_.size(); ++r) {
    const std::span<Ranked> nodes = list_nodes(problem, r);
    if (!problem.parents.empty()) std::sort(nodes.begin(), nodes.end(), std::greater<>());
  }
  ranked_ = true;
}

void Allocator::Impl::set_limits(const AllocationProblem& problem) {
  const std::size_t requests = num_requests(problem);
  limits_.resize(requests);
  most_.resize(requests);
  ranking_.resize(problem.survival.size());
  num_forced_ = 0;
  forced_blocks_ = 0;
  forced_value_ = 0;
  limited_by_budget_ = limited_by_blocks_ = false;
  std::int64_t blocks = 0;
  for (std::size_t r = 0; r < requests; ++r) {
    Limits& limits = limits_[r];
    limits.most = problem.offsets[r + 1] - problem.offsets[r];
    if (!problem.max_nodes.empty()) {
      limits.most = std::clamp(problem.max_nodes[r], 0, limits.most);
    }
    limits.forced =
        problem.min_nodes.empty() ? 0 : std::clamp(problem.min_nodes[r], 0, limits.most);
    limits.blocks = 0;
    most_[r] = limits.most;
    num_forced_ += limits.forced;
    if (problem.block_size == 0) continue;
    limits.blocks = static_cast<std::int32_t>(blocks_for(problem, r, limits.forced));
    blocks += limits.blocks;
  }
  forced_blocks_ = blocks;
  const bool short_of_blocks = problem.block_size > 0 && blocks > std::max(problem.free_blocks, 0);
  if (num_forced_ > std::max(problem.token_budget, 0) || short_of_blocks) share_forced(problem);
}

// One node to every request in turn until nobody may have more.
void Allocator::Impl::share_forced(const AllocationProblem& problem) {
  active_.clear();
  for (std::size_t r = 0; r < limits_.size(); ++r) {
    if (limits_[r].forced > 0) active_.push_back(static_cast<std::int32_t>(r));
  }
  std::int64_t tokens = std::max(problem.token_budget, 0);
  const std::int64_t free_blocks = std::max(problem.free_blocks, 0);
  num_forced_ = forced_blocks_ = 0;
  for (const std::int32_t r : active_) limits_[static_cast<std::size_t>(r)].blocks = 0;
  for (std::int32_t round = 1; !active_.empty(); ++round) {
    const auto finished = [&](std::int32_t request) {
      const auto r = static_cast<std::size_t>(request);
      Limits& limits = limits_[r];
      if (round > limits.forced) return true;
      const bool opens = problem.block_size > 0 && blocks_for(problem, r, round) > limits.blocks;
      if (num_forced_ == tokens) {
        limited_by_budget_ = true;
      } else if (opens && forced_blocks_ == free_blocks) {
        limited_by_blocks_ = true;
      } else {
        ++num_forced_;
        forced_blocks_ += opens ? 1 : 0;
        limits.blocks += opens ? 1 : 0;
        return false;
      }
      limits.forced = round - 1;
      return true;
    };
    active_.erase(std::remove_if(active_.begin(), active_.end(), finished), active_.end());
  }
}

// Marks what is forced and what is beyond the limits. Leaves keys_ as they are.
std::span<const Key> Allocator::Impl::apply_limits(const AllocationProblem& problem) {
  const std::span<const Key> all(keys_.data(), problem.survival.size());
  forced_value_ = 0;
  bool any = false;
  for (std::size_t r = 0; r < limits_.size(); ++r) {
    any |= limits_[r].forced > 0 || most_[r] < problem.offsets[r + 1] - problem.offsets[r];
  }
  if (!any) return all;
  limited_.assign(all.begin(), all.end());
  for (std::size_t r = 0; r < limits_.size(); ++r) {
    const auto forced = static_cast<std::size_t>(limits_[r].forced);
    const auto most = static_cast<std::size_t>(most_[r]);
    if (forced == 0 && most_[r] == problem.offsets[r + 1] - problem.offsets[r]) continue;
    const std::span<const Ranked> nodes = partition_nodes(problem, r);
    for (const Ranked node : nodes.first(forced)) {
      forced_value_ += survival_of(key_of_ranked(node));
      limited_[node_of(node)] = kForced;
    }
    for (const Ranked node : nodes.subspan(most)) limited_[node_of(node)] = 0;
  }
  return {limited_.data(), all.size()};
}

SizeChoice Allocator::Impl::search(const AllocationProblem& problem) {
  current_ = apply_limits(problem);
  SizeQuery query;
  query.keys = current_;
  query.value = problem.base_value + forced_value_;
  query.fixed_seconds = problem.fixed_seconds;
  query.first_tokens = problem.base_tokens + num_forced_;
  query.limit = std::max(problem.token_budget, 0) - num_forced_;
  query.cost = problem.cost;
  return search_.find(query);
}

std::int64_t Allocator::Impl::blocks_of(const AllocationProblem& problem,
                                        const SizeChoice& choice) {
  std::int64_t blocks = 0;
  std::int64_t ties = choice.ties;
  for (std::size_t r = 0; r < limits_.size(); ++r) {
    std::int64_t nodes = 0;
    for (std::int32_t i = problem.offsets[r]; i < problem.offsets[r + 1]; ++i) {
      const Key key = current_[static_cast<std::size_t>(i)];
      if (key != choice.threshold || choice.all_ties) {
        nodes += key >= choice.threshold ? 1 : 0;
      } else if (ties > 0) {
        ++nodes;
        --ties;
      }
    }
    blocks += blocks_for(problem, r, nodes);
  }
  return blocks;
}

// A block is worth what the nodes in it gain beyond their price, which never rises from one block
// of a request to its next. So for a given price the best blocks are the most valuable ones, and
// given the blocks the nodes are chosen exactly; only the price has to be guessed.
void Allocator::Impl::grant_blocks(const AllocationProblem& problem, double price) {
  groups_.clear();
  for (std::size_t r = 0; r < limits_.size(); ++r) {
    const Ranked* const nodes = ranking_.data() + problem.offsets[r];
    const std::int64_t most = limits_[r].most;
    std::int64_t i = room(problem, r) + std::int64_t{limits_[r].blocks} * problem.block_size;
    most_[r] = static_cast<std::int32_t>(std::min(i, most));
    while (i < most) {
      const std::int64_t end = std::min(most, i + problem.block_size);
      double gain = 0;
      for (; i < end; ++i) {
        const double more = survival_of(key_of_ranked(nodes[i])) - price;
        if (more <= 0) break;
        gain += more;
      }
      if (gain <= 0) break;
      groups_.push_back(
          {gain, static_cast<std::int32_t>(groups_.size()), static_cast<std::int32_t>(r)});
      if (i < end) break;
    }
  }
  const auto left = static_cast<std::size_t>(std::max(problem.free_blocks, 0) - forced_blocks_);
  if (left < groups_.size()) {
    std::nth_element(groups_.begin(), groups_.begin() + static_cast<std::ptrdiff_t>(left),
                     groups_.end(), [](const Group& a, const Group& b) {
                       return a.gain > b.gain || (a.gain == b.gain && a.order < b.order);
                     });
    groups_.resize(left);
  }
  for (const Group& group : groups_) {
    const auto r = static_cast<std::size_t>(group.request);
    most_[r] = static_cast<std::int32_t>(
        std::min<std::int64_t>(limits_[r].most, std::int64_t{most_[r]} + problem.block_size));
  }
}

SizeChoice Allocator::Impl::search_with_blocks(const AllocationProblem& problem,
                                               const SizeChoice& unlimited) {
  constexpr int kMaxGuesses = 4;
  rank_all(problem);
  limited_by_blocks_ = true;
  const auto price_of = [](const SizeChoice& choice) {
    return choice.count > 0 ? survival_of(choice.threshold) : 1.0;
  };
  double price = price_of(unlimited);
  double tried = price;
  double best_price = price;
  SizeChoice best;
  for (int i = 0; i < kMaxGuesses; ++i) {
    tried = price;
    grant_blocks(problem, tried);
    const SizeChoice choice = search(problem);
    if (i == 0 || choice.value * best.seconds > best.value * choice.seconds) {
      best = choice;
      best_price = tried;
    }
    price = i == 0 ? 0 : price_of(choice);
    if (price == tried) break;
  }
  if (tried != best_price) {  // the marks are those of another price
    grant_blocks(problem, best_price);
    best = search(problem);
  }
  return best;
}

void Allocator::Impl::write(const SizeChoice& choice, std::span<std::uint8_t> selected) const {
  const Key* const keys = current_.data();
  const std::size_t size = selected.size();
  const Key least = choice.all_ties ? choice.threshold : choice.threshold + 1;
  for (std::size_t i = 0; i < size; ++i) selected[i] = keys[i] >= least ? 1 : 0;
  if (choice.all_ties) return;
  std::int64_t ties = choice.ties;
  for (std::size_t i = 0; ties > 0; ++i) {
    if (keys[i] != choice.threshold) continue;
    selected[i] = 1;
    --ties;
  }
}

Allocation Allocator::Impl::solve(const AllocationProblem& problem,
                                  std::span<std::uint8_t> selected) {
  schedule::check(problem, selected.size());
  ranked_ = false;
  load_keys(problem);
  set_limits(problem);
  SizeChoice choice = search(problem);
  const std::int64_t free_blocks = std::max(problem.free_blocks, 0);
  if (problem.block_size > 0 && blocks_of(problem, choice) > free_blocks) {
    choice = search_with_blocks(problem, choice);
  }
  write(choice, selected);
  Allocation allocation;
  allocation.num_nodes = static_cast<std::int32_t>(num_forced_ + choice.count);
  allocation.expected_tokens = choice.value;
  allocation.seconds = choice.seconds;
  allocation.limited_by_budget = limited_by_budget_ || choice.limited;
  allocation.limited_by_blocks = limited_by_blocks_;
  return allocation;
}

Allocator::Allocator() : impl_(std::make_unique<Impl>()) {}
Allocator::~Allocator() = default;
Allocator::Allocator(Allocator&&) noexcept = default;
Allocator& Allocator::operator=(Allocator&&) noexcept = default;

Allocation Allocator::solve(const AllocationProblem& problem, std::span<std::uint8_t> selected) {
  return impl_->solve(problem, selected);
}

}  // namespace smartspec
