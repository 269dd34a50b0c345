// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A synthetic machine whose pass times are known, and loads as a server has them.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>

#include "smartspec/cost_model.hpp"

namespace smartspec::cost_test {

using Random = std::mt19937_64;

inline int uniform(Random& random, int low, int high) {
  return low + static_cast<int>(random() % static_cast<std::uint64_t>(high - low + 1));
}

inline double real(Random& random, double low, double high) {
  return std::uniform_real_distribution<>(low, high)(random);
}

inline double log_uniform(Random& random, double low, double high) {
  return std::exp(real(random, std::log(low), std::log(high)));
}

/// A machine that works in tiles of `width` rows.
struct Machine {
  double pass = 4e-3, tile = 0.7e-3, token = 20e-6, sequence = 15e-6, logit = 25e-6;
  double kv = 50e-9, pair = 30e-9;
  int width = 32;
  double slow = 1;

  static Machine random(Random& random) {
    Machine m;
    const double scale = log_uniform(random, 0.1, 10);
    for (double* term : {&m.pass, &m.tile, &m.token, &m.sequence, &m.logit, &m.kv, &m.pair}) {
      *term *= scale * log_uniform(random, 1.0 / 3, 3);
    }
    m.width = uniform(random, 0, 2) == 0 ? 16 : 32;
    return m;
  }
  [[nodiscard]] double seconds(const StepLoad& load) const {
    const double tokens = static_cast<double>(load.num_tokens) / load.num_passes;
    return slow * (load.num_passes * (pass + tile * std::ceil(tokens / width) + token * tokens) +
                   sequence * load.num_sequences + logit * load.num_logits +
                   kv * static_cast<double>(load.kv_tokens) +
                   pair * static_cast<double>(load.attention_pairs));
  }
  /// A roofline that is off by 2.5 in every term, and knows nothing of tiles.
  [[nodiscard]] CostCoefficients wrong_start(Random& random) const {
    const auto off = [&] { return uniform(random, 0, 1) == 0 ? 2.5 : 1 / 2.5; };
    const double a = off() * pass;
    const double b = off() * (tile / width + token);
    return {.tokens = {1, 512},
            .seconds = {a + b, a + 512 * b},
            .per_sequence = off() * sequence,
            .per_logit = off() * logit,
            .per_kv_token = off() * kv,
            .per_attention_pair = off() * pair};
  }
};

inline void add_request(StepLoad& load, int rows, int logits, int context) {
  ++load.num_sequences;
  load.num_tokens += rows;
  load.num_logits += logits;
  load.kv_tokens += context;
  load.attention_pairs += std::int64_t{rows} * context;
}

/// Batch 1..32, up to 7 draft tokens each, context 64..2k; now and then a prompt chunk.
inline StepLoad serving_load(Random& random) {
  StepLoad load;
  const int longest = uniform(random, 0, 7);
  for (int i = uniform(random, 1, 32); i > 0; --i) {
    const int rows = 1 + uniform(random, 0, longest);
    add_request(load, rows, rows, static_cast<int>(log_uniform(random, 64, 2048)));
  }
  if (uniform(random, 0, 9) < 3) {
    add_request(load, uniform(random, 16, 256), 1, uniform(random, 64, 1024));
  }
  return load;
}

}  // namespace smartspec::cost_test
