// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa.hpp"

#include <cstdlib>
#include <string>

#include "smartspec/error.hpp"

namespace smartspec::cpu {
namespace {

std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables;
  const auto add = [&tables](const KernelTable* table) {
    if (table != nullptr) tables.push_back(table);
  };
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("fma");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) add(avx512_bf16_kernels());
  if (avx512) add(avx512_kernels());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(avx2_kernels());
#endif
  add(generic_kernels());
  return tables;
}

}  // namespace

std::vector<std::string_view> supported_isas() {
  std::vector<std::string_view> names;
  for (const KernelTable* table : supported_tables()) names.emplace_back(table->name);
  return names;
}

const KernelTable& select_kernels(std::string_view name) {
  const std::vector<const KernelTable*> tables = supported_tables();
  std::string source = "isa";
  if (name.empty()) {
    const char* forced = std::getenv("SMARTSPEC_ISA");
    if (forced == nullptr || *forced == '\0') return *tables.front();
    name = forced;
    source = "SMARTSPEC_ISA";
  }
  std::string allowed;
  for (const KernelTable* table : tables) {
    if (name == table->name) return *table;
    allowed += allowed.empty() ? "" : ", ";
    allowed += table->name;
  }
  throw DeviceError(source + ": \"" + std::string(name) + "\" is not one of " + allowed +
                    " (what this CPU supports)");
}

}  // namespace smartspec::cpu
