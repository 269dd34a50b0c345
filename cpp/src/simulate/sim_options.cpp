// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a simulation may be asked for.
#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "smartspec/simulator.hpp"

namespace smartspec {
namespace {

constexpr std::int32_t kMaxContext = 1 << 28;
constexpr std::int32_t kMaxBatch = 1 << 20;
constexpr std::size_t kMaxProposers = 16;

template <typename Value>
void require(bool sound, const std::string& field, Value value, const char* allowed) {
  if (sound) return;
  std::ostringstream text;
  text << field << " must be " << allowed << ", got " << value;
  throw std::invalid_argument(text.str());
}

bool in(double value, double least, double most) { return value >= least && value <= most; }
bool non_negative(double value) { return std::isfinite(value) && value >= 0; }

void check_coefficients(const CostCoefficients& coefficients, const std::string& field) {
  try {
    coefficients.validate();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(field + ": " + error.what());
  }
}

void check_acceptance(const AcceptanceModel& model, const std::string& field) {
  require(!model.rates.empty(), field + ".rates", "none", "at least one rate");
  for (const double rate : model.rates) {
    require(rate >= 0 && rate < 1, field + ".rates", rate, "in [0, 1)");
  }
  for (const std::vector<float>& recording : model.recorded) {
    require(!recording.empty(), field + ".recorded", "an empty one", "at least one rate in each");
    for (const float rate : recording) {
      require(rate >= 0 && rate <= 1, field + ".recorded", rate, "in [0, 1]");
    }
  }
  require(non_negative(model.spread), field + ".spread", model.spread, "finite and >= 0");
  require(in(model.persistence, 0, 1), field + ".persistence", model.persistence, "in [0, 1]");
  require(std::isfinite(model.decay), field + ".decay", model.decay, "finite");
}

void check_proposer(const SimulatedProposer& proposer, const std::string& field) {
  check_acceptance(proposer.acceptance, field + ".acceptance");
  require(in(proposer.coverage, 0, 1), field + ".coverage", proposer.coverage, "in [0, 1]");
  require(std::isfinite(proposer.claim_noise), field + ".claim_noise", proposer.claim_noise,
          "finite");
  require(std::isfinite(proposer.claim_bias), field + ".claim_bias", proposer.claim_bias, "finite");
  require(proposer.max_depth >= 1 && proposer.max_depth <= kMaxTreeNodes, field + ".max_depth",
          proposer.max_depth, "in [1, 256]");
  if (proposer.pays_per_depth) check_coefficients(proposer.pass, field + ".pass");
}

void check_requests(const SimulationOptions& options) {
  double last = 0;
  const std::int64_t capacity = std::int64_t{options.num_kv_blocks} * options.block_size;
  for (std::size_t i = 0; i < options.requests.size(); ++i) {
    const SimulatedRequest& request = options.requests[i];
    const std::string field = "requests[" + std::to_string(i) + "]";
    require(std::isfinite(request.arrival) && request.arrival >= last, field + ".arrival",
            request.arrival, "finite, >= 0 and not before the previous one");
    last = request.arrival;
    for (const auto& [name, value] : {std::pair{".num_prompt_tokens", request.num_prompt_tokens},
                                      std::pair{".num_output_tokens", request.num_output_tokens}}) {
      require(value >= 1 && value <= kMaxContext, field + name, value, "in [1, 2^28]");
    }
    const std::int64_t needed = std::int64_t{request.num_prompt_tokens} + request.num_output_tokens;
    require(options.num_kv_blocks == 0 || needed <= capacity, field, needed,
            "at most num_kv_blocks * block_size tokens, or it never finishes");
    try {
      request.control.validate(static_cast<std::int32_t>(options.proposers.size()));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(field + ".control: " + error.what());
    }
  }
}

void check_batch(const SimulationOptions& options, std::int32_t batch, const std::string& field) {
  const std::int32_t most = std::min(options.scheduler.max_num_seqs, kMaxBatch);
  require(batch >= 1 && batch <= most, field, batch, "in [1, scheduler.max_num_seqs] and <= 2^20");
}

void check_closed_loop(const SimulationOptions& options) {
  check_batch(options, options.batch, "batch");
  require(options.context >= 1 && options.context <= kMaxContext, "context", options.context,
          "in [1, 2^28]");
  require(options.output_tokens >= 1, "output_tokens", options.output_tokens, ">= 1");
  require(options.max_steps >= 1, "max_steps", options.max_steps,
          ">= 1 in a closed loop, which has no end");
  const double capacity = static_cast<double>(options.num_kv_blocks) * options.block_size;
  require(options.num_kv_blocks == 0 || 1.2 * options.context + 2 <= capacity, "context",
          options.context, "so that 1.2 times of it fits into num_kv_blocks * block_size");
}

void check_shifts(const SimulationOptions& options) {
  std::int64_t last = 0;
  for (std::size_t i = 0; i < options.shifts.size(); ++i) {
    const SimulatedShift& shift = options.shifts[i];
    const std::string field = "shifts[" + std::to_string(i) + "]";
    require(shift.step >= last, field + ".step", shift.step,
            ">= 0 and not before the previous one");
    last = shift.step;
    const auto count = static_cast<std::int32_t>(options.proposers.size());
    require(shift.proposer >= -1 && shift.proposer < count, field + ".proposer", shift.proposer,
            "-1 or the index of a proposer");
    if (shift.proposer >= 0) check_acceptance(shift.acceptance, field + ".acceptance");
    if (shift.batch != -1) {
      require(options.batch > 0, field + ".batch", shift.batch, "-1 in an open loop");
      check_batch(options, shift.batch, field + ".batch");
    }
    require(std::isfinite(shift.slowdown) && shift.slowdown > 0, field + ".slowdown",
            shift.slowdown, "finite and > 0");
  }
}

}  // namespace

void SimulationOptions::validate() const {
  require(num_kv_blocks >= 0, "num_kv_blocks", num_kv_blocks, ">= 0");
  require(block_size >= 1, "block_size", block_size, ">= 1");
  require(batch >= 0, "batch", batch, ">= 0");
  require((batch > 0) != !requests.empty(), "batch", batch, "> 0 without requests, or 0 with some");
  require(max_steps >= 0, "max_steps", max_steps, ">= 0");
  require(warmup_steps >= 0, "warmup_steps", warmup_steps, ">= 0");
  if (batch > 0) {
    check_closed_loop(*this);
  } else {
    check_requests(*this);
  }
  require(proposers.size() <= kMaxProposers, "proposers", proposers.size(), "at most 16");
  for (std::size_t i = 0; i < proposers.size(); ++i) {
    check_proposer(proposers[i], "proposers[" + std::to_string(i) + "]");
  }
  check_shifts(*this);
  check_coefficients(target, "target");
  require(non_negative(overhead), "overhead", overhead, "finite and >= 0");
  require(in(time_noise, 0, 1), "time_noise", time_noise, "in [0, 1]");
  require(in(outlier_rate, 0, 1), "outlier_rate", outlier_rate, "in [0, 1]");
}

}  // namespace smartspec
