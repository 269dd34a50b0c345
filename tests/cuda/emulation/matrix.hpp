// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the last lane does at a matrix rendezvous.
#pragma once

#include <cstddef>
#include <cstdint>

namespace smartspec::emulation {

struct RowSlot {  // load_matrix: brought one row, gets a fragment
  std::uint16_t row[8];
  std::uint32_t fragment[4];
};
struct MmaSlot {
  float acc[4];
  std::uint32_t a[4];
  std::uint32_t b[2];
};

void distribute_rows(std::byte* slots);
void distribute_rows_transposed(std::byte* slots);
/// Products are exact; sums are rounded to float after each k, ascending, starting with acc. The
/// device's order and rounding of the sums are not documented: results differ in the last bits.
void multiply_bf16(std::byte* slots);
void multiply_f16(std::byte* slots);

}  // namespace smartspec::emulation
