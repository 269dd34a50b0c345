// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "simulate/sim_requests.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "smartspec/philox.hpp"

namespace smartspec::sim {
namespace {

constexpr int kSlotBits = 20;  // of an id in the closed loop; the generation is above
constexpr RequestId kSlotMask = (RequestId{1} << kSlotBits) - 1;

std::uint32_t low(std::int64_t value) noexcept { return static_cast<std::uint32_t>(value); }
std::uint32_t high(std::int64_t value) noexcept {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(value) >> 32);
}

/// Geometric, >= 1, by inversion.
double geometric(double mean, std::uint32_t bits) {
  if (mean <= 1) return 1;
  return std::ceil(std::log(Luck::uniform(bits)) / std::log1p(-1 / mean));
}

/// Van der Corput's sequence: evenly spread over [0, 1) wherever it is cut.
double evenly(std::uint64_t index, std::uint64_t base) {
  double sum = 0;
  double digit = 1;
  for (; index > 0; index /= base) {
    digit /= static_cast<double>(base);
    sum += digit * static_cast<double>(index % base);
  }
  return sum;
}

}  // namespace

Luck::Luck(std::uint64_t seed) noexcept
    : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)} {}

Luck::Bits Luck::bits(Use use, std::int64_t request, std::int64_t place, std::int32_t proposer,
                      std::int32_t depth) const noexcept {
  const auto what = static_cast<std::uint32_t>(use) | static_cast<std::uint32_t>(proposer) << 4 |
                    static_cast<std::uint32_t>(depth) << 12;
  return philox4x32({low(place), what, low(request), high(request)}, key_);
}

float Luck::normal(std::uint32_t a, std::uint32_t b) noexcept {
  const auto radius = std::sqrt(-2.0F * std::log(static_cast<float>(uniform(a))));
  return radius * std::cos(2.0F * std::numbers::pi_v<float> * static_cast<float>(uniform(b)));
}

RequestPool::RequestPool(const SimulationOptions& options, const Luck& luck)
    : options_(options), luck_(luck) {
  requests_.resize(options.requests.size());
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const SimulatedRequest& given = options.requests[i];
    requests_[i].id = static_cast<RequestId>(i);
    requests_[i].context = given.num_prompt_tokens;
    requests_[i].num_output = given.num_output_tokens;
    requests_[i].result.arrival = given.arrival;
  }
}

SimRequest& RequestPool::of(RequestId id) {
  return requests_[static_cast<std::size_t>(options_.batch > 0 ? id & kSlotMask : id)];
}

void RequestPool::resize(std::int32_t batch) {
  const auto size = static_cast<std::size_t>(batch);
  const std::size_t before = requests_.size();
  requests_.resize(size);
  generation_.resize(std::max(size, generation_.size()), 0);
  for (std::size_t slot = before; slot < size; ++slot) renew(static_cast<std::int32_t>(slot));
}

void RequestPool::renew(std::int32_t slot) {
  SimRequest& request = requests_[static_cast<std::size_t>(slot)];
  const std::int64_t generation = generation_[static_cast<std::size_t>(slot)]++;
  std::vector<Track> tracks = std::move(request.tracks);
  request = SimRequest{};
  request.tracks = std::move(tracks);
  request.id = generation << kSlotBits | slot;
  const Luck::Bits bits = luck_.bits(Luck::Use::kRequest, request.id);
  double context = std::round(options_.context * (0.8 + 0.4 * Luck::uniform(bits[0])));
  double most = std::numeric_limits<std::int32_t>::max() / 2;
  if (options_.num_kv_blocks > 0) {  // longer ones could never finish
    most = static_cast<double>(options_.num_kv_blocks) * options_.block_size;
  }
  // The first ones are half way, so that contexts are as long at the start as they will be.
  if (generation == 0) context += geometric(options_.output_tokens, bits[2]);
  context = std::clamp(context, 1.0, most - 1);
  request.context = static_cast<std::int32_t>(context);
  request.num_output = static_cast<std::int32_t>(
      std::clamp(geometric(options_.output_tokens, bits[1]), 1.0, most - context));
  start_tracks(request);
}

void RequestPool::start_tracks(SimRequest& request) const {
  request.tracks.resize(options_.proposers.size());
  for (std::size_t q = 0; q < request.tracks.size(); ++q) {
    Track& track = request.tracks[q];
    track.rate = rate_of(request.id, q);
    // A context that was not computed is not in the proposer's cache either.
    track.cached = options_.batch > 0 ? request.context - 1 : 0;
    track.wander.clear();
  }
}

/// A slot keeps its rate: were it drawn anew for every request, the ones that a policy makes fast
/// would leave and the slow ones stay, and every policy would face another batch. Only batches
/// smaller than the number of rates take turns.
double RequestPool::rate_of(RequestId id, std::size_t proposer) const {
  if (options_.batch == 0) {
    return Luck::uniform(
        luck_.bits(Luck::Use::kRate, id, 0, static_cast<std::int32_t>(proposer))[0]);
  }
  constexpr std::array<std::uint64_t, 16> kPrimes{2,  3,  5,  7,  11, 13, 17, 19,
                                                  23, 29, 31, 37, 41, 43, 47, 53};
  auto index = static_cast<std::uint64_t>(id & kSlotMask);
  const auto batch = static_cast<std::uint64_t>(options_.batch);
  const AcceptanceModel& acceptance = options_.proposers[proposer].acceptance;
  if (batch < std::max(acceptance.rates.size(), acceptance.recorded.size())) {
    index += batch * static_cast<std::uint64_t>(id >> kSlotBits);
  }
  return evenly(index, kPrimes.at(proposer));
}

SimRequest& RequestPool::replace(RequestId id) {
  const auto slot = static_cast<std::int32_t>(id & kSlotMask);
  renew(slot);
  return requests_[static_cast<std::size_t>(slot)];
}

SimRequest& RequestPool::start(std::int32_t index) {
  SimRequest& request = requests_[static_cast<std::size_t>(index)];
  start_tracks(request);
  return request;
}

void RequestPool::end(SimRequest& request) {
  request.tracks.clear();
  request.tracks.shrink_to_fit();
}

SchedulerRequest RequestPool::scheduled(const SimRequest& request) const {
  SchedulerRequest result{
      .id = request.id, .num_prompt_tokens = request.context, .max_tokens = request.num_output};
  if (options_.batch == 0) {
    const SimulatedRequest& given = options_.requests[static_cast<std::size_t>(request.id)];
    result.priority = given.priority;
    result.control = given.control;
  }
  return result;
}

TokenKv::TokenKv(const SimulationOptions& options, RequestPool& pool)
    : pool_(pool),
      limited_(options.num_kv_blocks > 0),
      warm_(options.batch > 0),
      block_size_(options.block_size),
      free_(options.num_kv_blocks) {}

KvHost::Admission TokenKv::admit(RequestId id, std::int32_t num_tokens, bool /*alone*/,
                                 std::int32_t& num_computed) {
  SimRequest& request = pool_.of(id);
  const std::int32_t needed = blocks_for(num_tokens);
  if (needed > free_) return Admission::kNoRoom;
  num_computed = expect_computed(id, num_tokens);
  request.admitted = true;
  request.promised = num_tokens;
  request.computed = num_computed;
  resize(request, needed);
  return Admission::kAdmitted;
}

std::int32_t TokenKv::expect_computed(RequestId id, std::int32_t num_tokens) const {
  // Preempted requests start over, also those whose context was there at first.
  return warm_ && pool_.of(id).result.num_preemptions == 0 ? num_tokens - 1 : 0;
}

bool TokenKv::reserve(RequestId id, std::int32_t num_rows) {
  SimRequest& request = pool_.of(id);
  const std::int32_t needed =
      std::max(request.blocks, blocks_for(std::int64_t{request.computed} + num_rows));
  if (needed - request.blocks > free_) return false;
  resize(request, needed);
  return true;
}

void TokenKv::rollback(RequestId id) {
  SimRequest& request = pool_.of(id);
  resize(request, blocks_for(std::max(request.computed, request.promised)));
}

void TokenKv::release(RequestId id) {
  SimRequest& request = pool_.of(id);
  if (!request.admitted) return;
  resize(request, 0);
  request.admitted = false;
  request.computed = 0;
  if (!request.ended) ++request.result.num_preemptions;
}

void TokenKv::commit(SimRequest& request, std::int32_t num_tokens) {
  request.computed += num_tokens;
  resize(request, blocks_for(std::max(request.computed, request.promised)));
}

std::int32_t TokenKv::blocks_for(std::int64_t num_tokens) const noexcept {
  return limited_ ? static_cast<std::int32_t>((num_tokens + block_size_ - 1) / block_size_) : 0;
}

void TokenKv::resize(SimRequest& request, std::int32_t blocks) noexcept {
  free_ += request.blocks - blocks;
  request.blocks = blocks;
}

}  // namespace smartspec::sim
