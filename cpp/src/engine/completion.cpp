// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "engine/completion.hpp"

#include <tuple>
#include <utility>

namespace smartspec {

Completion::Completion(std::shared_ptr<const RequestInfo> request, std::int32_t completion_index,
                       Sampler request_sampler, std::int64_t arrival_number)
    : info(std::move(request)),
      index(completion_index),
      arrival(arrival_number),
      sampler(std::move(request_sampler)),
      tokens(info->prompt) {}

bool runs_before(const Completion& a, const Completion& b) noexcept {
  return std::tuple(a.info->priority, a.arrival, a.index) <
         std::tuple(b.info->priority, b.arrival, b.index);
}

}  // namespace smartspec
