// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/cost_model.hpp"

#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/cost_learner.hpp"
#include "schedule/cost_table.hpp"

namespace smartspec {
namespace {

std::string shown(double value) {
  // to_string() prints 1e-6 as 0.000001 and 1e-9 as 0.000000.
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

[[noreturn]] void reject(const std::string& field, const std::string& allowed,
                         const std::string& got) {
  throw std::invalid_argument(field + " must be " + allowed + ", got " + got);
}

void check_seconds(const std::string& field, double value) {
  if (!(value >= 0 && value <= cost::kMaxSeconds)) {
    reject(field, "in [0, " + shown(cost::kMaxSeconds) + "]", shown(value));
  }
}

void check_ascending(const std::string& field, const std::vector<std::int32_t>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::string name = field + "[" + std::to_string(i) + "]";
    if (values[i] < 1) reject(name, "at least 1", std::to_string(values[i]));
    if (i > 0 && values[i] <= values[i - 1]) {
      reject(name, "above the one before, " + std::to_string(values[i - 1]),
             std::to_string(values[i]));
    }
  }
}

}  // namespace

void CostCoefficients::validate() const {
  if (tokens.empty()) reject("tokens", "one knot or more", "none");
  if (seconds.size() != tokens.size()) {
    reject("seconds", "as many as tokens, " + std::to_string(tokens.size()),
           std::to_string(seconds.size()));
  }
  check_ascending("tokens", tokens);
  check_ascending("tiers", tiers);
  for (std::size_t i = 0; i < seconds.size(); ++i) {
    const std::string name = "seconds[" + std::to_string(i) + "]";
    if (!(seconds[i] > 0 && seconds[i] <= cost::kMaxSeconds)) {
      reject(name, "in (0, " + shown(cost::kMaxSeconds) + "]", shown(seconds[i]));
    }
    if (i > 0 && seconds[i] < seconds[i - 1]) {
      reject(name, "at least the one before, " + shown(seconds[i - 1]), shown(seconds[i]));
    }
  }
  check_seconds("per_sequence", per_sequence);
  check_seconds("per_logit", per_logit);
  check_seconds("per_kv_token", per_kv_token);
  check_seconds("per_attention_pair", per_attention_pair);
  check_seconds("per_expert", per_expert);
  if (num_experts < 0) reject("num_experts", "at least 0", std::to_string(num_experts));
  if (experts_per_token < 0 || experts_per_token > num_experts) {
    reject("experts_per_token", "in [0, num_experts = " + std::to_string(num_experts) + "]",
           std::to_string(experts_per_token));
  }
}

CostCoefficients make_roofline(const Roofline& roofline) {
  const auto check = [](const char* field, double value) {
    if (!(value >= 0 && std::isfinite(value))) reject(field, "finite and >= 0", shown(value));
  };
  check("weight_bytes", roofline.weight_bytes);
  check("kv_bytes_per_token", roofline.kv_bytes_per_token);
  check("flops_per_token", roofline.flops_per_token);
  check("flops_per_logit", roofline.flops_per_logit);
  check("flops_per_pair", roofline.flops_per_pair);
  check("bytes_per_second", roofline.bytes_per_second);
  check("flops_per_second", roofline.flops_per_second);
  check("overhead_seconds", roofline.overhead_seconds);
  if (roofline.bytes_per_second == 0) reject("bytes_per_second", "above 0", "0");
  if (roofline.flops_per_second == 0) reject("flops_per_second", "above 0", "0");

  const double memory = roofline.weight_bytes / roofline.bytes_per_second;
  const double per_token = roofline.flops_per_token / roofline.flops_per_second;
  CostCoefficients result;
  result.tokens.assign(cost::kGrid.begin(), cost::kGrid.end());
  // Where arithmetic takes over from memory the roofline has its edge.
  const double edge = per_token > 0 ? memory / per_token : 0;
  if (edge > 1 && edge < cost::kGrid.back()) {
    for (const double knot : {std::floor(edge), std::ceil(edge)}) {
      const auto token = static_cast<std::int32_t>(knot);
      const auto at = std::lower_bound(result.tokens.begin(), result.tokens.end(), token);
      if (*at != token) result.tokens.insert(at, token);
    }
  }
  result.seconds.clear();
  for (const std::int32_t token : result.tokens) {
    result.seconds.push_back(std::max(
        std::max(memory, per_token * token) + roofline.overhead_seconds, cost::kMinSeconds));
  }
  result.per_logit = roofline.flops_per_logit / roofline.flops_per_second;
  result.per_kv_token = roofline.kv_bytes_per_token / roofline.bytes_per_second;
  result.per_attention_pair = roofline.flops_per_pair / roofline.flops_per_second;
  result.validate();
  return result;
}

struct CostModel::Impl {
  Impl(const CostCoefficients& start, const CostModelOptions& options)
      : learn(options.learn),
        num_experts(start.num_experts),
        experts_per_token(start.experts_per_token),
        table(start),
        learner(start, table, options) {}

  bool learn;
  std::int32_t num_experts;
  std::int32_t experts_per_token;
  std::int64_t num_observed = 0;
  cost::CostTable table;
  cost::CostLearner learner;
};

CostModel::CostModel(CostCoefficients start, const CostModelOptions& options) {
  start.validate();
  if (!(options.memory_passes >= 1 && std::isfinite(options.memory_passes))) {
    reject("memory_passes", "at least 1 and finite", shown(options.memory_passes));
  }
  if (!(options.start_error > 0 && options.start_error <= 10)) {
    reject("start_error", "in (0, 10]", shown(options.start_error));
  }
  if (!(options.outlier_ratio > 1 && std::isfinite(options.outlier_ratio))) {
    reject("outlier_ratio", "above 1 and finite", shown(options.outlier_ratio));
  }
  impl_ = std::make_unique<Impl>(start, options);
}

CostModel::~CostModel() = default;
CostModel::CostModel(CostModel&&) noexcept = default;
CostModel& CostModel::operator=(CostModel&&) noexcept = default;

double CostModel::predict(const StepLoad& load) const {
  return impl_->table.predict(cost::CleanLoad(load));
}

void CostModel::segments(const StepLoad& base, double pairs_per_token, std::int32_t max_tokens,
                         std::vector<CostSegment>& segments) const {
  const cost::CostTable& table = impl_->table;
  // A row that attends to more keys than 2^62 or to NaN of them is a caller's mistake.
  const double pairs = pairs_per_token > 0 ? std::min(pairs_per_token, 0x1p62) : 0;
  table.segments(cost::CleanLoad(base), table.per[cost::kLogit] + pairs * table.per[cost::kPair],
                 max_tokens, segments);
}

void CostModel::observe(const StepLoad& load, double seconds) {
  if (!(seconds > 0 && std::isfinite(seconds))) return;
  ++impl_->num_observed;
  if (impl_->learn) impl_->learner.observe(cost::CleanLoad(load), seconds, impl_->table);
}

CostCoefficients CostModel::coefficients() const {
  const cost::CostTable& table = impl_->table;
  const double speed = impl_->learner.speed();
  CostCoefficients result;
  result.tokens = table.knots;
  result.seconds.clear();
  for (const double seconds : table.seconds) {
    result.seconds.push_back(std::min(seconds / speed, cost::kMaxSeconds));
  }
  result.tiers = table.tiers;
  const auto per = [&](cost::Term term) {
    return std::min(table.per[term] / speed, cost::kMaxSeconds);
  };
  result.per_sequence = per(cost::kSequence);
  result.per_logit = per(cost::kLogit);
  result.per_kv_token = per(cost::kKvToken);
  result.per_attention_pair = per(cost::kPair);
  result.num_experts = impl_->num_experts;
  result.experts_per_token = impl_->experts_per_token;
  result.per_expert = per(cost::kExpert);
  return result;
}

double CostModel::speed() const noexcept { return impl_->learner.speed(); }
std::int64_t CostModel::num_observed() const noexcept { return impl_->num_observed; }

}  // namespace smartspec
