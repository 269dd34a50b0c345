// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A stack that runs one job after another and can stop in the middle of one. Belongs to the OS
// thread that made it.
#pragma once

#include <cstddef>
#if !defined(__x86_64__) || defined(SMARTSPEC_EMULATION_UCONTEXT)
#define SMARTSPEC_EMULATION_UCONTEXT 1
#include <ucontext.h>
#endif

namespace smartspec::emulation {

class Fibre {
 public:
  using Job = void (*)(void*);  // must not throw

  Fibre();  // maps a stack with a guard page below it
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  /// The job that the next resume() begins. The job before must have returned.
  void assign(Job job, void* argument) noexcept {
    job_ = job;
    argument_ = argument;
  }
  /// Runs the fibre until it parks or its job returns.
  void resume();
  /// From within the job: back to the caller of resume().
  void park();

 private:
  [[noreturn]] static void enter() noexcept;
  void loop() noexcept;

  Job job_ = nullptr;
  void* argument_ = nullptr;
  std::byte* stack_ = nullptr;
#ifdef SMARTSPEC_EMULATION_UCONTEXT
  ucontext_t own_{};
  ucontext_t caller_{};
#else
  void* own_ = nullptr;
  void* caller_ = nullptr;
#endif
  // What AddressSanitizer wants to know about the stacks.
  void* own_fake_ = nullptr;
  void* caller_fake_ = nullptr;
  const void* caller_stack_ = nullptr;
  std::size_t caller_stack_bytes_ = 0;
};

}  // namespace smartspec::emulation
