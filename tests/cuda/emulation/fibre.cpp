// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "fibre.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef SMARTSPEC_EMULATION_UCONTEXT
// swapcontext() asks the kernel for the signal mask at every switch; a block switches often enough
// for that to be most of a test's time. System V calling convention: these registers are the
// callee's to keep.
extern "C" void smartspec_emulation_switch(void** save, void* load);
asm(R"(
  .text
  .p2align 4
  .globl smartspec_emulation_switch
  .hidden smartspec_emulation_switch
  .type smartspec_emulation_switch, @function
smartspec_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size smartspec_emulation_switch, . - smartspec_emulation_switch
)");
#endif

namespace smartspec::emulation {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStackBytes = 512 * 1024;  // instrumented frames are large

void begin_switch(void** fake, const void* stack, std::size_t bytes) {
  __sanitizer_start_switch_fiber(fake, stack, bytes);
}
void end_switch(void* fake, const void** from, std::size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake, from, bytes);
}
#else
constexpr std::size_t kStackBytes = 128 * 1024;

void begin_switch(void**, const void*, std::size_t) {}
void end_switch(void*, const void**, std::size_t*) {}
#endif
constexpr std::size_t kGuardBytes = 4096;

thread_local Fibre* entering = nullptr;

}  // namespace

Fibre::Fibre() {
  void* map = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  mprotect(map, kGuardBytes, PROT_NONE);
  stack_ = static_cast<std::byte*>(map) + kGuardBytes;
#ifdef SMARTSPEC_EMULATION_UCONTEXT
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = kStackBytes;
  makecontext(&own_, reinterpret_cast<void (*)()>(&Fibre::enter), 0);
#else
  // What the switch pops: six registers, then enter() as the return address. Above it a zero, the
  // return address of enter(), where unwinders stop; it lies 8 bytes off a multiple of 16, as after
  // a call.
  auto* top = reinterpret_cast<std::uintptr_t*>(stack_ + kStackBytes) - 3;
  top[0] = 0;
  top[-1] = reinterpret_cast<std::uintptr_t>(&Fibre::enter);
  for (int i = 2; i <= 7; ++i) top[-i] = 0;
  own_ = top - 7;
#endif
}

Fibre::~Fibre() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, kStackBytes);  // whoever is given these pages next
#endif
  munmap(stack_ - kGuardBytes, kGuardBytes + kStackBytes);
}

void Fibre::resume() {
  entering = this;
  begin_switch(&caller_fake_, stack_, kStackBytes);
#ifdef SMARTSPEC_EMULATION_UCONTEXT
  swapcontext(&caller_, &own_);
#else
  smartspec_emulation_switch(&caller_, own_);
#endif
  end_switch(caller_fake_, nullptr, nullptr);
}

void Fibre::park() {
  begin_switch(&own_fake_, caller_stack_, caller_stack_bytes_);
#ifdef SMARTSPEC_EMULATION_UCONTEXT
  swapcontext(&own_, &caller_);
#else
  smartspec_emulation_switch(&own_, caller_);
#endif
  end_switch(own_fake_, &caller_stack_, &caller_stack_bytes_);
}

void Fibre::enter() noexcept {
  Fibre* self = entering;
  end_switch(nullptr, &self->caller_stack_, &self->caller_stack_bytes_);
  self->loop();
  __builtin_unreachable();
}

// The stack is used again by returning from the job, not by starting over: returning is what takes
// AddressSanitizer's marks off the frames.
void Fibre::loop() noexcept {
  for (;;) {
    job_(argument_);
    park();
  }
}

}  // namespace smartspec::emulation
