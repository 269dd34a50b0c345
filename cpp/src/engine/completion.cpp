// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "engine/completion.hpp"

#include <utility>

namespace smartspec {

Completion::Completion(std::shared_ptr<const RequestInfo> request, std::int32_t completion_index,
                       Sampler request_sampler)
    : info(std::move(request)),
      index(completion_index),
      sampler(std::move(request_sampler)),
      tokens(info->prompt) {}

}  // namespace smartspec
