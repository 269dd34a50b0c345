// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Fragment layouts: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and
// "ldmatrix".
#include "matrix.hpp"

#include <cstring>

#include "block.hpp"
#include "numbers.hpp"

namespace smartspec::emulation {
namespace {

template <class Slot>
void load_slots(Slot (&out)[kLanes], const std::byte* slots) {
  static_assert(sizeof(Slot) <= kSlotBytes);
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    std::memcpy(&out[lane], slots + lane * kSlotBytes, sizeof(Slot));
  }
}
template <class Slot>
void store_slots(std::byte* slots, const Slot (&in)[kLanes]) {
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    std::memcpy(slots + lane * kSlotBytes, &in[lane], sizeof(Slot));
  }
}

template <bool kTransposed>
void distribute(std::byte* slots) {
  RowSlot lanes[kLanes];
  load_slots(lanes, slots);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const RowSlot* rows = lanes + matrix * 8;
      const std::uint32_t low = kTransposed ? rows[pair].row[group] : rows[group].row[pair];
      const std::uint32_t high =
          kTransposed ? rows[pair + 1].row[group] : rows[group].row[pair + 1];
      lanes[lane].fragment[matrix] = low | high << 16;
    }
  }
  store_slots(slots, lanes);
}

template <float (*kDecode)(std::uint16_t) noexcept>
void multiply(std::byte* slots) {
  MmaSlot lanes[kLanes];
  load_slots(lanes, slots);
  float a[16][16];  // [row, k]
  float b[16][8];   // [k, column]
  float acc[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][pair + i / 2 * 8 + half] =
            kDecode(static_cast<std::uint16_t>(lanes[lane].a[i] >> (16 * half)));
      }
      for (int i = 0; i < 2; ++i) {
        b[pair + i * 8 + half][group] =
            kDecode(static_cast<std::uint16_t>(lanes[lane].b[i] >> (16 * half)));
        acc[group + i * 8][pair + half] = lanes[lane].acc[2 * i + half];
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) acc[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      lanes[lane].acc[i] = acc[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  }
  store_slots(slots, lanes);
}

}  // namespace

void distribute_rows(std::byte* slots) { distribute<false>(slots); }
void distribute_rows_transposed(std::byte* slots) { distribute<true>(slots); }
void multiply_bf16(std::byte* slots) { multiply<bf16_to_float>(slots); }
void multiply_f16(std::byte* slots) { multiply<f16_to_float>(slots); }

}  // namespace smartspec::emulation
