// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/cost_table.hpp"

#include <cmath>

namespace smartspec::cost {
namespace {

/// The start's own staircase, before there is a table of it.
double start_seconds(const CostCoefficients& start, double tokens) {
  const std::vector<std::int32_t>& knots = start.tokens;
  if (tokens <= knots.front() || knots.size() == 1) return start.seconds.front();
  const auto above = std::upper_bound(knots.begin(), knots.end(), tokens) - knots.begin();
  const std::size_t i = std::min(static_cast<std::size_t>(above), knots.size() - 1) - 1;
  const double slope = (start.seconds[i + 1] - start.seconds[i]) / (knots[i + 1] - knots[i]);
  return start.seconds[i] + slope * (tokens - knots[i]);
}

double expected_experts(const CostCoefficients& start, double tokens) {
  const double picked = start.experts_per_token / static_cast<double>(start.num_experts);
  // 1 - (1 - p)^n without losing digits to cancellation when p is small.
  return -start.num_experts * std::expm1(tokens * std::log1p(-picked));
}

}  // namespace

CostTable::CostTable(const CostCoefficients& start)
    : tiers(start.tiers),
      per{start.per_sequence, start.per_logit, start.per_kv_token, start.per_attention_pair,
          start.num_experts > 0 ? start.per_expert : 0} {
  knots.assign(kGrid.begin(), kGrid.end());
  knots.insert(knots.end(), start.tokens.begin(), start.tokens.end());
  knots.insert(knots.end(), tiers.begin(), tiers.end());
  std::sort(knots.begin(), knots.end());
  knots.erase(std::unique(knots.begin(), knots.end()), knots.end());
  for (const std::int32_t knot : knots) {
    seconds.push_back(std::max(start_seconds(start, knot), kMinSeconds));
    if (start.num_experts > 0) experts.push_back(expected_experts(start, knot));
  }
  for (const std::int32_t tier : tiers) {
    const auto found = std::lower_bound(knots.begin(), knots.end(), tier);
    tier_points.push_back(static_cast<std::size_t>(found - knots.begin()));
  }
}

CostTable::Place CostTable::place(double tokens) const {
  if (tokens <= knots.front()) return {};
  const auto above = std::upper_bound(knots.begin(), knots.end(), tokens) - knots.begin();
  const std::size_t i = std::min(static_cast<std::size_t>(above), knots.size() - 1) - 1;
  return {i, (tokens - knots[i]) / (knots[i + 1] - knots[i])};
}

CostTable::Place CostTable::padded_place(const CleanLoad& load) const {
  // tokens / passes <= tier, without the division
  if (!tiers.empty() && load.tokens <= load.passes * tiers.back()) {
    const auto tier = std::lower_bound(
        tiers.begin(), tiers.end(), load.tokens,
        [&](std::int32_t size, std::int64_t tokens) { return load.passes * size < tokens; });
    return {tier_points[static_cast<std::size_t>(tier - tiers.begin())], 0};
  }
  return place(static_cast<double>(load.tokens) / static_cast<double>(load.passes));
}

double CostTable::experts_at(double tokens) const {
  if (experts.empty()) return 0;
  return tokens >= knots.back() ? experts.back() : read(experts, place(tokens));
}

double CostTable::predict(const CleanLoad& load) const {
  const auto passes = static_cast<double>(load.passes);
  double total = read(seconds, padded_place(load));
  if (!experts.empty()) {
    total += per[kExpert] * experts_at(static_cast<double>(load.tokens) / passes);
  }
  total *= passes;
  for (std::size_t term = 0; term < load.counts.size(); ++term) {
    total += per[term] * load.counts[term];
  }
  return total;
}

void CostTable::segments(const CleanLoad& base, double seconds_per_token, std::int64_t max_tokens,
                         std::vector<CostSegment>& segments) const {
  segments.clear();
  const std::int64_t last_padded = tiers.empty() ? -1 : base.passes * tiers.back();
  const double fixed = predict(base);
  CleanLoad at = base;
  // Loads that do not depend on the tokens, once; the rest is read from the table.
  const auto passes = static_cast<double>(base.passes);
  const auto of_tokens = [&] {
    const double share = static_cast<double>(at.tokens) / passes;
    return passes * (read(seconds, padded_place(at)) + per[kExpert] * experts_at(share));
  };
  const double linear = fixed - of_tokens();
  const std::size_t last = knots.size() - 1;
  std::size_t point = place(static_cast<double>(base.tokens) / passes).point;
  while (true) {
    while (point < last && base.passes * knots[point + 1] <= at.tokens) ++point;
    const bool padded = at.tokens <= last_padded;
    const bool below_first = at.tokens < base.passes * knots.front();
    // Behind the last knot the staircase keeps its last slope.
    const std::size_t low = std::min(point, last - 1);
    const double width = knots[low + 1] - knots[low];
    double slope = seconds_per_token;
    if (!padded && !below_first) slope += (seconds[low + 1] - seconds[low]) / width;
    if (!experts.empty() && !below_first && point < last) {
      slope += per[kExpert] * (experts[low + 1] - experts[low]) / width;
    }
    const auto more = static_cast<double>(at.tokens - base.tokens);
    double value = linear + more * seconds_per_token + of_tokens();
    if (!segments.empty()) {  // rounding must not make it descend
      const CostSegment& before = segments.back();
      const auto length = static_cast<double>(at.tokens - before.first_tokens);
      value = std::max(value, before.seconds + length * before.seconds_per_token);
    }
    segments.push_back({static_cast<std::int32_t>(at.tokens), value, slope});
    // The next change of slope: a knot, or the first token behind a tier.
    std::int64_t next = INT64_MAX;
    if (below_first) {
      next = base.passes * knots.front();
    } else if (point < last) {
      next = base.passes * knots[point + 1];
    }
    if (padded) {
      const std::size_t tier_point = padded_place(at).point;
      const std::int64_t behind = base.passes * knots[tier_point] + 1;
      next = experts.empty() ? behind : std::min(std::max(next, at.tokens + 1), behind);
    }
    if (next > max_tokens) return;
    at.tokens = next;
  }
}

}  // namespace smartspec::cost
