// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The requests of a simulation, the memory they take, and the luck they have.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "smartspec/simulator.hpp"

namespace smartspec::sim {

/// Random numbers as a pure function of what they are for, so that every policy has the same luck.
class Luck {
 public:
  enum class Use : std::uint32_t { kRate, kWander, kDraft, kCoverage, kRequest, kTime, kToken };
  using Bits = std::array<std::uint32_t, 4>;

  explicit Luck(std::uint64_t seed) noexcept;
  /// `request` or the step; `place`: output position; `proposer` < 256, `depth` < 65536.
  [[nodiscard]] Bits bits(Use use, std::int64_t request, std::int64_t place = 0,
                          std::int32_t proposer = 0, std::int32_t depth = 0) const noexcept;

  static double uniform(std::uint32_t bits) noexcept { return (bits + 0.5) * 0x1p-32; }  // (0, 1)
  static float normal(std::uint32_t a, std::uint32_t b) noexcept;  // Box and Muller

 private:
  std::array<std::uint32_t, 2> key_;
};

/// What one proposer knows of a request.
struct Track {
  double rate = 0;            // uniform: which of the acceptance rates is this request's
  std::int32_t cached = 0;    // tokens in the proposer's own KV cache
  std::vector<float> wander;  // [output positions so far] AR(1) of variance 1
};

struct SimRequest {
  RequestId id = 0;
  std::int32_t context = 0;  // prompt tokens
  std::int32_t num_output = 1;
  std::int32_t emitted = 0;
  std::vector<Track> tracks;  // [proposers], while it is active

  bool admitted = false;
  bool ended = false;
  std::int32_t promised = 0;  // tokens whose KV was taken at admission
  std::int32_t computed = 0;  // tokens whose KV is held
  std::int32_t blocks = 0;

  double last_output = 0;  // seconds
  SimulatedRequestResult result;

  [[nodiscard]] std::int32_t num_tokens() const noexcept { return context + emitted; }
};

/// Closed loop: a slot's requests follow each other, and the n-th of a slot is the same whatever
/// happened before. Open loop: the given requests.
class RequestPool {
 public:
  RequestPool(const SimulationOptions& options, const Luck& luck);

  [[nodiscard]] SimRequest& of(RequestId id);
  [[nodiscard]] std::vector<SimRequest>& all() noexcept { return requests_; }

  /// Closed loop: slots [0, batch) exist; new ones have a request that may start.
  void resize(std::int32_t batch);
  /// Closed loop: the next request of this one's slot.
  SimRequest& replace(RequestId id);
  /// Open loop: makes request `index` ready to run.
  SimRequest& start(std::int32_t index);
  /// Open loop: frees what only active requests need.
  void end(SimRequest& request);

  [[nodiscard]] SchedulerRequest scheduled(const SimRequest& request) const;

 private:
  void renew(std::int32_t slot);
  void start_tracks(SimRequest& request) const;
  [[nodiscard]] double rate_of(RequestId id, std::size_t proposer) const;

  const SimulationOptions& options_;
  const Luck& luck_;
  std::vector<SimRequest> requests_;      // by slot or by index
  std::vector<std::int64_t> generation_;  // [slots] requests they had
};

/// Counts tokens in blocks. A prompt's blocks are taken when it is admitted, the rest per step.
class TokenKv final : public KvHost {
 public:
  TokenKv(const SimulationOptions& options, RequestPool& pool);

  Admission admit(RequestId id, std::int32_t num_tokens, bool alone,
                  std::int32_t& num_computed) override;
  [[nodiscard]] std::int32_t expect_computed(RequestId id, std::int32_t num_tokens) const override;
  bool reserve(RequestId id, std::int32_t num_rows) override;
  void rollback(RequestId id) override;
  void release(RequestId id) override;
  [[nodiscard]] std::int32_t block_size() const override { return limited_ ? block_size_ : 0; }
  [[nodiscard]] std::int32_t free_blocks() const override { return free_; }

  /// `num_tokens` more are computed; what was reserved beyond is given back.
  void commit(SimRequest& request, std::int32_t num_tokens);

 private:
  [[nodiscard]] std::int32_t blocks_for(std::int64_t num_tokens) const noexcept;
  void resize(SimRequest& request, std::int32_t blocks) noexcept;

  RequestPool& pool_;
  bool limited_;
  bool warm_;  // contexts are there from the start
  std::int32_t block_size_;
  std::int32_t free_;
};

}  // namespace smartspec::sim
