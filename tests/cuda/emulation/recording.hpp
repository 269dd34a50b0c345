// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Graph capture: while a stream records, launches are kept instead of run.
#pragma once

#include <functional>

struct CUstream_st;

namespace smartspec::emulation {

[[nodiscard]] bool is_recording(const CUstream_st* stream) noexcept;
/// Only while the stream records. What `work` refers to by address is read when the graph runs.
void record(CUstream_st* stream, std::function<void()> work);

}  // namespace smartspec::emulation
